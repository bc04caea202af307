"""Sound that an application plays into a call, over what the microphone hears: a WAV file, or samples."""

import asyncio
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bellwire.hardware.audio.block import BLOCK_FRAMES, SAMPLE_RATE_HZ, Block, Samples, saturated
from bellwire.hardware.audio.tones import RATES_HZ, BadTone, read_wav
from bellwire.signaling.errors import InvalidInput

LONGEST_FILE_S = 300.0

_TAIL_BLOCKS = 20
"""Silence after it, while the last of it is still on its way: who hangs up then cuts nothing off."""

PlayedSound = str | Path | NDArray[np.int16]
"""A WAV file's path, or samples, mono."""


async def samples_of(sound: PlayedSound, rate_hz: int = SAMPLE_RATE_HZ) -> Samples:
    """A sound as calls carry it. `rate_hz` is that of samples; a file says its own.

    Raises:
        InvalidInput: it cannot be read, or is none; says what was expected.
    """
    if isinstance(sound, np.ndarray):
        return await asyncio.to_thread(_converted, sound, rate_hz)
    try:
        return await asyncio.to_thread(read_wav, Path(sound), longest_s=LONGEST_FILE_S)
    except BadTone as error:
        raise InvalidInput(str(error)) from error


def _converted(samples: Samples, rate_hz: int) -> Samples:
    if samples.dtype != np.int16 or samples.ndim != 1 or not samples.size:
        raise InvalidInput(
            f"samples of {samples.dtype} in the shape {samples.shape} cannot be played: give int16, mono, "
            "in the shape (n,)"
        )
    if rate_hz == SAMPLE_RATE_HZ:
        return samples
    if rate_hz not in RATES_HZ:
        raise InvalidInput(
            f"samples of {rate_hz} Hz cannot be played: give {RATES_HZ.start} to {RATES_HZ.stop - 1} Hz"
        )
    import soxr

    return saturated(soxr.resample(samples.astype(np.float32), rate_hz, SAMPLE_RATE_HZ))


class Playback:
    """One sound, block by block. Build it in a running loop.

    Args:
        samples: What is played.
    """

    def __init__(self, samples: Samples) -> None:
        blocks = -(-len(samples) // BLOCK_FRAMES)
        padded = np.zeros((blocks + _TAIL_BLOCKS) * BLOCK_FRAMES, np.int16)
        padded[: len(samples)] = samples
        self._blocks = iter(padded.reshape(-1, BLOCK_FRAMES))
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()

    def over(self, spoken: Block) -> Block:
        """The next 10 ms of it over these of the microphone. For one thread."""
        block = next(self._blocks, None)
        if block is None:
            self._loop.call_soon_threadsafe(self._ended.set)
            return spoken
        return saturated(spoken.astype(np.int32) + block)

    async def ended(self) -> None:
        """Waits until the last of it is heard."""
        await self._ended.wait()
