"""The one unit of sound inside a device: 10 ms of 48 kHz, mono, signed 16-bit."""

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
