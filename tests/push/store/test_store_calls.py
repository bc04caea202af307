"""Calls as rows: what is kept comes back, is listed, and wakes a restarted relay."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from bellwire.push.store.engine.database import Database
from bellwire.push.store.engine.sqlite import SqliteDatabase, sqlite_engine
from bellwire.push.store.engine.unit_of_work import CallWork, UnitOfWork, in_a_unit
from bellwire.push.store.rows.calls import (
    IdempotencyRow,
    all_deadlines,
    find_idempotent,
    forget_idempotent,
    keep_idempotent,
    list_calls,
    live_calls_of,
    load_call,
)
from bellwire.push.store.tables import migrate, to_ms
from bellwire.signaling.calls.calls import Call, UserState
from bellwire.signaling.calls.commands import Accept, Cancel, Invitee, NewCall
from bellwire.signaling.calls.rules import apply, create_call
from bellwire.signaling.identifiers import CallSid, Identity, new_call_sid
from tests.conftest import PATIENCE_S
from tests.push.clock import START, Clock
from tests.push.parts import parts_on

ALICE, BOB, CAROL = map(Identity, ("alice", "bob", "carol"))


def call_of(*invitees: Identity, number: int = 0, **changes: object) -> Call:
    new = NewCall(
        call_sid=new_call_sid(to_ms(START), number.to_bytes(10, "big")),
        caller=ALICE,
        invitees=tuple(Invitee(identity) for identity in invitees),
        at=START,
        timeout_s=60,
        **changes,  # type: ignore[arg-type] # the parts of an invite that a test is about
    )
    return create_call(new).call


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    made = sqlite_engine(tmp_path_factory.mktemp("calls") / "relay.db")
    migrate(made)
    yield made
    made.dispose()


@settings(deadline=None)
@given(parameters=st.dictionaries(text, text, max_size=4), extended_data=text)
def test_any_call_comes_back_as_it_was(
    engine: Engine, parameters: dict[str, str], extended_data: str
) -> None:
    call = call_of(BOB, custom_parameters=parameters, extended_data=extended_data)
    with engine.connect() as connection, connection.begin() as transaction:
        in_a_unit(UnitOfWork.add_call, call)(connection)
        back = load_call(connection, call.call_sid)
        transaction.rollback()  # each example has an empty table
    assert back == call
    assert list(back.custom_parameters) == list(parameters)


@pytest.fixture
async def database(each_database: Database) -> Database:
    """The same tests on each kind of store."""
    return each_database


async def test_a_call_that_moved_is_kept_in_its_new_state(database: Database) -> None:
    call = call_of(BOB, CAROL)
    await database.write_calls(CallWork(lambda unit: unit.add_call(call)))
    moved = apply(call, Accept(BOB, None, START + timedelta(seconds=1))).call
    await database.write_calls(CallWork(lambda unit: unit.save_call(moved)))
    assert await database.read(lambda c: load_call(c, call.call_sid)) == moved
    assert await database.read(lambda c: load_call(c, CallSid("CA" + "f" * 32))) is None


async def test_each_identity_lists_its_own_calls_newest_first(database: Database) -> None:
    made = [call_of(BOB if n % 2 else CAROL, number=n) for n in range(6)]
    for call in made:
        await database.write_calls(CallWork(partial(UnitOfWork.add_call, call=call)))

    async def pages(identity: Identity | None, count: int) -> list[list[Call]]:
        found, cursor = [], 0
        while True:
            page, cursor = await database.read(
                partial(list_calls, identity=identity, count=count, before=cursor)
            )
            found.append(page)
            if cursor == 0:
                return found

    assert await pages(BOB, 2) == [[made[5], made[3]], [made[1]]]
    assert await pages(CAROL, 3) == [[made[4], made[2], made[0]]]
    assert await pages(ALICE, 4) == [made[:1:-1], made[1::-1]]
    assert await pages(None, 6) == [made[::-1]]
    assert await pages(Identity("dave"), 2) == [[]]


async def test_a_call_that_comes_during_paging_moves_no_page(database: Database) -> None:
    made = [call_of(BOB, number=n) for n in range(4)]
    for call in made[:3]:
        await database.write_calls(CallWork(partial(UnitOfWork.add_call, call=call)))
    first, cursor = await database.read(lambda c: list_calls(c, BOB, count=2, before=0))
    await database.write_calls(CallWork(lambda unit: unit.add_call(made[3])))
    second, end = await database.read(lambda c: list_calls(c, BOB, count=2, before=cursor))
    assert (first + second, end) == ([made[2], made[1], made[0]], 0)


async def test_a_call_is_live_and_has_a_deadline_while_somebody_is_invited(
    database: Database,
) -> None:
    call = call_of(BOB)
    await database.write_calls(CallWork(lambda unit: unit.add_call(call)))
    assert await database.read(lambda c: live_calls_of(c, BOB)) == [call]
    assert await database.read(lambda c: live_calls_of(c, CAROL)) == []
    due = to_ms(START + timedelta(seconds=60))
    assert await database.read(all_deadlines) == [(call.call_sid, due)]
    over = apply(call, Cancel(ALICE, START)).call
    await database.write_calls(CallWork(lambda unit: unit.save_call(over)))
    assert await database.read(lambda c: live_calls_of(c, BOB)) == []
    assert await database.read(all_deadlines) == []


async def test_an_idempotency_key_is_kept_for_its_owner_until_it_is_old(
    database: Database,
) -> None:
    for actor, key, at_ms in (("server", "a", 1000), ("server", "b", 2000), ("bob", "a", 2000)):
        await database.write(
            partial(
                keep_idempotent,
                kept=[IdempotencyRow(actor, key, f"{actor} {key}", CallSid("CA1"), at_ms)],
            )
        )
    assert await database.read(lambda c: find_idempotent(c, "server", "a")) == ("server a", "CA1")
    assert await database.read(lambda c: find_idempotent(c, "alice", "a")) is None
    await database.write(lambda c: forget_idempotent(c, 2000))
    assert await database.read(lambda c: find_idempotent(c, "server", "a")) is None
    assert await database.read(lambda c: find_idempotent(c, "server", "b")) == ("server b", "CA1")
    assert await database.read(lambda c: find_idempotent(c, "bob", "a")) == ("bob a", "CA1")


async def test_a_deadline_that_came_while_no_relay_ran_is_carried_out_by_the_next(
    tmp_path: Path, clock: Clock
) -> None:
    call = call_of(BOB)
    first = await asyncio.to_thread(SqliteDatabase, tmp_path / "relay.db")
    await first.write_calls(CallWork(lambda unit: unit.add_call(call)))
    await first.close()

    clock.advance(3600)
    second = await asyncio.to_thread(SqliteDatabase, tmp_path / "relay.db")
    try:
        calls = parts_on(second, clock).calls
        await calls.load_deadlines()
        assert len(calls.deadlines) == 1
        async with asyncio.TaskGroup() as tasks:
            firing = tasks.create_task(calls.deadlines.run())
            over = await until(second, call, lambda stored: not stored.pending)
            firing.cancel()
    finally:
        await second.close()
    bob = over.user(BOB)
    assert bob is not None
    assert bob.state is UserState.TIMEOUT
    assert len(calls.deadlines) == 0


async def until(database: Database, call: Call, holds: Callable[[Call], bool]) -> Call:
    """The stored call, once it is so."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            stored = await database.read(lambda c: load_call(c, call.call_sid))
            assert stored is not None
            if holds(stored):
                return stored
