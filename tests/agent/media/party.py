"""One end of a call under test, and what is done with two of them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import numpy as np

from bellwire.agent.media.engine.interface import (
    BLOCK_FRAMES,
    Block,
    IceCandidate,
    PeerConnection,
    PeerListeners,
    PeerState,
)
from tests.conftest import PATIENCE_S
from tests.speech import Sound

_SILENCE = np.zeros(BLOCK_FRAMES, np.int16)


class Party:
    """A connection with what it told: its states, its candidates and the sound it heard."""

    def __init__(self, make: Callable[[PeerListeners], PeerConnection]) -> None:
        self.states: list[PeerState] = []
        self.blocks: list[Block] = []
        self.candidates: asyncio.Queue[IceCandidate] = asyncio.Queue()
        self._told = asyncio.Event()
        listeners = PeerListeners(self.candidates.put_nowait, self._follow, self.blocks.append)
        self.peer = make(listeners)

    @property
    def heard(self) -> Sound:
        """All of it, in one piece."""
        return np.concatenate([np.empty(0, np.int16), *self.blocks])

    async def reaches(self, state: PeerState, *, within_s: float = PATIENCE_S) -> None:
        async with asyncio.timeout(within_s):
            while state not in self.states:
                self._told.clear()
                await self._told.wait()

    def _follow(self, state: PeerState) -> None:
        self.states.append(state)
        self._told.set()


async def negotiate(caller: Party, callee: Party, *, ice_restart: bool = False) -> None:
    offer = await caller.peer.create_offer(ice_restart=ice_restart)
    await caller.peer.accept_answer(await callee.peer.accept_offer(offer))


@asynccontextmanager
async def trickling(one: Party, other: Party) -> AsyncIterator[None]:
    """Candidates of each go to the other meanwhile."""

    async def trickle(source: Party, target: Party) -> None:
        while True:
            await target.peer.add_candidate(await source.candidates.get())

    tasks = [asyncio.create_task(trickle(*way)) for way in ((one, other), (other, one))]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def call(caller: Party, callee: Party) -> AsyncIterator[None]:
    """The two in a call, until it is left."""
    try:
        async with trickling(caller, callee):
            await negotiate(caller, callee)
            await asyncio.gather(*(p.reaches(PeerState.CONNECTED) for p in (caller, callee)))
            yield
    finally:
        await caller.peer.close()
        await callee.peer.close()


async def talk(sounds: Mapping[Party, Sound], *, more_s: float = 0.5) -> None:
    """Each party says its sound at the pace of the wall clock, and is then silent for `more_s`."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    longest = max(sound.size for sound in sounds.values()) + int(more_s * 48_000)
    for number, start in enumerate(range(0, longest, BLOCK_FRAMES)):
        for party, sound in sounds.items():
            block = sound[start : start + BLOCK_FRAMES]
            party.peer.send(block if block.size == BLOCK_FRAMES else _SILENCE)
        await asyncio.sleep(began + (number + 1) / 100 - loop.time())
