"""Users with several devices, who invite, join and hand over; and invites whose arrival is checked.
Raw MQTT beside raw WebSocket at a real relay."""

from datetime import datetime
from typing import Any

import pytest

from tests.push.streams import streaming
from tests.push.support import Device, Running, fresh, listening, on_both_stores_in_full, states

pytestmark = [pytest.mark.asyncio(loop_scope="module"), on_both_stores_in_full]


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {"BELLWIRE_NOT_RECEIVED_AFTER_S": "3"}


async def done(device: Any, operation: str, sid: str, **body: Any) -> dict[str, Any]:  # noqa: ANN401 - a Device or a Stream
    answer = await device.ask({"operation": operation, "call_sid": sid, **body})
    assert answer["status"] == 200, answer
    call: dict[str, Any] = answer["call"]
    return call


async def heard_of(running: Running, sid: str, device: Device) -> list[tuple[str, str]]:
    """What a device has heard of a call, with states and reasons; a further call marks the end."""
    of_device = (await running.http.get(f"/v1/devices/{device.name}")).json()["identity"]
    marker = await running.called(of_device)
    await device.until("call.received", marker)
    return [
        (event["event"], event.get("state", event.get("reason", "")))
        for event in device.events
        if event["call_sid"] == sid
    ]


async def test_a_call_is_taken_over_by_another_device_unseen_by_the_other_users(
    running: Running,
) -> None:
    alice, bob, desk, mobile = map(fresh, ("alice", "bob", "desk", "mobile"))
    async with (
        listening(running, alice) as at_alice,
        listening(running, desk, bob) as at_desk,
        streaming(running, mobile, bob) as at_mobile,
    ):
        for mode in ("common", "advanced"):
            sid = await running.called(bob, mode=mode, **{"from": alice})
            await done(at_desk, "accept", sid)
            await at_mobile.until("call.cancelled", sid)
            call = await done(at_mobile, "join", sid)
            assert call["users"][1] == {
                "identity": bob,
                "state": "Accepted",
                "extended_data": "",
                "main_device": mobile,
                "attestation": "A",
                "reject_status": None,
            }
            cancelled = await at_desk.until("call.cancelled", sid)
            assert cancelled["reason"] == "joined_elsewhere"
            # The new main device hears what follows, the old one nothing more.
            await running.do(sid, "messages", identity=alice, content="hello")
            assert (await at_mobile.until("call.message", sid))["content"] == "hello"
            await done(at_mobile, "join", sid)  # once more changes nothing
            assert await heard_of(running, sid, at_desk) == [
                ("call.received", ""),
                ("call.user_state_changed", "Accepted"),
                ("call.cancelled", "joined_elsewhere"),
            ]
            assert await heard_of(running, sid, at_alice) == [
                ("call.created", ""),
                ("call.user_state_changed", "Accepted"),
            ]
            back = await done(at_desk, "join", sid)
            assert back["users"][1]["main_device"] == desk
            assert (await at_mobile.until("call.cancelled", sid))["reason"] == "joined_elsewhere"


async def test_who_joins_from_outside_is_told_to_all_and_who_invites_more_rings_them(
    running: Running,
) -> None:
    alice, bob, carol, dave = map(fresh, ("alice", "bob", "carol", "dave"))
    async with (
        listening(running, alice) as at_alice,
        streaming(running, bob) as at_bob,
        listening(running, carol) as at_carol,
        streaming(running, dave) as at_dave,
    ):
        invite = {"from": alice, "mode": "advanced", "extended_data": "of the call"}
        sid = await running.called(bob, call_type="video", **invite)
        joined = await done(at_carol, "join", sid, extended_data="may I?")
        assert (joined["state"], states(joined)[carol]) == ("open", "Accepted")
        for device in (at_alice, at_bob, at_carol):
            changed = await device.until("call.user_state_changed", sid)
            assert (changed["identity"], changed["state"]) == (carol, "Accepted")
            assert changed["extended_data"] == "may I?"

        more = await done(at_carol, "invite_more", sid, to=[dave, bob], timeout=20)
        assert states(more) == {
            alice: "Accepted",
            bob: "Inviting",
            carol: "Accepted",
            dave: "Inviting",
        }
        invite = await at_dave.until("call.received", sid)
        assert (invite["from"], invite["to"]) == (f"client:{carol}", f"client:{dave}")
        assert (invite["call_type"], invite["mode"]) == ("video", "advanced")
        assert invite["extended_data"] == "of the call"
        for device in (at_alice, at_bob, at_carol):
            changed = await device.until("call.user_state_changed", sid)
            assert (changed["identity"], changed["state"]) == (dave, "Inviting")
        await done(at_dave, "accept", sid)
        assert at_bob.seen("call.received", sid) == 1


async def test_a_call_has_ten_users_and_no_more(running: Running) -> None:
    alice, eve = fresh("alice"), fresh("eve")
    crowd = [fresh("user") for _ in range(9)]
    for identity in crowd:
        await running.register(identity)
    async with listening(running, alice) as at_alice, listening(running, eve) as at_eve:
        sid = await running.called(*crowd[:7], mode="advanced", **{"from": alice})
        before = running.tables()
        refused = await at_alice.ask(
            {"operation": "invite_more", "call_sid": sid, "to": [*crowd[7:], eve]}
        )
        assert (refused["status"], refused["problem"]["type"]) == (422, "/problems/invalid-input")
        assert "at most 10 users" in refused["problem"]["detail"]
        assert running.tables() == before
        full = await done(at_alice, "invite_more", sid, to=crowd[7:])
        assert len(full["users"]) == 10
        before = running.tables()
        for device, request in (
            (at_eve, {"operation": "join"}),
            (at_alice, {"operation": "invite_more", "to": [eve]}),
        ):
            assert (await device.ask({**request, "call_sid": sid}))["status"] == 422
        assert running.tables() == before
        # Who has left still is one of its users, and may be invited again.
        await running.do(sid, "reject", identity=crowd[0])
        assert states(await done(at_alice, "invite_more", sid, to=[crowd[0]]))[crowd[0]] == (
            "Inviting"
        )


async def test_an_invite_that_nobody_confirms_is_told_to_be_not_yet_received(
    running: Running,
) -> None:
    alice, bob, carol = fresh("alice"), fresh("bob"), fresh("carol")
    async with (
        listening(running, alice) as at_alice,
        listening(running, bob) as at_bob,
        streaming(running, carol) as at_carol,
    ):
        unchecked = await running.called(carol, **{"from": alice})
        body = {"from": alice, "check_not_received": True}
        sid = await running.called(bob, carol, **body)
        await at_bob.until("call.received", sid)
        await done(at_bob, "received", sid)
        assert (await at_alice.until("call.user_state_changed", sid))["state"] == "Received"

        for device in (at_alice, at_bob, at_carol):
            while (changed := await device.until("call.user_state_changed", sid))[
                "identity"
            ] != carol:
                pass
            assert changed["state"] == "NotYetReceived"
        made = (await running.call(sid))["created_at"]
        waited = datetime.fromisoformat(changed["at"]) - datetime.fromisoformat(made)
        assert 3 <= waited.total_seconds() < 4
        assert states(await running.call(sid)) == {
            alice: "Accepted",
            bob: "Received",
            carol: "NotYetReceived",
        }
        assert states(await done(at_carol, "received", sid))[carol] == "Received"
        assert (await at_alice.until("call.user_state_changed", sid))["state"] == "Received"
        assert states(await done(at_carol, "accept", sid))[carol] == "Accepted"
        # Where nobody asked for it, nobody is told.
        assert states(await running.call(unchecked))[carol] == "Inviting"


async def test_a_request_that_the_broker_brings_twice_changes_nothing_twice(
    running: Running,
) -> None:
    alice, bob, carol = fresh("alice"), fresh("bob"), fresh("carol")
    async with listening(running, alice) as at_alice, listening(running, bob) as at_bob:
        await running.register(carol)
        steps: list[tuple[Device, dict[str, object]]] = [
            (at_bob, {"operation": "received"}),
            (at_bob, {"operation": "ignore"}),
            (at_bob, {"operation": "accept", "extended_data": "coming"}),
            (at_alice, {"operation": "invite_more", "to": [carol]}),
            (at_bob, {"operation": "message", "content": 1, "voice_event_sid": "KX" + "1" * 32}),
            (at_bob, {"operation": "quit"}),
            (at_bob, {"operation": "join"}),
            (at_bob, {"operation": "end"}),
        ]
        sid = await running.called(bob, mode="advanced", **{"from": alice})
        for device, request in steps:
            first = await device.ask({**request, "call_sid": sid})
            kept = running.tables()
            again = await device.ask({**request, "call_sid": sid})
            assert (again["status"], again) == (200, first), request
            assert running.tables() == kept, request
        # The score may be given anew; one device has one.
        for score in (1, 5):
            await done(at_bob, "feedback", sid, score=score)
        await done(at_alice, "feedback", sid)
        assert running.tables()["feedback"][0] == 2
