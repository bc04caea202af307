"""A header without hardware, and time that passes only when a test says so."""

import asyncio
import heapq
from collections.abc import Iterator

import pytest

from hardware.simulated import SimulatedPins


class VirtualTime:
    """`clock` and `sleep` for the parts; `advance` makes their time pass."""

    def __init__(self) -> None:
        self.now = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._slept = 0

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        waking: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._slept += 1
        heapq.heappush(self._sleepers, (self.now + seconds, self._slept, waking))
        await waking

    async def advance(self, seconds: float) -> None:
        end = self.now + seconds
        await self.settle()
        while self._sleepers and self._sleepers[0][0] <= end + 1e-9:
            self.now, _, waking = heapq.heappop(self._sleepers)
            if not waking.done():
                waking.set_result(None)
            await self.settle()
        self.now = end

    @staticmethod
    async def settle() -> None:
        """Let every task run until it waits again."""
        for _ in range(10):
            await asyncio.sleep(0)


@pytest.fixture
def virtual_time() -> VirtualTime:
    return VirtualTime()


@pytest.fixture
def pins() -> Iterator[SimulatedPins]:
    with SimulatedPins() as pins:
        yield pins
