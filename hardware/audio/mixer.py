"""What is heard from the speaker: the sum of all who speak and all that sounds."""

import threading
from typing import Protocol

import numpy as np

from bellwire.hardware.audio.block import BLOCK_FRAMES, SILENCE, Block, saturated


class Source(Protocol):
    """Something that is heard."""

    volume: float

    def pull(self) -> Block:
        """The next 10 ms. Must neither block nor fail."""
        ...


class Mixer:
    """Sums sources, each with its volume; what is too loud saturates.

    Sources come and go on any thread. The sound card's thread only pulls, and takes no lock: it
    reads a tuple that is replaced, never changed.
    """

    def __init__(self) -> None:
        self.volume = 1.0
        self._sources: tuple[Source, ...] = ()
        self._changing = threading.Lock()

    @property
    def is_silent(self) -> bool:
        """Whether there is no source at all."""
        return not self._sources

    def add(self, source: Source) -> None:
        """Has it heard from now on."""
        with self._changing:
            self._sources = (*self._sources, source)

    def remove(self, source: Source) -> None:
        """Has it no longer heard. It may be gone already."""
        with self._changing:
            self._sources = tuple(other for other in self._sources if other is not source)

    def pull(self) -> Block:
        """The next 10 ms of all sources."""
        sources = self._sources
        if not sources:
            return SILENCE
        if len(sources) == 1 and sources[0].volume * self.volume == 1:
            return sources[0].pull()
        total = np.zeros(BLOCK_FRAMES, np.float32)
        for source in sources:
            total += source.pull() * np.float32(source.volume * self.volume)
        return saturated(total)
