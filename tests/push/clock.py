"""A clock that stands still until a test moves it, for the parts that are handed the time."""

import asyncio
from datetime import UTC, datetime, timedelta

from tests.conftest import PATIENCE_S

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Clock:
    """Tells the time as `now`, and lets sleepers wait for it as `sleep`."""

    def __init__(self, at: datetime = START) -> None:
        self._now = at
        self._sleepers: list[tuple[datetime, asyncio.Future[None]]] = []
        self._slept = asyncio.Event()
        self._most = 1

    def now(self) -> datetime:
        return self._now

    async def sleep(self, wait_s: float) -> None:
        """Returns once the clock has been moved this far."""
        sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._now + timedelta(seconds=wait_s), sleeper))
        self._wake()
        self._most = max(self._most, sum(not s.done() for _, s in self._sleepers))
        self._slept.set()
        await sleeper

    async def until_asleep(self, count: int = 1) -> None:
        """Waits until so many sleep. Who moves the clock before, moves it under one who has
        looked at it and is about to sleep, and would sleep too long."""
        async with asyncio.timeout(PATIENCE_S):
            while sum(not sleeper.done() for _, sleeper in self._sleepers) < count:
                self._slept.clear()
                await self._slept.wait()

    async def all_asleep(self) -> None:
        """Waits until all that have ever slept at once sleep again."""
        async with asyncio.timeout(PATIENCE_S):
            while sum(not sleeper.done() for _, sleeper in self._sleepers) < self._most:
                self._slept.clear()
                await self._slept.wait()

    def advance(self, seconds: float) -> None:
        self.advance_to(self._now + timedelta(seconds=seconds))

    def advance_to(self, moment: datetime) -> None:
        self._now = moment
        self._wake()

    def _wake(self) -> None:
        for due, sleeper in self._sleepers:
            if due <= self._now and not sleeper.done():
                sleeper.set_result(None)
        self._sleepers = [entry for entry in self._sleepers if not entry[1].done()]
