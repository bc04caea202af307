"""The sound card as calls use it: what rings, who is heard, and what is left when it ends."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bellwire.agent.media.engine.interface import BLOCK_FRAMES, Block
from bellwire.agent.media.sound import AudioDevices, Tone
from bellwire.agent.media.sound_card import SoundCard
from bellwire.config.agent.audio import AudioSettings
from bellwire.hardware.audio.simulated_card import SimulatedSoundCard, SimulatedStream
from bellwire.signaling.errors import CallError
from tests.conftest import PATIENCE_S

LOUD = np.full(BLOCK_FRAMES, 9000, np.int16)


class Speaker:
    """Waits for what the card plays."""

    def __init__(self, hardware: SimulatedSoundCard) -> None:
        self._loop = asyncio.get_running_loop()
        self._blocks: asyncio.Queue[Block] = asyncio.Queue()
        hardware.listen(
            lambda block: self._loop.call_soon_threadsafe(self._blocks.put_nowait, block)
        )

    async def until(self, *, loud: bool) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while bool((await self._blocks.get()).any()) is not loud:
                pass


@asynccontextmanager
async def card_at_work(
    hardware: SimulatedSoundCard, settings: AudioSettings | None = None
) -> AsyncIterator[SoundCard]:
    card = SoundCard(settings or AudioSettings(), initialise=hardware.initialised)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(card.run())
        yield card
        running.cancel()


@pytest.mark.parametrize("tone", list(Tone))
async def test_each_tone_sounds_until_it_is_stopped(tone: Tone) -> None:
    hardware = SimulatedSoundCard()
    async with card_at_work(hardware) as card:
        speaker = Speaker(hardware)
        await card.open(lambda _: None, AudioDevices())  # keeps the speaker open in between
        card.start_tone(tone)
        await speaker.until(loud=True)
        card.stop_tone()
        await speaker.until(loud=False)
        await card.close()


async def test_a_ring_that_is_stopped_before_its_tone_was_read_does_not_sound() -> None:
    hardware = SimulatedSoundCard()
    async with card_at_work(hardware) as card:
        speaker = Speaker(hardware)
        await card.open(lambda _: None, AudioDevices())
        card.start_tone(Tone.RING)
        await asyncio.sleep(0)  # its reading has begun, on a thread
        card.stop_tone()
        card.start_tone(Tone.RINGBACK)
        await speaker.until(loud=True)
        card.stop_tone()
        await speaker.until(loud=False)
        for _ in range(20):
            await speaker.until(loud=False)
        await card.close()


async def test_in_place_of_a_ring_tone_that_is_no_sound_classic_rings_and_the_fault_is_told(
    tmp_path: Path,
) -> None:
    hardware = SimulatedSoundCard()
    file = tmp_path / "ring.wav"
    file.write_bytes(b"no sound")
    async with card_at_work(hardware, AudioSettings(ring_tone=str(file))) as card:
        faults = asyncio.Queue[str | None]()
        card.on_ring_tone = faults.put_nowait
        speaker = Speaker(hardware)
        card.start_tone(Tone.RING)
        await speaker.until(loud=True)
        async with asyncio.timeout(PATIENCE_S):
            told = await faults.get()
        assert told and told == card.ring_tone_fault
        assert told.startswith(f"classic rings instead: {file} cannot be played")
        card.stop_tone()
        card.use(AudioSettings(ring_tone="chime"))
        async with asyncio.timeout(PATIENCE_S):
            assert await faults.get() is None


async def test_a_ring_tone_that_cannot_be_played_is_told_of_before_anybody_rings(
    tmp_path: Path,
) -> None:
    async with card_at_work(SimulatedSoundCard()) as card:
        faults = asyncio.Queue[str | None]()
        card.on_ring_tone = faults.put_nowait
        card.use(AudioSettings(ring_tone=str(tmp_path / "gone.wav")))
        async with asyncio.timeout(PATIENCE_S):
            told = await faults.get()
    assert told and "gone.wav cannot be played" in told


async def test_who_is_heard_is_heard_until_forgotten() -> None:
    hardware = SimulatedSoundCard()
    async with card_at_work(hardware) as card:
        speaker = Speaker(hardware)
        captured = asyncio.Event()
        loop = asyncio.get_running_loop()
        await card.open(lambda _: loop.call_soon_threadsafe(captured.set), AudioDevices())
        async with asyncio.timeout(PATIENCE_S):
            await captured.wait()
        async with asyncio.TaskGroup() as tasks:

            async def speak() -> None:
                while True:
                    card.play("desk", LOUD)
                    await asyncio.sleep(0.01)

            speaking = tasks.create_task(speak())
            await speaker.until(loud=True)
            speaking.cancel()
        card.forget("desk")
        await speaker.until(loud=False)
        await card.close()


async def test_a_card_that_cannot_be_opened_fails_the_call_and_not_the_agent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bellwire.agent.media.sound_card._OPENS_WITHIN_S", 0.2)

    def broken() -> SimulatedSoundCard:
        raise OSError("no such device")

    card = SoundCard(AudioSettings(), initialise=broken)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(card.run())
        with pytest.raises(CallError) as failed:
            await card.open(lambda _: None, AudioDevices())
        assert failed.value.code == 53400
        assert card.fault
        running.cancel()


class LooseCard(SimulatedSoundCard):
    """One that can be pulled out."""

    def __init__(self) -> None:
        super().__init__()
        self.is_there = True
        self.streams: list[SimulatedStream] = []

    def initialised(self) -> "LooseCard":
        if not self.is_there:
            raise OSError("no such device")
        return self

    def open(self, **how: Any) -> SimulatedStream:  # noqa: ANN401 - as PyAudio's
        self.streams.append(super().open(**how))
        return self.streams[-1]

    async def pull_out(self) -> None:
        self.is_there = False
        for stream in self.streams:
            await asyncio.to_thread(stream.close)


async def test_a_card_that_is_pulled_out_says_so_and_that_it_is_back() -> None:
    hardware = LooseCard()
    async with card_at_work(hardware) as card:
        await card.open(lambda _: None, AudioDevices())
        async with asyncio.timeout(PATIENCE_S):
            await card.works()
            await hardware.pull_out()
            assert await card.failed() == card.fault
            hardware.is_there = True
            await card.works()
        assert card.fault is None
        await card.close()
