"""Two devices that call each other through a real relay, and talk over real WebRTC."""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from structlog.testing import capture_logs

from bellwire.agent.calls.call import AcceptOptions, CallStatus
from bellwire.agent.media.engine.interface import IceServer
from bellwire.agent.media.sound import AudioDevices
from bellwire.hardware.audio.simulated_card import SimulatedSoundCard
from bellwire.signaling.errors import CallError, InvalidInput
from tests.agent.media.test_quiet_tones import digits_in, loosely_heard
from tests.agent.media.test_sound_card import card_at_work
from tests.agent.talking import ATTIC, DESK, FRONT, Talker, connected, heard, talker
from tests.conftest import PATIENCE_S
from tests.speech import RATE_HZ
from tests.system.scene import Record

pytestmark = pytest.mark.asyncio(loop_scope="module")

ACCOUNT = f"AC{hashlib.sha256(b'bellwire').hexdigest()[:32]}"
"""Of a relay whose settings name none."""


async def test_both_hear_what_the_other_says_and_the_call_tells_of_all_that_happens(
    front: Talker, inside: Talker
) -> None:
    call = front.device.connect("desk", {"door": "back & front"})
    assert (call.direction, call.status(), call.parameters) == ("OUTGOING", "connecting", {})
    invite = await inside.invited()
    assert (invite.from_, invite.to) == ("client:front", "client:desk")
    assert invite.custom_parameters == {"door": "back & front"}
    assert await front.until(call, "ringing") == (False,)
    assert call.remote_stream is None
    answered = invite.accept(AcceptOptions(uuid="7", audio_devices=AudioDevices("mic")))
    assert (answered.uuid, answered.sid, answered.status()) == ("7", invite.call_sid, "connecting")
    assert await front.until(call, "accept") == (call,)
    assert await inside.until(answered, "accept") == (answered,)
    assert await front.until(call, "audio") == (call.remote_stream,)
    await inside.until(answered, "audio")
    assert call.parameters == {"CallSid": call.sid}
    assert answered.parameters == {
        "CallSid": call.sid,
        "From": "client:front",
        "To": "client:desk",
        "AccountSid": ACCOUNT,
    }
    assert (call.status(), answered.status()) == (CallStatus.OPEN, CallStatus.OPEN)
    assert (call.codec, answered.codec) == ("opus", "opus")
    assert inside.voice.opened == [AudioDevices("mic")]
    assert call.remote_stream is not None
    sends, hears = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for stream, carries in ((call.local_stream, sends), (call.remote_stream, hears)):
        stream.listen(lambda _, told=carries: loop.call_soon_threadsafe(told.set))
    await heard(front, "desk", DESK)
    await heard(inside, "front", FRONT)
    assert sends.is_set()
    assert hears.is_set()
    spoken, listened = await front.until(call, "volume")
    assert 0 <= spoken <= 1
    assert 0 <= listened <= 1
    (sample,) = await inside.until(answered, "sample")
    assert sample.codec_name == "opus"
    assert sample.packets_received > 0
    call.disconnect()
    assert await inside.until(answered, "disconnect") == (answered,)
    assert front.names(call) == ["ringing", "accept", "audio", "disconnect"]
    assert inside.names(answered) == ["accept", "audio", "disconnect"]
    assert not front.device.calls
    assert not inside.device.calls


async def test_some_are_cancelled_while_another_talks_and_who_cannot_be_is_told(
    talk_http: httpx.AsyncClient, front: Talker, inside: Talker
) -> None:
    async with talker(talk_http, "attic", ATTIC) as attic:
        call = front.device.connect(["desk", "attic"])
        with pytest.raises(CallError, match="under way"):
            await call.cancel()  # it has no SID yet
        invite, other = await inside.invited(), await attic.invited()
        answered = invite.accept()
        await front.until(call, "accept")
        assert await call.cancel(["attic", "desk", "nobody"], extended_data="found one") == {
            "desk": "answered",
            "nobody": "not_invited",
        }
        await attic.until(other.call, "cancel")
        assert await call.cancel() == {}
        assert (call.status(), answered.status()) == (CallStatus.OPEN, CallStatus.OPEN)
        with pytest.raises(CallError, match="caller"):
            await answered.cancel()
        call.disconnect(extended_data="bye")
        await inside.until(answered, "disconnect")


async def test_the_caller_rejects_as_cancelled_to_give_up(front: Talker, inside: Talker) -> None:
    call = front.device.connect("desk")
    invite = await inside.invited()
    call.reject("cancelled")
    await front.until(call, "cancel")
    await inside.until(invite.call, "cancel")
    assert front.names(call)[-1] == "cancel"


async def test_who_accepts_may_name_ice_servers_in_place_of_the_relays(
    front: Talker, inside: Talker
) -> None:
    own = (IceServer(("turn:127.0.0.1:9",), "station", "secret"),)
    call = front.device.connect("desk")
    answered = (await inside.invited()).accept(AcceptOptions(ice_servers=own))
    await front.until(call, "audio")
    assert (inside.board.asked_to_use, front.board.asked_to_use) == (own, ())
    call.disconnect()
    await inside.until(answered, "disconnect")


async def test_who_is_muted_is_not_heard_until_he_speaks_again(
    front: Talker, inside: Talker
) -> None:
    call, answered = await connected(front, inside)
    await heard(inside, "front", FRONT)
    call.mute()
    assert await front.until(call, "mute") == (True, call)
    assert call.is_muted
    await until_silent(inside, "front")
    call.mute(False)
    assert front.told[id(call)].noted[-1] != ("mute", True, call)
    assert not call.is_muted
    inside.voice.heard.clear()
    await heard(inside, "front", FRONT)
    answered.disconnect()
    await front.until(call, "disconnect")


async def until_silent(listener: Talker, who: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            listener.voice.heard.clear()
            await listener.voice.hears_more()
            sound = listener.voice.sound_of(who)
            if len(sound) and abs(sound).max() < 100:
                return


async def test_digits_are_heard_at_the_other_end_as_they_were_sent(
    talk_http: httpx.AsyncClient, inside: Talker
) -> None:
    async with talker(talk_http, "keypad", np.zeros(RATE_HZ, np.int16)) as keypad:
        call, answered = await connected(keypad, inside)
        for wrong in ("", "12a", "1 2"):
            with pytest.raises(InvalidInput):
                call.send_digits(wrong)
        await inside.voice.hears_more()
        call.send_digits("1w*#")
        digits = [(await inside.told[id(answered)].until(pressed(digit)))[1:] for digit in "1*#"]
        assert digits == [("keypad", "1"), ("keypad", "*"), ("keypad", "#")]
        call.disconnect()
        await inside.until(answered, "disconnect")


async def test_a_code_that_is_typed_is_in_no_recording_of_the_other_ends_loudspeaker(
    talk_http: httpx.AsyncClient,
) -> None:
    silence, hardware, recording = np.zeros(RATE_HZ, np.int16), SimulatedSoundCard(), []
    hardware.listen(lambda block: recording.append(block.copy()))
    async with (
        card_at_work(hardware) as card,
        talker(talk_http, "typist", silence) as typist,
        talker(talk_http, "station", silence, card=card) as station,
    ):
        call, answered = await connected(typist, station)
        typed, tries = station.told[id(answered)], 0
        async with asyncio.timeout(2 * PATIENCE_S):
            while "".join(it[2] for it in typed.noted if it[0] == "digit")[-4:] != "4711":
                # On a busy machine a digit may get lost; whoever types then types again.
                call.send_digits("4w7w1w1")
                tries += 1
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(8):
                        await typed.until(has_heard_since(typed, len(typed.noted)), "4711")
        call.disconnect()
        await station.until(answered, "disconnect")
    heard_there = np.concatenate(recording)
    assert digits_in(heard_there) == ""
    assert len(loosely_heard(heard_there)) <= tries, "of each four at most the beginning of one"


def has_heard_since(told: Record, number: int) -> Callable[[Any], bool]:
    """Whether all four digits of the code have been heard since so much was told."""

    def is_whole(_: object) -> bool:
        digits = [it[2] for it in told.noted[number:] if it[0] == "digit"]
        return "".join(digits) == "4711"

    return is_whole


def pressed(digit: str) -> Callable[[Any], bool]:
    return lambda it: it[0] == "digit" and it[2] == digit


async def test_a_message_reaches_the_other_side_under_the_sid_that_its_sender_is_told(
    front: Talker, inside: Talker
) -> None:
    call, answered = await connected(front, inside)
    sid = call.send_message({"open": "gate"})
    (sent,) = await front.until(call, "messageSent")
    (received,) = await inside.until(answered, "messageReceived")
    assert (sent.voice_event_sid, received.voice_event_sid) == (sid, sid)
    assert (received.content, received.from_) == ({"open": "gate"}, "client:front")
    assert (received.message_type, received.content_type) == (
        "user-defined-message",
        "application/json",
    )
    with pytest.raises(InvalidInput):
        call.send_message({"long": "x" * 5000})
    with pytest.raises(CallError):
        call.send_message({}, message_type="media")
    await call.post_feedback(4, "echo")
    await answered.post_feedback()
    for score, issue in ((6, None), (3, "too-quiet")):
        with pytest.raises(InvalidInput):
            await call.post_feedback(score, issue)
    answered.disconnect()
    await front.until(call, "disconnect")


async def test_a_listener_that_fails_is_logged_and_breaks_nothing(
    front: Talker, inside: Talker
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("an application's mistake")

    call = front.device.connect("desk")
    unsubscribe = call.on("accept", fail)
    call.on("audio", fail)
    unsubscribe()
    unsubscribe()
    answered = (await inside.invited()).accept()
    with capture_logs() as logs:
        await front.until(call, "audio")
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["a listener failed"]
    assert call.status() is CallStatus.OPEN
    call.disconnect()
    await inside.until(answered, "disconnect")


async def test_a_rejected_call_ends_with_busy_everywhere_for_its_caller(
    front: Talker, inside: Talker
) -> None:
    call = front.device.connect("desk")
    invite = await inside.invited()
    invite.reject()
    assert inside.names(invite.call) == ["reject"]
    (error,) = await front.until(call, "error")
    assert (error.code, error.name) == (31600, "BusyEverywhereError")
    assert error.causes
    assert error.solutions
    await front.until(call, "disconnect")
    assert not invite.is_pending
    assert invite.accept().status() is CallStatus.CLOSED


async def test_an_ignored_call_rings_on_for_its_caller_who_may_give_it_up(
    front: Talker, inside: Talker
) -> None:
    call = front.device.connect("desk")
    invite = await inside.invited()
    await front.until(call, "ringing")
    invite.ignore()
    assert inside.names(invite.call) == ["cancel"]
    assert invite.call.status() is CallStatus.CLOSED
    assert call.status() is CallStatus.RINGING
    call.disconnect()
    assert front.names(call) == ["ringing", "cancel"]


async def test_a_call_given_up_while_it_rings_is_cancelled_at_the_other_end(
    front: Talker, inside: Talker
) -> None:
    call = front.device.connect("desk")
    invite = await inside.invited()
    await front.until(call, "ringing")
    call.disconnect()
    await inside.until(invite.call, "cancel")
    assert inside.names(invite.call) == ["cancel"]


async def test_a_call_to_nobody_fails_with_the_relays_own_code(front: Talker) -> None:
    call = front.device.connect("nobody-of-this-name")
    (error,) = await front.until(call, "error")
    assert error.code == 31604
    assert front.names(call) == ["error", "disconnect"]


async def test_with_call_waiting_a_second_call_rings_while_one_is_on(
    talk_http: httpx.AsyncClient, front: Talker, inside: Talker
) -> None:
    call, answered = await connected(front, inside)
    async with talker(talk_http, "back", FRONT) as back:
        refused = back.device.connect("desk")
        assert (await back.until(refused, "error"))[0].code == 31600
        inside.device.call_waiting = True
        second = back.device.connect("desk")
        other = (await inside.invited(1)).accept()
        await back.until(second, "audio")
        assert len(inside.device.calls) == 2
        other.disconnect()
        await back.until(second, "disconnect")
    assert answered.status() is CallStatus.OPEN
    call.disconnect()
    await inside.until(answered, "disconnect")
    inside.device.call_waiting = False


async def test_three_hear_each_other(
    talk_http: httpx.AsyncClient, front: Talker, inside: Talker
) -> None:
    async with talker(talk_http, "attic", ATTIC) as attic:
        call = front.device.connect(["desk", "attic"])
        first = (await inside.invited()).accept()
        await front.until(call, "audio")
        second = (await attic.invited()).accept()
        await attic.until(second, "audio")
        for listener in (front, inside, attic):
            for who, speech in (("front", FRONT), ("desk", DESK), ("attic", ATTIC)):
                if listener.device.identity != who:
                    await heard(listener, who, speech)
        second.disconnect()
        assert call.status() is CallStatus.OPEN
        call.disconnect()
        await inside.until(first, "disconnect")


async def test_a_ringing_device_hears_a_caller_who_allows_it_and_is_not_heard_itself(
    front: Talker, inside: Talker
) -> None:
    call = front.device.connect("desk", early_media=True)
    invite = await inside.invited()
    assert await front.until(call, "ringing") == (True,)
    assert invite.hear_early_media()
    await heard(inside, "front", FRONT)
    assert (call.status(), invite.call.status()) == (CallStatus.RINGING, CallStatus.PENDING)
    assert not front.voice.heard
    (early,) = inside.voice.heard
    answered = invite.accept()
    await inside.until(answered, "audio")
    await inside.voice.forgotten.until(lambda source: source == early, "the end of the early sound")
    assert inside.voice.is_open
    await heard(front, "desk", DESK)
    inside.voice.heard.clear()
    await heard(inside, "front", FRONT)
    assert len(inside.voice.heard) == 1
    call.disconnect()
    await inside.until(answered, "disconnect")


async def test_who_was_heard_early_is_forgotten_when_the_call_is_given_up(
    front: Talker, inside: Talker
) -> None:
    call = front.device.connect("desk", early_media=True)
    invite = await inside.invited()
    assert invite.hear_early_media()
    await heard(inside, "front", FRONT)
    (early,) = inside.voice.heard
    call.disconnect()
    await inside.until(invite.call, "cancel")
    await inside.voice.forgotten.until(lambda source: source == early, "the end of the early sound")


async def test_who_does_not_allow_it_is_not_heard_early(front: Talker, inside: Talker) -> None:
    call = front.device.connect("desk")
    invite = await inside.invited()
    assert not invite.hear_early_media()
    with pytest.raises(InvalidInput):
        front.device.connect("desk", extended_data="free text", early_media=True)
    call.disconnect()
    await inside.until(invite.call, "cancel")


async def test_an_incoming_calls_connect_token_is_the_relays_and_leads_back_with_its_parameters(
    talk_http: httpx.AsyncClient, front: Talker, inside: Talker
) -> None:
    call = front.device.connect("desk", {"door": "back & front"})
    answered = (await inside.invited()).accept()
    await inside.until(answered, "audio")
    token = answered.connect_token
    assert token is not None
    shown = {"Authorization": f"Bearer {token}"}
    http = httpx.AsyncClient(base_url=talk_http.base_url, headers=shown)
    async with http, talker(talk_http, "shelf", DESK, identity="desk") as shelf:
        seen = await http.get(f"/v1/calls/{call.sid}")
        assert seen.json()["call_sid"] == call.sid
        learnt = asyncio.Event()
        shelf.device.on_change(lambda known: learnt.set() if known.custom_parameters else None)
        taken = shelf.device.reconnect(token)
        await inside.until(answered, "disconnect")
        async with asyncio.timeout(PATIENCE_S):
            await learnt.wait()
        assert (taken.sid, taken.custom_parameters) == (call.sid, {"door": "back & front"})
        taken.disconnect()
        await front.until(call, "disconnect")


async def test_a_call_goes_on_at_another_device_of_the_identity_that_takes_it_over(
    talk_http: httpx.AsyncClient, front: Talker, inside: Talker
) -> None:
    call, answered = await connected(front, inside)
    assert call.connect_token is not None
    async with talker(talk_http, "tablet", ATTIC, identity="front") as tablet:
        taken = tablet.device.reconnect(call.connect_token)
        await front.until(call, "disconnect")
        await tablet.until(taken, "audio")
        await heard(inside, "front", ATTIC)
        await heard(tablet, "desk", DESK)
        assert (taken.sid, answered.status()) == (call.sid, CallStatus.OPEN)
        with pytest.raises(InvalidInput):
            tablet.device.reconnect("no token")
        taken.disconnect()
        await inside.until(answered, "disconnect")
