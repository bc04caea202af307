"""Calls that name their sound devices: those are used, for as long as the call lasts; and what is told
where they cannot be."""

import asyncio
import wave
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from bellwire.agent.calls.call import AcceptOptions, CallStatus
from bellwire.agent.media.sound import AudioDevices, Tone
from bellwire.agent.media.sound_card import SoundCard
from bellwire.config.agent.audio import AudioSettings, ProcessingSettings
from bellwire.hardware.audio.devices import Initialise, initialise_pyaudio
from bellwire.hardware.audio.simulated_card import SimulatedSoundCard, SimulatedStream
from bellwire.hardware.audio.tones import RINGBACK, rendered
from bellwire.signaling.errors import CallError, InvalidInput
from tests.agent.talking import ATTIC, DESK, FRONT, Talker, connected, heard, talker
from tests.conftest import PATIENCE_S
from tests.pulse import MICROPHONE, SPEAKER, Ear, PulseAudio, running_pulse, similarity
from tests.speech import RATE_HZ, Sound, fraction_heard

pytestmark = pytest.mark.asyncio(loop_scope="module")

HANDSET, HEADSET = "bw-handset", "bw-headset"
"""A second microphone and a second speaker."""
NAMED = AudioDevices(HANDSET, HEADSET)
CONFIGURED = AudioSettings(
    input_device=MICROPHONE,
    output_device=SPEAKER,
    speaker_volume=1.0,
    processing=ProcessingSettings(
        echo_cancellation=False, noise_suppression=False, gain_control=False, high_pass_filter=False
    ),
)


@pytest.fixture(scope="module")
def pulse() -> Iterator[PulseAudio]:
    with running_pulse() as pulse:
        pulse.plug_in(HANDSET)
        pulse.plug_in(HEADSET)
        microphones = {name: f"{name}.monitor" for name in (MICROPHONE, HANDSET)}
        pulse.name_devices({SPEAKER: SPEAKER, HEADSET: HEADSET, **microphones})
        yield pulse


@asynccontextmanager
async def card_at_work(
    settings: AudioSettings, initialise: Initialise = initialise_pyaudio
) -> AsyncIterator[SoundCard]:
    card = SoundCard(settings, initialise=initialise)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(card.run())
        yield card
        running.cancel()


async def until_heard(ear: Ear, speech: Sound) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while fraction_heard(speech[:RATE_HZ], ear.samples[-4 * RATE_HZ :]) < 0.8:  # noqa: ASYNC110 - PulseAudio does not tell
            await asyncio.sleep(0.1)


async def test_a_call_uses_the_devices_it_names_and_the_configured_ones_are_back_after_it(
    pulse: PulseAudio, talk_http: httpx.AsyncClient, front: Talker
) -> None:
    async with (
        card_at_work(CONFIGURED) as card,
        talker(talk_http, "phone", DESK, card=card) as phone,
    ):
        with pulse.mouth(HANDSET, DESK), pulse.mouth(MICROPHONE, ATTIC):
            call = front.device.connect("phone")
            with pulse.ear(HEADSET) as named, pulse.ear(SPEAKER) as configured:
                answered = (await phone.invited()).accept(AcceptOptions(audio_devices=NAMED))
                await heard(front, "phone", DESK)
                card.use(CONFIGURED.model_copy(update={"ring_volume": 0.5}))
                await until_heard(named, FRONT)
                assert not configured.samples.any()
            call.disconnect()
            await phone.until(answered, "disconnect")

            back = phone.device.connect("front", audio_devices=AudioDevices(output_device=HEADSET))
            with pulse.ear(HEADSET) as named:
                taken = (await front.invited()).accept()
                await heard(front, "phone", ATTIC)  # no microphone is named: the configured one
                await until_heard(named, FRONT)
            taken.disconnect()
            await phone.until(back, "disconnect")

        with pulse.ear(HEADSET) as named, pulse.ear(SPEAKER) as configured:
            card.start_tone(Tone.RINGBACK)
            tone = rendered(RINGBACK)[: RATE_HZ // 2]
            async with asyncio.timeout(PATIENCE_S):
                while similarity(configured.samples, tone) < 0.9:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.1)
            card.stop_tone()
            assert similarity(named.samples, tone) < 0.5


async def test_a_call_that_names_a_device_that_is_not_there_ends_at_both_ends_and_the_next_works(
    pulse: PulseAudio,
    talk_http: httpx.AsyncClient,
    front: Talker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert pulse
    monkeypatch.setattr("bellwire.agent.media.sound_card._OPENS_WITHIN_S", 1.0)
    async with (
        card_at_work(CONFIGURED) as card,
        talker(talk_http, "phone", DESK, card=card) as phone,
    ):
        call = front.device.connect("phone")
        options = AcceptOptions(audio_devices=AudioDevices("bw-nothing"))
        answered = (await phone.invited()).accept(options)
        for end, its in ((phone, answered), (front, call)):
            (error,) = await end.until(its, "error")
            assert error.code == 53400
            assert "'bw-nothing'" in error.message
            await end.until(its, "disconnect")
        monkeypatch.undo()
        call, answered = await connected(front, phone)
        assert card.fault is None
        call.disconnect()
        await phone.until(answered, "disconnect")


async def test_a_second_call_that_names_other_devices_is_refused_and_the_first_goes_on(
    talk_http: httpx.AsyncClient, front: Talker, inside: Talker
) -> None:
    inside.device.call_waiting = True
    call = front.device.connect("desk")
    options = AcceptOptions(audio_devices=AudioDevices("mic", 2))
    answered = (await inside.invited()).accept(options)
    await front.until(call, "audio")
    async with talker(talk_http, "back", ATTIC) as back:
        for number, (named, is_taken) in enumerate(
            (
                (AudioDevices("mic", 3), False),
                (AudioDevices("another mic"), False),
                (AudioDevices(output_device=2), True),
                (AudioDevices(), True),
            )
        ):
            second = back.device.connect("desk")
            invite = await inside.invited(number + 1)
            other = invite.accept(AcceptOptions(audio_devices=named))
            if is_taken:
                await inside.until(other, "audio")
                second.disconnect()
            else:
                (error,) = await inside.until(other, "error")
                assert error.code == 53400
                assert "another call uses input_device 'mic' and output_device 2" in error.message
                assert (await back.until(second, "error"))[0].code == 53400
            await inside.until(other, "disconnect")
    assert inside.voice.opened == [AudioDevices("mic", 2)]
    assert answered.status() is CallStatus.OPEN
    inside.voice.heard.clear()
    await heard(inside, "front", FRONT)
    call.disconnect()
    await inside.until(answered, "disconnect")
    inside.device.call_waiting = False


async def test_who_listened_early_on_the_configured_devices_talks_on_those_that_the_call_names(
    front: Talker, inside: Talker
) -> None:
    call = front.device.connect("desk", early_media=True)
    invite = await inside.invited()
    await front.until(call, "ringing")
    assert invite.hear_early_media()
    await heard(inside, "front", FRONT)
    answered = invite.accept(AcceptOptions(audio_devices=AudioDevices("mic")))
    await front.until(call, "audio")
    await heard(front, "desk", DESK)
    assert inside.voice.opened == [AudioDevices(), AudioDevices("mic")]
    call.disconnect()
    await inside.until(answered, "disconnect")


class TwoMicrophones(SimulatedSoundCard):
    """The one that is named `taken` is in use by another program."""

    def initialised(self) -> "TwoMicrophones":
        return self

    def get_device_count(self) -> int:
        return 2

    def get_device_info_by_index(self, index: int) -> dict[str, object]:
        return {**super().get_device_info_by_index(index), "name": ("free", "taken")[index]}

    def open(self, **how: Any) -> SimulatedStream:  # noqa: ANN401 - as PyAudio's
        if how.get("input_device_index") == 1:
            raise OSError(-9985, "Device unavailable")
        return super().open(**how)


@pytest.mark.parametrize("name", ["taken", 1, "nobody's", 7])
async def test_a_named_device_that_is_busy_or_gone_is_told_of_even_while_it_rings(
    name: str | int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What rings flows on the configured device all the time."""
    monkeypatch.setattr("bellwire.agent.media.sound_card._OPENS_WITHIN_S", 1.0)
    without_a_pause = tmp_path / "ring.wav"
    with wave.open(str(without_a_pause), "wb") as wav:
        wav.setparams((1, 2, RATE_HZ, 0, "NONE", ""))
        wav.writeframes(rendered(RINGBACK)[:RATE_HZ].tobytes())
    hardware, loop, rings = TwoMicrophones(), asyncio.get_running_loop(), asyncio.Event()
    hardware.listen(lambda block: loop.call_soon_threadsafe(rings.set) if block.any() else None)
    settings = AudioSettings(ring_tone=str(without_a_pause))
    async with card_at_work(settings, hardware.initialised) as card:
        card.start_tone(Tone.RING)
        async with asyncio.timeout(PATIENCE_S):
            await rings.wait()
            with pytest.raises(
                CallError, match=r"'taken' takes no stream|there is no microphone"
            ) as no:
                await card.open(lambda _: None, AudioDevices(name))
            assert no.value.code == 53400
            monkeypatch.undo()
            captured = asyncio.Event()
            await card.open(lambda _: loop.call_soon_threadsafe(captured.set), AudioDevices("free"))
            await captured.wait()
            rings.clear()
            await rings.wait()
        await card.close()


async def test_a_device_without_a_name_is_refused() -> None:
    with pytest.raises(InvalidInput, match="doctor audio"):
        AudioDevices(output_device="")
