"""The work of one call: some of it ends with the call, some has to be finished after it."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

Work = Coroutine[Any, Any, None]
Spawn = Callable[[Work], "asyncio.Task[None] | None"]
"""Starts work that the device owns; None where the device is at rest and the work was dropped."""


class CallTasks:
    """The tasks of one call, all of them owned by the device's TaskGroup."""

    def __init__(self, spawn: Spawn) -> None:
        self._spawn = spawn
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Work) -> "asyncio.Task[None] | None":
        """Does something that ends with the call."""
        task = self._spawn(work)
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return task

    def outlive(self, work: Work) -> None:
        """Does something that has to be finished whatever becomes of the call."""
        self._spawn(work)

    def cancel(self) -> None:
        """Ends what ends with the call; but not the one who says so."""
        asking = asyncio.current_task()
        for task in tuple(self._tasks):
            if task is not asking:
                task.cancel()
        self._tasks.clear()
