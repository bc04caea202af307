"""The door of a station, opened from its calls by those who may, and by nobody else."""

from typing import Any

import pytest
import pytest_asyncio
from pydantic import JsonValue
from structlog.testing import capture_logs

from agent.call import CallerInfo, CallStatus
from agent.call_record import Acceptance
from signaling.answers import DeviceResponse
from signaling.calls import Attestation, UserState
from signaling.events import CallMessage, CallUserStateChanged
from signaling.identifiers import Identity
from signaling.media import MediaCandidate
from tests.agent.desk import Exchange
from tests.agent.post import Post, post_at, settings_of
from tests.agent.scripted_relay import about, call_answer, fresh_sid

pytestmark = pytest.mark.asyncio(loop_scope="module")

FRONT_DOOR = {"callers": ["lobby"], "by_message": True, "code": "47#"}


@pytest_asyncio.fixture(loop_scope="module")
async def post(exchange: Exchange) -> Any:  # noqa: ANN401
    async with post_at(exchange, doors={"front": FRONT_DOOR}) as at_work:
        yield at_work


def asks(
    sid: str,
    content: JsonValue,
    who: str | None = "client:lobby",
    attestation: Attestation | None = Attestation.FULL,
) -> CallMessage:
    return CallMessage(
        **about(sid),
        from_=who,
        message_type="door-release",
        content_type="application/json",
        content=content,
        voice_event_sid=f"KX{fresh_sid()[2:]}",
        attestation=attestation,
    )


def accepted(sid: str, attestation: Attestation | None = Attestation.FULL) -> CallUserStateChanged:
    return CallUserStateChanged(
        **about(sid),
        identity="lobby",
        state=UserState.ACCEPTED,
        attestation=attestation,
        main_device="lobby-1",
    )


async def called_out(post: Post, word: CallUserStateChanged) -> str:
    """A call of the station's own button, open by this word of the relay; returns its SID."""
    sid = word.call_sid
    post.relay.answers["invite"] = lambda _: DeviceResponse(status=201, call=call_answer(sid))
    await post.press("call_buttons.lobby")
    await post.relay.asked("invite")
    await post.relay.say(word)
    await post.until(sid, CallStatus.OPEN)
    return sid


def types(post: Post, sid: str, digits: str) -> None:
    for digit in digits:
        post.call(sid)._emit("digit", "lobby", digit)  # as the media does


async def answered(post: Post, *, verified: bool = True) -> str:
    sid = await post.call_in()
    post.known[sid].set_result(CallerInfo(is_verified=verified))
    await post.press("answer")
    await post.until(sid, CallStatus.OPEN)
    return sid


async def result(post: Post) -> dict[str, Any]:
    """What the party that asked is told, once."""
    said = await post.relay.requests.until(
        lambda r: r["operation"] == "message" and r["message_type"] == "door-release-result"
    )
    post.relay.requests.noted.remove(said)
    assert said["to"] == ["lobby"]
    content: dict[str, Any] = said["content"]
    return content


def is_open(post: Post) -> bool:
    assert post.panel.door is not None
    settings = post.live.now.panel.door
    assert settings is not None
    assert post.panel.door.is_open is post.pins.is_active(settings)
    return post.panel.door.is_open


async def test_a_message_of_a_verified_caller_on_the_list_opens_the_door_and_is_answered(
    post: Post,
) -> None:
    sid = await answered(post)
    assert not is_open(post)
    await post.relay.say(asks(sid, {"door": "front"}))
    assert await result(post) == {"door": "front", "result": "released"}
    assert is_open(post)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"door": "cellar"}, {"door": None, "result": "no such door"}),
        ("open sesame", {"door": None, "result": "not understood"}),
    ],
)
async def test_a_message_that_names_no_door_opens_none(
    post: Post, content: JsonValue, told: dict[str, Any]
) -> None:
    await post.relay.say(asks(await answered(post), content))
    assert await result(post) == told
    assert not is_open(post)


async def test_a_caller_who_is_not_verified_opens_nothing_unless_the_door_says_so(
    post: Post,
) -> None:
    sid = await answered(post, verified=False)
    await post.relay.say(asks(sid, {}))
    assert (await result(post))["result"] == "not allowed"
    assert not is_open(post)
    post.behave(doors={"front": {**FRONT_DOOR, "verified_only": False}})
    await post.relay.say(asks(sid, {}))
    assert (await result(post))["result"] == "released"
    assert is_open(post)


async def test_another_party_is_not_taken_for_the_verified_caller(post: Post) -> None:
    post.behave(doors={"front": {**FRONT_DOOR, "callers": ["eve"]}})
    sid = await answered(post)
    with capture_logs() as logs:
        for who in ("client:eve", None, "client:"):
            await post.relay.say(asks(sid, {}, who))
        await post.has_taken_all()
    decided = [line for line in logs if line["event"] == "door decision"]
    assert [line["outcome"] for line in decided] == ["not allowed"] * 3
    assert not any(line["verified"] for line in decided)
    assert not is_open(post)


async def test_before_the_call_is_answered_nobody_opens_the_door(post: Post) -> None:
    sid = await post.call_in()
    post.known[sid].set_result(CallerInfo(is_verified=True))
    await post.relay.say(asks(sid, {}))
    assert (await result(post))["result"] == "not in a call"
    assert not is_open(post)


async def test_who_was_called_from_here_and_accepted_opens_the_door(post: Post) -> None:
    sid = await called_out(post, accepted(fresh_sid()))
    (answer,) = post.call(sid).record.acceptances
    assert answer == Acceptance(Identity("lobby"), Attestation.FULL, "lobby-1")
    await post.relay.say(asks(sid, {}))
    assert (await result(post))["result"] == "released"
    assert is_open(post)


@pytest.mark.parametrize("word", [Attestation.PARTIAL, None], ids=["a server's", "an old relay's"])
@pytest.mark.parametrize("of", ["the answer", "the message"])
async def test_a_word_that_is_not_the_persons_own_opens_nothing_for_whom_the_station_called(
    post: Post, word: Attestation | None, of: str
) -> None:
    own, answered_by = Attestation.FULL, word if of == "the answer" else Attestation.FULL
    sid = await called_out(post, accepted(fresh_sid(), answered_by))
    await post.relay.say(asks(sid, {}, attestation=word if of == "the message" else own))
    assert (await result(post))["result"] == "not allowed"
    if of == "the answer":
        types(post, sid, "47#")
    await post.has_taken_all()
    assert not is_open(post)


@pytest.mark.parametrize("word", [Attestation.PARTIAL, None], ids=["a server's", "an old relay's"])
async def test_a_message_said_in_a_verified_callers_name_opens_nothing(
    post: Post, word: Attestation | None
) -> None:
    sid = await answered(post)
    await post.relay.say(asks(sid, {}, attestation=word))
    assert (await result(post))["result"] == "not allowed"
    assert not is_open(post)


@pytest.mark.parametrize("direction", ["to the station", "from the station"])
@pytest.mark.parametrize(
    ("word", "opens"), [(Attestation.FULL, True), (Attestation.PARTIAL, False)]
)
async def test_digits_open_only_where_the_sound_they_come_by_is_the_persons_own(
    post: Post, direction: str, word: Attestation, *, opens: bool
) -> None:
    into = direction == "to the station"
    sid = await answered(post) if into else await called_out(post, accepted(fresh_sid()))
    candidate = MediaCandidate(session="a" * 32, candidate="").model_dump(mode="json")
    said = asks(sid, candidate, attestation=word).model_copy(update={"message_type": "media"})
    await post.relay.say(said)
    await post.has_taken_all()
    types(post, sid, "47#")
    assert is_open(post) is opens


async def test_who_a_server_put_in_a_persons_place_opens_nothing_any_more(post: Post) -> None:
    sid = await called_out(post, accepted(fresh_sid()))
    await post.relay.say(accepted(sid, Attestation.PARTIAL))
    await post.relay.say(asks(sid, {}))
    assert (await result(post))["result"] == "not allowed"
    types(post, sid, "47#")
    assert not is_open(post)


async def test_who_is_met_in_a_call_that_was_taken_over_is_vouched_for_by_nobody(
    post: Post,
) -> None:
    first = await answered(post)
    token = post.call(first).connect_token
    assert token is not None
    await post.press("hang_up")
    await post.until(first, CallStatus.CLOSED)
    post.statuses.noted.clear()
    back = post.device.reconnect(token)
    await post.until(first, CallStatus.OPEN)
    await post.relay.say(asks(back.sid, {}))
    assert (await result(post))["result"] == "not allowed"
    assert not is_open(post)


async def test_a_door_that_is_not_wired_is_a_fault_and_who_asks_is_told(
    exchange: Exchange,
) -> None:
    async with post_at(exchange, doors={"front": FRONT_DOOR}) as post:
        assert post.doors.faults() == ()
        wired = post.live.now.panel.model_dump(exclude_unset=True)
        del wired["door"]
        bare = settings_of(panel=wired, behaviour={"doors": {"front": FRONT_DOOR}})
        with capture_logs() as logs:
            post.live.take(bare)
        post.panel.rewire(bare.panel)
        assert [line["event"] for line in logs if line["log_level"] == "error"] == [
            "door cannot be opened"
        ]
        (fault,) = post.doors.faults()
        assert fault.part == "door"
        assert "'front'" in fault.reason
        assert "`panel.door`" in fault.reason
        sid = await answered(post)
        await post.relay.say(asks(sid, {}))
        assert await result(post) == {"door": "front", "result": "failed"}
        post.behave()
        assert post.doors.faults() == ()


@pytest.mark.parametrize(("came", "opens"), [((), True), (("eve",), False)])
async def test_digits_out_of_a_room_may_be_those_of_somebody_who_has_just_left(
    post: Post, came: tuple[str, ...], opens: bool
) -> None:
    post.behave(doors={"front": {**FRONT_DOOR, "verified_only": False}})
    sid = await answered(post)
    states = (UserState.ACCEPTED, UserState.QUIT)
    for identity, state in [("lobby", states[0]), *((who, s) for who in came for s in states)]:
        await post.relay.say(CallUserStateChanged(**about(sid), identity=identity, state=state))
    await post.has_taken_all()
    for digit in "47#":
        post.call(sid)._emit("digit", None, digit)  # as the room's media does
    assert is_open(post) is opens


@pytest.mark.parametrize(
    ("word", "opens"), [(Attestation.FULL, True), (Attestation.PARTIAL, False)]
)
async def test_digits_out_of_a_room_open_only_where_everybody_in_it_has_come_by_their_own_word(
    post: Post, word: Attestation, *, opens: bool
) -> None:
    sid = await called_out(post, accepted(fresh_sid()))
    post.live.take(
        settings_of(behaviour={"doors": {"front": {**FRONT_DOOR, "callers": ["lobby", "eve"]}}})
    )
    await post.relay.say(accepted(sid, word).model_copy(update={"identity": "eve"}))
    await post.has_taken_all()
    for digit in "47#":
        post.call(sid)._emit("digit", None, digit)  # as the room's media does
    assert is_open(post) is opens
