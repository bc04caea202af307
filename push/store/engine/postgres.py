"""PostgreSQL, which several relays may share. Commands on calls are committed in groups; each other
piece of work is a transaction on one of a few connections, in a thread of its own. What collides with
another's is tried again. So is what meets a server that is none to write to any more, since another has
taken its place: on a new connection, which goes to that one of several hosts that takes writes."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar, cast

from sqlalchemy import URL, Connection, Engine, create_engine
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError

from bellwire.config.waiting import backoff_s
from bellwire.push.store.engine.group_commit import GroupCommit
from bellwire.push.store.engine.unit_of_work import CallWork, Work, carry_out_together
from bellwire.push.store.tables import migrate
from bellwire.signaling.errors import Unavailable

T = TypeVar("T")

_WRITERS = 8
_READERS = 4
_ATTEMPTS = 12
"""At worst one gets through at a time of all that collide: more, then, than there are writers."""
_LONGEST_PAUSE_S = 0.64
_MOVES_WITHIN_S = 5.0
"""How long work that has lost its server waits for another to take the place."""
_COLLISIONS = ("40001", "40P01")
"""Serialization failure and deadlock (PostgreSQL, appendix A)."""
_READ_ONLY = "25006"
"""A write in a transaction that may only read: the server has become a standby."""
_CONNECTING = {
    "connect_timeout": 5,
    "application_name": "bellwire-relay",
    # Of several hosts the one that takes writes; of one that takes none it is said at once.
    "target_session_attrs": "read-write",
    # A host that has vanished breaks no connection: what is sent to it would wait for a quarter of an hour.
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}
"""Parameters of libpq that the URL may set otherwise."""


class PostgresDatabase:
    """See `push.store.engine.database.Database`.

    Raises:
        Unavailable: the server cannot be reached, or does not let the relay in.
    """

    shared = True

    def __init__(self, url: URL) -> None:
        self._engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            pool_size=1 + _WRITERS + _READERS,
            max_overflow=0,
            connect_args={k: v for k, v in _CONNECTING.items() if k not in url.query},
        )
        primary = _Primary()
        self._writers = _Workers(self._engine, primary, _WRITERS, "postgres-writer")
        self._readers = _Workers(
            self._engine.execution_options(isolation_level="AUTOCOMMIT"),
            primary,
            _READERS,
            "postgres-reader",
        )
        self._closed = False
        try:
            _migrate(self._engine)
        except (OperationalError, InterfaceError) as error:
            raise Unavailable(f"the database cannot be used: {_reason(error)}") from error
        self._calls: GroupCommit[CallWork[Any]] = GroupCommit(self._commit, "postgres-calls")

    async def write(self, work: Work[T]) -> T:
        """See `Database.write`.

        Raises:
            Unavailable: the server is away, or the database has been closed.
        """
        return await self._run(self._writers, work)

    async def write_calls(self, work: CallWork[T]) -> T:
        """See `Database.write_calls`.

        Raises:
            Unavailable: as `write`.
        """
        self._refuse_if_closed()
        return cast("T", await self._calls.accept(work))

    async def read(self, work: Work[T]) -> T:
        """See `Database.read`.

        Raises:
            Unavailable: as `write`.
        """
        return await self._run(self._readers, work)

    async def close(self) -> None:
        """See `Database.close`."""
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self._calls.close)
        await asyncio.to_thread(self._writers.close)
        await asyncio.to_thread(self._readers.close)
        self._engine.dispose()

    async def _run(self, workers: "_Workers", work: Work[T]) -> T:
        self._refuse_if_closed()
        return await asyncio.shield(workers.run(work))

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise Unavailable("the relay is stopping")

    def _commit(self, group: list[CallWork[Any]]) -> list[Any]:
        """Commits commands on calls together; those that fail together are tried one by one."""
        try:
            return self._writers.do(partial(carry_out_together, works=group))
        except Exception as error:  # noqa: BLE001 - it is the asker's, and is raised there
            if len(group) == 1 or isinstance(error, Unavailable):
                for work in group:
                    work.undo()
                return [error] * len(group)
            return [result for work in group for result in self._commit([work])]


class _Workers:
    """Threads that each keep a connection, so that none has to be fetched and tried for each piece
    of work; one that turns out to be broken is opened again, and the work is begun again."""

    def __init__(self, engine: Engine, primary: "_Primary", count: int, name: str) -> None:
        self._engine = engine
        self._primary = primary
        self._threads = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._own = threading.local()
        self._all: list[Connection] = []

    def run(self, work: Work[T]) -> asyncio.Future[T]:
        """The result of work that a thread is about to do."""
        return asyncio.get_running_loop().run_in_executor(self._threads, self.do, work)

    def close(self) -> None:
        """Finishes what was accepted, then closes."""
        self._threads.shutdown()
        for connection in self._all:
            connection.close()

    def _connection(self) -> Connection:
        connection: Connection | None = getattr(self._own, "connection", None)
        if connection is None:
            self._own.primary = self._primary.number
            connection = self._own.connection = self._engine.connect()
            self._all.append(connection)
        elif self._own.primary != self._primary.number:
            self._own.primary = self._primary.number
            connection.invalidate()
        return connection

    def do(self, work: Work[T]) -> T:
        """Does work in this thread."""
        attempt, moving_until_s = 0, None
        while True:
            worked = False
            try:
                connection = self._connection()
                with connection.begin():
                    result = work(connection)
                    worked = True
                return result
            except DBAPIError as error:
                read_only = _sqlstate(error) == _READ_ONLY
                if read_only:
                    self._primary.moved()
                # Of a connection that breaks while it commits, nobody knows whether it has.
                if read_only or (error.connection_invalidated and not worked):
                    moving_until_s = moving_until_s or time.monotonic() + _MOVES_WITHIN_S
                is_away = read_only or isinstance(error, OperationalError | InterfaceError)
                is_moving = is_away and not worked and time.monotonic() < (moving_until_s or 0)
                attempt += 1
                if not (is_moving or (attempt < _ATTEMPTS and _collided(error))):
                    if is_away:
                        raise Unavailable(f"the database is away: {_reason(error)}") from error
                    raise
            time.sleep(backoff_s(attempt, first_s=0.01, longest_s=_LONGEST_PAUSE_S))


class _Primary:
    """Which server takes writes, as a number: once one connection has met another, all are opened again,
    those that only read too, since on a standby they would read what was."""

    def __init__(self) -> None:
        self.number = 0

    def moved(self) -> None:
        """It is another one."""
        self.number += 1


def _migrate(engine: Engine) -> None:
    """Brings the database to this version's tables, while relays of the version before go on using it:
    where a change of tables and their commands wait for each other, PostgreSQL ends one of them."""
    for left in reversed(range(_ATTEMPTS)):
        try:
            migrate(engine)
            return
        except OperationalError as error:
            if not (left and _sqlstate(error) in _COLLISIONS):
                raise
        time.sleep(backoff_s(_ATTEMPTS - left, first_s=0.01, longest_s=_LONGEST_PAUSE_S))


def _collided(error: DBAPIError) -> bool:
    """Whether another transaction was in the way, such as one that used the same Idempotency-Key."""
    return isinstance(error, IntegrityError) or _sqlstate(error) in _COLLISIONS


def _sqlstate(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""


def _reason(error: DBAPIError) -> str:
    lines = str(error.orig).strip().splitlines()
    return lines[0] if lines else type(error.orig).__name__
