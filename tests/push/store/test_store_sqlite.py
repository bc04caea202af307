"""The SQLite database: durable, grouped writes of which each stands or falls alone."""

import asyncio
import sqlite3
import stat
import threading
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from bellwire.push.store.engine.sqlite import SqliteDatabase
from bellwire.signaling.errors import Unavailable
from tests.conftest import PATIENCE_S


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "relay.db"


def pragma(connection: Connection, name: str) -> object:
    return connection.execute(text(f"PRAGMA {name}")).scalar_one()


def keep_key(connection: Connection, key: str) -> str:
    connection.execute(
        text("INSERT INTO api_keys (key_hash, created_at_ms) VALUES (:key, 0)"), {"key": key}
    )
    return key


def keys(connection: Connection) -> list[str]:
    return list(connection.execute(text("SELECT key_hash FROM api_keys ORDER BY 1")).scalars())


def keys_on_disk(path: Path) -> list[str]:
    """What anybody else sees: committed rows only."""
    with closing(sqlite3.connect(path)) as file:
        return [key for (key,) in file.execute("SELECT key_hash FROM api_keys ORDER BY 1")]


class Gate:
    """Holds the writer, so that what is asked for meanwhile comes into one group."""

    def __init__(self) -> None:
        self._entered = threading.Event()
        self._open = threading.Event()

    def hold(self, _: Connection) -> None:
        self._entered.set()
        assert self._open.wait(PATIENCE_S)

    async def held(self) -> None:
        assert await asyncio.to_thread(self._entered.wait, PATIENCE_S)

    def let_go(self) -> None:
        self._open.set()


async def test_every_connection_waits_for_the_disk_and_keeps_references(
    database: SqliteDatabase,
) -> None:
    for run in (database.write, database.read):
        assert await run(lambda c: pragma(c, "journal_mode")) == "wal"
        assert await run(lambda c: pragma(c, "synchronous")) == 2  # FULL
        assert await run(lambda c: pragma(c, "foreign_keys")) == 1


async def test_a_row_that_refers_to_nothing_is_refused(database: SqliteDatabase) -> None:
    orphan = text("INSERT INTO channels (device_id, kind) VALUES ('nobody', 'mqtt')")
    with pytest.raises(IntegrityError, match="FOREIGN KEY"):
        await database.write(lambda c: c.execute(orphan))


async def test_the_file_is_its_owners_alone(database: SqliteDatabase, path: Path) -> None:
    await database.write(lambda c: keep_key(c, "a"))
    files = sorted(path.parent.glob("relay.db*"))
    assert {file.name for file in files} >= {"relay.db", "relay.db-wal"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


async def test_what_a_write_has_returned_is_there_for_everybody(
    database: SqliteDatabase, path: Path
) -> None:
    assert await database.write(lambda c: keep_key(c, "a")) == "a"
    assert keys_on_disk(path) == ["a"]
    assert await database.read(keys) == ["a"]


async def test_writes_that_arrive_together_are_one_transaction(
    database: SqliteDatabase, path: Path
) -> None:
    gate = Gate()
    seen: dict[str, list[str]] = {}

    def look(connection: Connection) -> None:
        seen["inside"], seen["on disk"] = keys(connection), keys_on_disk(path)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(database.write(gate.hold))
        await gate.held()
        for key in ("a", "b", "c"):
            tasks.create_task(database.write(partial(keep_key, key=key)))
        looking = tasks.create_task(database.write(look))
        await asyncio.sleep(0)  # each task has handed its work over
        gate.let_go()
        await looking
    assert seen == {"inside": ["a", "b", "c"], "on disk": []}
    assert keys_on_disk(path) == ["a", "b", "c"]


async def test_work_that_fails_takes_nothing_of_its_group_with_it(
    database: SqliteDatabase, path: Path
) -> None:
    gate = Gate()

    def keep_then_fail(connection: Connection) -> str:
        keep_key(connection, "half done")
        raise ValueError("changed its mind")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(database.write(gate.hold))
        await gate.held()
        group = asyncio.gather(
            database.write(lambda c: keep_key(c, "a")),
            database.write(keep_then_fail),
            database.write(lambda c: keep_key(c, "a")),  # the database itself refuses this one
            database.write(lambda c: keep_key(c, "b")),
            return_exceptions=True,
        )
        await asyncio.sleep(0)
        gate.let_go()
        first, failed, twice, last = await group
    assert (first, last) == ("a", "b")
    assert isinstance(failed, ValueError)
    assert isinstance(twice, IntegrityError)
    assert keys_on_disk(path) == ["a", "b"]


async def test_more_work_than_one_group_holds_is_all_done(
    database: SqliteDatabase, path: Path
) -> None:
    wanted = [f"{n:04}" for n in range(600)]
    await asyncio.gather(*(database.write(partial(keep_key, key=k)) for k in wanted))
    assert keys_on_disk(path) == wanted


async def test_readers_do_not_wait_for_the_writer(database: SqliteDatabase) -> None:
    gate = Gate()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(database.write(gate.hold))
        await gate.held()
        async with asyncio.timeout(PATIENCE_S / 2):
            assert await database.read(keys) == []
        gate.let_go()


async def test_a_write_whose_asker_has_gone_is_still_done(
    database: SqliteDatabase, path: Path
) -> None:
    gate = Gate()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(database.write(gate.hold))
        await gate.held()
        leaving = tasks.create_task(database.write(lambda c: keep_key(c, "a")))
        await asyncio.sleep(0)
        leaving.cancel()
        gate.let_go()
    await database.write(lambda c: keep_key(c, "b"))
    assert keys_on_disk(path) == ["a", "b"]


async def test_closing_finishes_what_was_accepted_and_then_takes_no_more(path: Path) -> None:
    database = await asyncio.to_thread(SqliteDatabase, path)
    work = [asyncio.ensure_future(database.write(partial(keep_key, key=k))) for k in ("a", "b")]
    await asyncio.sleep(0)
    await database.close()
    assert await asyncio.gather(*work) == ["a", "b"]
    assert keys_on_disk(path) == ["a", "b"]
    with pytest.raises(Unavailable, match="stopping"):
        await database.write(lambda c: keep_key(c, "c"))
    await database.close()  # once more does no harm
