"""The one unit of sound inside a device: 10 ms of 48 kHz, mono, signed 16-bit;
and how loud it is."""

import math

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 48_000
BLOCK_FRAMES = 480
"""Frames of one block: 10 ms."""
BLOCK_S = BLOCK_FRAMES / SAMPLE_RATE_HZ

Block = NDArray[np.int16]
"""One block of sound, shape (BLOCK_FRAMES,)."""
Samples = NDArray[np.int16]
"""Sound of any length, mono at 48 kHz, shape (n,)."""

SILENCE: Block = np.zeros(BLOCK_FRAMES, np.int16)
SILENCE.flags.writeable = False


def saturated(samples: NDArray[np.floating] | NDArray[np.int32]) -> Samples:
    """Samples as 16 bits; what is louder than that is as loud as it goes."""
    return np.minimum(np.maximum(np.rint(samples), -32768), 32767).astype(np.int16)


SILENT_DB = -100.0
"""The lowest level there is."""
_LOUD_DB = -30.0
_FULL_SCALE = 32768.0


def level_db(samples: Samples) -> float:
    """The RMS level in dB relative to full scale (a constant at full scale is 0), at least -100."""
    return _db(_mean_square(samples))


def volume(db: float) -> float:
    """A level as 0.0 to 1.0 over -100 to -30 dB (Twilio.Call, event `volume`)."""
    return min(1.0, max(0.0, (db - SILENT_DB) / (_LOUD_DB - SILENT_DB)))


class Meter:
    """The level of the last 50 ms: the period of Twilio's `volume` event. One thread adds blocks,
    any may read `db`."""

    _KEPT = 5

    def __init__(self) -> None:
        self._powers = [0.0] * self._KEPT
        self._next = 0

    @property
    def db(self) -> float:
        """In dB relative to full scale, at least -100."""
        return _db(sum(self._powers) / self._KEPT)

    def add(self, samples: Samples) -> None:
        """Takes a block in."""
        self._powers[self._next] = _mean_square(samples)
        self._next = (self._next + 1) % self._KEPT

    def clear(self) -> None:
        """Reads as silence until the next block."""
        self._powers = [0.0] * self._KEPT


def _mean_square(samples: Samples) -> float:
    wide = samples.astype(np.float32)
    return float(wide @ wide) / max(1, len(samples)) / _FULL_SCALE**2


def _db(mean_square: float) -> float:
    return max(SILENT_DB, 10 * math.log10(mean_square or 1e-10))
