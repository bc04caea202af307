"""What backends are owed: every event once, through failures and restarts, and again when asked."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, func, select

from broker.address import BrokerAddress
from broker.session import Session
from config.push_apps import WebhookTarget
from push import webhooks as webhooks_module
from push.auth import Actor
from push.calls import Calls, Invite
from push.channels.webhook import LIFE_S, WebhookChannel
from push.deliveries import Deliveries
from push.flood_limits import FloodLimits
from push.metrics import Metrics
from push.outbox import LEASE_S, Outbox
from push.store.call_rows import to_ms
from push.store.database import Database
from push.store.device_rows import ChannelRow, DeviceRow, put_device
from push.store.outbox_rows import count_owed, make_all_due, owe
from push.store.tables import delivery_results, outbox, webhook_events
from push.streams import Streams
from push.webhooks import KEPT, Replayed, Webhooks
from signaling.calls import Call
from signaling.commands import Accept, Cancel, NewCall, Quit, Reject
from signaling.errors import InvalidInput, NotFound
from signaling.events import parse_event
from signaling.identifiers import DeviceId, Identity
from tests.conftest import PATIENCE_S
from tests.push.clock import Clock
from tests.push.webhook_receiver import Backend, Received, backend, hang, status, target

ALICE, BOB, PHONE = Identity("alice"), Identity("bob"), DeviceId("phone")


class Scene:
    """The parts of one relay with webhooks; `another` is a further process on its database."""

    def __init__(self, database: Database, clock: Clock, targets: dict[str, WebhookTarget]) -> None:
        self.database, self.clock, self.targets = database, clock, targets
        self.metrics = Metrics()
        self.webhooks = Webhooks(targets, now=clock.now)
        self.channel = WebhookChannel(targets, now=clock.now)
        channels = {"webhook": self.channel}
        self.outbox = Outbox(database, channels, self.metrics, now=clock.now, sleep=clock.sleep)
        streams = Streams(Session(BrokerAddress("127.0.0.1", 1), "no-broker"), alone=True)
        deliveries = Deliveries(self.outbox, {}, streams, now=clock.now, webhooks=self.webhooks)
        floods = FloodLimits(1000, 1000)
        self.calls = Calls(database, deliveries, self.metrics, floods, now=clock.now)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with aclosing(self.channel), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(self.outbox.run())
            await asyncio.sleep(0)
            yield
            running.cancel()

    def another(self) -> "Scene":
        return Scene(self.database, self.clock, self.targets)

    async def call(self, caller: Identity | None = ALICE) -> Call:
        """A call to bob that rings."""
        for identity in (ALICE, BOB):
            device = DeviceRow(DeviceId(f"{identity}-1"), identity, (ChannelRow("mqtt"),))
            await self.database.write(partial(put_device, device=device, at_ms=0))
        new = NewCall(self.calls.new_sid(), caller, (), self.clock.now(), 600)
        return (await self.calls.create(Invite(new, (BOB,), {}, Actor(caller)))).call

    async def cancelled(self, call: Call) -> None:
        await self.calls.carry_out(call.call_sid, Cancel(None, self.clock.now()))

    async def owed(self) -> int:
        return await self.database.read(count_owed)

    async def results(self) -> list[Any]:
        """What is on record of deliveries."""
        return await self.database.read(lambda c: list(c.execute(select(delivery_results))))

    async def until_nothing_is_owed(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while await self.owed():
                await self._passes_a_little()

    async def until_failed(self, attempts: int = 1) -> None:
        """Waits until this many attempts have failed, and that is on record."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.database.read(_failed) < attempts:
                await self._passes_a_little()

    async def next_after(self, wait_s: float, receiver: Backend) -> Received:
        """What comes first once this time has passed."""
        self.clock.advance(wait_s)
        async with asyncio.timeout(PATIENCE_S):
            while receiver.came.empty():
                await self._passes_a_little()
        return receiver.came.get_nowait()

    async def _passes_a_little(self) -> None:
        """Lets the others work, and time pass for a sweeper that was just about to sleep."""
        await asyncio.sleep(0.002)
        self.clock.advance(0.05)

    async def replay(self, name: str, **how: Any) -> Replayed:  # noqa: ANN401
        since = how.pop("since", self.clock.now() - KEPT)
        asked = {"until": None, "call_sid": None, **how}
        return await self.database.write(
            partial(self.webhooks.replay, name=name, since=since, **asked)
        )

    async def kept(self) -> int:
        return await self.database.read(
            lambda c: c.execute(select(func.count()).select_from(webhook_events)).scalar_one()
        )


def _failed(connection: Connection) -> int:
    attempts: int | None = connection.execute(select(func.sum(outbox.c.attempts))).scalar_one()
    return int(attempts or 0)


@pytest.fixture
async def receiver() -> AsyncIterator[Backend]:
    async with backend() as here:
        yield here


@pytest.fixture
def scene_of(database: Database, clock: Clock, tmp_path: Path) -> Callable[..., Scene]:
    """A scene whose webhooks are given by name, as a backend or as settings."""
    return partial(_scene, database, clock, tmp_path)


@pytest.fixture
def scene_on_each(each_database: Database, clock: Clock, tmp_path: Path) -> Callable[..., Scene]:
    """The same, on each kind of store."""
    return partial(_scene, each_database, clock, tmp_path)


def _scene(
    database: Database, clock: Clock, folder: Path, **targets: Backend | dict[str, Any]
) -> Scene:
    settings = {
        name: target(folder, **({"url": given.url} if isinstance(given, Backend) else given))
        for name, given in targets.items()
    }
    return Scene(database, clock, settings)


def types(came: list[Received]) -> list[str]:
    return sorted(one.event["type"] for one in came)


CALLED = ["call.created", "call.received"]
CANCELLED = ["call.cancelled", "call.ended", "call.user_state_changed"]


async def test_a_backend_is_told_of_each_event_of_a_call_in_the_events_own_words(
    scene_on_each: Callable[..., Scene], receiver: Backend
) -> None:
    scene = scene_on_each(billing=receiver)
    async with scene.running():
        call = await scene.call()
        came = {one.event["type"]: one for one in await receiver.next_few(2)}
        await scene.until_nothing_is_owed()
    assert sorted(came) == CALLED
    for name, recipients in (("call.received", ["bob"]), ("call.created", ["alice"])):
        body = came[name].event
        assert list(body) == ["type", "timestamp", "data"]
        event = parse_event(came[name].body.split(b'"data":', 1)[1][:-1])
        assert event.event == name
        assert event.call_sid == call.call_sid
        assert event.id == came[name].id
        assert body["timestamp"] == body["data"]["at"] == "2026-03-01T12:00:00.000Z"
        assert body["data"]["recipients"] == recipients
    assert receiver.came.empty()


async def test_a_backend_that_called_hears_how_it_ends_though_nobody_else_does(
    scene_of: Callable[..., Scene], receiver: Backend
) -> None:
    scene = scene_of(billing=receiver)
    now = scene.clock.now()
    async with scene.running():
        rejected = await scene.call(caller=None)
        await scene.calls.carry_out(rejected.call_sid, Reject(BOB, PHONE, now))
        came = await receiver.next_few(5)
        assert types(came) == [
            "call.cancelled",
            "call.created",
            "call.ended",
            "call.received",
            "call.user_state_changed",
        ]
        answered = await scene.call(caller=None)
        await scene.calls.carry_out(answered.call_sid, Accept(BOB, PHONE, now))
        await scene.calls.carry_out(answered.call_sid, Quit(BOB, PHONE, now))
        came = await receiver.next_few(6)
        assert "call.ended" in types(came)
        states = [one.event["data"].get("state") for one in came]
        assert {"Accepted", "Quit"} <= set(states)
        await scene.until_nothing_is_owed()
    assert receiver.came.empty()


async def test_a_target_gets_the_events_that_it_wants_and_another_gets_its_own(
    scene_of: Callable[..., Scene], receiver: Backend
) -> None:
    async with backend() as other:
        scene = scene_of(
            billing={"url": receiver.url, "events": ["call.received", "call.ended"]}, crm=other
        )
        async with scene.running():
            call = await scene.call()
            await scene.cancelled(call)
            await scene.until_nothing_is_owed()
        came = [receiver.came.get_nowait() for _ in range(receiver.came.qsize())]
        assert types(came) == ["call.ended", "call.received"]
        everything = [other.came.get_nowait() for _ in range(other.came.qsize())]
        assert types(everything) == sorted(CALLED + CANCELLED)


async def test_what_no_target_wants_is_not_kept(
    scene_on_each: Callable[..., Scene], receiver: Backend
) -> None:
    nowhere = scene_on_each()
    await nowhere.cancelled(await nowhere.call())
    assert (await nowhere.owed(), await nowhere.kept()) == (0, 0)
    picky = scene_on_each(billing={"url": receiver.url, "events": ["call.ended"]})
    await picky.cancelled(await picky.call())
    assert (await picky.owed(), await picky.kept()) == (1, 1)


async def test_what_a_killed_relay_owed_is_sent_after_its_restart(
    scene_on_each: Callable[..., Scene], receiver: Backend
) -> None:
    dead = scene_on_each(billing=receiver)
    call = await dead.call()  # committed; its outbox does not run: it was killed before it sent
    await dead.cancelled(call)
    assert receiver.came.empty()
    scene = dead.another()
    scene.clock.advance(LEASE_S)
    async with scene.running():
        assert types(await receiver.next_few(5)) == sorted(CALLED + CANCELLED)
        await scene.until_nothing_is_owed()
    assert receiver.came.empty()


async def test_an_event_is_tried_over_hours_the_same_each_time_though_the_call_is_long_over(
    scene_on_each: Callable[..., Scene], receiver: Backend
) -> None:
    scene = scene_on_each(billing={"url": receiver.url, "events": ["call.received"]})
    receiver.answer = status(500)
    async with scene.running():
        call = await scene.call()
        first = await receiver.next()
        await scene.until_failed()
        await scene.cancelled(call)
        for attempts, wait_s in enumerate((6, 60, 3600, 5 * 3600), start=2):
            again = await scene.next_after(wait_s, receiver)
            assert (again.id, again.body) == (first.id, first.body)
            await scene.until_failed(attempts)
        receiver.answer = status(200)
        last = await scene.next_after(14 * 3600, receiver)
        assert (last.id, last.body) == (first.id, first.body)
        await scene.until_nothing_is_owed()


async def test_a_hanging_backend_holds_up_neither_another_nor_the_relay(
    scene_of: Callable[..., Scene], receiver: Backend
) -> None:
    async with backend() as hanging:
        hanging.answer = hang
        scene = scene_of(hanging=hanging, billing=receiver)
        async with scene.running():
            for _ in range(20):
                await scene.cancelled(await scene.call())
            assert len(await receiver.next_few(100)) == 100
        assert await scene.owed() >= 100  # all that the hanging one is owed


async def test_an_event_nobody_takes_is_given_up_after_three_days_and_that_is_on_record(
    scene_of: Callable[..., Scene], receiver: Backend
) -> None:
    scene = scene_of(billing={"url": receiver.url, "events": ["call.received"]})
    receiver.answer = status(500)
    async with scene.running():
        call = await scene.call()
        await receiver.next()
        await scene.until_failed()
        scene.clock.advance(LIFE_S)
        await scene.until_nothing_is_owed()
    (result,) = await scene.results()
    assert result.call_sid == call.call_sid
    assert (result.kind, result.app, result.device_id) == ("webhook", "billing", "")
    assert (result.result, result.detail) == ("expired", "webhook billing: answered 500")
    assert receiver.came.empty()


async def test_what_a_backend_refuses_for_good_is_not_tried_again(
    scene_of: Callable[..., Scene], receiver: Backend
) -> None:
    scene = scene_of(billing={"url": receiver.url, "events": ["call.received"]})
    receiver.answer = status(410)
    async with scene.running():
        call = await scene.call()
        await receiver.next()
        await scene.until_nothing_is_owed()
    (result,) = await scene.results()
    assert result.call_sid == call.call_sid
    assert (result.result, result.detail) == ("refused", "webhook billing: answered 410")


async def test_events_can_be_replayed_as_they_were(
    scene_of: Callable[..., Scene], receiver: Backend
) -> None:
    scene = scene_of(billing=receiver)
    async with scene.running():
        await scene.call()
        before = {one.id: one.body for one in await receiver.next_few(2)}
        await scene.until_nothing_is_owed()
        scene.clock.advance(KEPT.total_seconds() - 10)
        assert await scene.replay("billing") == Replayed(2, None)
        again = [await scene.next_after(0, receiver), await receiver.next()]
        assert {one.id: one.body for one in again} == before
        await scene.until_nothing_is_owed()
    assert receiver.came.empty()


async def test_a_replay_is_of_the_time_the_call_and_the_events_that_are_meant(
    scene_on_each: Callable[..., Scene], receiver: Backend
) -> None:
    scene = scene_on_each(billing=receiver, ends={"url": receiver.url, "events": ["call.ended"]})
    start = scene.clock.now()
    first = await scene.call()
    scene.clock.advance(60)
    later = scene.clock.now()
    second = await scene.call()
    await scene.cancelled(second)
    await scene.database.write(lambda c: c.execute(outbox.delete()))

    async def replayed(name: str = "billing", **how: Any) -> int:  # noqa: ANN401
        count = (await scene.replay(name, **how)).count
        await scene.database.write(lambda c: c.execute(outbox.delete()))
        return count

    assert await replayed() == 7
    assert await replayed("ends") == 1
    assert await replayed(since=later) == 5
    assert await replayed(since=start, until=later) == 2
    assert await replayed(since=later + timedelta(milliseconds=1)) == 0
    assert await replayed(call_sid=first.call_sid) == 2
    assert await replayed(call_sid=second.call_sid, until=later) == 0
    with pytest.raises(NotFound, match="no webhook crm"):
        await scene.replay("crm")


async def test_a_replay_does_not_double_what_is_still_owed_nor_does_a_second_replay_at_once(
    scene_on_each: Callable[..., Scene], receiver: Backend
) -> None:
    async with backend() as other:
        scene = scene_on_each(billing=receiver, crm=other)
        call = await scene.call()
        assert (await scene.replay("billing")).count == 0
        await scene.database.write(
            lambda c: c.execute(outbox.delete().where(outbox.c.app == "billing"))
        )
        at_once = await asyncio.gather(*(scene.replay("billing") for _ in range(4)))
        assert sorted(replayed.count for replayed in at_once) == [0, 0, 0, 2]
        counted = await scene.database.read(scene.webhooks.owed)
        assert counted == {"billing": 2, "crm": 2}
        await scene.cancelled(call)  # what is owed to webhooks is not withdrawn with the invite
        counted = await scene.database.read(scene.webhooks.owed)
        assert counted == {"billing": 5, "crm": 5}


async def test_a_large_replay_is_bounded_and_is_sent_little_by_little(
    scene_of: Callable[..., Scene], receiver: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks_module, "REPLAY_LIMIT", 120)
    scene = scene_of(billing=receiver)
    start = scene.clock.now()

    def events(connection: Connection) -> None:
        for number in range(130):
            at = start + timedelta(seconds=number)
            scene.webhooks.event(
                connection, "device.channel_removed", f"event-{number}", at, {"n": number}
            )

    await scene.database.write(events)
    replayed = await scene.replay("billing")
    assert replayed == Replayed(120, start + timedelta(seconds=120))
    due_ms = await scene.database.read(
        lambda c: list(c.execute(select(outbox.c.due_ms).order_by(outbox.c.due_ms)).scalars())
    )
    now_ms = to_ms(scene.clock.now())
    assert due_ms == [now_ms] * 50 + [now_ms + 500] * 50 + [now_ms + 1000] * 20
    assert (await scene.replay("billing", since=replayed.next_since)).count == 10


async def test_an_event_that_is_no_calls_is_owed_once_like_any_other(
    scene_on_each: Callable[..., Scene], receiver: Backend
) -> None:
    scene = scene_on_each(
        billing=receiver, calls={"url": receiver.url, "events": ["call.received"]}
    )
    at, data = scene.clock.now(), {"device_id": "phone", "kind": "apns"}

    def removed(connection: Connection) -> int:
        new = scene.webhooks.event(connection, "device.channel_removed", "removed-1", at, data)
        owe(connection, new, to_ms(at))
        return len(new)

    assert await scene.database.write(removed) == 1
    assert await scene.database.write(removed) == 0
    async with scene.running():
        came = await receiver.next()
        await scene.until_nothing_is_owed()
    assert came.id == "removed-1"
    assert came.event == {
        "type": "device.channel_removed",
        "timestamp": "2026-03-01T12:00:00.000Z",
        "data": data,
    }
    assert (await scene.replay("billing")).count == 1


async def test_events_are_forgotten_when_they_can_no_longer_be_replayed(
    scene_of: Callable[..., Scene], receiver: Backend
) -> None:
    scene = scene_of(billing=receiver)
    await scene.call()
    scene.clock.advance(KEPT.total_seconds())
    await scene.database.write(scene.webhooks.forget_old)
    assert await scene.kept() == 2
    scene.clock.advance(0.001)
    await scene.database.write(scene.webhooks.forget_old)
    assert await scene.kept() == 0


async def test_a_test_event_goes_to_its_target_alone_whatever_that_wants(
    scene_of: Callable[..., Scene], receiver: Backend
) -> None:
    async with backend() as other:
        scene = scene_of(billing={"url": receiver.url, "events": ["call.ended"]}, crm=other)
        event_id = await scene.database.write(partial(scene.webhooks.test, name="billing"))
        async with scene.running():
            came = await receiver.next()
            await scene.until_nothing_is_owed()
        assert came.event["type"] == "webhook.test"
        assert came.event["data"] == {"id": event_id, "webhook": "billing"}
        assert came.id == event_id
        assert other.came.empty()
        assert await scene.kept() == 0


async def test_a_relay_alone_on_its_database_sends_at_once_what_it_owed_before_it_was_killed(
    scene_of: Callable[..., Scene], receiver: Backend
) -> None:
    dead = scene_of(billing=receiver)
    await dead.call()
    scene = dead.another()
    await scene.database.write(lambda c: make_all_due(c, to_ms(scene.clock.now())))
    async with scene.running():
        assert types(await receiver.next_few(2)) == CALLED
        await scene.until_nothing_is_owed()


@pytest.mark.parametrize("events", [["call.recieved"], ["webhook.test"], []])
def test_an_event_that_there_is_not_is_named(tmp_path: Path, events: list[str]) -> None:
    settings = {"billing": target(tmp_path, "http://127.0.0.1/", events=events)}
    with pytest.raises(InvalidInput, match=r"webhooks\.billing\.events: .* call\.received"):
        Webhooks(settings, now=Clock().now)
