"""Dead tokens: their channels are removed, once, and it is told; a device that was registered again
meanwhile keeps what it has. On each kind of store."""

import asyncio
import json
from datetime import datetime, timedelta

import pytest
from pydantic import JsonValue
from sqlalchemy import Connection

from bellwire.push.channels.channel import TokenDead
from bellwire.push.delivery.outbox import LEASE_S, Outbox
from bellwire.push.metrics import Metrics
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.outbox import Delivery, count_owed, owe
from bellwire.push.store.tables import to_ms
from bellwire.signaling.calls.events import parse_event, rfc3339
from bellwire.signaling.errors import Unavailable
from bellwire.signaling.identifiers import DeviceId
from tests.conftest import PATIENCE_S
from tests.push.clock import START, Clock
from tests.push.push_service import APP, STREAM, PushingRelay, PushService, fcm

DEAD = TokenDead("Unregistered")
REMOVED = "bellwire_tokens_removed_total"


@pytest.fixture
async def relay(each_database: Database, clock: Clock) -> PushingRelay:
    return PushingRelay(each_database, clock)


async def test_a_dead_token_is_removed_and_its_device_is_told_on_its_stream(
    relay: PushingRelay,
) -> None:
    await relay.register("phone", "bob", fcm("t1"), STREAM)
    relay.service.says["t1"] = DEAD
    async with relay.running():
        call = await relay.call("bob")
        await relay.until_owed(0)
    assert [c.kind for c in await relay.channels_of("phone")] == ["websocket"]
    invite, told = await relay.stream_of("phone")
    assert parse_event(invite.document).call_sid == call.call_sid
    assert json.loads(told.document) == {
        "event": "device.channel_removed",
        "id": told.event_id,
        "at": rfc3339(START),
        "device_id": "phone",
        "identity": "bob",
        "kind": "fcm",
        "app": APP,
        "reason": "Unregistered",
    }
    (became,) = (d for d in await relay.deliveries(call) if d.channel == "fcm")
    assert (became.state, became.detail) == ("refused", "Unregistered")
    assert relay.counted(REMOVED, channel="fcm", reason="Unregistered") == 1
    assert relay.counted("bellwire_deliveries_total", channel="fcm", result="refused") == 1


async def test_a_dead_token_is_told_to_webhooks_at_once(
    each_database: Database, clock: Clock
) -> None:
    asked: list[tuple[str, str, datetime, dict[str, JsonValue]]] = []

    def on_event(
        connection: Connection, name: str, event_id: str, at: datetime, data: dict[str, JsonValue]
    ) -> list[Delivery]:
        del connection
        asked.append((name, event_id, at, data))
        expires_ms = to_ms(at + timedelta(hours=1))
        return [Delivery(event_id, DeviceId(""), "webhook", "told", expires_ms, app="backend")]

    relay = PushingRelay(each_database, clock, on_event=on_event)
    await relay.register("phone", "bob", fcm("t1"))
    relay.service.says["t1"] = DEAD
    async with relay.running():
        await relay.call("bob")
        told = await relay.backend.next()
        await relay.until_owed(0)
    # Both stand on record: the channel is gone, and the invite did not arrive over it.
    assert {name for name, *_ in asked} == {"device.channel_removed", "delivery.failed"}
    ((name, event_id, at, data),) = (a for a in asked if a[0] == "device.channel_removed")
    assert (name, at, told.event_id) == ("device.channel_removed", START, event_id)
    assert data == {
        "device_id": "phone",
        "identity": "bob",
        "kind": "fcm",
        "app": APP,
        "reason": "Unregistered",
    }


async def test_a_token_that_was_registered_after_it_died_is_kept_and_tried_again(
    relay: PushingRelay,
) -> None:
    await relay.register("phone", "bob", fcm("t1"), STREAM)
    relay.service.says["t1"] = TokenDead("Unregistered", START - timedelta(seconds=1))
    async with relay.running():
        await relay.call("bob")
        await relay.service.next()
        await relay.until_failed()
        relay.service.says.clear()
        await relay.clock.until_asleep()
        relay.clock.advance(1)
        await relay.service.next()
        await relay.until_owed(0)
    assert len(await relay.channels_of("phone")) == 2
    assert len(await relay.stream_of("phone")) == 1
    assert relay.counted(REMOVED, channel="fcm", reason="Unregistered") == 0


async def test_a_token_that_died_after_it_was_registered_is_removed(relay: PushingRelay) -> None:
    await relay.register("phone", "bob", fcm("t1"))
    relay.clock.advance(10)
    relay.service.says["t1"] = TokenDead("Unregistered", START + timedelta(seconds=5))
    async with relay.running():
        await relay.call("bob")
        await relay.until_owed(0)
    assert await relay.channels_of("phone") == ()


async def test_a_device_with_a_new_token_by_now_is_rung_with_that_one(relay: PushingRelay) -> None:
    await relay.register("phone", "bob", fcm("old"))
    relay.service.open.clear()
    relay.service.says["old"] = DEAD
    async with relay.running():
        await relay.call("bob")
        await relay.service.next()
        await relay.register("phone", "bob", fcm("new"))
        relay.service.open.set()
        await relay.until_failed()
        await relay.clock.until_asleep()
        relay.clock.advance(1)
        assert (await relay.service.next()).token == "new"
        await relay.until_owed(0)
    assert [c.token for c in await relay.channels_of("phone")] == ["new"]


async def test_many_deliveries_to_one_dead_token_tell_of_it_once(relay: PushingRelay) -> None:
    await relay.register("phone", "bob", fcm("t1"), STREAM)
    relay.service.open.clear()
    relay.service.says["t1"] = DEAD
    async with relay.running():
        for _ in range(3):
            await relay.call("bob")
            await relay.service.next()
        relay.service.open.set()
        await relay.until_owed(0)
    assert len(await relay.stream_of("phone")) == 3 + 1
    assert relay.counted(REMOVED, channel="fcm", reason="Unregistered") == 1


async def test_a_token_that_another_has_by_now_is_not_taken_from_it(relay: PushingRelay) -> None:
    await relay.register("phone", "bob", fcm("t1"))
    relay.service.open.clear()
    relay.service.says["t1"] = DEAD
    async with relay.running():
        await relay.call("bob")
        await relay.service.next()
        await relay.register("other", "carol", fcm("t1"))
        relay.service.open.set()
        await relay.until_owed(0)
    assert [c.token for c in await relay.channels_of("other")] == ["t1"]


async def test_what_says_the_metric_is_one_of_few_words(relay: PushingRelay) -> None:
    said = {
        "BadDeviceToken": "BadDeviceToken",
        "DeviceTokenNotForTopic (400)": "DeviceTokenNotForTopic",
        "410 ExpiredToken": "ExpiredToken",
        "SENDER_ID_MISMATCH": "SenderIdMismatch",
        "the token is UNREGISTERED": "Unregistered",
        "something new": "other",
        "x" * 5000: "other",
    }
    await relay.register("desk", "bob", STREAM)
    async with relay.running():
        for number, reason in enumerate(said):
            await relay.register("phone", "bob", fcm(f"t{number}"), STREAM)
            relay.service.says[f"t{number}"] = TokenDead(reason)
            await relay.call("bob")
            await relay.until_owed(0)
    counts = {label: list(said.values()).count(label) for label in said.values()}
    assert counts == {
        label: relay.counted(REMOVED, channel="fcm", reason=label) for label in counts
    }
    assert max(len(event.document) for event in await relay.stream_of("phone")) < 600


async def test_while_the_database_is_away_nothing_is_lost(
    each_database: Database, clock: Clock
) -> None:
    service, reports = PushService(), asyncio.Queue[Delivery]()
    service.says["t1"] = DEAD

    async def report(delivery: Delivery, dead: TokenDead) -> None:
        assert dead is DEAD
        reports.put_nowait(delivery)
        if reports.qsize() == 1:
            raise Unavailable("the database is away")

    relay = PushingRelay(each_database, clock)
    await relay.register("phone", "bob", fcm("t1"))
    outbox = Outbox(
        each_database,
        {"fcm": service},
        Metrics(),
        now=clock.now,
        sleep=clock.sleep,
        on_dead_token=report,
    )
    expires_ms = to_ms(START + timedelta(minutes=1))
    new = Delivery("event-1", DeviceId("phone"), "fcm", "payload", expires_ms, "", APP)
    await each_database.write(lambda c: owe(c, [new], to_ms(START)))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(outbox.run())
        await service.next()
        await clock.until_asleep()
        clock.advance(LEASE_S)
        await service.next()  # the outbox goes on, and finds the token dead once more
        async with asyncio.timeout(PATIENCE_S):
            while await each_database.read(count_owed):
                pass
        running.cancel()
    assert reports.qsize() == 2
