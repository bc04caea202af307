"""A call whose broker, or the way to it, goes away in its middle."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from bellwire.agent.calls.call import CallStatus, write_token
from bellwire.signaling.calls.calls import CallState, UserState
from bellwire.signaling.calls.events import CallCancelled
from bellwire.signaling.identifiers import CallSid
from bellwire.signaling.wire.answers import DeviceResponse
from tests.agent.desk import Desk, Exchange
from tests.agent.scripted_relay import (
    Answer,
    Request,
    about,
    call_answer,
    fresh_sid,
    invite,
    refused_in,
)
from tests.broker.running import RunningBroker
from tests.conftest import PATIENCE_S

pytestmark = pytest.mark.asyncio(loop_scope="module")


def shows(
    state: CallState,
    user: UserState,
    *,
    main_device: str | None = None,
    other: UserState = UserState.ACCEPTED,
) -> Answer:
    return lambda request: DeviceResponse(
        status=200,
        call=call_answer(request["call_sid"], state, user, main_device=main_device, other=other),
    )


@pytest.fixture
def mosquitto(exchange: Exchange) -> RunningBroker:
    return exchange.broker


async def test_the_ring_goes_on_while_the_broker_is_away_and_the_answer_arrives_after_it_is_back(
    desk: Desk, mosquitto: RunningBroker
) -> None:
    sid = await desk.ring()
    await mosquitto.kill()
    await desk.lost()
    assert desk.station.fingers.is_ringing
    await desk.press("a")
    await desk.station.ringer(active=False)
    await desk.until(sid, CallStatus.CONNECTING)
    assert "accept" not in desk.relay.operations()
    await mosquitto.start()
    await desk.relay.asked("accept", sid)
    await desk.until(sid, CallStatus.OPEN)
    assert desk.rings == 1


async def test_a_broker_that_is_back_in_time_is_not_noticed_by_who_hears_the_bell(
    desk: Desk, mosquitto: RunningBroker
) -> None:
    sid = await desk.ring()
    await mosquitto.restart()
    await desk.lost()
    await desk.relay.asked("show", sid)
    await desk.has_taken_all()
    assert (desk.rings, desk.station.fingers.is_ringing) == (1, True)


async def test_a_rejection_made_while_the_broker_is_away_is_told_later(
    desk: Desk, mosquitto: RunningBroker
) -> None:
    sid = await desk.ring()
    await mosquitto.kill()
    await desk.lost()
    await desk.press("h")
    await desk.until(sid, CallStatus.CLOSED)
    assert not desk.station.fingers.is_ringing
    await mosquitto.start()
    await desk.relay.asked("reject", sid)


async def test_the_bell_stops_at_its_deadline_with_no_broker_at_all(far_desk: Desk) -> None:
    sid = await far_desk.ring(lasts_s=1)
    far_desk.wire.cut()
    await far_desk.lost()
    assert far_desk.station.fingers.is_ringing
    await far_desk.until(sid, CallStatus.CLOSED)
    assert not far_desk.station.fingers.is_ringing
    await far_desk.wire.mend()


async def test_a_cancel_sent_while_the_device_was_away_reaches_it_on_return(far_desk: Desk) -> None:
    sid = await far_desk.ring()
    far_desk.wire.cut()
    await far_desk.lost()
    await far_desk.relay.say(CallCancelled(**about(sid)), expires_in_s=30)
    assert far_desk.station.fingers.is_ringing
    await far_desk.wire.mend()
    assert (await far_desk.until(sid, CallStatus.CLOSED)).ended_because == "cancelled"
    assert not far_desk.station.fingers.is_ringing


async def test_an_invite_sent_while_the_device_was_away_rings_on_return(far_desk: Desk) -> None:
    far_desk.wire.cut()
    await far_desk.lost()
    sid = fresh_sid()
    await far_desk.relay.say(invite(sid), expires_in_s=30)
    await far_desk.wire.mend()
    await far_desk.until(sid, CallStatus.PENDING)


@pytest.mark.parametrize(
    ("meanwhile", "reason"),
    [
        (shows(CallState.ENDED, UserState.CANCELED), "cancelled"),
        (shows(CallState.OPEN, UserState.TIMEOUT), "not answered in time"),
        (shows(CallState.OPEN, UserState.ACCEPTED, main_device="other"), "answered_elsewhere"),
        (shows(CallState.ENDED, UserState.QUIT, main_device="other"), "answered_elsewhere"),
        (shows(CallState.OPEN, UserState.REJECTED, main_device="other"), "rejected_elsewhere"),
    ],
    ids=["cancelled", "timed out", "answered elsewhere", "quit elsewhere", "rejected elsewhere"],
)
async def test_a_call_that_was_over_while_the_broker_forgot_everything_stops_ringing(
    desk: Desk,
    mosquitto: RunningBroker,
    meanwhile: Answer,
    reason: str,
) -> None:
    sid = await desk.ring()
    desk.relay.answers["show"] = meanwhile
    await mosquitto.restart()
    await desk.lost()
    assert (await desk.until(sid, CallStatus.CLOSED)).ended_because == reason
    assert not desk.station.fingers.is_ringing


async def test_an_open_call_stays_open_over_a_restart_of_the_broker(
    desk: Desk, mosquitto: RunningBroker
) -> None:
    sid = await desk.ring_and_answer()
    device = desk.station.agent.settings.device_id
    desk.relay.answers["show"] = shows(CallState.OPEN, UserState.ACCEPTED, main_device=device)
    desk.relay.requests.noted.clear()
    await mosquitto.restart()
    await desk.lost()
    await desk.relay.asked("show", sid)
    await desk.has_taken_all()
    await desk.press("h")
    await desk.relay.asked("quit", sid)
    assert (await desk.until(sid, CallStatus.CLOSED)).ended_because == "hung up here"


async def test_a_call_that_another_device_took_over_meanwhile_is_closed_here(
    far_desk: Desk,
) -> None:
    sid = await far_desk.ring_and_answer()
    far_desk.relay.answers["show"] = shows(CallState.OPEN, UserState.ACCEPTED, main_device="mobile")
    far_desk.wire.cut()
    await far_desk.lost()
    await far_desk.wire.mend()
    assert (await far_desk.until(sid, CallStatus.CLOSED)).ended_because == "answered_elsewhere"


async def test_a_look_at_the_call_that_its_own_answer_has_overtaken_does_not_end_it(
    desk: Desk,
) -> None:
    """The relay's word that another device is in the call is older than this device's joining it."""
    joined = asyncio.Event()
    here = desk.station.agent.settings.device_id
    device = desk.station.agent.device
    shows_so_far = 0

    def show(request: Request) -> DeviceResponse | None:
        nonlocal shows_so_far
        shows_so_far += 1
        main = "phone" if shows_so_far == 1 else here
        if shows_so_far == 2:
            joined.set()
        return shows(CallState.OPEN, UserState.ACCEPTED, main_device=main)(request)

    desk.relay.answers["show"] = show
    desk.relay.answers["join"] = shows(CallState.OPEN, UserState.ACCEPTED, main_device=here)
    sid = CallSid(fresh_sid())
    call = device.reconnect(write_token(sid, {}))
    # Asked while it joins, answered after the join is: the requests are answered in their order.
    asking = asyncio.create_task(call.signalling.catch_up())
    await asyncio.wait_for(joined.wait(), PATIENCE_S)
    await asking
    assert not call.is_over
    call.disconnect()


async def test_an_open_call_outlives_its_invites_deadline_and_a_broken_wire(far_desk: Desk) -> None:
    sid = await far_desk.ring(expires_at=datetime.now(UTC) + timedelta(seconds=1))
    await far_desk.press("a")
    call = await far_desk.until(sid, CallStatus.OPEN)
    here = far_desk.station.agent.settings.device_id
    shown = asyncio.Event()

    def show(request: Request) -> DeviceResponse:
        shown.set()
        return shows(CallState.OPEN, UserState.ACCEPTED, main_device=here)(request)

    far_desk.relay.answers["show"] = show
    await asyncio.sleep((call.expires_at - datetime.now(UTC)).total_seconds())
    far_desk.wire.cut()
    await far_desk.lost()
    await far_desk.wire.mend()
    await asyncio.wait_for(shown.wait(), PATIENCE_S)
    await far_desk.has_taken_all()
    assert far_desk.call is not None
    assert far_desk.call.status is CallStatus.OPEN


async def test_an_accept_that_is_never_answered_is_taken_back(desk: Desk) -> None:
    desk.relay.answers["accept"] = lambda _: None
    sid = await desk.ring(expires_at=datetime.now(UTC) + timedelta(seconds=1))
    await desk.press("a")
    await desk.until(sid, CallStatus.CLOSED)
    await desk.relay.asked("quit", sid)


async def test_hanging_up_ends_an_accept_that_is_still_asked_for(desk: Desk) -> None:
    desk.relay.answers["accept"] = lambda _: None
    desk.relay.answers["quit"] = refused_in(UserState.RECEIVED)
    sid = await desk.ring()
    await desk.press("a")
    await desk.relay.asked("accept", sid)
    await desk.press("h")
    await desk.until(sid, CallStatus.CLOSED)
    await desk.relay.asked("reject", sid)  # the relay knew of no accept to hang up after
    assert desk.relay.operations(sid).count("accept") == 1
