"""The tones of a station as its speaker plays them."""

import asyncio

import numpy as np
import pytest

from bellwire.agent.media.sound import Tone
from bellwire.agent.media.sound_card import SoundCard
from bellwire.config.agent.audio import AudioSettings
from bellwire.hardware.audio.block import Block
from bellwire.hardware.audio.simulated_card import SimulatedSoundCard
from tests.conftest import PATIENCE_S


@pytest.mark.parametrize("tone", [Tone.RING, Tone.RINGBACK])
async def test_a_tone_is_played_as_loud_as_it_is_asked_for(tone: Tone) -> None:
    hardware = SimulatedSoundCard()
    card = SoundCard(AudioSettings(speaker_volume=1), initialise=hardware.initialised)
    running = asyncio.create_task(card.run())
    loudest = {}
    for volume in (0.8, 0.2):
        card.start_tone(tone, volume)
        loudest[volume] = await peak(hardware)
        card.stop_tone()
    running.cancel()
    await asyncio.wait({running})
    assert loudest[0.8] == pytest.approx(4 * loudest[0.2], rel=0.1)


async def peak(hardware: SimulatedSoundCard) -> int:
    """The peak of the first 200 ms of sound."""
    loop, blocks = asyncio.get_running_loop(), list[Block]()
    enough = asyncio.Event()

    def hear(block: Block) -> None:
        if block.any() or blocks:
            blocks.append(block.copy())
        if len(blocks) == 20:
            loop.call_soon_threadsafe(enough.set)

    unlisten = hardware.listen(hear)
    async with asyncio.timeout(PATIENCE_S):
        await enough.wait()
    unlisten()
    return int(np.abs(np.concatenate(blocks[:20]).astype(np.int32)).max())
