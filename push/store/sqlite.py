"""SQLite in WAL mode: one thread writes, in groups; readers run beside it.

Each commit costs one wait for the disk, so all commands that arrive during one wait are committed
together by the next: each under a savepoint of its own, so that one that fails takes none with it.
"""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import OperationalError

from push.store.database import Work
from push.store.migrate import migrate
from signaling.errors import Unavailable

T = TypeVar("T")

_GROUP_LIMIT = 256
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
    engine = create_engine(f"sqlite+pysqlite:///{path}", connect_args={"check_same_thread": False})

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
    """See `push.store.database.Database`."""

    shared = False

    def __init__(self, path: Path) -> None:
        path.touch(mode=0o600)
        self._engine = sqlite_engine(path)
        migrate(self._engine)
        self._accepted: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="sqlite-reader")
        self._writer = threading.Thread(target=self._write_groups, name="sqlite-writer")
        self._writer.start()
        self._closed = False

    async def write(self, work: Work[T]) -> T:
        """See `Database.write`.

        Raises:
            Unavailable: the database has been closed.
        """
        if self._closed:
            raise Unavailable("the relay is stopping")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._accepted.put(_Item(work, done, loop))
        # A caller that is cancelled does not undo what was accepted: `done` has nobody to hear it then.
        return await done

    async def read(self, work: Work[T]) -> T:
        """See `Database.read`."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, work)

    async def close(self) -> None:
        """See `Database.close`."""
        if self._closed:
            return
        self._closed = True
        self._accepted.put(None)
        await asyncio.to_thread(self._writer.join)
        self._readers.shutdown()
        self._engine.dispose()

    def _read(self, work: Work[T]) -> T:
        with (
            self._engine.connect().execution_options(reading=True) as connection,
            connection.begin(),
        ):
            return work(connection)

    def _write_groups(self) -> None:
        with self._engine.connect() as connection:
            while (first := self._accepted.get()) is not None:
                group, last = self._group(first)
                _commit(connection, group)
                if last:
                    return

    def _group(self, first: "_Item") -> tuple[list["_Item"], bool]:
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


@dataclass(frozen=True, slots=True)
class _Item:
    """A piece of work, the promise of its result, and the loop that waits for it."""

    work: Callable[[Connection], Any]
    done: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


def _commit(connection: Connection, group: list[_Item]) -> None:
    """Runs a group and commits it; only then is anybody told. A disk that is full, or a file that
    another process holds, fails the group."""
    results: list[tuple[_Item, Any]] = []
    failures: list[tuple[_Item, BaseException]] = []
    try:
        with connection.begin():
            driver = cast("sqlite3.Connection", connection.connection.driver_connection)
            for item in group:
                driver.execute("SAVEPOINT command")
                try:
                    results.append((item, item.work(connection)))
                except OperationalError:
                    raise
                except Exception as error:  # noqa: BLE001 - it is the asker's, and is raised there
                    driver.execute("ROLLBACK TO command")
                    failures.append((item, error))
                driver.execute("RELEASE command")
    except (OperationalError, sqlite3.OperationalError) as error:
        away = Unavailable(f"the database cannot be written: {getattr(error, 'orig', error)}")
        failures, results = [(item, away) for item in group], []
    except Exception as error:  # noqa: BLE001 - nothing of the group was kept; each asker is told
        failures = [(item, error) for item in group]
        results = []
    for loop in {item.loop for item in group}:
        with suppress(RuntimeError):  # The loop has ended: nobody waits on it any more.
            loop.call_soon_threadsafe(_tell, loop, results, failures)


def _tell(
    loop: asyncio.AbstractEventLoop,
    results: list[tuple[_Item, Any]],
    failures: list[tuple[_Item, BaseException]],
) -> None:
    """Tells those who wait on this loop, at once for a group: waking a loop costs more than that."""
    for item, result in results:
        if item.loop is loop and not item.done.done():
            item.done.set_result(result)
    for item, failure in failures:
        if item.loop is loop and not item.done.done():
            item.done.set_exception(failure)
