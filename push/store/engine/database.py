"""The database as the relay sees it: work on a connection, committed when it returns."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from sqlalchemy import Connection

from bellwire.push.store.engine.unit_of_work import CallWork

T = TypeVar("T")
Work = Callable[[Connection], T]


class Database(Protocol):
    """Runs synchronous pieces of work off the event loop, each in a transaction of its own.

    A piece of work that raises leaves nothing behind. What `write` has returned is durable.
    """

    @property
    def shared(self) -> bool:
        """Whether other relays may be using it at the same time."""
        ...

    async def write(self, work: Work[T]) -> T:
        """Runs work that may change rows, alone; returns once its changes are on disk."""
        ...

    async def write_calls(self, work: CallWork[T]) -> T:
        """As `write`, for a command on calls: those that wait are carried out together."""
        ...

    async def read(self, work: Work[T]) -> T:
        """Runs work that only reads; it sees every write that has returned."""
        ...

    async def close(self) -> None:
        """Finishes the work that was accepted, then closes."""
        ...
