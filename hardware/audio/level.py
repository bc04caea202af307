"""How loud sound is, for meters and for the `volume` event."""

import math

import numpy as np

from bellwire.hardware.audio.block import Samples

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
        """Nothing is heard any more."""
        self._powers = [0.0] * self._KEPT


def _mean_square(samples: Samples) -> float:
    wide = samples.astype(np.float32)
    return float(wide @ wide) / max(1, len(samples)) / _FULL_SCALE**2


def _db(mean_square: float) -> float:
    return max(SILENT_DB, 10 * math.log10(mean_square or 1e-10))
