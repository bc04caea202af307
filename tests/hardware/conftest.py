"""A header without hardware, and time that passes only when a test says so."""

import asyncio
import heapq
import threading
from collections.abc import Iterator

import pytest

from bellwire.hardware.panel.simulated_pins import SimulatedPins


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


class ThreadTime:
    """`clock` and `wait` for one thread that waits for a condition; `advance` makes their time pass, and
    returns when the thread has done all that was due by then."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: float | None = None
        self._waits = 0
        self._condition: threading.Condition | None = None
        self._waiting = threading.Condition()

    def clock(self) -> float:
        return self.now

    def wait(self, condition: threading.Condition, timeout_s: float | None) -> None:
        with self._waiting:
            self._condition, self._waits = condition, self._waits + 1
            self._due = None if timeout_s is None else self.now + timeout_s
            self._waiting.notify_all()
        condition.wait()

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self._look() and self._due is not None and self._due <= end + 1e-9:
            self.now = self._due
        self.now = end

    def _look(self) -> bool:
        """Has the thread look at the time, and waits until it waits again."""
        with self._waiting:
            assert self._waiting.wait_for(lambda: self._condition is not None, 10)
            assert self._condition is not None
        with self._condition:
            seen = self._waits
            self._condition.notify_all()
        with self._waiting:
            return self._waiting.wait_for(lambda: self._waits > seen, 10)


@pytest.fixture
def thread_time() -> ThreadTime:
    return ThreadTime()


@pytest.fixture
def virtual_time() -> VirtualTime:
    return VirtualTime()


@pytest.fixture
def pins() -> Iterator[SimulatedPins]:
    with SimulatedPins() as pins:
        yield pins
