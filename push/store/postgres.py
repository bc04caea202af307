"""PostgreSQL, which several relays may share: each piece of work is a transaction on one of a few
connections, in a thread of its own; what collides with another's is tried again."""

import asyncio
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError

from push.store.database import Work
from push.store.migrate import migrate
from signaling.errors import Unavailable

T = TypeVar("T")

_CONNECTIONS = 8
_ATTEMPTS = 6
_COLLISIONS = ("40001", "40P01")
"""Serialization failure and deadlock (PostgreSQL, appendix A)."""


class PostgresDatabase:
    """See `push.store.database.Database`.

    Raises:
        Unavailable: the server cannot be reached, or does not let the relay in.
    """

    shared = True

    def __init__(self, url: URL) -> None:
        self._engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            pool_size=_CONNECTIONS,
            max_overflow=0,
            pool_pre_ping=True,
            connect_args={"connect_timeout": 5, "application_name": "bellwire-relay"},
        )
        self._reading = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self._threads = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="postgres")
        self._closed = False
        try:
            migrate(self._engine)
        except (OperationalError, InterfaceError) as error:
            raise Unavailable(f"the database cannot be used: {_reason(error)}") from error

    async def write(self, work: Work[T]) -> T:
        """See `Database.write`.

        Raises:
            Unavailable: the server is away, or the database has been closed.
        """
        return await self._run(self._engine, work)

    async def read(self, work: Work[T]) -> T:
        """See `Database.read`.

        Raises:
            Unavailable: as `write`.
        """
        return await self._run(self._reading, work)

    async def close(self) -> None:
        """See `Database.close`."""
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self._threads.shutdown)
        self._engine.dispose()

    async def _run(self, engine: Engine, work: Work[T]) -> T:
        if self._closed:
            raise Unavailable("the relay is stopping")
        loop = asyncio.get_running_loop()
        return await asyncio.shield(loop.run_in_executor(self._threads, _attempt, engine, work))


def _attempt(engine: Engine, work: Work[T]) -> T:
    for left in reversed(range(_ATTEMPTS)):
        try:
            with engine.begin() as connection:
                return work(connection)
        except DBAPIError as error:
            if not (left and _collided(error)):
                if isinstance(error, OperationalError | InterfaceError):
                    raise Unavailable(f"the database is away: {_reason(error)}") from error
                raise
        time.sleep(random.uniform(0, 0.01 * 2 ** (_ATTEMPTS - left)))  # noqa: S311 - jitter, no secret
    raise AssertionError("unreachable")


def _collided(error: DBAPIError) -> bool:
    """Whether another transaction was in the way, such as one that used the same Idempotency-Key."""
    return isinstance(error, IntegrityError) or getattr(error.orig, "sqlstate", "") in _COLLISIONS


def _reason(error: DBAPIError) -> str:
    lines = str(error.orig).strip().splitlines()
    return lines[0] if lines else type(error.orig).__name__
