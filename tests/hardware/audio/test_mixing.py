"""Mixing, conversion, levels and tones: the arithmetic of sound."""

import contextlib
import wave
from pathlib import Path

import numpy as np
import pytest

from bellwire.hardware.audio.block import BLOCK_FRAMES, Block, Meter, level_db, volume
from bellwire.hardware.audio.drift import SampleRing
from bellwire.hardware.audio.mixer import Mixer
from bellwire.hardware.audio.streams import CaptureConverter, PlaybackConverter
from bellwire.hardware.audio.tones import (
    BUSY,
    CONGESTION,
    RING_TONES,
    RINGBACK,
    BadTone,
    LoopedTone,
    ToneCadence,
    rendered,
    ring_tone,
)


class Constant:
    def __init__(self, value: int, volume: float = 1.0) -> None:
        self.volume = volume
        self._block = np.full(BLOCK_FRAMES, value, np.int16)

    def pull(self) -> Block:
        return self._block


def sine(frequency_hz: float, rate_hz: int, seconds: float = 1.0) -> np.ndarray:
    times = np.arange(round(rate_hz * seconds)) / rate_hz
    return (10_000 * np.sin(2 * np.pi * frequency_hz * times)).astype(np.int16)


def frequency_of(samples: np.ndarray, rate_hz: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax()) * rate_hz / len(samples)


def test_sources_are_summed_each_with_its_volume() -> None:
    mixer = Mixer()
    for source in (Constant(1000), Constant(2000, 0.5), Constant(-300)):
        mixer.add(source)
    assert set(mixer.pull()) == {1700}
    mixer.volume = 0.5
    assert set(mixer.pull()) == {850}


def test_what_is_too_loud_saturates_and_does_not_wrap() -> None:
    mixer = Mixer()
    for _ in range(5):
        mixer.add(Constant(30_000))
    assert set(mixer.pull()) == {32_767}


def test_a_source_that_was_removed_is_silent() -> None:
    mixer, source = Mixer(), Constant(1000)
    mixer.add(source)
    mixer.remove(source)
    mixer.remove(source)
    assert mixer.is_silent
    assert not mixer.pull().any()


def test_ring_gives_back_what_it_was_given_in_order_and_refuses_what_has_no_room() -> None:
    ring, taken = SampleRing(1000), []
    for start in range(0, 30_000, 300):
        assert ring.write(np.arange(start, start + 300).astype(np.int16))
        if len(ring) > 400:
            taken.append(ring.peek(len(ring)))
            ring.skip(len(ring))
    assert np.array_equal(np.concatenate(taken), np.arange(len(np.concatenate(taken))))
    assert not ring.write(np.zeros(1001, np.int16))


@pytest.mark.parametrize(
    ("rate_hz", "channels"), [(48_000, 2), (44_100, 1), (44_100, 2), (16_000, 1)]
)
def test_what_a_card_of_another_rate_captures_becomes_48_khz_mono(
    rate_hz: int, channels: int
) -> None:
    converter = CaptureConverter(rate_hz, channels)
    card = np.repeat(sine(1000, rate_hz), channels).reshape(-1, rate_hz // 100 * channels)
    blocks = [block for period in card for block in converter.blocks(period.tobytes())]
    assert {len(block) for block in blocks} == {BLOCK_FRAMES}
    assert len(blocks) > 90
    sound = np.concatenate(blocks)[4_800:]
    assert frequency_of(sound, 48_000) == pytest.approx(1000, abs=2)
    assert level_db(sound) == pytest.approx(level_db(sine(1000, 48_000)), abs=0.2)


@pytest.mark.parametrize(
    ("rate_hz", "channels"), [(48_000, 2), (44_100, 1), (44_100, 2), (16_000, 1)]
)
def test_a_card_of_another_rate_is_given_what_it_can_play(rate_hz: int, channels: int) -> None:
    blocks = iter(sine(1000, 48_000, 2).reshape(-1, BLOCK_FRAMES))
    converter = PlaybackConverter(rate_hz, channels, lambda: next(blocks))
    periods = [converter.frames(rate_hz // 100) for _ in range(150)]
    assert {len(period) for period in periods} == {rate_hz // 100 * channels * 2}
    frames = np.frombuffer(b"".join(periods), np.int16).reshape(-1, channels)
    assert all(np.array_equal(frames[:, 0], frames[:, channel]) for channel in range(channels))
    assert frequency_of(frames[rate_hz // 10 :, 0], rate_hz) == pytest.approx(1000, abs=2)


def test_levels_are_those_of_the_field() -> None:
    assert level_db(np.full(480, -32_768, np.int16)) == 0
    assert level_db(sine(1000, 48_000)) == pytest.approx(
        20 * np.log10(10_000 / 32_768) - 3.01, abs=0.1
    )
    assert level_db(np.zeros(480, np.int16)) == -100
    assert [volume(db) for db in (-120, -100, -65, -30, 0)] == [0, 0, 0.5, 1, 1]
    meter = Meter()
    meter.add(np.full(480, 32_767, np.int16))
    assert meter.db == pytest.approx(-7, abs=0.1)  # one block of five
    for _ in range(5):
        meter.add(np.zeros(480, np.int16))
    assert meter.db == -100


@pytest.mark.parametrize("name", RING_TONES)
def test_built_in_ring_tone_can_be_heard_and_does_not_clip(name: str) -> None:
    tone = ring_tone(name)
    assert (level_db(tone) > -40) == (name != "silent")
    assert np.abs(tone.astype(np.int32)).max() < 32_767


@pytest.mark.parametrize("cadence", [RINGBACK, BUSY, CONGESTION])
def test_progress_tone_is_425_hz_in_its_rhythm_for_ever(cadence: ToneCadence) -> None:
    tone = LoopedTone(cadence)
    on_s, off_s = cadence.steps_s
    sound = np.concatenate([tone.pull() for _ in range(round(200 * (on_s + off_s)))])
    for start in (0.0, on_s + off_s):
        at = round(start * 48_000)
        on = sound[at : at + round(on_s * 48_000)]
        assert frequency_of(on, 48_000) == pytest.approx(425, abs=4)
        assert not sound[at + len(on) : at + round((on_s + off_s) * 48_000)].any()
    assert len(rendered(cadence)) == round((on_s + off_s) * 48_000)


def write_wav(
    path: Path, samples: np.ndarray, rate_hz: int, channels: int = 1, width: int = 2
) -> str:
    with wave.open(str(path), "wb") as wav:
        wav.setparams((channels, width, rate_hz, 0, "NONE", ""))
        wav.writeframes(np.repeat(samples, channels).tobytes())
    return str(path)


def test_wav_file_of_any_rate_rings(tmp_path: Path) -> None:
    tone = ring_tone(write_wav(tmp_path / "door.wav", sine(700, 22_050), 22_050, channels=2))
    assert len(tone) == pytest.approx(48_000, abs=50)
    assert frequency_of(tone, 48_000) == pytest.approx(700, abs=2)


def test_ring_tone_that_cannot_be_played_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    for name, word in (
        ("beethoven", "classic"),
        (str(tmp_path / "none.wav"), "none.wav"),
        (str(tmp_path / "text.wav"), "text.wav"),
        (write_wav(tmp_path / "8bit.wav", sine(700, 22_050), 22_050, width=1), "16 bits"),
        (write_wav(tmp_path / "empty.wav", sine(700, 22_050)[:0], 22_050), "no sound"),
    ):
        with pytest.raises(BadTone, match=word):
            ring_tone(name)


def test_a_wav_file_that_was_cut_off_or_damaged_rings_or_is_refused_in_words(
    tmp_path: Path,
) -> None:
    """Both ended the agent at the first ring, with a traceback."""
    whole = Path(write_wav(tmp_path / "whole.wav", sine(700, 22_050), 22_050)).read_bytes()
    cut = tmp_path / "cut.wav"
    cut.write_bytes(whole[:-1])
    assert len(ring_tone(str(cut))) > 0
    damaged = tmp_path / "damaged.wav"
    for place in range(44):
        for byte in (0, 1, 127, 255):
            damaged.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 : 2000])
            ring_tone.cache_clear()
            with contextlib.suppress(BadTone):
                assert len(ring_tone(str(damaged))) > 0
