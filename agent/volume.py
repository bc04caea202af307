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
_BLACKMAN = 0.42 - 0.5 * np.cos(_TURNS) + 0.08 * np.cos(2 * _TURNS)
_CYCLES = np.outer(np.arange(_FRAME), np.arange(_BANDS)) / _FRAME
_TRANSFORM = (
    np.concatenate((np.cos(2 * np.pi * _CYCLES), np.sin(2 * np.pi * _CYCLES)), axis=1)
    * (_BLACKMAN / (_FRAME * 32768))[:, None]
).astype(np.float32)
"""The window and the Fourier transform at once, shape (32, 2 * 16): real parts, then imaginary ones.
For frames this short a product of matrices takes a fifth of the time of an FFT."""
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
    frames = samples[: len(samples) // _FRAME * _FRAME].reshape(-1, _FRAME).astype(np.float32)
    parts = frames @ _TRANSFORM
    squares = np.einsum("fb,fb->b", parts, parts) / len(frames)
    power = squares[:_BANDS] + squares[_BANDS:]
    levels_db: list[float] = (10 * np.log10(power + _POWER_OF_SILENCE)).tolist()
    return sum(map(volume_of_level, levels_db)) / _BANDS
