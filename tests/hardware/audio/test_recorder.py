"""A recording for support: both sides, with a beep, for its owner's eyes, and bounded."""

import stat
import wave
from pathlib import Path

import numpy as np
import pytest

from bellwire.hardware.audio.block import BLOCK_FRAMES
from bellwire.hardware.audio.recorder import Recorder
from bellwire.hardware.audio.tones import RECORDING_NOTICE, rendered


def recorded(path: Path) -> np.ndarray:
    with wave.open(str(path)) as wav:
        assert (wav.getnchannels(), wav.getsampwidth(), wav.getframerate()) == (2, 2, 48_000)
        return np.frombuffer(wav.readframes(wav.getnframes()), np.int16).reshape(-1, 2)


def test_recording_holds_both_sides_is_private_bounded_and_beeps(tmp_path: Path) -> None:
    path = tmp_path / "call.wav"
    recorder = Recorder(path, limit_s=0.5)
    sent = []
    for _ in range(60):
        recorder.played(np.full(BLOCK_FRAMES, 2000, np.int16))
        sent.append(recorder.captured(np.full(BLOCK_FRAMES, 1000, np.int16)))
    recorder.close()
    sound = recorded(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(sound) == 24_000
    assert set(sound[:, 1]) == {2000}
    beep = rendered(RECORDING_NOTICE)[:9_600]
    assert np.abs(sound[:9_600, 0] - 1000 - beep).max() <= 1
    assert np.array_equal(np.concatenate(sent)[:24_000], sound[:, 0])
    assert np.array_equal(recorder.notice.pull(), beep[:BLOCK_FRAMES])


def test_whoever_comes_into_the_call_hears_the_beep_at_once(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "call.wav")
    silence = np.zeros(BLOCK_FRAMES, np.int16)
    for _ in range(100):
        recorder.captured(silence)
        recorder.notice.pull()
    assert not recorder.captured(silence).any()
    recorder.begin()
    beep = rendered(RECORDING_NOTICE)[:BLOCK_FRAMES]
    assert np.abs(recorder.captured(silence) - beep).max() <= 1
    assert np.array_equal(recorder.notice.pull(), beep)
    recorder.close()


def test_recording_does_not_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "call.wav"
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        Recorder(path)
    assert path.read_text() == "mine"
