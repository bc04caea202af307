"""How loud a sound is, 0.0 to 1.0 over -100 to -30 dB (spec §4, seed 003 "volume").

Measured as Twilio's client does (W3C Web Audio, AnalyserNode with fftSize 32): the mean over 16 bands of
each band's level, so that speech stays clear of the upper end, which its power alone would pass.
"""

import numpy as np
from numpy.typing import NDArray

QUIETEST_DB = -100.0
LOUDEST_DB = -30.0

_FRAME = 32
_BANDS = _FRAME // 2
_TURNS = 2 * np.pi * np.arange(_FRAME) / _FRAME
_BLACKMAN = (0.42 - 0.5 * np.cos(_TURNS) + 0.08 * np.cos(2 * _TURNS)).astype(np.float32)
_SCALE = _BLACKMAN / np.float32(_FRAME * 32768)
_POWER_OF_SILENCE = 1e-12


def volume_of_level(db: float) -> float:
    """Where a level in dB stands between -100 dB (0.0) and -30 dB (1.0); beyond them it stays there."""
    return min(1.0, max(0.0, (db - QUIETEST_DB) / (LOUDEST_DB - QUIETEST_DB)))


def volume_of(samples: NDArray[np.int16]) -> float:
    """The volume of a stretch of sound, 0.0 to 1.0.

    Args:
        samples: int16, one dimension, at least 32 long; five blocks make Twilio's 50 ms. What is left
            over of a multiple of 32 is not measured.

    Raises:
        ValueError: it is shorter, or has another shape.
    """
    if samples.ndim != 1 or len(samples) < _FRAME:
        raise ValueError(f"a volume needs {_FRAME} samples or more, not shape {samples.shape}")
    frames = samples[: len(samples) // _FRAME * _FRAME].reshape(-1, _FRAME) * _SCALE
    power = (np.abs(np.fft.rfft(frames)[:, :_BANDS]) ** 2).mean(axis=0)
    levels_db: list[float] = (10 * np.log10(power + _POWER_OF_SILENCE)).tolist()
    return sum(map(volume_of_level, levels_db)) / _BANDS
