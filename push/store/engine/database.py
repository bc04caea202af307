"""The database as the relay sees it: work on a connection, committed when it returns. It is the one that
the relay's settings name, else SQLite in its data directory.
"""

from pathlib import Path
from typing import Protocol, TypeVar

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from bellwire.push.store.engine.postgres import PostgresDatabase
from bellwire.push.store.engine.sqlite import SqliteDatabase
from bellwire.push.store.engine.unit_of_work import CallWork, Work
from bellwire.signaling.errors import InvalidInput

T = TypeVar("T")


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


def open_database(url: str | None, data: Path) -> Database:
    """Opens a database and brings it to this version's tables. It blocks.

    Raises:
        InvalidInput: the URL is none, or of a database that the relay does not speak.
        Unavailable: the database cannot be reached.
    """
    if url is None:
        return SqliteDatabase(data / "relay.db")
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise InvalidInput(
            "--database: must be a URL such as postgresql://bellwire@localhost/bellwire"
        ) from error
    match parsed.get_backend_name():
        case "postgresql":
            return PostgresDatabase(parsed)
        case "sqlite" if parsed.database:
            return SqliteDatabase(Path(parsed.database))
        case other:
            raise InvalidInput(
                f"--database: {other} is not served; use postgresql:// or sqlite:///"
            )
