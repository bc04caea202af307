"""Who hears what of a call: each operation over HTTP, and the events that reach MQTT devices."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import call_topic, presence_topic
from bellwire.signaling.wire.station import Presence, presence_document
from tests.push.support import Device, Running, broker_client, fresh, listening, on_both_stores

pytestmark = [pytest.mark.asyncio(loop_scope="module"), on_both_stores]


@dataclass
class Scene:
    """Alice with one device, bob with a desk phone and a mobile, carol with one device."""

    running: Running
    alice: Device
    bob: str
    desk: Device
    mobile: Device
    carol: Device

    async def call(self, **body: Any) -> str:  # noqa: ANN401 - JSON
        invite = {"from": self.alice.name, **body}
        return await self.running.called(self.bob, self.carol.name, **invite)

    async def done(self, sid: str, operation: str, **body: str) -> None:
        answer = await self.running.do(sid, operation, **body)
        assert answer.status_code == 200, answer.text

    async def by_desk(self, sid: str, operation: str, **body: str) -> None:
        await self.done(sid, operation, identity=self.bob, device_id=self.desk.name, **body)

    async def heard_of(self, sid: str, device: Device) -> list[str]:
        """All events of a call that came to a device, in order. A further call marks the end: what
        was owed before it has come before it."""
        marker = await self.running.called(self.bob, self.carol.name, self.alice.name)
        await device.until("call.received", marker)
        await self.done(marker, "cancel")
        return [event["event"] for event in device.events if event["call_sid"] == sid]


@pytest_asyncio.fixture(loop_scope="module")
async def scene(running: Running) -> AsyncIterator[Scene]:
    alice, bob, desk, mobile, carol = map(fresh, ("alice", "bob", "desk", "mobile", "carol"))
    async with (
        listening(running, alice) as at_alice,
        listening(running, desk, bob) as at_desk,
        listening(running, mobile, bob) as at_mobile,
        listening(running, carol) as at_carol,
    ):
        yield Scene(running, at_alice, bob, at_desk, at_mobile, at_carol)


async def test_a_call_is_told_to_its_caller_and_rings_every_device_of_the_invitees(
    scene: Scene,
) -> None:
    sid = await scene.call(
        custom_parameters={"door": "front"},
        extended_data="hello",
        push={"title": "Door", "content": "rings", "payload": "{}"},
    )
    created = await scene.alice.until("call.created")
    assert created["call_sid"] == sid
    assert created["invitees"] == [
        {"identity": scene.bob, "channels": ["mqtt"]},
        {"identity": scene.carol.name, "channels": ["mqtt"]},
    ]
    call = await scene.running.call(sid)
    for device, identity in (
        (scene.desk, scene.bob),
        (scene.mobile, scene.bob),
        (scene.carol, scene.carol.name),
    ):
        invite = await device.until("call.received")
        assert invite["call_sid"] == sid
        assert invite["from"] == f"client:{scene.alice.name}"
        assert invite["to"] == f"client:{identity}"
        assert invite["custom_parameters"] == {"door": "front"}
        assert invite["extended_data"] == "hello"
        assert (invite["title"], invite["content"], invite["payload"]) == ("Door", "rings", "{}")
        assert invite["expires_at"] == call["expires_at"]


async def test_a_confirmed_invite_is_told_to_the_caller_and_to_who_is_invited(scene: Scene) -> None:
    sid = await scene.call()
    await scene.by_desk(sid, "received")
    for device in (scene.alice, scene.desk, scene.mobile, scene.carol):
        changed = await device.until("call.user_state_changed")
        assert changed["call_sid"] == sid
        assert (changed["identity"], changed["state"]) == (scene.bob, "Received")


async def test_the_other_devices_are_told_that_a_call_was_answered_elsewhere(scene: Scene) -> None:
    sid = await scene.call()
    await scene.by_desk(sid, "accept", extended_data="coming")
    cancelled = await scene.mobile.until("call.cancelled")
    assert (cancelled["call_sid"], cancelled["reason"]) == (sid, "answered_elsewhere")
    for device in (scene.alice, scene.desk, scene.carol):
        changed = await device.until("call.user_state_changed")
        assert (changed["identity"], changed["state"]) == (scene.bob, "Accepted")
        assert changed["extended_data"] == "coming"
    await scene.done(sid, "reject", identity=scene.carol.name)
    await scene.by_desk(sid, "quit")
    # The mobile, no longer concerned, heard of nothing that followed.
    assert await scene.heard_of(sid, scene.mobile) == ["call.received", "call.cancelled"]
    assert await scene.heard_of(sid, scene.desk) == [
        "call.received",
        "call.user_state_changed",  # bob accepted
        "call.user_state_changed",  # carol rejected
        "call.user_state_changed",  # bob quit
    ]


async def test_a_rejection_says_busy_to_the_caller_and_rejected_elsewhere_to_other_devices(
    scene: Scene,
) -> None:
    sid = await scene.call()
    await scene.by_desk(sid, "reject", status="busy")
    changed = await scene.alice.until("call.user_state_changed")
    assert (changed["identity"], changed["state"]) == (scene.bob, "Rejected")
    assert changed["reject_status"] == "busy"
    assert (await scene.carol.until("call.user_state_changed"))["state"] == "Rejected"
    assert (await scene.mobile.until("call.cancelled"))["reason"] == "rejected_elsewhere"
    assert await scene.heard_of(sid, scene.desk) == ["call.received"]

    await scene.done(sid, "reject", identity=scene.carol.name)
    changed = await scene.alice.until("call.user_state_changed", sid)
    assert (changed["identity"], changed["reject_status"]) == (scene.carol.name, "rejected")
    assert (await scene.alice.until("call.ended"))["call_sid"] == sid


async def test_a_withdrawn_call_stops_every_device_that_still_rings(scene: Scene) -> None:
    sid = await scene.call()
    await scene.by_desk(sid, "received")
    await scene.done(sid, "cancel", identity=scene.alice.name, extended_data="never mind")
    for device in (scene.desk, scene.mobile, scene.carol):
        cancelled = await device.until("call.cancelled")
        assert (cancelled["call_sid"], cancelled["reason"]) == (sid, "cancelled")
        assert cancelled["extended_data"] == "never mind"
    assert (await scene.alice.until("call.ended"))["call_sid"] == sid
    assert "call.ended" not in await scene.heard_of(sid, scene.carol)


async def test_a_hang_up_is_told_to_who_stays_and_to_who_left(scene: Scene) -> None:
    sid = await scene.call()
    await scene.by_desk(sid, "accept")
    await scene.done(sid, "accept", identity=scene.carol.name, device_id=scene.carol.name)
    await scene.by_desk(sid, "quit", extended_data="bye")
    for device in (scene.alice, scene.carol, scene.desk):
        while (changed := await device.until("call.user_state_changed"))["state"] != "Quit":
            pass
        assert (changed["identity"], changed["extended_data"]) == (scene.bob, "bye")
    await scene.done(sid, "quit", identity=scene.carol.name, device_id=scene.carol.name)
    assert (await scene.alice.until("call.ended"))["call_sid"] == sid
    assert "call.ended" not in await scene.heard_of(sid, scene.desk)


async def test_an_advanced_call_that_is_ended_is_ended_for_those_in_it_and_those_invited(
    scene: Scene,
) -> None:
    sid = await scene.call(mode="advanced")
    await scene.by_desk(sid, "accept")
    await scene.by_desk(sid, "end")
    for device in (scene.alice, scene.desk, scene.carol):
        assert (await device.until("call.ended"))["call_sid"] == sid


async def test_a_call_that_nobody_answers_times_out_for_each_who_was_called(scene: Scene) -> None:
    sid = await scene.call(timeout=1)
    for device in (scene.desk, scene.mobile, scene.carol):
        assert (await device.until("call.timeout"))["call_sid"] == sid
    timed_out = {
        (await scene.alice.until("call.user_state_changed", sid))["identity"] for _ in range(2)
    }
    assert timed_out == {scene.bob, scene.carol.name}
    assert (await scene.alice.until("call.ended"))["call_sid"] == sid
    answer = await scene.running.do(sid, "accept", identity=scene.bob)
    assert answer.status_code == 409


async def test_an_operation_repeated_is_not_told_again(scene: Scene) -> None:
    sid = await scene.call()
    for _ in range(3):
        await scene.by_desk(sid, "accept")
    assert await scene.heard_of(sid, scene.alice) == ["call.created", "call.user_state_changed"]
    assert await scene.heard_of(sid, scene.mobile) == ["call.received", "call.cancelled"]


async def test_every_event_of_a_call_has_an_id_of_its_own_and_the_same_for_every_device(
    scene: Scene,
) -> None:
    sid = await scene.call()
    await scene.by_desk(sid, "received")
    changes = [
        await device.until("call.user_state_changed", sid)
        for device in (scene.alice, scene.desk, scene.mobile, scene.carol)
    ]
    assert len({change["id"] for change in changes}) == 1
    ids = [event["id"] for event in scene.desk.events if event["call_sid"] == sid]
    assert len(ids) == len(set(ids)) == 2


async def test_two_devices_that_accept_in_one_instant_have_exactly_one_winner(
    scene: Scene,
) -> None:
    for _ in range(5):
        sid = await scene.call()
        answers = await asyncio.gather(
            *(
                scene.running.do(sid, "accept", identity=scene.bob, device_id=device.name)
                for device in (scene.desk, scene.mobile)
            )
        )
        assert sorted(answer.status_code for answer in answers) == [200, 409]
        of_bob = (await scene.running.call(sid))["users"][1]
        won = answers[0].status_code == 200
        assert of_bob["main_device"] == (scene.desk if won else scene.mobile).name
        loser = scene.mobile if won else scene.desk
        assert (await loser.until("call.cancelled", sid))["reason"] == "answered_elsewhere"


def _number(event_id: str) -> int:
    return int(event_id.rpartition("-")[2])


async def test_events_for_a_device_that_the_broker_does_not_know_wait_until_it_comes(
    running: Running,
) -> None:
    alice, bob = map(fresh, ("alice", "bob"))
    access = await running.register(alice)
    await running.register(bob)
    sid = await running.called(bob, **{"from": alice})
    await running.do(sid, "reject", identity=bob)
    async with broker_client(access, alice) as client:
        device = Device(alice, client)
        await client.subscribe(call_topic(DeviceId(alice)), qos=1)
        presence = presence_document(Presence(online=True))
        await client.publish(presence_topic(DeviceId(alice)), presence, qos=1, retain=True)
        # Tried again, they come in no particular order; their ids have one.
        for event in ("call.created", "call.user_state_changed", "call.ended"):
            await device.until_seen(event, sid)
    assert [
        event["event"] for event in sorted(device.events, key=lambda event: _number(event["id"]))
    ] == [
        "call.created",
        "call.user_state_changed",
        "call.ended",
    ]
