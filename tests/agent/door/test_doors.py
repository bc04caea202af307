"""The door of a station, opened from its calls by those who may, and by nobody else."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pydantic import JsonValue
from structlog.testing import capture_logs

from bellwire.agent.calls.call import CallerInfo, CallStatus
from bellwire.agent.calls.record import Acceptance
from bellwire.agent.door.wrong_codes import WrongCodes
from bellwire.agent.main import Agent
from bellwire.cli.doctor.agent import examine_agent
from bellwire.cli.doctor.diagnosis import Condition
from bellwire.config.agent.settings import AgentSettings, agent_file
from bellwire.config.agent.telemetry import DoorNow
from bellwire.config.private_file import write_private
from bellwire.hardware.panel.simulated_pins import SimulatedPins
from bellwire.signaling.calls.calls import Attestation, UserState
from bellwire.signaling.calls.events import CallMessage, CallUserStateChanged
from bellwire.signaling.identifiers import Identity
from bellwire.signaling.wire.answers import DeviceResponse
from bellwire.signaling.wire.media import MediaCandidate
from tests.agent.desk import Exchange
from tests.agent.post import Post, post_at, settings_of
from tests.agent.scripted_relay import about, call_answer, fresh_sid, refused

pytestmark = pytest.mark.asyncio(loop_scope="module")

FRONT_DOOR = {"callers": ["lobby"], "by_message": True, "code": "47#1"}


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
        types(post, sid, "47#1")
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
    types(post, sid, "47#1")
    assert is_open(post) is opens


async def test_who_a_server_put_in_a_persons_place_opens_nothing_any_more(post: Post) -> None:
    sid = await called_out(post, accepted(fresh_sid()))
    await post.relay.say(accepted(sid, Attestation.PARTIAL))
    await post.relay.say(asks(sid, {}))
    assert (await result(post))["result"] == "not allowed"
    types(post, sid, "47#1")
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
    for digit in "47#1":
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
    for digit in "47#1":
        post.call(sid)._emit("digit", None, digit)  # as the room's media does
    assert is_open(post) is opens


# Wrong codes


async def hang_up(post: Post, sid: str) -> None:
    await post.press("hang_up")
    await post.until(sid, CallStatus.CLOSED)


LONGER = {"callers": ["lobby"], "code": "902468"}
TWO_DOORS = {"front": {**FRONT_DOOR, "code": "4711"}, "yard": LONGER}


def counts_on(folder: Path) -> WrongCodes:
    return WrongCodes(folder, "desk")


async def test_a_short_code_that_is_left_by_hanging_up_counts_and_is_on_disk(
    exchange: Exchange, tmp_path: Path
) -> None:
    for number in (1, 2):
        counts = await asyncio.to_thread(counts_on, tmp_path)
        async with post_at(exchange, kept=counts, doors=TWO_DOORS, wrong_codes=2) as post:
            sid = await answered(post)
            types(post, sid, "1234")
            await hang_up(post, sid)
            assert post.doors.status == DoorNow(
                wrong_codes=number, locked_out=("lobby",) if number == 2 else ()
            )
    counts = await asyncio.to_thread(counts_on, tmp_path)
    assert counts.found == {"lobby": 2}
    async with post_at(exchange, kept=counts, doors=TWO_DOORS, wrong_codes=2) as post:
        types(post, await answered(post), "4711")
        assert (await result(post))["result"] == "locked out"
        assert not is_open(post)


async def test_who_types_a_wrong_code_is_answered_once_it_is_on_disk(
    exchange: Exchange, tmp_path: Path
) -> None:
    counts = await asyncio.to_thread(counts_on, tmp_path)
    async with post_at(exchange, kept=counts, doors={"front": FRONT_DOOR}) as post:
        types(post, await answered(post), "0000")
        assert (await result(post))["result"] == "wrong code"
        assert (await asyncio.to_thread(counts_on, tmp_path)).found == {"lobby": 1}


async def test_what_a_full_disk_did_not_take_is_kept_once_there_is_room(
    exchange: Exchange, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    counts = await asyncio.to_thread(counts_on, state)
    state.write_text("a file where the folder should be")
    async with post_at(exchange, kept=counts, doors={"front": FRONT_DOOR}) as post:
        types(post, await answered(post), "0000")
        await result(post)
        (fault,) = post.doors.faults()
        assert "make room" in fault.reason
        state.unlink()
        await post.time.advance(11)
    assert (await asyncio.to_thread(counts_on, state)).found == {"lobby": 1}


async def test_what_has_been_paid_for_is_forgiven_on_disk_too(
    exchange: Exchange, tmp_path: Path
) -> None:
    counts = await asyncio.to_thread(counts_on, tmp_path)
    async with post_at(exchange, kept=counts, doors={"front": FRONT_DOOR}) as post:
        types(post, await answered(post), "0000")
        await result(post)
        await post.time.advance(301)
        assert post.doors.status is None
    assert (await asyncio.to_thread(counts_on, tmp_path)).found == {}


async def test_a_damaged_file_shuts_the_codes_for_a_while_says_so_and_then_they_open(
    exchange: Exchange, tmp_path: Path
) -> None:
    (tmp_path / "door-desk.json").write_text("{")
    counts = await asyncio.to_thread(counts_on, tmp_path)
    async with post_at(exchange, kept=counts, doors={"front": FRONT_DOOR}) as post:
        sid = await answered(post)
        types(post, sid, "47#1")
        assert (await result(post))["result"] == "locked out"
        (fault,) = post.doors.faults()
        assert (fault.part, "damaged" in fault.reason) == ("door", True)
        await post.time.advance(301)
        assert post.doors.faults() == ()
        types(post, sid, "47#1")
        assert (await result(post))["result"] == "released"
        assert is_open(post)


async def test_a_code_that_cannot_be_used_is_a_fault_and_its_door_stays_shut(
    exchange: Exchange,
) -> None:
    doors = {"front": {**FRONT_DOOR, "code": "47*11"}, "yard": {**LONGER, "code": "123"}}
    async with post_at(exchange, doors=doors) as post:
        faults = post.doors.faults()
        assert [fault.part for fault in faults] == ["door", "door"]
        assert all("give it a code of 4 to 16" in fault.reason for fault in faults)
        sid = await answered(post)
        types(post, sid, "47*11")
        types(post, sid, "123")
        await post.relay.say(asks(sid, {"door": "front"}))
        assert await result(post) == {"door": "front", "result": "failed"}
        assert not is_open(post)


async def test_the_relay_is_told_who_is_locked_out_and_one_that_does_not_know_of_it_does_no_harm(
    post: Post,
) -> None:
    post.behave(doors=TWO_DOORS, wrong_codes=1, lockout_s=60)
    post.relay.answers["door_locked_out"] = refused(422, "operation: unknown")
    sid = await answered(post)
    with capture_logs() as logs:
        for number in (1, 2):
            types(post, sid, "0000*")
            told = await post.relay.requests.until(
                lambda r, number=number: (
                    r["operation"] == "door_locked_out" and r["lock_out"] == number
                )
            )
            assert (told["call_sid"], told["caller"]) == (sid, "lobby")
            assert (told["doors"], told["wrong_codes"]) == (["front", "yard"], 1)
            assert told["locked_for_s"] == 60
            await post.time.advance(61)
        types(post, sid, "4711")
        await post.relay.requests.until(lambda r: r.get("content", {}).get("result") == "released")
    assert is_open(post)
    complaints = [line for line in logs if "takes no word" in line["event"]]
    assert len(complaints) == 1


# Machines whose kernel keeps a pin's level


def keeps_levels(root: Path) -> Path:
    file = root / "sys/module/pinctrl_bcm2835/parameters/persist_gpio_outputs"
    file.parent.mkdir(parents=True)
    file.write_text("Y\n")
    return root


def guarded_settings() -> AgentSettings:
    return AgentSettings.model_validate(
        {
            "device_id": "gate",
            "identity": "gate",
            "broker": {"url": "mqtt://127.0.0.1:1", "username": "gate", "password": "x"},
            "panel": {"door": {"pin": 25}, "ringer": {"pin": 18}},
            "behaviour": {"doors": {"front": {"callers": ["lobby"], "code": "123"}}},
        }
    )


async def test_a_station_whose_kernel_keeps_levels_runs_without_its_door_and_says_why(
    tmp_path: Path,
) -> None:
    root = await asyncio.to_thread(keeps_levels, tmp_path)
    settings = guarded_settings()
    with SimulatedPins(settings.panel) as pins:
        agent = Agent(settings, pin_factory=pins, root=root)
        assert agent.panel.door is None
        assert agent.panel.ringer is not None
        assert pins.pin(25).function == "input"
        kept, short = (await agent.health.telemetry()).faults
        assert (kept.part, short.part) == ("door", "door")
        assert "strict_gpiod" in kept.reason
        assert "restart the Pi" in kept.reason
        assert "shorter than 4" in short.reason
        agent.panel.close()


async def test_doctor_finds_both_and_says_how_to_mend_them(tmp_path: Path) -> None:
    root, file = await asyncio.to_thread(keeps_levels, tmp_path), tmp_path / "gate.toml"
    await asyncio.to_thread(write_private, file, agent_file(guarded_settings()))
    found = await examine_agent(file, root=root)
    of_door = [one for one in found if "door" in one.what]
    assert [one.condition for one in of_door] == [Condition.BAD, Condition.BAD]
    assert "'front' stays shut" in of_door[0].what
    assert "4 to 16 of 0-9 #" in of_door[0].mend
    assert "keeps a pin's level" in of_door[1].what
    assert "strict_gpiod" in of_door[1].mend
