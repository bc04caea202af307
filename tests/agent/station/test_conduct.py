"""How a station treats its callers, by its settings and the clock: silence, loudness, answering itself."""

from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio

from bellwire.agent.calls.call import CallerInfo, CallStatus
from bellwire.agent.media.sound import Tone
from bellwire.config.agent.behaviour import BehaviourSettings
from bellwire.hardware.panel.status_light import Pattern
from bellwire.signaling.calls.events import CallCancelled
from bellwire.signaling.identifiers import DeviceId
from tests.agent import desk
from tests.agent.desk import Exchange
from tests.agent.post import Post, began, post_at
from tests.agent.scripted_relay import (
    about,
    fresh_sid,
    invite,
    refused,
    scripted_relay,
    taken,
)
from tests.conftest import running_station

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALWAYS = {"start": "00:00", "end": "00:00"}
LOBBY = {"callers": ["lobby"], "after_s": 3}
RING = (Tone.RING, 0.8)
VERIFIED = CallerInfo(is_verified=True)


@pytest_asyncio.fixture(loop_scope="module")
async def post(exchange: Exchange) -> Any:  # noqa: ANN401
    async with post_at(exchange) as at_work:
        yield at_work


def hours(first_s: float, last_s: float) -> dict[str, str]:
    """A range of the day, in seconds of the test's clock."""
    start, end = (began + timedelta(seconds=seconds) for seconds in (first_s, last_s))
    return {"start": start.time().isoformat(), "end": end.time().isoformat()}


@pytest.mark.parametrize(
    "quiet",
    [
        {"quiet_hours": [{**ALWAYS, "treatment": "reject"}]},
        {"do_not_disturb": {"enabled": True, "treatment": "reject"}},
    ],
    ids=["quiet hours", "do not disturb"],
)
async def test_a_call_that_is_turned_away_is_rejected_without_a_sound_or_a_light(
    post: Post, quiet: dict[str, Any]
) -> None:
    post.behave(**quiet)
    sid = fresh_sid()
    await post.relay.say(invite(sid))
    asked = await post.relay.asked("reject", sid)
    assert (asked["status"], asked["automatic"]) == ("rejected", True)
    await post.has_taken_all()
    assert (post.relay.operations(sid), post.edges, post.statuses.noted) == (["reject"], [], [])
    assert post.speaker.sounds.noted == []


async def test_a_relay_too_old_to_hear_that_it_was_nobodys_hand_is_told_without(
    post: Post,
) -> None:
    post.behave(do_not_disturb={"enabled": True, "treatment": "reject"})
    old = refused(422, "automatic: Extra inputs are not permitted")
    post.relay.answers["reject"] = lambda asked: (old if asked["automatic"] else taken)(asked)
    sid = fresh_sid()
    await post.relay.say(invite(sid))
    await post.relay.requests.until(
        lambda asked: asked["operation"] == "reject" and asked["automatic"] is None
    )
    assert post.relay.operations(sid) == ["reject", "reject"]


async def test_a_silent_call_is_shown_by_the_light_alone_and_can_be_answered(post: Post) -> None:
    post.behave(quiet_hours=[{**ALWAYS, "except_callers": ["porter"]}])
    sid = await post.call_in()
    await post.time.advance(5)
    assert (post.edges, post.speaker.sounds.noted) == ([], [])
    assert post.panel.status_light is not None
    assert post.panel.status_light.pattern is Pattern.RINGING
    await post.press("answer")
    await post.until(sid, CallStatus.OPEN)


async def test_who_is_excepted_rings_aloud_in_quiet_hours(post: Post) -> None:
    post.behave(quiet_hours=[{**ALWAYS, "treatment": "reject", "except_callers": ["lobby"]}])
    await post.call_in()
    assert (post.edges, post.speaker.sounds.noted) == ([True], [None, RING])


async def test_it_rings_as_loud_as_the_hour_says_and_follows_the_hour_while_it_rings(
    post: Post,
) -> None:
    louder = [
        {**hours(-5, 10), "volume": 0.2},
        {**hours(10, 20), "volume": 0.6},
        {**hours(20, 30), "volume": 0},
    ]
    post.behave(ring_volume_hours=louder)
    await post.call_in(lasts_s=120)
    assert post.speaker.sounds.noted == [None, (Tone.RING, 0.2)]
    await post.time.advance(8)
    assert len(post.speaker.sounds.noted) == 2
    await post.time.advance(4)
    assert post.speaker.sounds.noted[2:] == [None, (Tone.RING, 0.6)]
    assert post.edges == [True]
    await post.time.advance(10)
    assert (post.speaker.sounds.noted[4:], post.edges) == ([None], [True, False])
    await post.time.advance(10)
    assert (post.speaker.sounds.noted[5:], post.edges) == ([None, RING], [True, False, True])


async def test_do_not_disturb_switched_on_from_afar_silences_a_call_that_rings(post: Post) -> None:
    sid = await post.call_in()
    assert post.edges == [True]
    post.behave(do_not_disturb={"enabled": True, "treatment": "reject"})
    await post.time.settle()
    assert (post.edges, post.speaker.sounds.noted) == ([True, False], [None, RING, None])
    assert post.call(sid).status() is CallStatus.PENDING


async def test_a_second_call_is_heard_in_the_ear_where_call_waiting_is_on(post: Post) -> None:
    post.behave(call_waiting=True)
    first = await post.call_in()
    await post.press("answer")
    await post.until(first, CallStatus.OPEN)
    assert post.edges == [True, False]
    second = await post.call_in()
    assert post.speaker.sounds.noted[-1] == (Tone.CALL_WAITING, 1.0)
    assert post.edges == [True, False]
    await post.relay.say(CallCancelled(**about(second)))
    await post.until(second, CallStatus.CLOSED)
    assert post.speaker.sounds.noted[-1] is None
    post.behave(call_waiting=True, do_not_disturb={"enabled": True})
    await post.call_in()
    assert post.speaker.sounds.noted[-1] is None


async def test_a_verified_caller_on_the_list_is_answered_after_the_time_that_is_set(
    post: Post,
) -> None:
    post.behave(auto_answer=LOBBY)
    sid = await post.call_in()
    await post.time.advance(1)
    post.known[sid].set_result(VERIFIED)
    await post.time.advance(1.9)
    assert post.call(sid).status() is CallStatus.PENDING
    await post.time.advance(0.1)
    await post.relay.asked("accept", sid)
    await post.until(sid, CallStatus.OPEN)
    assert post.edges == [True, False]


async def test_a_caller_who_is_known_late_is_answered_at_once(post: Post) -> None:
    post.behave(auto_answer=LOBBY)
    sid = await post.call_in()
    await post.time.advance(10)
    assert post.call(sid).status() is CallStatus.PENDING
    post.known[sid].set_result(VERIFIED)
    await post.relay.asked("accept", sid)


@pytest.mark.parametrize("info", [None, CallerInfo(is_verified=False)])
async def test_who_is_not_verified_is_not_answered_unless_the_settings_trust_a_name(
    post: Post, info: CallerInfo | None
) -> None:
    post.behave(auto_answer=LOBBY)
    sid = await post.call_in()
    post.known[sid].set_result(info)
    await post.time.advance(20)
    assert post.relay.operations(sid) == ["received"]
    post.behave(auto_answer={**LOBBY, "verified_only": False})
    await post.relay.asked("accept", sid)


async def test_a_device_told_to_keep_quiet_meanwhile_does_not_answer_by_itself(post: Post) -> None:
    post.behave(auto_answer=LOBBY)
    sid = await post.call_in()
    post.known[sid].set_result(VERIFIED)
    await post.time.advance(2)
    post.behave(auto_answer=LOBBY, do_not_disturb={"enabled": True})
    await post.time.advance(10)
    assert post.call(sid).status() is CallStatus.PENDING


async def test_a_call_that_has_ended_meanwhile_is_not_answered(post: Post) -> None:
    post.behave(auto_answer={**LOBBY, "verified_only": False})
    sid = await post.call_in()
    await post.relay.say(CallCancelled(**about(sid)))
    await post.until(sid, CallStatus.CLOSED)
    await post.time.advance(10)
    assert post.relay.operations(sid) == ["received"]


async def test_a_waiting_call_is_not_answered_into_another(post: Post) -> None:
    post.behave(call_waiting=True, auto_answer={**LOBBY, "after_s": 0, "verified_only": False})
    first = await post.call_in()
    await post.until(first, CallStatus.OPEN)
    second = await post.call_in()
    await post.time.advance(5)
    assert post.call(second).status() is CallStatus.PENDING


async def test_an_agent_behaves_as_its_file_says(exchange: Exchange) -> None:
    address = await exchange.admit()
    behaviour = BehaviourSettings.model_validate(
        {
            "do_not_disturb": {"enabled": True, "treatment": "reject", "except_callers": ["lobby"]},
            "auto_answer": {"callers": ["lobby"], "verified_only": False},
            "doors": {"front": {"callers": ["lobby"], "by_message": True}},
        }
    )
    settings = desk.settings_of(address).model_copy(update={"behaviour": behaviour})
    async with (
        scripted_relay(exchange.broker.address, DeviceId(settings.device_id)) as relay,
        running_station(settings) as station,
    ):
        stranger, lobby = fresh_sid(), fresh_sid()
        await relay.say(invite(stranger, from_="client:stranger"))
        assert (await relay.asked("reject", stranger))["status"] == "rejected"
        await relay.say(invite(lobby))
        await relay.asked("accept", lobby)
        assert (await station.until(CallStatus.OPEN)).sid == lobby
        faults = (await station.agent.health.telemetry()).faults
        assert [fault.part for fault in faults] == ["door"]
