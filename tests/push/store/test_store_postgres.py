"""PostgreSQL as several relays share it: what collides is tried again, what is away is said to be,
and nothing waits that need not."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from psycopg import sql
from sqlalchemy import Connection, create_engine, event, make_url, text
from sqlalchemy.exc import IntegrityError, OperationalError

from bellwire.push.access.tokens import Actor
from bellwire.push.calls.invites import Invite
from bellwire.push.store.engine.database import open_database
from bellwire.push.store.engine.postgres import PostgresDatabase
from bellwire.push.store.engine.sqlite import SqliteDatabase
from bellwire.push.store.rows.devices import ChannelRow, DeviceRow, put_device
from bellwire.push.store.rows.outbox import Delivery, owe, take_due
from bellwire.push.store.tables import metadata, migrate
from bellwire.signaling.calls.commands import Accept, NewCall
from bellwire.signaling.errors import InvalidInput, OperationRefused, Unavailable
from bellwire.signaling.identifiers import DeviceId, Identity
from tests.conftest import PATIENCE_S
from tests.push.clock import Clock
from tests.push.parts import parts_on
from tests.push.support import fresh

OPEN = """
import sys
from sqlalchemy import make_url
from bellwire.push.store.engine.postgres import PostgresDatabase
sys.stdin.readline()
PostgresDatabase(make_url(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def url(new_postgres_database: Callable[[], str]) -> str:
    return new_postgres_database()


@pytest.fixture
async def database(url: str) -> AsyncIterator[PostgresDatabase]:
    opened = await asyncio.to_thread(PostgresDatabase, make_url(url))
    yield opened
    await opened.close()


@pytest.fixture
async def other(url: str) -> AsyncIterator[PostgresDatabase]:
    """The same database, as another relay sees it."""
    opened = await asyncio.to_thread(PostgresDatabase, make_url(url))
    yield opened
    await opened.close()


def keep_key(connection: Connection, key: str) -> str:
    connection.execute(
        text("INSERT INTO api_keys (key_hash, created_at_ms) VALUES (:key, 0)"), {"key": key}
    )
    return key


def has_key(connection: Connection, key: str) -> bool:
    query = text("SELECT 1 FROM api_keys WHERE key_hash = :key")
    return connection.execute(query, {"key": key}).scalar() is not None


def age(connection: Connection, key: str) -> int:
    query = text("SELECT created_at_ms FROM api_keys WHERE key_hash = :key")
    found: int = connection.execute(query, {"key": key}).scalar_one()
    return found


def grow(connection: Connection, key: str) -> None:
    query = text("UPDATE api_keys SET created_at_ms = created_at_ms + 1 WHERE key_hash = :key")
    connection.execute(query, {"key": key})


@contextmanager
def away(url: str) -> Iterator[None]:
    """Has the server break every connection to a database and take no new one."""
    server, name = url, make_url(url).database
    server = url.replace(f"/{name}?", "/postgres?")
    allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(allow.format(sql.Identifier(name or ""), sql.SQL("false")))
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
        )
        try:
            yield
        finally:
            admin.execute(allow.format(sql.Identifier(name or ""), sql.SQL("true")))


async def test_only_postgresql_is_shared_by_relays(
    url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    own = open_database(None, tmp_path_factory.mktemp("own"))
    named = open_database(url, tmp_path_factory.mktemp("named"))
    try:
        assert (own.shared, isinstance(own, SqliteDatabase)) == (False, True)
        assert (named.shared, isinstance(named, PostgresDatabase)) == (True, True)
    finally:
        await own.close()
        await named.close()


@pytest.mark.parametrize("bad", ["", "mysql://host/name", "nothing at all", "sqlite://"])
def test_a_database_that_is_not_spoken_is_refused(
    bad: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.raises(InvalidInput, match="--database"):
        open_database(bad, tmp_path_factory.mktemp("data"))


async def test_two_processes_that_start_on_an_empty_database_at_once_both_find_its_tables(
    new_postgres_database: Callable[[], str],
) -> None:
    empty = new_postgres_database()
    starting = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", OPEN, empty),
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        for _ in range(2)
    ]
    async with asyncio.timeout(2 * PATIENCE_S):
        said = await asyncio.gather(*(process.communicate(b"go\n") for process in starting))
    assert [process.returncode for process in starting] == [0, 0], said
    engine = create_engine(make_url(empty).set(drivername="postgresql+psycopg"))
    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection), metadata)
    engine.dispose()
    assert found == []


async def test_what_a_write_has_returned_is_there_for_every_relay(
    database: PostgresDatabase, other: PostgresDatabase
) -> None:
    key = fresh("key")
    assert await database.write(partial(keep_key, key=key)) == key
    assert await other.read(partial(has_key, key=key))

    def keep_then_fail(connection: Connection) -> None:
        keep_key(connection, "half done")
        raise ValueError("changed its mind")

    with pytest.raises(ValueError, match="changed its mind"):
        await database.write(keep_then_fail)
    assert not await other.read(partial(has_key, key="half done"))


async def test_two_that_wait_for_each_other_are_both_carried_out_once(
    database: PostgresDatabase, other: PostgresDatabase
) -> None:
    one, two = fresh("key"), fresh("key")
    for key in (one, two):
        await database.write(partial(keep_key, key=key))
    met = threading.Barrier(2)
    tries: list[str] = []

    def cross(connection: Connection, first: str, second: str) -> None:
        tries.append(first)
        grow(connection, first)
        if tries.count(first) == 1:
            met.wait(PATIENCE_S)  # each has its first row, and wants the other's
        grow(connection, second)

    await asyncio.gather(
        database.write(partial(cross, first=one, second=two)),
        other.write(partial(cross, first=two, second=one)),
    )
    assert len(tries) >= 3  # on a busy machine they may meet once more
    assert [await database.read(partial(age, key=key)) for key in (one, two)] == [2, 2]


async def test_who_comes_second_under_a_key_is_tried_again_and_finds_the_first(
    database: PostgresDatabase, other: PostgresDatabase
) -> None:
    key, met, tries = fresh("key"), threading.Barrier(2), [0]

    def keep_once(connection: Connection) -> str:
        tries[0] += 1
        if has_key(connection, key):
            return "found"
        if tries[0] <= 2:
            met.wait(PATIENCE_S)  # neither has seen the other
        keep_key(connection, key)
        return "kept"

    assert sorted(await asyncio.gather(database.write(keep_once), other.write(keep_once))) == [
        "found",
        "kept",
    ]


async def test_what_the_database_refuses_every_time_is_refused(database: PostgresDatabase) -> None:
    key = fresh("key")
    await database.write(partial(keep_key, key=key))
    with pytest.raises(IntegrityError):
        await database.write(partial(keep_key, key=key))
    orphan = text("INSERT INTO channels (device_id, kind) VALUES ('nobody', 'mqtt')")
    with pytest.raises(IntegrityError):
        await database.write(lambda c: c.execute(orphan))


async def test_a_database_that_is_away_is_said_to_be_and_serves_when_it_is_back(
    new_postgres_database: Callable[[], str],
) -> None:
    url = new_postgres_database()
    database = await asyncio.to_thread(PostgresDatabase, make_url(url))
    entered, left = threading.Event(), threading.Event()

    def interrupted(connection: Connection) -> None:
        keep_key(connection, "half done")
        entered.set()
        assert left.wait(PATIENCE_S)
        keep_key(connection, "the other half")

    try:
        await database.write(partial(keep_key, key="before"))
        under_way = asyncio.ensure_future(database.write(interrupted))
        assert await asyncio.to_thread(entered.wait, PATIENCE_S)
        with away(url):
            left.set()
            with pytest.raises(Unavailable, match="away"):
                await under_way
            for run in (database.read, database.write):
                with pytest.raises(Unavailable, match="away"):
                    await run(partial(has_key, key="before"))
            with pytest.raises(Unavailable, match="cannot be used"):
                await asyncio.to_thread(PostgresDatabase, make_url(url))
        assert await database.read(partial(has_key, key="before"))
        assert not await database.read(partial(has_key, key="half done"))
        await database.write(partial(keep_key, key="after"))
    finally:
        await database.close()


async def test_a_relay_passes_by_the_deliveries_that_another_is_taking(
    database: PostgresDatabase, other: PostgresDatabase
) -> None:
    desk = DeviceId(fresh("desk"))
    row = DeviceRow(desk, Identity("bob"), (ChannelRow("mqtt"),))
    await database.write(lambda c: put_device(c, row, 0))
    new = [Delivery(f"e{n}", desk, "mqtt", "x", 2**52) for n in range(4)]
    await database.write(lambda c: owe(c, new, 0))
    entered, left = threading.Event(), threading.Event()

    def take_slowly(connection: Connection) -> list[Delivery]:
        taken = take_due(connection, 1, 1000, 2)
        entered.set()
        assert left.wait(PATIENCE_S)
        return taken

    taking = asyncio.ensure_future(database.write(take_slowly))
    assert await asyncio.to_thread(entered.wait, PATIENCE_S)
    async with asyncio.timeout(PATIENCE_S / 2):  # it does not wait for the other
        mine = await other.write(lambda c: take_due(c, 1, 1000, 10))
    left.set()
    theirs = await taking
    assert sorted(d.event_id for d in [*mine, *theirs]) == ["e0", "e1", "e2", "e3"]
    assert len(mine) == len(theirs) == 2


async def test_of_two_devices_that_accept_through_two_relays_exactly_one_wins(
    database: PostgresDatabase, other: PostgresDatabase, clock: Clock, full: bool
) -> None:
    bob, desk, mobile = Identity(fresh("bob")), DeviceId(fresh("desk")), DeviceId(fresh("mobile"))
    for device in (desk, mobile):
        row = DeviceRow(device, bob, (ChannelRow("websocket"),))
        await database.write(partial(put_device, device=row, at_ms=0))
    one, two = parts_on(database, clock), parts_on(other, clock)
    for _ in range(1000 if full else 50):
        new = NewCall(one.calls.new_sid(), None, (), clock.now(), 60)
        call = (await one.calls.create(Invite(new, (bob,), {}, Actor()))).call
        answers = await asyncio.gather(
            one.calls.carry_out(call.call_sid, Accept(bob, desk, clock.now())),
            two.calls.carry_out(call.call_sid, Accept(bob, mobile, clock.now())),
            return_exceptions=True,
        )
        refused = [answer for answer in answers if isinstance(answer, OperationRefused)]
        assert len(refused) == 1, answers
        user = (await one.calls.show(call.call_sid, Actor())).user(bob)
        assert user is not None
        assert user.main_device == (desk if answers[1] in refused else mobile)


async def test_a_request_that_comes_to_two_relays_at_once_under_a_key_makes_one_call(
    database: PostgresDatabase, other: PostgresDatabase, clock: Clock
) -> None:
    bob = Identity(fresh("bob"))
    row = DeviceRow(DeviceId(fresh("desk")), bob, (ChannelRow("websocket"),))
    await database.write(lambda c: put_device(c, row, 0))
    relays = [parts_on(database, clock), parts_on(other, clock)]
    for _ in range(10):
        new = NewCall(relays[0].calls.new_sid(), None, (), clock.now(), 60)
        invite = Invite(new, (bob,), {}, Actor(), idempotency_key=fresh("key"), fingerprint="x")
        made = await asyncio.gather(
            *(
                relay.calls.create(
                    replace(invite, request=replace(new, call_sid=relay.calls.new_sid()))
                )
                for relay in relays
            )
        )
        assert made[0].call == made[1].call
        assert sorted(created.repeated for created in made) == [False, True]


async def test_a_closed_database_takes_no_more_and_finishes_what_it_took(url: str) -> None:
    database = await asyncio.to_thread(PostgresDatabase, make_url(url))
    keys = [fresh("key") for _ in range(20)]
    work = [asyncio.ensure_future(database.write(partial(keep_key, key=key))) for key in keys]
    await asyncio.sleep(0)  # each has handed its work over
    await database.close()
    assert await asyncio.gather(*work) == keys
    with pytest.raises(Unavailable, match="stopping"):
        await database.write(partial(keep_key, key="late"))
    await database.close()  # once more does no harm


async def test_an_error_of_the_relays_own_making_is_not_taken_for_an_absence(
    database: PostgresDatabase,
) -> None:
    with pytest.raises(Exception, match="no_such_table") as caught:
        await database.write(lambda c: c.execute(text("SELECT * FROM no_such_table")))
    assert not isinstance(caught.value, Unavailable | OperationalError)


async def test_a_server_that_takes_no_writes_any_more_is_a_lost_connection(
    new_postgres_database: Callable[[], str],
) -> None:
    """As after a switchover: connections of before meet SQLSTATE 25006, new ones find who takes writes."""
    url = new_postgres_database()
    name = sql.Identifier(make_url(url).database or "")
    database = await asyncio.to_thread(PostgresDatabase, make_url(url))
    pids: set[int] = set()

    def look(connection: Connection) -> None:
        pids.add(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())

    def become_standby(connection: Connection) -> None:
        connection.execute(text("SET default_transaction_read_only = on"))

    try:
        await database.write(become_standby)
        for _ in range(20):
            await database.read(look)
        of_before = set(pids)
        for number in range(20):  # whichever connection has it
            await database.write(partial(keep_key, key=f"after-{number}"))
        assert await database.read(partial(has_key, key="after-19"))
        pids.clear()
        for _ in range(20):
            await database.read(look)
        assert not pids & of_before, "a connection reads what the server of before has"
        # And where none takes writes, that is said: the database is away.
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute(
                sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name)
            )
        with pytest.raises(Unavailable, match="away"):
            for number in range(100):  # until it is the turn of a connection of before
                await database.write(become_standby)
                await database.write(partial(keep_key, key=f"refused-{number}"))
    finally:
        await database.close()


async def test_migrating_holds_no_lock_of_a_session_and_two_that_begin_at_once_migrate_once(
    new_postgres_database: Callable[[], str],
) -> None:
    url = new_postgres_database()
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"), pool_size=4)
    locks: list[str] = []

    def note(*asked: Any) -> None:  # noqa: ANN401 - SQLAlchemy's own signature
        if "advisory" in asked[2]:
            locks.append(asked[2])

    event.listen(engine, "before_cursor_execute", note)
    try:
        await asyncio.gather(*(asyncio.to_thread(migrate, engine) for _ in range(4)))
        assert set(locks) == {"SELECT pg_advisory_xact_lock(%(lock)s)"}
        with engine.connect() as connection:
            held = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
            assert connection.execute(held).scalar_one() == 0
            versions = connection.execute(text("SELECT version_num FROM alembic_version"))
            assert len(versions.scalars().all()) == 1
    finally:
        engine.dispose()


async def test_of_several_hosts_the_one_that_takes_writes_is_used(
    new_postgres_database: Callable[[], str], tmp_path: Path
) -> None:
    """The first is none at all, as after a power cut."""
    url = make_url(new_postgres_database())
    host = url.query["host"]
    several = url.update_query_dict({"host": f"{tmp_path},{host}"})
    database = await asyncio.to_thread(open_database, several.render_as_string(), tmp_path)
    try:
        await database.write(partial(keep_key, key="several"))
        assert await database.read(partial(has_key, key="several"))
    finally:
        await database.close()


async def test_a_database_that_a_later_version_has_brought_further_is_used_as_it_is(
    new_postgres_database: Callable[[], str], tmp_path: Path
) -> None:
    """A relay of this version starts again while others are upgraded."""
    url = new_postgres_database()
    await (await asyncio.to_thread(open_database, url, tmp_path)).close()
    with psycopg.connect(url, autocommit=True) as later:
        later.execute("UPDATE alembic_version SET version_num = '9999'")
        later.execute("ALTER TABLE api_keys ADD COLUMN of_a_later_version text")
    database = await asyncio.to_thread(open_database, url, tmp_path)
    try:
        await database.write(partial(keep_key, key="of this one"))
        assert await database.read(partial(has_key, key="of this one"))
    finally:
        await database.close()
    with psycopg.connect(url) as later:
        assert later.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]
