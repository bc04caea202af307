"""Sound on a real sound server: what is played is heard, what is said is captured, devices come and
go, and nothing is left running."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np

from bellwire.config.agent.audio import AudioSettings, ProcessingSettings
from bellwire.hardware.audio.block import BLOCK_FRAMES, Block
from bellwire.hardware.audio.mixer import Source
from bellwire.hardware.audio.sound import Sound
from bellwire.hardware.audio.tones import RINGBACK, rendered
from tests.pulse import MICROPHONE, PATIENCE_S, SPEAKER, PulseAudio, Samples, similarity

UNPROCESSED = ProcessingSettings(
    echo_cancellation=False, noise_suppression=False, gain_control=False, high_pass_filter=False
)


def noise(seed: int, seconds: float = 0.5) -> Samples:
    """Something that is like nothing else."""
    return np.random.default_rng(seed).integers(-6000, 6000, round(seconds * 48_000), np.int16)


class Looped(Source):
    """Plays samples again and again."""

    def __init__(self, samples: Samples) -> None:
        self.volume = 1.0
        self._blocks = samples[: len(samples) // BLOCK_FRAMES * BLOCK_FRAMES].reshape(
            -1, BLOCK_FRAMES
        )
        self._next = 0

    def pull(self) -> Block:
        self._next += 1
        block: Block = self._blocks[self._next % len(self._blocks)]
        return block


class Faults:
    """What was told of the sound, in order."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[str | None] = asyncio.Queue()

    async def next(self) -> str | None:
        async with asyncio.timeout(PATIENCE_S):
            return await self.told.get()


@asynccontextmanager
async def running(faults: Faults | None = None, **settings: object) -> AsyncIterator[Sound]:
    given = AudioSettings.model_validate(
        {"processing": UNPROCESSED, "speaker_volume": 1.0, **settings}
    )
    sound = Sound(given, on_fault=faults.told.put_nowait if faults else lambda _: None)
    async with asyncio.TaskGroup() as tasks:
        at_work = tasks.create_task(sound.run())
        yield sound
        at_work.cancel()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 - another process's or thread's doing
            await asyncio.sleep(0.05)


async def heard(hear: Callable[[], Samples], said: Samples) -> None:
    """Waits until it is heard."""
    await until(lambda: similarity(hear()[-3 * 48_000 :], said) > 0.8)


async def test_what_is_played_is_heard_while_what_is_said_is_captured(pulse: PulseAudio) -> None:
    played, said = noise(1), noise(2)
    captured: list[Block] = []
    async with running() as sound:
        with pulse.ear(SPEAKER) as ear, pulse.mouth(MICROPHONE, said):
            sound.mixer.add(Looped(played))
            sound.open_voice(captured.append)
            await heard(lambda: ear.samples, played[: BLOCK_FRAMES * 20])
            await heard(lambda: np.concatenate(captured or [played[:0]]), said[: BLOCK_FRAMES * 20])
            await until(lambda: min(sound.output_db, sound.input_db) > -25)


async def test_devices_are_found_by_a_part_of_their_names(pulse: PulseAudio) -> None:
    pulse.plug_in("bw-other")
    pulse.set_defaults("bw-other", "bw-other.monitor")
    try:
        await _plays(pulse, output_device="SPEAK", input_device="microph")
    finally:
        pulse.set_defaults(SPEAKER, f"{MICROPHONE}.monitor")
        pulse.unplug("bw-other")


async def _plays(pulse: PulseAudio, **settings: object) -> None:
    played, said = noise(3), noise(4)
    captured: list[Block] = []
    async with running(**settings) as sound:
        with pulse.ear(SPEAKER) as ear, pulse.mouth(MICROPHONE, said):
            sound.mixer.add(Looped(played))
            sound.open_voice(captured.append)
            await heard(lambda: ear.samples, played[: BLOCK_FRAMES * 20])
            await heard(lambda: np.concatenate(captured or [played[:0]]), said[: BLOCK_FRAMES * 20])


async def test_missing_device_is_told_of_with_what_to_do_and_the_other_works(
    pulse: PulseAudio,
) -> None:
    faults, played = Faults(), noise(5)
    async with running(faults, input_device="headset") as sound:
        with pulse.ear(SPEAKER) as ear:
            sound.mixer.add(Looped(played))
            sound.open_voice(lambda _: None)
            fault = await faults.next()
            assert fault is not None
            for word in ("no microphone 'headset'", SPEAKER, "audio.input_device", "doctor audio"):
                assert word in fault
            await heard(lambda: ear.samples, played[: BLOCK_FRAMES * 20])


async def test_sound_recovers_when_a_device_that_was_unplugged_is_plugged_in_again(
    pulse: PulseAudio,
) -> None:
    faults, played = Faults(), noise(6)
    async with running(faults, output_device=SPEAKER) as sound:
        sound.mixer.add(Looped(played))
        with pulse.ear(SPEAKER) as ear:
            await heard(lambda: ear.samples, played[: BLOCK_FRAMES * 20])
        # Both, as of one USB headset: what plays to the one PulseAudio would move to the other.
        pulse.unplug(MICROPHONE)
        pulse.unplug(SPEAKER)
        fault = await faults.next()
        assert fault is not None
        assert SPEAKER in fault
        pulse.plug_in(SPEAKER)
        pulse.plug_in(MICROPHONE)
        pulse.set_defaults(SPEAKER, f"{MICROPHONE}.monitor")
        while await faults.next() is not None:
            pass
        with pulse.ear(SPEAKER) as ear:
            await heard(lambda: ear.samples, played[: BLOCK_FRAMES * 20])


async def test_stopping_leaves_no_thread_and_no_stream(pulse: PulseAudio) -> None:
    del pulse
    before = threading.active_count()
    async with running() as sound:
        sound.open_voice(lambda _: None)
        async with asyncio.timeout(PATIENCE_S):
            await sound.flowing()
        assert threading.active_count() > before
    assert threading.active_count() == before


async def test_nothing_is_open_while_nobody_talks_and_nothing_sounds(pulse: PulseAudio) -> None:
    del pulse
    async with running() as sound:
        voice = sound.open_voice(lambda _: None)
        async with asyncio.timeout(PATIENCE_S):
            await sound.flowing()
        voice.close()
        await until(lambda: not any("voice" in thread.name for thread in threading.enumerate()))


async def test_ringback_is_heard_until_it_is_stopped(pulse: PulseAudio) -> None:
    async with running() as sound:
        with pulse.ear(SPEAKER) as ear:
            sound.start_progress_tone(RINGBACK)
            await heard(lambda: ear.samples, rendered(RINGBACK)[: 48_000 // 2])
            sound.stop_tone()
            assert sound.mixer.is_silent
