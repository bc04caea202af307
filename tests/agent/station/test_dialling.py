"""Calls that a station makes by its call buttons."""

import pytest

from bellwire.agent.calls.call import CallRecord, CallStatus, Direction
from bellwire.signaling.calls.calls import CallState, UserState
from bellwire.signaling.calls.events import CallEnded, CallUserStateChanged
from bellwire.signaling.wire.answers import DeviceResponse
from tests.agent.desk import Desk
from tests.agent.scripted_relay import (
    Request,
    about,
    call_answer,
    fresh_sid,
    invite,
    refused,
    refused_in,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def dial(desk: Desk) -> str:
    """Presses the call button; returns the SID of the call that the relay makes of it."""
    sid = fresh_sid()
    desk.relay.answers["invite"] = lambda _: DeviceResponse(status=201, call=call_answer(sid))
    await desk.press("1")
    await desk.relay.asked("invite")
    return sid


def lobby_is(state: UserState, sid: str) -> CallUserStateChanged:
    return CallUserStateChanged(**about(sid), identity="lobby", state=state)


async def until_closed(desk: Desk) -> CallRecord:
    call, _ = await desk.diary.calls.until(lambda noted: noted[0].status is CallStatus.CLOSED)
    assert isinstance(call, CallRecord)
    return call


async def test_a_call_button_calls_its_target_with_its_custom_parameters(desk: Desk) -> None:
    await dial(desk)
    request = await desk.relay.asked("invite")
    assert request["to"] == ["lobby"]
    assert request["custom_parameters"] == {"door": "back & front"}
    assert request["timeout"] == 20
    assert len(request["idempotency_key"]) == 32


async def test_a_call_made_here_rings_there_opens_and_ends(desk: Desk) -> None:
    sid = await dial(desk)
    for event, status in (
        (lobby_is(UserState.RECEIVED, sid), CallStatus.RINGING),
        (lobby_is(UserState.ACCEPTED, sid), CallStatus.OPEN),
        (CallEnded(**about(sid)), CallStatus.CLOSED),
    ):
        await desk.relay.say(event)
        assert (await desk.until(sid, status)).direction is Direction.OUTGOING
    assert desk.rings == 0


async def test_news_of_a_call_that_come_before_its_sid_are_not_lost(desk: Desk) -> None:
    sid = fresh_sid()
    desk.relay.answers["invite"] = lambda _: None
    await desk.press("1")
    first = await desk.relay.asked("invite")
    await desk.relay.say(lobby_is(UserState.RECEIVED, sid))
    await desk.relay.say(lobby_is(UserState.ACCEPTED, sid))
    await desk.has_taken_all()
    assert desk.call is not None
    assert desk.call.status is CallStatus.CONNECTING
    keys: list[str] = []

    def answer_the_repeat(request: Request) -> DeviceResponse:
        keys.append(request["idempotency_key"])
        return DeviceResponse(status=201, call=call_answer(sid))

    desk.relay.answers["invite"] = answer_the_repeat
    await desk.until(sid, CallStatus.OPEN)
    assert keys == [first["idempotency_key"]]


async def test_an_invite_that_the_relay_refuses_closes_the_call_with_the_reason(
    desk: Desk,
) -> None:
    desk.relay.answers["invite"] = refused(429, "slow down")
    await desk.press("1")
    assert (await until_closed(desk)).ended_because == "slow down"
    assert desk.call is None


async def test_hanging_up_before_anyone_answers_cancels_the_call(desk: Desk) -> None:
    sid = await dial(desk)
    await desk.relay.say(lobby_is(UserState.RECEIVED, sid))
    await desk.until(sid, CallStatus.RINGING)
    await desk.press("h")
    await desk.relay.asked("cancel", sid)
    assert (await desk.until(sid, CallStatus.CLOSED)).ended_because == "cancelled here"


async def test_hanging_up_before_the_call_has_its_sid_cancels_it_once_it_has(desk: Desk) -> None:
    sid = fresh_sid()
    desk.relay.answers["invite"] = lambda _: None
    await desk.press("1")
    await desk.relay.asked("invite")
    await desk.press("h")
    await until_closed(desk)
    desk.relay.answers["invite"] = lambda _: DeviceResponse(status=201, call=call_answer(sid))
    await desk.relay.asked("cancel", sid)
    assert desk.call is None


async def test_a_call_button_does_nothing_in_a_call(desk: Desk) -> None:
    sid = await desk.ring_and_answer()
    await desk.press("1")
    await desk.press("h")
    await desk.relay.asked("quit", sid)
    assert "invite" not in desk.relay.operations()


async def test_an_invite_while_dialling_is_answered_busy(desk: Desk) -> None:
    sid = await dial(desk)
    await desk.relay.say(lobby_is(UserState.RECEIVED, sid))
    await desk.until(sid, CallStatus.RINGING)
    other = fresh_sid()
    await desk.relay.say(invite(other))
    assert (await desk.relay.asked("reject", other))["status"] == "busy"
    assert desk.rings == 0


async def test_a_call_that_is_answered_just_as_it_is_given_up_is_hung_up(desk: Desk) -> None:
    sid = await dial(desk)
    await desk.relay.say(lobby_is(UserState.RECEIVED, sid))
    await desk.until(sid, CallStatus.RINGING)
    desk.relay.answers["cancel"] = refused_in(UserState.ACCEPTED)
    await desk.press("h")
    await desk.until(sid, CallStatus.CLOSED)
    await desk.relay.asked("quit", sid)


async def test_a_call_of_several_that_one_answers_just_as_it_is_given_up_is_hung_up(
    desk: Desk,
) -> None:
    """The relay has cancelled the others, and the call goes on with who has answered."""
    sid = await dial(desk)
    await desk.relay.say(lobby_is(UserState.RECEIVED, sid))
    await desk.until(sid, CallStatus.RINGING)
    desk.relay.answers["cancel"] = lambda _: DeviceResponse(
        status=200, call=call_answer(sid, CallState.OPEN)
    )
    await desk.press("h")
    await desk.until(sid, CallStatus.CLOSED)
    await desk.relay.asked("quit", sid)


async def test_a_call_that_is_over_by_its_cancel_is_not_hung_up_too(desk: Desk) -> None:
    sid = await dial(desk)
    await desk.relay.say(lobby_is(UserState.RECEIVED, sid))
    await desk.until(sid, CallStatus.RINGING)
    desk.relay.answers["cancel"] = lambda _: DeviceResponse(
        status=200, call=call_answer(sid, CallState.ENDED)
    )
    await desk.press("h")
    await desk.relay.asked("cancel", sid)
    await desk.until(sid, CallStatus.CLOSED)
    other = await desk.ring()
    assert "quit" not in desk.relay.operations(sid)
    assert other != sid
