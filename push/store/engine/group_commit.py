"""Group commit: each commit costs one wait for the disk, so what arrives during one wait is committed
together by the next."""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

W = TypeVar("W")

_GROUP_LIMIT = 256


@dataclass(frozen=True, slots=True)
class _Item(Generic[W]):
    """A piece of work, the promise of its result, and the loop that waits for it."""

    work: W
    done: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)


class GroupCommit(Generic[W]):
    """A thread that commits what waits, in groups. It begins with the first piece of work.

    Args:
        commit: Commits a group, and gives for each of its pieces of work its result, or the exception
            that is to be raised to who asked. It must not raise.
        name: The thread's.
    """

    def __init__(self, commit: Callable[[list[W]], list[Any]], name: str) -> None:
        self._commit = commit
        self._accepted: queue.SimpleQueue[_Item[W] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name)

    def accept(self, work: W) -> asyncio.Future[Any]:
        """The result of work that is about to be committed. Who waits no longer does not undo it."""
        if self._thread.ident is None:
            self._thread.start()
        done = asyncio.get_running_loop().create_future()
        self._accepted.put(_Item(work, done))
        return done

    def close(self) -> None:
        """Finishes what was accepted. Nothing may be asked for any more."""
        if self._thread.ident is not None:
            self._accepted.put(None)
            self._thread.join()

    def _run(self) -> None:
        last = False
        while not last and (first := self._accepted.get()) is not None:
            group, last = self._group(first)
            _tell(group, self._commit([item.work for item in group]))

    def _group(self, first: _Item[W]) -> tuple[list[_Item[W]], bool]:
        """The work that waits, and whether the end was among it."""
        group = [first]
        while len(group) < _GROUP_LIMIT:
            try:
                item = self._accepted.get_nowait()
            except queue.Empty:
                return group, False
            if item is None:
                return group, True
            group.append(item)
        return group, False


def _tell(group: list[_Item[W]], results: list[Any]) -> None:
    """Tells those who wait, each loop at once for a group: waking a loop costs more than that."""
    for loop in {item.loop for item in group}:
        told = [
            (item.done, result)
            for item, result in zip(group, results, strict=True)
            if item.loop is loop
        ]
        with suppress(RuntimeError):  # The loop has ended: nobody waits on it any more.
            loop.call_soon_threadsafe(_set_results, told)


def _set_results(results: Iterable[tuple[asyncio.Future[Any], Any]]) -> None:
    for done, result in results:
        if done.done():
            continue
        if isinstance(result, Exception):
            done.set_exception(result)
        else:
            done.set_result(result)
