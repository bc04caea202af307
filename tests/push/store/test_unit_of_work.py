"""Commands on calls that wait for the same commit share a unit of work, and each stands for itself."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial

import pytest
from sqlalchemy import text

from bellwire.push.access.tokens import Actor
from bellwire.push.calls.calls import Created
from bellwire.push.calls.invites import Invite
from bellwire.push.store.engine.database import Database, open_database
from bellwire.push.store.engine.unit_of_work import CallWork, UnitOfWork
from bellwire.push.store.rows.calls import load_call
from bellwire.push.store.rows.devices import ChannelRow, DeviceRow, put_device
from bellwire.push.store.rows.outbox import count_owed
from bellwire.signaling.calls.calls import UserState
from bellwire.signaling.calls.commands import Accept, Cancel, NewCall, Quit, Received
from bellwire.signaling.errors import CallNotFound, OperationRefused, TooManyRequests
from bellwire.signaling.identifiers import CallSid, DeviceId, Identity
from tests.conftest import PATIENCE_S
from tests.push.clock import Clock
from tests.push.parts import Parts, parts_on

ALICE, BOB, DESK = Identity("alice"), Identity("bob"), DeviceId("desk")
BOBS = DeviceRow(DESK, BOB, (ChannelRow("mqtt"), ChannelRow("websocket")))


@pytest.fixture
async def relay(each_database: Database, clock: Clock) -> Parts:
    await each_database.write(lambda c: put_device(c, BOBS, 0))
    return parts_on(each_database, clock)


class Held:
    """The commit of calls, held while a test asks for what is to share the next one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._entered, self._open = threading.Event(), threading.Event()

    async def __aenter__(self) -> None:
        self._holding = asyncio.ensure_future(self._database.write_calls(CallWork(self._hold)))
        assert await asyncio.to_thread(self._entered.wait, PATIENCE_S)

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0)  # what was asked for has been handed over
        self._open.set()
        await self._holding

    def _hold(self, _: UnitOfWork) -> None:
        self._entered.set()
        assert self._open.wait(PATIENCE_S)


async def called(relay: Parts, clock: Clock, key: str | None = None) -> Created:
    new = NewCall(relay.calls.new_sid(), ALICE, (), clock.now(), 60)
    return await relay.calls.create(Invite(new, (BOB,), {}, Actor(), key, "the same"))


async def test_commands_on_one_call_that_come_together_are_done_one_after_the_other(
    relay: Parts, clock: Clock
) -> None:
    call_sid = (await called(relay, clock)).call.call_sid
    do = partial(relay.calls.carry_out, call_sid)
    async with asyncio.TaskGroup() as tasks, Held(relay.database):
        received = tasks.create_task(do(Received(BOB, DESK, clock.now())))
        accepted = tasks.create_task(do(Accept(BOB, DESK, clock.now())))
        over = tasks.create_task(do(Quit(BOB, DESK, clock.now())))
    states = [
        user.state
        for task in (received, accepted, over)
        for user in task.result().users
        if user.identity == BOB
    ]
    assert states == [UserState.RECEIVED, UserState.ACCEPTED, UserState.QUIT]
    assert await relay.database.read(lambda c: load_call(c, call_sid)) == over.result()


async def test_one_that_is_refused_changes_nothing_and_holds_up_nobody(
    relay: Parts, clock: Clock
) -> None:
    first, second = [(await called(relay, clock)).call.call_sid for _ in range(2)]
    await relay.calls.carry_out(first, Cancel(ALICE, clock.now()))
    owed = await relay.database.read(count_owed)
    do = relay.calls.carry_out
    async with Held(relay.database):
        group = asyncio.gather(
            do(first, Accept(BOB, DESK, clock.now())),
            do(CallSid("CA" + "f" * 32), Accept(BOB, DESK, clock.now())),
            do(second, Received(BOB, DESK, clock.now())),
            return_exceptions=True,
        )
    refused, missing, done = await group
    assert isinstance(refused, OperationRefused)
    assert isinstance(missing, CallNotFound)
    assert not isinstance(done, BaseException)
    user = (await relay.calls.show(second, Actor())).user(BOB)
    assert user is not None
    assert user.state is UserState.RECEIVED
    # Bob's desk hears of the second call's change over MQTT; alice has no device.
    assert await relay.database.read(count_owed) == owed + 1


async def test_a_command_that_breaks_takes_none_of_its_group_with_it(
    relay: Parts, clock: Clock
) -> None:
    call_sid = (await called(relay, clock)).call.call_sid
    tried: list[str] = []

    def broken(unit: UnitOfWork) -> None:
        tried.append("broken")
        unit.connection.execute(
            text("INSERT INTO api_keys (key_hash, created_at_ms) VALUES ('half done', 0)")
        )
        raise KeyError("a defect")

    async with Held(relay.database):
        group = asyncio.gather(
            relay.database.write_calls(CallWork(broken)),
            relay.calls.carry_out(call_sid, Accept(BOB, DESK, clock.now())),
            return_exceptions=True,
        )
    failed, done = await group
    assert isinstance(failed, KeyError)
    assert not isinstance(done, BaseException)
    assert tried == ["broken", "broken"]  # with the other, and alone
    assert (await relay.calls.show(call_sid, Actor())) == done
    kept = text("SELECT count(*) FROM api_keys WHERE key_hash = 'half done'")
    assert await relay.database.read(lambda c: c.execute(kept).scalar_one()) == 0


async def test_two_requests_under_one_key_that_come_together_make_one_call(
    relay: Parts, clock: Clock
) -> None:
    async with asyncio.TaskGroup() as tasks, Held(relay.database):
        made = [tasks.create_task(called(relay, clock, "key")) for _ in range(3)]
    assert [task.result().repeated for task in made] == [False, True, True]
    assert len({task.result().call.call_sid for task in made}) == 1
    assert len((await relay.calls.list_of(None, count=10, before=0))[0]) == 1


async def test_an_invite_that_is_made_and_withdrawn_in_one_group_stays_owed_to_nobody(
    relay: Parts, clock: Clock
) -> None:
    new = NewCall(relay.calls.new_sid(), ALICE, (), clock.now(), 60)
    async with asyncio.TaskGroup() as tasks, Held(relay.database):
        tasks.create_task(relay.calls.create(Invite(new, (BOB,), {}, Actor())))
        tasks.create_task(relay.calls.carry_out(new.call_sid, Cancel(ALICE, clock.now())))
    of_call = text("SELECT payload FROM outbox WHERE call_sid = :sid")
    owed = await relay.database.read(
        lambda c: list(c.execute(of_call, {"sid": new.call_sid}).scalars())
    )
    assert owed
    assert not [payload for payload in owed if "call.received" in payload]


async def test_what_was_not_kept_costs_no_flood_limit(
    each_database: Database, clock: Clock
) -> None:
    await each_database.write(lambda c: put_device(c, BOBS, 0))
    relay = parts_on(each_database, clock, device_invites_per_s=0.1)  # three invites at once

    def broken(_: UnitOfWork) -> None:
        raise KeyError("a defect")

    async with Held(each_database):
        group = asyncio.gather(
            called(relay, clock),
            called(relay, clock),
            each_database.write_calls(CallWork(broken)),
            called(relay, clock),
            return_exceptions=True,
        )
    made = await group
    assert [isinstance(one, Created) for one in made] == [True, True, False, True]
    with pytest.raises(TooManyRequests):
        await called(relay, clock)


@pytest.fixture
async def two_relays(
    new_postgres_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory, clock: Clock
) -> AsyncIterator[list[Parts]]:
    url = new_postgres_database()
    opened = [
        await asyncio.to_thread(open_database, url, tmp_path_factory.mktemp("relay"))
        for _ in range(2)
    ]
    await opened[0].write(lambda c: put_device(c, BOBS, 0))
    yield [parts_on(database, clock) for database in opened]
    for database in opened:
        await database.close()


async def test_two_relays_that_want_the_same_calls_in_another_order_never_wait_in_a_circle(
    two_relays: list[Parts], clock: Clock
) -> None:
    one, two = two_relays
    sids = [(await called(one, clock)).call.call_sid for _ in range(8)]
    command = Received(BOB, DESK, clock.now())
    # Whoever comes first to a call holds all of its group: the other waits, and holds nothing that
    # the first still wants. A circle would be broken by PostgreSQL, and counted.
    for _ in range(5):
        await asyncio.gather(
            *(one.calls.carry_out(sid, command) for sid in sids),
            *(two.calls.carry_out(sid, replace(command)) for sid in reversed(sids)),
        )
    counted = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    assert await one.database.read(lambda c: c.execute(counted).scalar_one()) == 0
