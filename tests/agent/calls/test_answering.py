"""What the answer and hang-up buttons do, and what the relay's answers do to the call."""

import pytest

from bellwire.agent.calls.call import CallStatus
from bellwire.signaling.calls.events import CallEnded
from bellwire.signaling.wire.answers import DeviceResponse
from tests.agent.desk import Desk
from tests.agent.scripted_relay import Request, about, refused, taken

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_the_answer_button_silences_the_bell_and_opens_the_call(desk: Desk) -> None:
    sid = await desk.ring()
    await desk.press("a")
    await desk.station.ringer(active=False)
    await desk.relay.asked("accept", sid)
    await desk.until(sid, CallStatus.OPEN)
    pending, connecting, opened = CallStatus.PENDING, CallStatus.CONNECTING, CallStatus.OPEN
    assert desk.diary.statuses(sid) == [pending, connecting, opened]


async def test_an_answer_that_the_relay_refuses_closes_the_call_with_the_reason(
    desk: Desk,
) -> None:
    desk.relay.answers["accept"] = refused(409, "accept is not allowed in state Canceled")
    sid = await desk.ring()
    await desk.press("a")
    closed = await desk.until(sid, CallStatus.CLOSED)
    assert closed.ended_because == "accept is not allowed in state Canceled"
    assert CallStatus.OPEN not in desk.diary.statuses(sid)
    assert (desk.call, desk.station.fingers.is_ringing) == (None, False)


async def test_after_a_refused_answer_the_next_call_rings(desk: Desk) -> None:
    desk.relay.answers["accept"] = refused(409, "too late")
    sid = await desk.ring()
    await desk.press("a")
    await desk.until(sid, CallStatus.CLOSED)
    del desk.relay.answers["accept"]
    await desk.ring_and_answer()


async def test_a_refused_confirmation_of_the_invite_ends_the_ringing(desk: Desk) -> None:
    desk.relay.answers["received"] = refused(404, "no such call")
    sid = await desk.ring()
    assert (await desk.until(sid, CallStatus.CLOSED)).ended_because == "no such call"
    assert not desk.station.fingers.is_ringing


async def test_the_hang_up_button_rejects_a_call_that_rings(desk: Desk) -> None:
    sid = await desk.ring()
    await desk.press("h")
    await desk.station.ringer(active=False)
    asked = await desk.relay.asked("reject", sid)
    assert (asked["status"], asked["automatic"]) == ("rejected", None)
    assert (await desk.until(sid, CallStatus.CLOSED)).ended_because == "rejected here"


async def test_a_rejection_holds_here_whatever_the_relay_says(desk: Desk) -> None:
    desk.relay.answers["reject"] = refused(409, "it was over already")
    sid = await desk.ring()
    await desk.press("h")
    assert (await desk.until(sid, CallStatus.CLOSED)).ended_because == "rejected here"
    await desk.relay.asked("reject", sid)
    await desk.ring()


async def test_the_hang_up_button_quits_an_open_call(desk: Desk) -> None:
    sid = await desk.ring_and_answer()
    await desk.press("h")
    await desk.relay.asked("quit", sid)
    assert (await desk.until(sid, CallStatus.CLOSED)).ended_because == "hung up here"


async def test_the_end_of_an_open_call_closes_it(desk: Desk) -> None:
    sid = await desk.ring_and_answer()
    await desk.relay.say(CallEnded(**about(sid)))
    assert (await desk.until(sid, CallStatus.CLOSED)).ended_because == "ended"
    assert "quit" not in desk.relay.operations(sid)


async def test_a_second_press_of_the_answer_button_asks_nothing(desk: Desk) -> None:
    sid = await desk.ring_and_answer()
    await desk.press("a")
    await desk.press("h")
    await desk.relay.asked("quit", sid)
    assert desk.relay.operations(sid) == ["received", "accept", "quit"]


async def test_buttons_of_an_idle_station_ask_nothing(desk: Desk) -> None:
    await desk.press("a")
    await desk.press("h")
    await desk.press("1")
    await desk.relay.asked("invite")
    assert desk.relay.operations() == ["invite"]


async def test_an_answer_that_got_lost_is_asked_for_again(desk: Desk) -> None:
    tries: list[Request] = []

    def lose_the_first(request: Request) -> DeviceResponse | None:
        tries.append(request)
        return None if len(tries) == 1 else taken(request)

    desk.relay.answers["accept"] = lose_the_first
    sid = await desk.ring()
    await desk.press("a")
    await desk.until(sid, CallStatus.OPEN)
    assert desk.relay.operations(sid) == ["received", "accept", "accept"]
