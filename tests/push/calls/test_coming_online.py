"""A device that comes online while an invite for it is alive gets it at once; one that has become
another identity's gets nothing of the former's."""

from contextlib import suppress

import pytest
from websockets.exceptions import ConnectionClosed

from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import presence_topic
from bellwire.signaling.wire.station import Presence, presence_document
from tests.push.streams import reading, register_for_stream, streaming
from tests.push.support import Device, Running, fresh, listening, on_both_stores_in_full, states

pytestmark = [pytest.mark.asyncio(loop_scope="module"), on_both_stores_in_full]


async def come_online(device: Device) -> None:
    document = presence_document(Presence(online=True))
    await device.mqtt.publish(presence_topic(DeviceId(device.name)), document, qos=1, retain=True)


async def test_a_device_that_comes_online_at_the_broker_gets_its_live_invites_only(
    running: Running,
) -> None:
    bob, desk, carol = fresh("bob"), fresh("desk"), fresh("carol")
    await running.register(carol)
    await running.register(bob)
    live = await running.called(bob, carol, timeout=30, custom_parameters={"a": "1"})
    over, rejected, foreign = (
        await running.called(bob),
        await running.called(bob, carol),
        await running.called(carol),
    )
    await running.do(over, "cancel")
    await running.do(rejected, "reject", identity=bob)
    async with listening(running, desk, bob) as at_desk:  # registered after they were made
        await come_online(at_desk)
        invite = await at_desk.until("call.received")
        assert invite["call_sid"] == live
        assert invite["custom_parameters"] == {"a": "1"}
        assert invite["expires_at"] == (await running.call(live))["expires_at"]
        await at_desk.ask({"operation": "received", "call_sid": live})
        assert states(await running.call(live))[bob] == "Received"
        # A call made later comes after all that the coming online has owed.
        later = await running.called(bob)
        await at_desk.until("call.received", later)
        for sid in (over, rejected, foreign):
            assert at_desk.seen("call.received", sid) == 0


async def test_an_invite_that_comes_twice_has_one_id_and_one_call(running: Running) -> None:
    bob = fresh("bob")
    async with listening(running, bob) as at_bob:
        sid = await running.called(bob)
        first = await at_bob.until("call.received", sid)
        for _ in range(5):  # at once, while the relay still holds what it has just sent
            await come_online(at_bob)
            again = await at_bob.until("call.received", sid)
            # A connect token is made anew each time.
            assert {**again, "connect_token": first["connect_token"]} == first
        assert len(at_bob.events) == 6


async def test_a_stream_that_is_opened_anew_begins_with_the_live_invites(running: Running) -> None:
    bob, carol = fresh("bob"), fresh("carol")
    await register_for_stream(running, bob)
    await running.register(carol)
    first, over, second = [await running.called(bob, carol) for _ in range(3)]
    await running.do(over, "cancel")
    await running.do(second, "received", identity=bob)
    async with reading(running, bob) as stream:
        invites = [await stream.until("call.received") for _ in range(2)]
        assert {invite["call_sid"] for invite in invites} == {first, second}
        # What else there was before is not told to who begins anew, nor anything twice.
        assert len(stream.events) == 2
        later = await running.called(bob)
        assert (await stream.until("call.received"))["call_sid"] == later
        assert len(stream.events) == 3
    async with reading(running, bob) as again:
        invites = [await again.until("call.received") for _ in range(3)]
        assert {invite["call_sid"] for invite in invites} == {first, second, later}


async def test_a_stream_that_goes_on_from_its_cursor_repeats_no_invite(running: Running) -> None:
    bob = fresh("bob")
    async with streaming(running, bob) as stream:
        first = await running.called(bob)
        await stream.until("call.received")
    missed = await running.called(bob)
    async with reading(running, bob, cursor=stream.cursor) as again:
        assert (await again.until("call.received"))["call_sid"] == missed
        assert again.seen("call.received", first) == 0
        assert len(again.events) == 1


async def test_a_device_that_moved_to_another_identity_gets_nothing_of_the_former(
    running: Running,
) -> None:
    bob, eve, phone = fresh("bob"), fresh("eve"), fresh("phone")
    async with streaming(running, phone, bob) as stream:
        sid = await running.called(bob, mode="advanced")
        await stream.until("call.received", sid)
        await register_for_stream(running, phone, eve)
        assert (await stream.closed())[0] == 4001
    await running.do(sid, "messages", content="for bob alone")
    for cursor in ({}, {"cursor": 0}, {"cursor": stream.cursor}, {"cursor": 10**6}):
        async with reading(running, phone, eve, **cursor) as moved:
            for operation in ("show", "received", "accept"):
                answer = await moved.ask({"operation": operation, "call_sid": sid})
                assert answer["status"] == 403
            assert (await moved.ask({"operation": "list"}))["calls"] == []
            assert moved.events == []


async def test_what_a_stream_is_asked_after_its_device_moved_is_not_done_for_the_former(
    running: Running,
) -> None:
    bob, eve, phone = fresh("bob"), fresh("eve"), fresh("phone")
    async with streaming(running, phone, bob) as stream:
        sid = await running.called(bob)
        await stream.until("call.received", sid)
        await register_for_stream(running, phone, eve)
        with suppress(ConnectionClosed):  # it may be closed already
            await stream.socket.send(f'{{"operation": "accept", "call_sid": "{sid}"}}')
        assert (await stream.closed())[0] == 4001
    assert states(await running.call(sid))[bob] == "Inviting"


async def test_over_mqtt_too_a_moved_device_is_the_new_identitys(running: Running) -> None:
    bob, eve, phone = fresh("bob"), fresh("eve"), fresh("phone")
    async with listening(running, phone, bob) as at_phone:
        before = await running.called(bob)
        await at_phone.until("call.received", before)
        body = {"identity": eve, "channels": [{"kind": "mqtt"}]}
        assert (await running.http.put(f"/v1/devices/{phone}", json=body)).status_code == 200
        await running.do(before, "cancel")
        answer = await at_phone.ask({"operation": "accept", "call_sid": before})
        assert answer["status"] == 403
        await come_online(at_phone)
        of_eve = await running.called(eve)
        await at_phone.until("call.received", of_eve)
        assert [event["call_sid"] for event in at_phone.events] == [before, of_eve]
