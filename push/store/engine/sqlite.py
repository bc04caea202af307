"""SQLite in WAL mode: one thread writes, in groups; readers run beside it.

Within a group the commands on calls share one unit of work; each other piece of work stands under a
savepoint of its own, so that one that fails takes none with it.
"""

import asyncio
import itertools
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import OperationalError

from bellwire.push.store.engine.group_commit import GroupCommit
from bellwire.push.store.engine.unit_of_work import CallWork, Work, carry_out_together
from bellwire.push.store.tables import migrate
from bellwire.signaling.errors import Unavailable

T = TypeVar("T")

_READERS = 2
_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    "PRAGMA busy_timeout=5000",
    "PRAGMA temp_store=MEMORY",
)


def sqlite_engine(path: Path) -> Engine:
    """An engine on a SQLite file, whose transactions begin when SQLAlchemy says so."""
    engine = create_engine(
        f"sqlite+pysqlite:///{path}",
        connect_args={"check_same_thread": False},
        paramstyle="named",  # as `Prepared` hands values over
    )

    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        # The driver's own transaction handling knows no savepoints and begins too late.
        connection.isolation_level = None
        for pragma in _PRAGMAS:
            connection.execute(pragma)

    def begin(connection: Connection) -> None:
        mode = "DEFERRED" if connection.get_execution_options().get("reading") else "IMMEDIATE"
        connection.exec_driver_sql(f"BEGIN {mode}")

    event.listen(engine, "connect", prepare)
    event.listen(engine, "begin", begin)
    return engine


class SqliteDatabase:
    """See `push.store.engine.database.Database`. Making it migrates, and blocks.

    Raises:
        Unavailable: the file cannot be opened or written.
    """

    shared = False

    def __init__(self, path: Path) -> None:
        try:
            path.touch(mode=0o600)
            self._engine = sqlite_engine(path)
            migrate(self._engine)
            self._connection = self._engine.connect()
        except (OperationalError, sqlite3.OperationalError, OSError) as error:
            why = getattr(error, "orig", error)
            raise Unavailable(f"the database {path} cannot be opened: {why}") from error
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="sqlite-reader")
        self._writer: GroupCommit[_Work] = GroupCommit(self._commit, "sqlite-writer")
        self._closed = False

    async def write(self, work: Work[T]) -> T:
        """See `Database.write`.

        Raises:
            Unavailable: the database has been closed.
        """
        return cast("T", await self._accept(work))

    async def write_calls(self, work: CallWork[T]) -> T:
        """See `Database.write_calls`.

        Raises:
            Unavailable: the database has been closed.
        """
        return cast("T", await self._accept(work))

    async def read(self, work: Work[T]) -> T:
        """See `Database.read`.

        Raises:
            Unavailable: the file cannot be read.
        """
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, work)

    async def close(self) -> None:
        """See `Database.close`."""
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self._writer.close)
        self._readers.shutdown()
        self._connection.close()
        self._engine.dispose()

    def _accept(self, work: "_Work") -> asyncio.Future[Any]:
        if self._closed:
            raise Unavailable("the relay is stopping")
        return self._writer.accept(work)

    def _read(self, work: Work[T]) -> T:
        try:
            with (
                self._engine.connect().execution_options(reading=True) as connection,
                connection.begin(),
            ):
                return work(connection)
        except (OperationalError, sqlite3.OperationalError) as error:
            why = getattr(error, "orig", error)
            raise Unavailable(f"the database cannot be read: {why}") from error

    def _commit(self, group: list["_Work"]) -> list[Any]:
        """Runs a group and commits it. A disk that is full, or a file that another process holds,
        fails the group."""
        connection = self._connection
        try:
            with connection.begin():
                return _carry_out(connection, group)
        except (OperationalError, sqlite3.OperationalError) as error:
            why = f"the database cannot be written: {getattr(error, 'orig', error)}"
            return _kept_nothing(group, Unavailable(why))
        except Exception as error:  # noqa: BLE001 - each asker is told
            return _kept_nothing(group, error)


_Work = Callable[[Connection], Any] | CallWork[Any]


def _carry_out(connection: Connection, group: Sequence[_Work]) -> list[Any]:
    """What each piece of work of a group comes to, in its order: what was asked for first is done
    first."""
    results: list[Any] = []
    for are_commands, part in itertools.groupby(group, lambda work: isinstance(work, CallWork)):
        works = list(part)
        for together in [works] if are_commands else [[work] for work in works]:
            results += _stand_or_fall(connection, together)
    return results


def _stand_or_fall(connection: Connection, part: Sequence[_Work]) -> list[Any]:
    """Carries out a part of a group under a savepoint. Commands on calls that fail together are tried
    one by one."""
    driver = cast("sqlite3.Connection", connection.connection.driver_connection)
    driver.execute("SAVEPOINT command")
    failure: Exception | None = None
    results: list[Any] = []
    try:
        results = _run(connection, part)
    except OperationalError:
        raise
    except Exception as error:  # noqa: BLE001 - it is the asker's, and is raised there
        driver.execute("ROLLBACK TO command")
        failure = error
    driver.execute("RELEASE command")
    if failure is None:
        return results
    if len(part) == 1:
        return _kept_nothing(part, failure)
    return [result for work in part for result in _stand_or_fall(connection, [work])]


def _kept_nothing(part: Sequence[_Work], why: Exception) -> list[Exception]:
    for work in part:
        if isinstance(work, CallWork):
            work.undo()
    return [why] * len(part)


def _run(connection: Connection, part: Sequence[_Work]) -> list[Any]:
    commands = [work for work in part if isinstance(work, CallWork)]
    if commands:
        return carry_out_together(connection, commands)
    return [work(connection) for work in part if not isinstance(work, CallWork)]
