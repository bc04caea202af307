"""Sound of any rate we may hear becomes blocks of 10 ms at 48 kHz."""

import numpy as np
import pytest

from bellwire.agent.media.engine.interface import BLOCK_FRAMES
from bellwire.agent.media.engine.wrtc_listener import BlockMaker
from tests.speech import Sound


def tone(rate_hz: int, seconds: float, hz: float = 1000.0) -> Sound:
    at = np.arange(int(rate_hz * seconds)) / rate_hz
    return np.asarray(10_000 * np.sin(2 * np.pi * hz * at), np.int16)


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 48_000])
@pytest.mark.parametrize("chunk_ms", [10, 20, 7])
def test_a_tone_stays_the_tone_it_is_and_no_block_is_late(rate_hz: int, chunk_ms: int) -> None:
    maker, said, blocks = BlockMaker(), tone(rate_hz, 0.7), []
    chunk = rate_hz * chunk_ms // 1000
    for start in range(0, said.size, chunk):
        blocks += maker.blocks(said[start : start + chunk], rate_hz, 1)
        assert len(blocks) == min(start + chunk, said.size) * 100 // rate_hz
    assert {block.shape for block in blocks} == {(BLOCK_FRAMES,)}
    heard = np.concatenate(blocks)[4_800 : 52_800 // 2].astype(float)
    spectrum = np.abs(np.fft.rfft(heard * np.hanning(heard.size), 48_000))
    assert int(spectrum.argmax()) == 1000
    spectrum[900:1100] = 0
    assert spectrum.max() < 10_000 * heard.size / 4 / 1000  # 60 dB below the tone


def test_two_channels_become_their_mean() -> None:
    stereo = np.stack([np.full(480, 1000), np.full(480, 3000)], axis=1).astype(np.int16)
    (block,) = BlockMaker().blocks(stereo.reshape(-1), 48_000, 2)
    assert set(block) == {2000}


def test_the_rate_may_change_and_the_loudest_sound_does_not_wrap() -> None:
    maker = BlockMaker()
    assert len(list(maker.blocks(np.zeros(160, np.int16), 16_000, 1))) == 1
    square = np.repeat(np.array([32767, -32768] * 5, np.int16), 8)
    (block,) = maker.blocks(square, 8_000, 1)
    assert np.corrcoef(np.repeat(square, 6)[:-48], block[48:])[0, 1] > 0.9
    assert len(list(maker.blocks(np.zeros(480, np.int16), 48_000, 1))) == 1


def test_a_rate_that_48_khz_is_no_multiple_of_is_refused() -> None:
    with pytest.raises(ValueError, match="44100"):
        list(BlockMaker().blocks(np.zeros(441, np.int16), 44_100, 1))
