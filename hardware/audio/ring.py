"""Hands samples from one thread to one other without a lock."""

import numpy as np
from numpy.typing import NDArray

from bellwire.hardware.audio.block import Samples


class SampleRing:
    """A bounded first-in first-out of samples for one writer and one reader.

    Each side moves only its own counter, and only after the samples are copied: neither ever waits
    for the other, nor sees what is half written.

    Args:
        capacity: How many samples it holds.
    """

    def __init__(self, capacity: int) -> None:
        self._kept = np.zeros(capacity, np.int16)
        self._written = 0
        self._read = 0

    def __len__(self) -> int:
        return self._written - self._read

    def write(self, samples: Samples) -> bool:
        """Appends samples. False: there was no room, and none were taken. The writer's."""
        count, capacity = len(samples), len(self._kept)
        if count > capacity - len(self):
            return False
        at = self._written % capacity
        first = min(count, capacity - at)
        self._kept[at : at + first] = samples[:first]
        self._kept[: count - first] = samples[first:]
        self._written += count
        return True

    def fade_last(self, gains: NDArray[np.float32]) -> None:
        """Makes the last samples written quieter, each by its gain, 0 to 1. The writer's: what the
        reader has already copied stays as it was."""
        count, capacity = min(len(gains), self._written), len(self._kept)
        at = np.arange(self._written - count, self._written) % capacity
        self._kept[at] = (self._kept[at] * gains[len(gains) - count :]).astype(np.int16)

    def peek(self, count: int) -> Samples:
        """A copy of the oldest `count` samples, which must be there. The reader's."""
        capacity = len(self._kept)
        at = self._read % capacity
        first = min(count, capacity - at)
        return np.concatenate((self._kept[at : at + first], self._kept[: count - first]))

    def skip(self, count: int) -> None:
        """Drops the oldest `count` samples, which must be there. The reader's."""
        self._read += count
