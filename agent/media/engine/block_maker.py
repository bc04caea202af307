"""Turns decoded sound into blocks of 10 ms, mono, 48 kHz.

PCMU is decoded at 8 kHz. soxr, which the sound card's side uses, hands out upsampled sound in lumps of
40 ms, which would have to be waited for; this filter delays by 1 ms (at 8 kHz) and gives at once.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bellwire.agent.media.engine.engine import BLOCK_FRAMES, SAMPLE_RATE_HZ, Block

Samples = NDArray[np.int16]

_TAPS_PER_PHASE = 16


class BlockMaker:
    """One stream's. The rate may change on the way: before the first packet it is not the codec's."""

    def __init__(self) -> None:
        self._rate_hz = SAMPLE_RATE_HZ
        self._upsampler: _Upsampler | None = None
        self._rest: Samples = np.empty(0, np.int16)

    def blocks(self, samples: Samples, rate_hz: int, channels: int) -> Iterator[Block]:
        """The blocks that these samples (interleaved, shape (frames * channels,)) fill.

        Raises:
            ValueError: 48 kHz is no multiple of the rate. None of our codecs has such a one.
        """
        mono = samples
        if channels > 1:
            mono = samples.reshape(-1, channels).mean(axis=1).astype(np.int16)
        if rate_hz != self._rate_hz:
            self._rate_hz = rate_hz
            self._upsampler = None if rate_hz == SAMPLE_RATE_HZ else _Upsampler(rate_hz)
        if self._upsampler is not None:
            mono = self._upsampler.upsample(mono)
        if self._rest.size:
            mono = np.concatenate((self._rest, mono))
        full = mono.size - mono.size % BLOCK_FRAMES
        self._rest = mono[full:]
        for start in range(0, full, BLOCK_FRAMES):
            yield mono[start : start + BLOCK_FRAMES]


class _Upsampler:
    """A windowed-sinc interpolator to 48 kHz, in polyphase form."""

    def __init__(self, rate_hz: int) -> None:
        factor, remainder = divmod(SAMPLE_RATE_HZ, rate_hz)
        if remainder:
            raise ValueError(f"sound comes at {rate_hz} Hz, expected 48 kHz or a part of it")
        length = factor * _TAPS_PER_PHASE
        at = np.arange(length) - (length - 1) / 2
        prototype = np.sinc(at / factor) * np.kaiser(length, 6.0)
        # Row k makes the k-th of the `factor` samples that follow each sample that came.
        phases = prototype.reshape(_TAPS_PER_PHASE, factor).T
        self._phases: NDArray[np.float64] = phases / phases.sum(axis=1, keepdims=True)
        self._past: NDArray[np.float64] = np.zeros(_TAPS_PER_PHASE - 1)

    def upsample(self, samples: Samples) -> Samples:
        """`factor` samples for each."""
        known: NDArray[np.float64] = np.concatenate((self._past, samples.astype(np.float64)))
        self._past = known[known.size - (_TAPS_PER_PHASE - 1) :]
        windows = np.lib.stride_tricks.sliding_window_view(known, _TAPS_PER_PHASE)
        made: NDArray[np.float64] = windows[:, ::-1] @ self._phases.T
        return np.clip(np.rint(made), -32768, 32767).reshape(-1).astype(np.int16)
