"""Receipts: the first `received` of each channel is kept with its latency, over whichever way the
device says it."""

import re
from typing import Any

import pytest

from bellwire.push.channels.channel import DeliveryFailed
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.devices import remove_channel
from bellwire.signaling.calls.commands import Accept
from bellwire.signaling.errors import OperationRefused
from bellwire.signaling.identifiers import ChannelKind, DeviceId, Identity
from tests.push.clock import Clock
from tests.push.push_service import APP, STREAM, PushingRelay, fcm
from tests.push.streams import reading
from tests.push.support import (
    Running,
    assert_problem,
    broker_client,
    fresh,
    listening,
    on_both_stores,
)

SECONDS = "bellwire_invite_received_seconds"


@pytest.fixture
async def relay(each_database: Database, clock: Clock) -> PushingRelay:
    made = PushingRelay(each_database, clock)
    await made.register("phone", "bob", fcm("t1"), fcm("t2", "com.example.other"), STREAM)
    return made


async def test_the_first_confirmation_of_each_channel_counts_with_its_latency(
    relay: PushingRelay,
) -> None:
    call = await relay.call("bob")
    said: tuple[tuple[float, ChannelKind, str], ...] = (
        (0.25, "fcm", APP),
        (0.25, "websocket", ""),
        (1.0, "fcm", APP),
        (1.0, "fcm", "com.example.other"),
        (1.0, "websocket", ""),
    )
    for waited_s, channel, app in said:
        relay.clock.advance(waited_s)
        await relay.receives(call, "bob", "phone", channel, app)
    received = {(d.channel, d.app): d.latency_ms for d in await relay.deliveries(call)}
    assert received == {
        ("fcm", APP): 250,
        ("fcm", "com.example.other"): 2500,
        ("websocket", None): 500,
    }
    assert {d.state for d in await relay.deliveries(call)} == {"received"}
    assert relay.counted(f"{SECONDS}_count", channel="fcm") == 2
    assert relay.counted(f"{SECONDS}_sum", channel="fcm") == pytest.approx(2.75)
    assert relay.counted(f"{SECONDS}_count", channel="websocket") == 1
    assert relay.counted(f"{SECONDS}_bucket", channel="websocket", le="0.5") == 1


async def test_a_confirmation_stays_when_the_push_is_settled_after_it(relay: PushingRelay) -> None:
    relay.service.open.clear()
    async with relay.running():
        call = await relay.call("bob")
        await relay.service.next()
        relay.clock.advance(0.5)
        await relay.receives(call, "bob", "phone", "fcm", APP)
        relay.service.open.set()
        await relay.until_owed(0)
    of_app = next(d for d in await relay.deliveries(call) if d.app == APP)
    assert (of_app.state, of_app.latency_ms) == ("received", 500)
    assert of_app.detail == "message to phone"


async def test_a_push_that_arrived_though_its_answer_was_lost_counts_as_received(
    relay: PushingRelay,
) -> None:
    relay.service.says["t1"] = DeliveryFailed("the connection was lost")
    async with relay.running():
        call = await relay.call("bob")
        await relay.until_owed(1)
        await relay.until_failed()
        await relay.receives(call, "bob", "phone", "fcm", APP)
    of_app = next(d for d in await relay.deliveries(call) if d.app == APP)
    assert (of_app.state, of_app.attempts) == ("received", 1)
    assert of_app.detail == "the connection was lost"


async def test_a_second_device_counts_too_and_so_does_one_that_is_late(relay: PushingRelay) -> None:
    await relay.register("desk", "bob", STREAM)
    call = await relay.call("bob")
    await relay.receives(call, "bob", "phone", "websocket")
    bob, phone = Identity("bob"), DeviceId("phone")
    await relay.calls.carry_out(call.call_sid, Accept(bob, phone, relay.calls.now()))
    relay.clock.advance(3)
    await relay.receives(call, "bob", "desk", "websocket")
    latencies = {d.device_id: d.latency_ms for d in await relay.deliveries(call)}
    assert latencies == {"phone": 0, "desk": 3000}


async def test_nothing_is_kept_of_what_no_channel_of_the_identity_can_have_carried(
    relay: PushingRelay,
) -> None:
    await relay.register("eve-phone", "eve", fcm("e1"), STREAM)
    call = await relay.call("bob", "eve")
    await relay.receives(call, "bob", "phone")
    await relay.receives(call, "bob", None, "websocket")
    await relay.receives(call, "bob", "phone", "mqtt")
    await relay.receives(call, "bob", "phone", "fcm", "com.example.unknown")
    await relay.receives(call, "bob", "nobody", "websocket")
    await relay.receives(call, "bob", "eve-phone", "websocket")  # not bob's
    (removed,) = (c for c in await relay.channels_of("eve-phone") if c.kind == "fcm")
    await relay.database.write(lambda c: remove_channel(c, DeviceId("eve-phone"), removed))
    await relay.receives(call, "eve", "eve-phone", "fcm", APP)
    assert all(d.state == "owed" for d in await relay.deliveries(call))
    for channel in ("fcm", "mqtt", "websocket"):
        assert relay.counted(f"{SECONDS}_count", channel=channel) == 0


async def test_a_confirmation_that_is_refused_is_not_kept(relay: PushingRelay) -> None:
    call = await relay.call("bob", timeout_s=5)
    relay.clock.advance(5)
    with pytest.raises(OperationRefused):
        await relay.receives(call, "bob", "phone", "websocket")
    assert {d.state for d in await relay.deliveries(call)} == {"expired"}


async def received(running: Running, sid: str) -> dict[tuple[str, str], Any]:
    """The latency of what was received of a call, by device and channel."""
    answer = await running.http.get(f"/v1/calls/{sid}/deliveries")
    assert answer.status_code == 200, answer.text
    return {
        (delivery["device_id"], delivery["channel"]): delivery["latency_ms"]
        for delivery in answer.json()["deliveries"]
        if delivery["state"] == "received"
    }


async def counted(running: Running, channel: str) -> float:
    text = (await running.http.get("/metrics")).text
    found = re.search(rf'^{SECONDS}_count{{channel="{channel}"}} (\S+)$', text, re.MULTILINE)
    return 0 if found is None else float(found[1])


@pytest.mark.asyncio(loop_scope="module")
@on_both_stores
async def test_a_live_connection_confirms_for_itself_unless_another_channel_is_named(
    running: Running,
) -> None:
    bob = fresh("bob")
    channels = [{"kind": "mqtt"}, {"kind": "websocket"}]
    body = {"identity": bob, "channels": channels}
    access = (await running.http.put(f"/v1/devices/{bob}", json=body)).json()["mqtt"]
    async with listening(running, desk := fresh("desk"), bob) as at_desk:
        before = {kind: await counted(running, kind) for kind in ("mqtt", "websocket")}
        first, second = await running.called(bob), await running.called(bob)
        answer = await at_desk.ask({"operation": "received", "call_sid": first})
        assert answer["status"] == 200
        assert set(await received(running, first)) == {(desk, "mqtt")}
        async with reading(running, bob) as stream:
            await stream.until("call.received", first)
            confirm = {"operation": "received", "call_sid": first}
            assert (await stream.ask(confirm))["status"] == 200
            assert (await stream.ask(confirm))["status"] == 200
            named = {"operation": "received", "call_sid": second, "channel": "mqtt"}
            assert (await stream.ask(named))["status"] == 200
        of_first = await received(running, first)
        assert set(of_first) == {(desk, "mqtt"), (bob, "websocket")}
        assert all(0 <= latency_ms < 60_000 for latency_ms in of_first.values())
        assert set(await received(running, second)) == {(bob, "mqtt")}
        assert await counted(running, "mqtt") == before["mqtt"] + 2
        assert await counted(running, "websocket") == before["websocket"] + 1
    async with broker_client(access, bob):
        pass  # The device of both channels has its access to the broker too.


@pytest.mark.asyncio(loop_scope="module")
@on_both_stores
async def test_over_http_a_device_says_which_channel_it_was(running: Running) -> None:
    bob, phone = fresh("bob"), fresh("phone")
    await running.register(phone, bob)
    sid = await running.called(bob)
    as_bob = await running.token(bob, phone)
    path = f"/v1/calls/{sid}/received"
    assert (await running.http.post(path, headers=as_bob)).status_code == 200
    assert await received(running, sid) == {}
    answer = await running.http.post(path, headers=as_bob, json={"channel": "mqtt"})
    assert answer.status_code == 200
    first = await received(running, sid)
    assert set(first) == {(phone, "mqtt")}
    assert (
        await running.do(sid, "received", identity=bob, device_id=phone, channel="mqtt")
    ).is_success
    assert await received(running, sid) == first


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("body", "what"),
    [
        ({"channel": "pigeon"}, "channel"),
        ({"channel": "fcm"}, "needs its app"),
        ({"channel": "apns", "app": ""}, "needs its app"),
        ({"channel": "mqtt", "app": "com.example.app"}, "channel of kind apns or fcm"),
        ({"app": "com.example.app"}, "channel of kind apns or fcm"),
        ({"channel": "fcm", "app": "x" * 257}, "app"),
    ],
)
async def test_a_channel_that_cannot_be_is_refused_over_every_way(
    running: Running, body: dict[str, str], what: str
) -> None:
    bob = fresh("bob")
    async with listening(running, bob) as at_bob:
        sid = await running.called(bob)
        before = running.tables()
        answer = await running.do(sid, "received", identity=bob, device_id=bob, **body)
        assert what in assert_problem(answer, 422, "invalid-input")["detail"]
        over_mqtt = await at_bob.ask({"operation": "received", "call_sid": sid, **body})
        assert (over_mqtt["status"], over_mqtt["problem"]["type"]) == (
            422,
            "/problems/invalid-input",
        )
        assert what in over_mqtt["problem"]["detail"]
        assert running.tables() == before
