"""What never arrived stays on record with its attempts, is counted, and is told where it was an invite; and a
push that an invite is over is not sent once it is worth nothing."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest
from pydantic import JsonValue
from sqlalchemy import Connection, select

from bellwire.push.channels.channel import DeliveryFailed, DeliveryRefused
from bellwire.push.delivery.outbox import NOT_NEEDED
from bellwire.push.delivery.owed import PUSHED_NOTICE_LIFE
from bellwire.push.delivery.undelivered import UNREAD
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.events import forget_read
from bellwire.push.store.rows.outbox import Delivery, owe, tries_with
from bellwire.push.store.tables import outbox, to_ms
from bellwire.signaling.calls.calls import Call
from bellwire.signaling.calls.commands import Accept, Cancel
from bellwire.signaling.calls.events import CallCancelled, CallReceived, CallTimeout, rfc3339
from bellwire.signaling.identifiers import DeviceId, Identity
from tests.conftest import PATIENCE_S
from tests.push.clock import START, Clock
from tests.push.push_service import APP, STREAM, PushingRelay, apns, fcm

BOB = Identity("bob")
BAD, GOOD = "bad0" * 16, "600d" * 16
AWAY = DeliveryFailed("503 ServiceUnavailable")


class Told:
    """What webhooks are told, as `Webhooks.event` is asked to."""

    def __init__(self) -> None:
        self.events: list[dict[str, JsonValue]] = []

    def __call__(
        self,
        connection: Connection,
        name: str,
        event_id: str,
        at: datetime,
        data: dict[str, JsonValue],
    ) -> list[Delivery]:
        del connection, at
        assert (data["event"], data["id"]) == (name, event_id)
        self.events.append(data)
        return []


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def relay(each_database: Database, clock: Clock, told: Told) -> PushingRelay:
    return PushingRelay(each_database, clock, on_event=told)


def undelivered(relay: PushingRelay, result: str, channel: str = "fcm") -> float:
    return relay.counted("bellwire_undelivered_total", channel=channel, result=result)


async def until_recorded(relay: PushingRelay, call: Call, state: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while all(delivery.state != state for delivery in await relay.deliveries(call)):
            pass


async def passes(relay: PushingRelay, seconds: float) -> None:
    """Lets time pass, also for a sweeper that was just about to sleep."""
    relay.clock.advance(seconds)
    for _ in range(20):
        await asyncio.sleep(0.002)
        relay.clock.advance(0.05)


async def next_push(relay: PushingRelay) -> Delivery:
    """The next push, however little time it takes."""
    async with asyncio.timeout(PATIENCE_S):
        while relay.service.tried.empty():
            await passes(relay, 0)
    return relay.service.tried.get_nowait()


async def until_nothing_is_owed(relay: PushingRelay) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await relay.owed():
            await passes(relay, 0)


async def test_an_invite_that_a_push_service_refuses_until_its_end_stays_on_record(
    relay: PushingRelay, told: Told
) -> None:
    await relay.register("phone", "bob", fcm("t"))
    relay.service.says = {"t": AWAY}
    async with relay.running():
        call = await relay.call("bob")
        await relay.service.next()
        await relay.until_failed(1)
        relay.clock.advance(1)
        await next_push(relay)
        await relay.until_failed(2)
    relay.clock.advance_to(call.expires_at)
    await relay.calls.expire(call.call_sid)
    (kept,) = await relay.deliveries(call)
    assert (kept.state, kept.detail, kept.at) == ("expired", str(AWAY), call.expires_at)
    assert (kept.event, kept.event_id) == ("call.received", call.users[0].invite_id)
    assert {(one.result, one.answer) for one in kept.tries} == {("failed", str(AWAY))}
    assert kept.tries[0].at == START and kept.tries[1].at >= START + timedelta(seconds=1)
    assert undelivered(relay, "expired") == 1
    (event,) = told.events
    shown = {
        "event": "delivery.failed",
        "at": rfc3339(call.expires_at),
        "call_sid": call.call_sid,
        "event_id": kept.event_id,
        "device_id": "phone",
        "identity": "bob",
        "channel": "fcm",
        "app": APP,
        "state": "expired",
        "detail": str(AWAY),
    }
    assert shown.items() <= event.items()


async def test_an_invite_that_had_not_arrived_when_another_device_answered_has_failed(
    relay: PushingRelay, told: Told
) -> None:
    await relay.register("phone", "bob", fcm("t"))
    await relay.register("desk", "bob", fcm("good"))
    relay.service.says = {"t": AWAY}
    async with relay.running():
        call = await relay.call("bob")
        await relay.until_owed(1)
        await relay.until_failed()
        at = relay.calls.now()
        await relay.calls.carry_out(call.call_sid, Accept(BOB, DeviceId("desk"), at))
    states = {d.device_id: (d.state, d.detail) for d in await relay.deliveries(call)}
    assert states == {"phone": ("failed", str(AWAY)), "desk": ("sent", "message to desk")}
    assert [event["device_id"] for event in told.events] == ["phone"]


async def test_an_attempt_that_fails_after_the_calls_end_says_so_too(
    relay: PushingRelay, told: Told
) -> None:
    await relay.register("phone", "bob", fcm("t"))
    relay.service.says = {"t": AWAY}
    relay.service.open.clear()
    async with relay.running():
        call = await relay.call("bob")
        await relay.service.next()
        await relay.calls.carry_out(call.call_sid, Cancel(None, relay.calls.now()))
        assert await relay.deliveries(call) == ()  # it is still being sent
        relay.service.open.set()
        await until_recorded(relay, call, "failed")
    assert len(told.events) == undelivered(relay, "failed") == 1


async def test_a_refused_invite_is_told_and_one_that_arrives_is_not(
    relay: PushingRelay, told: Told
) -> None:
    await relay.register("phone", "bob", fcm("t"))
    await relay.register("good", "bob", fcm("good"))
    relay.service.says = {"t": DeliveryRefused("400 BadTopic")}
    async with relay.running():
        call = await relay.call("bob")
        await until_recorded(relay, call, "refused")
        await until_recorded(relay, call, "sent")
    assert [(e["device_id"], e["state"], e["detail"]) for e in told.events] == [
        ("phone", "refused", "400 BadTopic")
    ]
    tries = {d.device_id: [t.result for t in d.tries] for d in await relay.deliveries(call)}
    assert tries == {"phone": ["refused"], "good": ["sent"]}
    assert (undelivered(relay, "refused"), undelivered(relay, "sent")) == (1, 0)


async def test_an_invite_in_a_stream_that_nobody_reads_is_owed_and_then_expired(
    relay: PushingRelay, told: Told
) -> None:
    await relay.register("page", "bob", STREAM)
    call = await relay.call("bob")
    (owed,) = await relay.deliveries(call)
    assert (owed.channel, owed.state, owed.detail) == ("websocket", "owed", UNREAD)
    relay.clock.advance_to(call.expires_at)
    await relay.calls.expire(call.call_sid)
    (kept,) = await relay.deliveries(call)
    assert (kept.state, kept.detail) == ("expired", UNREAD)
    assert [event["channel"] for event in told.events] == ["websocket"]


async def test_a_stream_that_was_read_is_no_failure(relay: PushingRelay, told: Told) -> None:
    await relay.register("page", "bob", STREAM)
    call = await relay.call("bob")
    (event,) = await relay.stream_of("page")
    await relay.database.write(lambda c: forget_read(c, DeviceId("page"), event.sequence))
    relay.clock.advance_to(call.expires_at)
    await relay.calls.expire(call.call_sid)
    assert await relay.deliveries(call) == ()
    assert told.events == []


async def test_no_voip_push_of_the_end_goes_to_a_phone_that_no_invite_reached(
    relay: PushingRelay,
) -> None:
    relay.apns.carries = (CallReceived, CallCancelled)
    await relay.register("phone", "bob", apns(BAD))
    await relay.register("other", "bob", apns(GOOD))
    relay.apns.says = {BAD: AWAY}
    async with relay.running():
        call = await relay.call("bob")
        await relay.until_owed(1)
        await relay.until_failed()
        assert {(await relay.apns.next()).device_id for _ in range(2)} == {"phone", "other"}
        await relay.calls.carry_out(call.call_sid, Cancel(None, relay.calls.now()))
        cancel = await relay.apns.next()
        assert cancel.device_id == "other" and "call.cancelled" in cancel.payload
        await until_nothing_is_owed(relay)
        await passes(relay, 60)
    assert relay.apns.tried.empty()


async def notices(relay: PushingRelay) -> Sequence[tuple[str, int]]:
    def work(connection: Connection) -> Sequence[tuple[str, int]]:
        rows = connection.execute(select(outbox.c.payload, outbox.c.expires_at_ms))
        return [(payload, ms) for payload, ms in rows if '"call.received"' not in payload]

    return await relay.database.read(work)


@pytest.mark.parametrize(("after_s", "life_s"), [(20, 40), (58, PUSHED_NOTICE_LIFE.seconds)])
async def test_a_push_that_an_invite_is_over_lives_no_longer_than_the_invite(
    relay: PushingRelay, after_s: float, life_s: float
) -> None:
    relay.service.carries = (CallReceived, CallCancelled)
    await relay.register("phone", "bob", fcm("t"))
    async with relay.running():
        call = await relay.call("bob")
        await relay.until_owed(0)
        relay.service.says = {"t": AWAY}
        relay.clock.advance(after_s)
        at = relay.calls.now()
        await relay.calls.carry_out(call.call_sid, Cancel(None, at))
        await relay.until_failed()
        ((_, expires_ms),) = await notices(relay)
        assert expires_ms == to_ms(at + timedelta(seconds=life_s))
        relay.service.says = {}
        while not relay.service.tried.empty():
            relay.service.tried.get_nowait()
        relay.clock.advance(18 * 60)
        await until_nothing_is_owed(relay)
    assert relay.service.tried.empty()  # 18 minutes later: nobody is told of a call of long ago


async def test_a_push_of_a_time_out_is_tried_once_at_least(relay: PushingRelay) -> None:
    relay.service.carries = (CallReceived, CallTimeout)
    await relay.register("phone", "bob", fcm("t"))
    async with relay.running():
        call = await relay.call("bob")
        await relay.service.next()
        relay.clock.advance_to(call.expires_at)
        await relay.calls.expire(call.call_sid)
        assert "call.timeout" in (await relay.service.next()).payload


async def test_what_a_device_has_read_from_its_stream_is_not_pushed_once_more(
    relay: PushingRelay,
) -> None:
    relay.service.carries = (CallReceived, CallCancelled)
    await relay.register("phone", "bob", fcm("t"), STREAM)
    await relay.register("asleep", "bob", fcm("t2"), STREAM)
    async with relay.running():
        call = await relay.call("bob")
        await relay.until_owed(0)
        relay.service.says = {"t": AWAY, "t2": AWAY}
        await relay.calls.carry_out(call.call_sid, Cancel(None, relay.calls.now()))
        await relay.until_failed()
        last = (await relay.stream_of("phone"))[-1]
        await relay.database.write(lambda c: forget_read(c, DeviceId("phone"), last.sequence))
        relay.service.says = {}
        while not relay.service.tried.empty():
            relay.service.tried.get_nowait()
        relay.clock.advance(2)
        assert (await next_push(relay)).device_id == "asleep"
        await until_nothing_is_owed(relay)
    assert relay.service.tried.empty()
    became = {
        (d.device_id, d.state): d.detail for d in await relay.deliveries(call) if d.channel == "fcm"
    }
    assert became["phone", "expired"] == NOT_NEEDED
    assert undelivered(relay, "expired") == 0


async def test_what_twilio_says_is_pushed_again_for_no_stream_tells_it(relay: PushingRelay) -> None:
    await relay.register("phone", "bob", fcm("t"), STREAM)
    relay.service.says = {"t": AWAY}
    sid, expires_ms = f"CA{'7' * 32}", to_ms(START + timedelta(seconds=30))
    cancel = '{"twi_message_type":"twilio.voice.cancel"}'
    phone = DeviceId("phone")
    delivery = Delivery("twilio-1", phone, "fcm", cancel, expires_ms, sid, APP, None, "t")
    async with relay.running():
        until_ms = relay.outbox.leased_until_ms
        await relay.database.write(lambda c: owe(c, [delivery], until_ms))
        relay.outbox.dispatch([delivery])
        await relay.service.next()
        await relay.until_failed()
        relay.service.says = {}
        relay.clock.advance(2)
        assert (await next_push(relay)).event_id == "twilio-1"
        await until_nothing_is_owed(relay)


def test_of_many_attempts_the_first_and_the_last_are_kept() -> None:
    tries: str | None = None
    for number in range(100):
        tries = tries_with(tries, number, f"answer {number} {'x' * 300}")
    assert tries is not None and len(tries) < 5000
    assert tries.startswith('[[0,"answer 0') and '[99,"answer 99' in tries and "[81," in tries
    assert "[80," not in tries
