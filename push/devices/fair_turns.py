"""Work of many, done in turns: whoever brings much waits for themselves alone."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Work = TypeVar("Work")


class FairTurns(Generic[Work]):
    """Does work, some of it at once. Of one bringer some may be under way and some may wait, of all
    together too; who has nothing waiting may always bring one more. `run` must be running.

    Args:
        do: Does one piece; raises nothing.
        at_once: How many pieces are under way at most.
        of_one: How many of one bringer.
        waiting_of_one: How many of one bringer's wait besides.
        waiting_in_all: How many of all, unless they are the only one of their bringer.
    """

    def __init__(
        self,
        do: Callable[[Work], Awaitable[None]],
        *,
        at_once: int,
        of_one: int,
        waiting_of_one: int,
        waiting_in_all: int,
    ) -> None:
        self._do = do
        self._room = at_once
        self._of_one = of_one
        self._waiting_of_one = waiting_of_one
        self._waiting_in_all = waiting_in_all
        self._under_way: dict[str, int] = {}
        self._waiting: dict[str, deque[Work]] = {}
        self._waiting_count = 0
        self._turns: dict[str, None] = {}
        """Whose turn it is next, in order: those that have work waiting and may have more under way."""
        self._tasks: asyncio.TaskGroup | None = None

    def __len__(self) -> int:
        """How many pieces wait."""
        return self._waiting_count

    async def run(self) -> None:
        """Does what is brought until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                await asyncio.Event().wait()
            finally:
                self._tasks = None

    def bring(self, bringer: str, work: Work) -> bool:
        """Takes a piece of work; False where too much of it waits already, or nothing runs."""
        if self._tasks is None:
            return False
        waiting = self._waiting.get(bringer)
        if waiting is None:
            if self._room and self._under_way.get(bringer, 0) < self._of_one:
                self._begin(self._tasks, bringer, work)
                return True
            self._waiting[bringer] = waiting = deque()
        elif len(waiting) >= self._waiting_of_one or self._waiting_count >= self._waiting_in_all:
            return False
        waiting.append(work)
        self._waiting_count += 1
        self._queue_up(bringer)
        return True

    def _begin(self, tasks: asyncio.TaskGroup, bringer: str, work: Work) -> None:
        self._room -= 1
        self._under_way[bringer] = self._under_way.get(bringer, 0) + 1
        tasks.create_task(self._finish(bringer, work))

    async def _finish(self, bringer: str, work: Work) -> None:
        try:
            await self._do(work)
        finally:
            self._room += 1
            self._under_way[bringer] -= 1
            if not self._under_way[bringer]:
                del self._under_way[bringer]
            self._queue_up(bringer)
            self._take_turns()

    def _queue_up(self, bringer: str) -> None:
        if bringer in self._waiting and self._under_way.get(bringer, 0) < self._of_one:
            self._turns.setdefault(bringer)

    def _take_turns(self) -> None:
        while self._tasks is not None and self._room and self._turns:
            bringer = next(iter(self._turns))
            del self._turns[bringer]
            waiting = self._waiting[bringer]
            work = waiting.popleft()
            self._waiting_count -= 1
            if not waiting:
                del self._waiting[bringer]
            self._begin(self._tasks, bringer, work)
            self._queue_up(bringer)
