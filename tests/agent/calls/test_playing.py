"""What an application plays into a call, and how it listens: real calls over real WebRTC."""

import asyncio
import wave
from pathlib import Path

import httpx
import numpy as np
import pytest
import soxr

from bellwire import Call, CallError, CallStatus, InvalidInput
from tests.agent.talking import ATTIC, RATE_HZ, Talker, connected, talker
from tests.conftest import PATIENCE_S
from tests.speech import Sound, fraction_heard

pytestmark = pytest.mark.asyncio(loop_scope="module")

UNDERSTOOD = 0.5
"""Of what is said once: a machine that is busy loses some of it, as a bad line does."""
SHORT = ATTIC[: RATE_HZ // 2]
AT_24_KHZ = soxr.resample(ATTIC, RATE_HZ, 24_000)


def wav_file(path: Path, sound: Sound, *, rate_hz: int = RATE_HZ, channels: int = 1) -> Path:
    with wave.open(str(path), "wb") as wav:
        wav.setnchannels(channels)
        wav.setsampwidth(2)
        wav.setframerate(rate_hz)
        wav.writeframes(np.repeat(sound, channels).astype("<i2").tobytes())
    return path


async def test_a_wav_file_is_heard_by_the_other_party_though_the_microphone_is_muted(
    front: Talker, inside: Talker, tmp_path: Path
) -> None:
    call, answered = await connected(front, inside)
    answered.mute()
    await answered.play(wav_file(tmp_path / "view.wav", AT_24_KHZ, rate_hz=24_000, channels=2))
    assert fraction_heard(ATTIC, front.voice.sound_of("desk")) > UNDERSTOOD
    call.disconnect()


async def test_samples_are_played_once_somebody_can_hear_them_one_sound_after_the_other(
    front: Talker, inside: Talker
) -> None:
    call = front.device.connect("desk")
    call.mute()
    playing = [asyncio.create_task(call.play(sound)) for sound in (ATTIC, SHORT)]
    answered = (await inside.invited(0)).accept()
    await inside.until(answered, "audio")
    first, second = playing
    await first
    assert not second.done()
    assert fraction_heard(ATTIC, inside.voice.sound_of("front")) > UNDERSTOOD
    await second
    answered.disconnect()


async def test_a_sound_that_is_cancelled_falls_silent_and_the_next_one_is_heard(
    front: Talker, inside: Talker
) -> None:
    call, answered = await connected(front, inside)
    answered.mute()
    playing = asyncio.create_task(answered.play(np.tile(ATTIC, 20)))
    await front.voice.hears_more()
    playing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await playing
    await answered.play(SHORT)
    call.disconnect()


async def test_who_plays_is_told_that_the_call_has_ended(front: Talker, inside: Talker) -> None:
    call, answered = await connected(front, inside)
    playing = asyncio.create_task(answered.play(np.tile(ATTIC, 20)))
    await front.voice.hears_more()
    call.disconnect()
    with pytest.raises(CallError, match=r"\(31487\): the call ended before the sound") as ended:
        await playing
    assert ended.value.code == 31487
    with pytest.raises(CallError, match="31487"):
        await answered.play(SHORT)


async def test_a_sound_that_cannot_be_played_is_refused_with_what_was_expected(
    front: Talker, tmp_path: Path
) -> None:
    call = front.device.connect("nobody-there")
    text = tmp_path / "words.wav"
    text.write_text("no sound at all, but words")
    long = wav_file(tmp_path / "long.wav", np.zeros(8000 * 301, np.int16), rate_hz=8000)
    for sound, why in (
        (text, "words.wav cannot be played: file does not start with RIFF id"),
        (tmp_path / "none.wav", "No such file"),
        (long, "long.wav is longer than 300 s: shorten it"),
        (np.zeros(480), r"samples of float64 in the shape \(480,\) cannot be played: give int16"),
        (np.zeros((480, 2), np.int16), r"the shape \(480, 2\)"),
        (np.zeros(0, np.int16), r"the shape \(0,\)"),
    ):
        with pytest.raises(InvalidInput, match=why):
            await call.play(sound)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="samples of 100 Hz cannot be played: give 8000 to"):
        await call.play(SHORT, rate_hz=100)
    call.disconnect()


async def test_a_device_without_sound_plays_none(talk_http: httpx.AsyncClient) -> None:
    async with talker(talk_http, "mute", None) as mute:
        call = mute.device.connect("nobody-there")
        with pytest.raises(CallError, match=r"53400.*this device has no sound"):
            await call.play(SHORT)
        call.disconnect()


async def test_an_event_that_there_is_not_is_refused_with_those_there_are(front: Talker) -> None:
    call = front.device.connect("nobody-there")
    with pytest.raises(
        InvalidInput, match=r"there is no event 'messagereceived' here.* messageRec"
    ):
        call.on("messagereceived", print)  # type: ignore[call-overload]
    with pytest.raises(
        InvalidInput,
        match=r"'income' here: listen to one of error, incoming, registered, unregistered$",
    ):
        front.device.on("income", print)  # type: ignore[call-overload]
    call.disconnect()


async def test_a_listener_may_be_async_and_goes_on_after_the_call_whatever_it_raises(
    front: Talker, inside: Talker
) -> None:
    ended: asyncio.Future[CallStatus] = asyncio.get_running_loop().create_future()

    async def on_disconnect(call: Call) -> None:
        await asyncio.sleep(0)
        ended.set_result(call.status())
        raise ValueError("the application's own mistake")

    call, answered = await connected(front, inside)
    answered.on("disconnect", on_disconnect)
    call.disconnect()
    async with asyncio.timeout(PATIENCE_S):
        assert await ended is CallStatus.CLOSED
    again, _ = await connected(front, inside)
    again.disconnect()
