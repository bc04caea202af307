"""`GET /v1/calls/{sid}/deliveries`: what became of a call, by device and channel."""

from datetime import timedelta

import pytest

from bellwire.push.channels.channel import ChannelAtFault, DeliveryFailed, DeliveryRefused
from bellwire.push.store.engine.database import Database
from bellwire.signaling.calls.commands import Cancel
from bellwire.signaling.calls.events import rfc3339
from tests.push.clock import START, Clock
from tests.push.push_service import APP, STREAM, PushingRelay, fcm
from tests.push.support import Running, assert_problem, fresh, listening, on_both_stores


@pytest.fixture
async def relay(each_database: Database, clock: Clock) -> PushingRelay:
    return PushingRelay(each_database, clock)


async def test_each_delivery_is_told_with_what_became_of_it(relay: PushingRelay) -> None:
    for name in ("fine", "refused", "failing", "held"):
        await relay.register(f"{name}-phone", name, fcm(f"secret-{name}"), STREAM)
    relay.service.says = {
        "secret-refused": DeliveryRefused("the message is malformed"),
        "secret-failing": DeliveryFailed("the push service is away"),
        "secret-held": ChannelAtFault("the key was revoked"),
    }
    async with relay.running():
        call = await relay.call("fine", "refused", "failing", "held")
        await relay.until_owed(2)
        await relay.until_failed()
        relay.clock.advance(0.125)
        await relay.receives(call, "fine", "fine-phone", "fcm", APP)
        told = {d.identity: d for d in await relay.deliveries(call) if d.channel == "fcm"}
        assert {identity: (d.state, d.detail) for identity, d in told.items()} == {
            "fine": ("received", "message to fine-phone"),
            "refused": ("refused", "the message is malformed"),
            "failing": ("owed", "the push service is away"),
            "held": ("owed", "the key was revoked"),
        }
        assert told["failing"].attempts == 1 and told["failing"].at is None
        assert told["refused"].attempts is None and told["refused"].at == START
        fine = told["fine"].model_dump(mode="json")
        assert fine == {
            "device_id": "fine-phone",
            "identity": "fine",
            "channel": "fcm",
            "app": APP,
            "event_id": call.users[0].invite_id,
            "state": "received",
            "detail": "message to fine-phone",
            "attempts": None,
            "at": rfc3339(START),
            "received_at": rfc3339(START + timedelta(seconds=0.125)),
            "latency_ms": 125,
            "event": "call.received",
            "tries": [{"at": rfc3339(START), "result": "sent", "answer": "message to fine-phone"}],
        }
        assert "secret" not in str(told)
    relay.clock.advance_to(call.expires_at)
    of_pushes = [d for d in await relay.deliveries(call) if d.channel == "fcm"]
    over = {d.identity: (d.state, d.detail) for d in of_pushes}
    assert over["failing"] == ("expired", "the push service is away")
    assert over["held"] == ("expired", "the key was revoked")


async def test_what_is_only_owed_yet_is_told_without_a_reason(relay: PushingRelay) -> None:
    await relay.register("phone", "bob", fcm("t1"))
    call = await relay.call("bob")
    (owed,) = await relay.deliveries(call)
    assert (owed.state, owed.detail, owed.attempts) == ("owed", "", 0)
    await relay.calls.carry_out(call.call_sid, Cancel(None, relay.calls.now()))
    assert await relay.deliveries(call) == ()  # an invite that is over is owed no more


async def test_one_identity_sees_its_own_devices_alone(relay: PushingRelay) -> None:
    await relay.register("bob-phone", "bob", fcm("t1"))
    await relay.register("carol-phone", "carol", fcm("t2"))
    relay.service.says["t2"] = DeliveryFailed("away")
    async with relay.running():
        call = await relay.call("bob", "carol")
        await relay.until_owed(1)
        await relay.until_failed()
    for whose, device in (("bob", "bob-phone"), ("carol", "carol-phone")):
        assert [d.device_id for d in await relay.deliveries(call, whose)] == [device]
    other = await relay.call("bob")
    assert {d.event_id for d in await relay.deliveries(other)} == {other.users[0].invite_id}


async def test_a_device_that_has_changed_hands_is_told_without_its_new_owner(
    relay: PushingRelay,
) -> None:
    await relay.register("phone", "bob", fcm("t1"))
    await relay.register("desk", "bob", fcm("t2"))
    async with relay.running():
        call = await relay.call("bob")
        await relay.until_owed(0)
        await relay.register("phone", "carol", fcm("t1"))
    told = {d.device_id: d.identity for d in await relay.deliveries(call)}
    assert told == {"phone": None, "desk": "bob"}
    assert [d.device_id for d in await relay.deliveries(call, "bob")] == ["desk"]


@pytest.mark.asyncio(loop_scope="module")
@on_both_stores
async def test_deliveries_are_shown_to_servers_and_to_users_of_the_call(running: Running) -> None:
    bob, carol, eve = fresh("bob"), fresh("carol"), fresh("eve")
    await running.register(eve)
    await running.register(carol)  # and it is not there
    async with listening(running, bob) as at_bob:
        sid = await running.called(bob, carol)
        await at_bob.until("call.received", sid)
        await at_bob.ask({"operation": "received", "call_sid": sid})
        path = f"/v1/calls/{sid}/deliveries"
        answer = await running.http.get(path)
        assert (answer.status_code, answer.json()["call_sid"]) == (200, sid)
        shown = {(d["device_id"], d["channel"], d["state"]) for d in answer.json()["deliveries"]}
        assert {(bob, "mqtt", "received"), (carol, "mqtt", "owed")} <= shown
        own = await running.http.get(path, headers=await running.token(bob))
        assert {d["device_id"] for d in own.json()["deliveries"]} == {bob}
        assert_problem(
            await running.http.get(path, headers=await running.token(eve)), 403, "forbidden"
        )
    no_call = f"/v1/calls/CA{'0' * 32}/deliveries"
    assert_problem(await running.http.get(no_call), 404, "call-not-found")
    assert_problem(await running.http.get("/v1/calls/none/deliveries"), 422, "invalid-input")
    async with running.stranger() as stranger:
        assert_problem(await stranger.get(path), 401, "unauthenticated")
