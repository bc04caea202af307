"""Ten minutes between a network and a sound card whose clocks differ, in virtual time: how often the
sound is torn, with the agent's compensation and with a plain queue."""

from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bellwire.agent.media.engine.interface import BLOCK_FRAMES, Block
from bench.lab.pulse_server import RATE_HZ

_TONE_HZ = 430
"""No whole number of periods in a block, so that a block that is lost shows."""

_LEVEL = 10_000
_TORN = 0.02
"""Of the level: what a sine may deviate from its own continuation. A lost or repeated sample of it
deviates by 5 %; a changed speed of 0.5 % by 0.003 %."""

_QUEUED = 6
_BEGINNING = 100
"""Blocks of which the first are silent: no tear."""


class PlayoutQueue(Protocol):
    """What stands between the network and the sound card, as both see it."""

    def play(self, block: Block) -> None:
        """The network's next block."""
        ...

    def pull(self) -> Block:
        """The sound card's next block."""
        ...


class PlainQueue:
    """The baseline: a queue of 60 ms. Empty, it gives silence until it is filled again; above twice
    that it loses the oldest."""

    def __init__(self) -> None:
        self._blocks: deque[Block] = deque(maxlen=2 * _QUEUED)
        self._is_playing = False

    def play(self, block: Block) -> None:
        """Takes a block."""
        self._blocks.append(block)

    def pull(self) -> Block:
        """The next block, or silence."""
        self._is_playing = len(self._blocks) >= (1 if self._is_playing else _QUEUED)
        return self._blocks.popleft() if self._is_playing else np.zeros(BLOCK_FRAMES, np.int16)


def count_tears(make_source: Callable[[], PlayoutQueue], ppm: float, seconds: float) -> int:
    """How often the sound is torn where the sound card is `ppm` faster than the network."""
    source = make_source()
    sent = 0
    played: list[Block] = []
    for tick in range(int(seconds * RATE_HZ / BLOCK_FRAMES)):
        # The card's tick is the unit of time: the network has sent a little less by then, or more.
        while sent < int((tick + 1) * (1 - ppm / 1e6)):
            source.play(_TONE[sent % len(_TONE)])
            sent += 1
        played.append(source.pull())
    return _tears(np.concatenate(played[_BEGINNING:]).astype(np.float32))


def _tears(played: NDArray[np.float32]) -> int:
    """A sine continues itself: x[n] = 2 cos(w) x[n-1] - x[n-2]. Silence does, too, and is torn."""
    step = np.float32(2 * np.cos(2 * np.pi * _TONE_HZ / RATE_HZ))
    deviation = np.abs(played[2:] - step * played[1:-1] + played[:-2])
    whole = len(deviation) // BLOCK_FRAMES * BLOCK_FRAMES
    by_block = deviation[:whole].reshape(-1, BLOCK_FRAMES).max(axis=1)
    loudest = np.abs(played[:whole]).reshape(-1, BLOCK_FRAMES).max(axis=1)
    is_torn = (by_block > _TORN * _LEVEL) | (loudest < _LEVEL / 2)
    # A silence of several blocks, and a tear on the edge of two, is one.
    return int(np.sum(is_torn & ~np.concatenate([[False], is_torn[:-1]])))


def _tone() -> NDArray[np.int16]:
    at = np.arange(RATE_HZ)
    tone: NDArray[np.int16] = np.round(_LEVEL * np.sin(2 * np.pi * _TONE_HZ * at / RATE_HZ)).astype(
        np.int16
    )
    return tone.reshape(-1, BLOCK_FRAMES)


_TONE = _tone()
"""A second of it, as blocks."""
