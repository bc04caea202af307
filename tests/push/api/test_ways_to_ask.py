"""Every operation over HTTP, MQTT and a stream: the same documents, the same results."""

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from tests.push.streams import Stream, register_for_stream, streaming
from tests.push.support import Device, Running, fresh, listening, on_both_stores_in_full, states
from tests.push.ways import OverConnection, OverHttp, Way

pytestmark = [pytest.mark.asyncio(loop_scope="module"), on_both_stores_in_full]

KX = "KX" + "0" * 32


@dataclass
class Scene:
    """Alice and bob, who ask in the way that a test is run in; carol, who listens over MQTT."""

    running: Running
    alice: Way
    bob: Way
    carol: Device
    hears: Device | Stream
    """Where bob's device hears events: its own connection, else one beside."""

    async def call(self, **body: Any) -> str:  # noqa: ANN401 - JSON
        """Alice's advanced call to bob and carol; its SID."""
        to = [self.bob.identity, self.carol.name]
        status, call = await self.alice.ask(
            "invite", to=to, **{"timeout": 600, "mode": "advanced", **body}
        )
        assert status == 201, call
        sid: str = call["call_sid"]
        return sid

    async def done(self, who: Way, operation: str, sid: str, **body: Any) -> dict[str, Any]:  # noqa: ANN401
        """The answer to an operation that is carried out; it is the call as all see it."""
        status, call = await who.ask(operation, sid, **body)
        assert status == 200, call
        assert {name: value for name, value in call.items() if name != "voice_event_sid"} == (
            await self.running.call(sid)
        )
        return call


@pytest_asyncio.fixture(loop_scope="module", params=["http", "mqtt", "stream"])
async def scene(running: Running, request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    alice, bob, carol = map(fresh, ("alice", "bob", "carol"))
    async with listening(running, carol) as at_carol, AsyncExitStack() as ended:
        for identity in (alice, carol):
            ended.push_async_callback(running.end_calls_of, identity)
        if request.param == "http":
            await register_for_stream(running, alice)
            async with listening(running, bob) as hears:
                at_alice = OverHttp(running, alice, alice)
                yield Scene(running, at_alice, OverHttp(running, bob, bob), at_carol, hears)
        elif request.param == "mqtt":
            async with listening(running, alice) as m_alice, listening(running, bob) as m_bob:
                one, other = OverConnection(m_alice, alice), OverConnection(m_bob, bob)
                yield Scene(running, one, other, at_carol, m_bob)
        else:
            async with streaming(running, alice) as s_alice, streaming(running, bob) as s_bob:
                one, other = OverConnection(s_alice, alice), OverConnection(s_bob, bob)
                yield Scene(running, one, other, at_carol, s_bob)


async def test_every_operation_of_a_calls_life_is_carried_out(scene: Scene) -> None:
    alice, bob, carol = scene.alice, scene.bob, scene.carol.name
    dave = fresh("dave")
    await scene.running.register(dave)
    sid = await scene.call(call_type="video", extended_data="hello", custom_parameters={"a": "ü"})
    invite = await scene.hears.until("call.received", sid)
    assert (invite["call_type"], invite["mode"]) == ("video", "advanced")
    assert (invite["extended_data"], invite["custom_parameters"]) == ("hello", {"a": "ü"})

    assert states(await scene.done(bob, "show", sid))[bob.identity] == "Inviting"
    assert states(await scene.done(bob, "received", sid))[bob.identity] == "Received"
    assert states(await scene.done(bob, "ignore", sid))[bob.identity] == "Received"
    accepted = await scene.done(bob, "accept", sid, extended_data="coming")
    of_bob = accepted["users"][1]
    assert (of_bob["state"], of_bob["main_device"]) == ("Accepted", bob.device)
    assert (accepted["state"], of_bob["extended_data"]) == ("open", "coming")

    more = await scene.done(bob, "invite_more", sid, to=[dave, "nobody-at-all"], timeout=30)
    assert states(more)[dave] == "Inviting"
    assert more["error_invitees"] == [{"identity": "nobody-at-all", "reason": "unknown"}]
    assert states(await scene.done(bob, "quit", sid))[bob.identity] == "Quit"
    assert states(await scene.done(bob, "join", sid))[bob.identity] == "Accepted"
    rated = await scene.done(bob, "feedback", sid, score=4, issue="echo")
    assert states(await scene.done(alice, "end", sid)) == states(rated)
    assert (await scene.carol.until("call.ended", sid))["call_sid"] == sid
    assert carol in states(rated)

    rejected = await scene.call()
    assert states(await scene.done(bob, "reject", rejected, status="busy"))[bob.identity] == (
        "Rejected"
    )
    changed = await scene.carol.until("call.user_state_changed", rejected)
    assert changed["reject_status"] == "busy"
    cancelled = await scene.done(alice, "cancel", rejected, extended_data="never mind")
    assert (cancelled["state"], states(cancelled)[carol]) == ("ended", "Canceled")
    heard = await scene.carol.until("call.cancelled", rejected)
    assert heard["extended_data"] == "never mind"


async def test_some_are_cancelled_while_others_talk_and_who_cannot_be_is_told(scene: Scene) -> None:
    alice, bob, carol = scene.alice, scene.bob, scene.carol.name
    dave, erin = fresh("dave"), fresh("erin")
    for one in (dave, erin):
        await scene.running.register(one)
    sid = await scene.call()
    await scene.done(bob, "accept", sid)
    await scene.done(bob, "invite_more", sid, to=[dave, erin])
    # Bob may cancel whom he has invited, and them alone.
    status, call = await bob.ask("cancel", sid, to=[dave, carol, alice.identity, "nobody-at-all"])
    assert (status, call["state"]) == (200, "open")
    assert (states(call)[dave], states(call)[carol]) == ("Canceled", "Inviting")
    assert call["error_invitees"] == [
        {"identity": carol, "reason": "not_yours"},
        {"identity": alice.identity, "reason": "not_invited"},
        {"identity": "nobody-at-all", "reason": "not_invited"},
    ]
    status, call = await alice.ask(
        "cancel", sid, to=[carol, bob.identity], extended_data="never mind"
    )
    assert (status, call["state"], states(call)[carol]) == (200, "open", "Canceled")
    assert call["error_invitees"] == [{"identity": bob.identity, "reason": "answered"}]
    heard = await scene.carol.until("call.cancelled", sid)
    assert (heard["reason"], heard["extended_data"]) == ("cancelled", "never mind")
    # All who are left: the call goes on for the two who talk, also where it is done again.
    for _ in range(2):
        call = await scene.done(alice, "cancel", sid)
        assert (call["state"], states(call)[erin], call["error_invitees"]) == (
            "open",
            "Canceled",
            [],
        )
    ended = await scene.done(bob, "end", sid, extended_data="bye")
    assert ended["state"] == "ended"
    if scene.hears.name == bob.device:
        assert (await scene.hears.until("call.ended", sid))["extended_data"] == "bye"


async def test_message_to_a_backend_that_there_is_not_says_what_to_do(scene: Scene) -> None:
    sid = await scene.call()
    status, problem = await scene.alice.ask("message", sid, to=["backend"], content="hello")
    assert (status, problem["type"]) == (404, "/problems/not-found")
    assert "[webhooks]" in problem["detail"]
    await scene.done(scene.alice, "end", sid)


async def test_who_is_in_a_call_may_start_another(scene: Scene) -> None:
    alice, bob, carol = scene.alice, scene.bob, scene.carol.name
    sid = await scene.call()
    await scene.done(bob, "accept", sid)
    status, other = await bob.ask("invite", to=[carol], timeout=600)
    assert (status, other["state"], states(other)[bob.identity]) == (201, "ringing", "Accepted")
    assert (await scene.carol.until("call.received", other["call_sid"]))["from"] == (
        f"client:{bob.identity}"
    )
    assert states(await scene.done(alice, "show", sid))[bob.identity] == "Accepted"
    for one in (sid, other["call_sid"]):
        await scene.done(bob, "end", one)


async def test_rejection_by_the_caller_as_cancelled_is_a_cancel(scene: Scene) -> None:
    alice, bob = scene.alice, scene.bob
    sid = await scene.call()
    status, problem = await bob.ask("reject", sid, status="cancelled")
    assert (status, problem["type"]) == (403, "/problems/forbidden")
    call = await scene.done(alice, "reject", sid, status="cancelled", extended_data="sorry")
    assert (call["state"], states(call)[bob.identity]) == ("ended", "Canceled")
    assert (await scene.carol.until("call.cancelled", sid))["extended_data"] == "sorry"
    status, problem = await bob.ask("accept", sid)
    assert (status, problem["code"], problem["reason"]) == (409, 31008, "cancelled")
    assert (problem["operation"], problem["state"]) == ("accept", "ended")
    for told in ("explanation", "causes", "solutions"):
        assert problem[told]


async def test_refusals_say_by_their_codes_what_has_become_of_the_call(scene: Scene) -> None:
    alice, bob = scene.alice, scene.bob
    sid = await scene.call()
    await scene.done(bob, "accept", sid)
    await scene.done(alice, "end", sid)
    status, problem = await bob.ask("quit", sid)
    assert (status, problem["code"], problem["reason"]) == (409, 31487, "ended")
    assert problem["solutions"] == ["None needed"]
    status, problem = await bob.ask("quit", "CA" + "0" * 32)
    assert (status, problem["code"]) == (404, 31481)
    assert problem["causes"] == ["The SID is mistyped", "The call is older than the relay keeps"]


async def test_invite_has_the_account_and_a_token_for_this_call(scene: Scene) -> None:
    sid = await scene.call()
    for device in (scene.hears, scene.carol):
        invite = await device.until("call.received", sid)
        assert re.fullmatch("AC[0-9a-f]{32}", invite["account_sid"])
        mine = {"Authorization": f"Bearer {invite['connect_token']}"}
        http = scene.running.stranger()
        async with http:
            received = await http.post(f"/v1/calls/{sid}/received", headers=mine)
            assert received.status_code == 200, received.text
            (of_device,) = (u for u in received.json()["users"] if u["state"] == "Received")
            other = await scene.call()
            refused = await http.post(f"/v1/calls/{other}/received", headers=mine)
            assert refused.status_code == 403
            taken = await http.post(f"/v1/calls/{sid}/reject", headers=mine)
            user = next(u for u in taken.json()["users"] if u["identity"] == of_device["identity"])
            assert (user["state"], user["main_device"]) == ("Rejected", device.name)
            assert user["attestation"] == "A"


async def test_a_message_is_heard_by_the_others_or_by_those_who_are_meant(scene: Scene) -> None:
    alice, bob = scene.alice, scene.bob
    sid = await scene.call()
    content = {"sdp": "v=0 ü", "n": [1, None, True]}
    answer = await scene.done(
        alice, "message", sid, content=content, voice_event_sid=KX, message_type="offer"
    )
    assert answer["voice_event_sid"] == KX
    for device in (scene.hears, scene.carol):
        heard = await device.until("call.message", sid)
        assert (heard["content"], heard["content_type"]) == (content, "application/json")
        assert (heard["from"], heard["message_type"]) == (f"client:{alice.identity}", "offer")
        assert heard["voice_event_sid"] == KX
    await scene.done(alice, "message", sid, content="for bob", to=[bob.identity])
    assert (await scene.hears.until("call.message", sid))["content"] == "for bob"
    later = await scene.done(bob, "message", sid, content="for all")
    assert later["voice_event_sid"] != KX
    # Carol hears the next that is for her, and not the one before.
    assert (await scene.carol.until("call.message", sid))["content"] == "for all"


async def test_a_message_sent_again_under_its_sid_is_heard_once_even_after_it_was_read(
    scene: Scene,
) -> None:
    alice = scene.alice
    sid = await scene.call()
    said = {"content": {"n": 1}, "voice_event_sid": KX}
    first = await scene.done(alice, "message", sid, **said)
    await scene.carol.until("call.message", sid)
    kept = scene.running.tables()
    for _ in range(3):
        assert await scene.done(alice, "message", sid, **said) == first
    assert scene.running.tables() == kept
    status, problem = await alice.ask("message", sid, **said | {"content": {"n": 2}})
    assert (status, problem["type"]) == (409, "/problems/conflict")
    await scene.done(alice, "message", sid, content="the end")
    while (await scene.carol.until("call.message", sid))["content"] != "the end":
        pass
    assert scene.carol.seen("call.message", sid) == 2


async def test_calls_are_listed_newest_first_page_by_page(scene: Scene) -> None:
    alice = scene.alice
    made = [await scene.call(mode="common") for _ in range(3)][::-1]
    status, first = await alice.ask("list", count=2)
    assert status == 200
    assert [call["call_sid"] for call in first["calls"]] == made[:2]
    assert first["calls"][0] == await scene.running.call(made[0])
    _, second = await alice.ask("list", count=2, next=first["next"])
    assert [call["call_sid"] for call in second["calls"]] == made[2:]
    assert second["next"] == 0
    _, whole = await alice.ask("list", count=1000)
    assert [call["call_sid"] for call in whole["calls"]] == made
    for count in (0, -1):
        assert (await alice.ask("list", count=count))[0] == 422


async def test_what_is_refused_is_refused_alike_and_changes_nothing(scene: Scene) -> None:
    alice, bob = scene.alice, scene.bob
    sid, common = await scene.call(), await scene.call(mode="common")
    over = await scene.call()
    await scene.done(alice, "cancel", over)
    foreign = await scene.running.called(scene.carol.name)
    before = scene.running.tables()
    table: list[tuple[Way, str, str | None, dict[str, Any], int, str]] = [
        (bob, "quit", sid, {}, 409, "operation-refused"),
        (bob, "end", sid, {}, 409, "operation-refused"),
        (bob, "join", sid, {}, 409, "operation-refused"),
        (bob, "cancel", sid, {}, 403, "forbidden"),
        (bob, "invite_more", sid, {"to": ["carol"]}, 409, "operation-refused"),
        (bob, "invite_more", sid, {"to": [scene.carol.name]}, 409, "operation-refused"),
        (alice, "invite_more", common, {"to": [bob.identity]}, 409, "operation-refused"),
        (alice, "accept", sid, {}, 409, "operation-refused"),
        (bob, "message", over, {"content": 1}, 409, "operation-refused"),
        (bob, "message", sid, {"content": None}, 422, "invalid-input"),
        (bob, "message", sid, {"content": "x" * 5000}, 422, "invalid-input"),
        (bob, "message", sid, {"content": 1, "to": ["eve"]}, 403, "forbidden"),
        (bob, "message", sid, {"content": 1, "voice_event_sid": "KX1"}, 422, "invalid-input"),
        (bob, "feedback", sid, {"score": 6}, 422, "invalid-input"),
        (bob, "feedback", sid, {"issue": "bad"}, 422, "invalid-input"),
        (bob, "reject", sid, {"status": "away"}, 422, "invalid-input"),
        (bob, "accept", sid, {"extended_data": "x" * 5000}, 422, "invalid-input"),
        (bob, "show", "CA" + "0" * 32, {}, 404, "call-not-found"),
        (bob, "invite", None, {"to": ["nobody-at-all"]}, 404, "nobody-to-call"),
        (bob, "invite", None, {"to": {"group": "none"}}, 404, "not-found"),
        (bob, "invite", None, {"to": [alice.identity], "timeout": 601}, 422, "invalid-input"),
        (bob, "invite", None, {"to": [alice.identity], "from": "eve"}, 403, "forbidden"),
        *(
            (bob, operation, foreign, {}, 403, "forbidden")
            for operation in ("show", "received", "accept", "ignore", "quit", "feedback", "join")
        ),
    ]
    for who, operation, call_sid, body, status, slug in table:
        answer = await who.ask(operation, call_sid, **body)
        assert (answer[0], answer[1].get("type")) == (status, f"/problems/{slug}"), (
            operation,
            answer,
        )
        assert answer[1]["status"] == status and answer[1]["detail"]
    assert scene.running.tables() == before


async def test_a_call_made_again_under_its_key_is_the_same_call(scene: Scene) -> None:
    key = fresh("key")
    sid = await scene.call(idempotency_key=key)
    assert await scene.call(idempotency_key=key) == sid
    to = [scene.carol.name]
    status, problem = await scene.alice.ask("invite", to=to, idempotency_key=key)
    assert (status, problem["type"]) == (409, "/problems/conflict")
    later = await scene.call()
    await scene.hears.until("call.received", later)
    assert scene.hears.seen("call.received", sid) == 1
