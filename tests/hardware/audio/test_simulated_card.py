"""The simulated sound card moves sound through the very same code that a real one does."""

import asyncio
import threading

import numpy as np

from bellwire.config.agent.audio import AudioSettings, ProcessingSettings
from bellwire.hardware.audio.block import BLOCK_FRAMES, Block
from bellwire.hardware.audio.simulated_card import SimulatedSoundCard
from bellwire.hardware.audio.sound import Sound
from tests.conftest import PATIENCE_S

_NOTHING_DONE = ProcessingSettings(
    echo_cancellation=False, noise_suppression=False, gain_control=False, high_pass_filter=False
)


async def test_what_is_said_is_captured_and_what_is_played_is_heard() -> None:
    card = SimulatedSoundCard()
    loop = asyncio.get_running_loop()
    captured: asyncio.Queue[Block] = asyncio.Queue()
    heard: asyncio.Queue[Block] = asyncio.Queue()
    card.listen(lambda block: loop.call_soon_threadsafe(heard.put_nowait, block))
    threads = threading.active_count()
    sound = Sound(AudioSettings(processing=_NOTHING_DONE), initialise=card.initialised)
    said = (10_000 * np.sin(np.arange(BLOCK_FRAMES * 5) * 0.1)).astype(np.int16)
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(sound.run())
        voice = sound.open_voice(
            lambda block: loop.call_soon_threadsafe(captured.put_nowait, block) and None
        )
        await sound.flowing()
        card.say(said)
        while not (block := await captured.get()).any():
            pass
        blocks = [block, *[await captured.get() for _ in range(4)]]
        assert np.array_equal(np.concatenate(blocks), said)
        source = sound.add_source()
        while not (await heard.get()).any():
            source.play(said[:BLOCK_FRAMES])
        voice.close()
        running.cancel()
    assert sound.fault is None
    assert threading.active_count() == threads
