"""Between 48 kHz mono blocks and what a sound card can do: another rate, two channels, any count of
frames. soxr converts the rate, and is imported only where that is needed."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from bellwire.hardware.audio.block import BLOCK_FRAMES, SAMPLE_RATE_HZ, Block, Samples

if TYPE_CHECKING:
    import soxr

_EMPTY: Samples = np.zeros(0, np.int16)


class CaptureConverter:
    """Makes blocks of what a microphone gives.

    Args:
        rate_hz: The device's rate.
        channels: How many it gives, interleaved; they are averaged.
    """

    def __init__(self, rate_hz: int, channels: int) -> None:
        self._channels = channels
        self._resampler = _resampler(rate_hz, SAMPLE_RATE_HZ)
        self._left = _EMPTY

    def blocks(self, captured: bytes) -> list[Block]:
        """The blocks that are complete with these bytes."""
        samples = np.frombuffer(captured, np.int16)
        if self._channels > 1:
            samples = samples.reshape(-1, self._channels).mean(axis=1).astype(np.int16)
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples)
        if len(self._left):
            samples = np.concatenate((self._left, samples))
        complete = len(samples) - len(samples) % BLOCK_FRAMES
        self._left = samples[complete:]
        return [samples[at : at + BLOCK_FRAMES] for at in range(0, complete, BLOCK_FRAMES)]


class PlaybackConverter:
    """Makes what a speaker takes of blocks.

    Args:
        rate_hz: The device's rate.
        channels: How many it takes, interleaved; each gets the same.
        pull: Gives the next block.
    """

    def __init__(self, rate_hz: int, channels: int, pull: Callable[[], Block]) -> None:
        self._channels = channels
        self._pull = pull
        self._resampler = _resampler(SAMPLE_RATE_HZ, rate_hz)
        self._left = _EMPTY

    def frames(self, count: int) -> bytes:
        """The next `count` frames, at the device's rate."""
        parts, there = [self._left], len(self._left)
        while there < count:
            block = self._pull()
            part = block if self._resampler is None else self._resampler.resample_chunk(block)
            parts.append(part)
            there += len(part)
        samples = np.concatenate(parts)
        self._left = samples[count:]
        played = samples[:count]
        return (np.repeat(played, self._channels) if self._channels > 1 else played).tobytes()


def _resampler(from_hz: int, to_hz: int) -> "soxr.ResampleStream | None":
    if from_hz == to_hz:
        return None
    import soxr

    return soxr.ResampleStream(from_hz, to_hz, 1, dtype="int16", quality="MQ")
