"""What the echo canceller takes away and what it keeps, by a simulated room: 60 ms to come back."""

import logging
import subprocess
import sys

import numpy as np
import pytest

from bellwire.config.agent.audio import ProcessingSettings
from bellwire.hardware.audio import echo_canceller
from bellwire.hardware.audio.block import BLOCK_FRAMES, SAMPLE_RATE_HZ, Samples, level_db
from bellwire.hardware.audio.voice_processing import VoiceProcessing
from bench.sound.audio_quality import likeness
from bench.sound.speech_heard import speech_heard
from tests.pulse import speech

ECHO_DELAY_S = 0.06
ECHO_GAIN = 0.3

FAR = "The parcel is at the front door. Please come down and sign for it, I am waiting outside. "
NEAR = (
    "Good morning, leave it with the neighbour on the second floor, she is at home all day today."
)


@pytest.fixture(scope="module")
def far() -> Samples:
    return speech(FAR * 3)


@pytest.fixture(scope="module")
def near() -> Samples:
    return speech(NEAR, "en+f3")


def through(
    settings: ProcessingSettings,
    far: Samples,
    near: Samples,
    *,
    gain: float = ECHO_GAIN,
    delay_s: float = ECHO_DELAY_S,
) -> tuple[Samples, Samples]:
    """The microphone's sound of a room where `far` is played and `near` said, and what is left."""
    size = min(len(far), len(near)) // BLOCK_FRAMES * BLOCK_FRAMES
    echo = np.concatenate((np.zeros(round(delay_s * SAMPLE_RATE_HZ)), far * gain))[:size]
    captured = np.clip(echo + near[:size], -32_768, 32_767).astype(np.int16)
    processing = VoiceProcessing(settings)
    processing.set_delay(delay_s)
    left = []
    for at in range(0, size, BLOCK_FRAMES):
        processing.played(far[at : at + BLOCK_FRAMES])
        left.append(processing.captured(captured[at : at + BLOCK_FRAMES]))
    return captured, np.concatenate(left)


def silence(far: Samples) -> Samples:
    return np.zeros(len(far), np.int16)


def with_double_talk(far: Samples, near: Samples) -> tuple[Samples, slice]:
    """What is said near while the far voice goes on: from the middle on; and when."""
    begins = len(far) // 2
    said = silence(far)
    said[begins : begins + len(near)] = near[: len(far) - begins]
    return said, slice(begins, min(len(far), begins + len(near)) // BLOCK_FRAMES * BLOCK_FRAMES)


def kept(said: Samples, left: Samples) -> tuple[float, float]:
    """Of a voice: by the loudness of its bands, and sample by sample."""
    ours, theirs = (np.asarray(sound / np.float32(32_768)) for sound in (said, left))
    return speech_heard(ours, theirs).correlation, likeness(ours, theirs)


def test_echo_is_at_least_35_db_less_once_its_way_is_known(far: Samples) -> None:
    captured, left = through(ProcessingSettings(), far, silence(far))
    half = len(left) // 2
    assert level_db(captured[half:]) - level_db(left[half:]) >= 35


def test_near_speech_is_kept_in_double_talk(far: Samples, near: Samples) -> None:
    said, spoken = with_double_talk(far, near)
    _, left = through(ProcessingSettings(), far, said)
    bands, waveform = kept(said[spoken], left[spoken])
    assert bands >= 0.9
    assert waveform >= 0.85
    assert level_db(left[spoken]) == pytest.approx(level_db(said[spoken]), abs=1.5)


def test_a_soft_near_voice_is_kept_in_double_talk_with_a_louder_echo(
    far: Samples, near: Samples
) -> None:
    said, spoken = with_double_talk(far, (near * 0.2).astype(np.int16))
    _, left = through(ProcessingSettings(), far, said)
    bands, waveform = kept(said[spoken], left[spoken])
    assert bands >= 0.9
    assert waveform >= 0.85


def test_a_voice_beside_a_far_one_is_kept_where_there_is_no_echo(
    far: Samples, near: Samples
) -> None:
    said, spoken = with_double_talk(far, near)
    _, left = through(ProcessingSettings(), far, said, gain=0)
    bands, waveform = kept(said[spoken], left[spoken])
    assert bands >= 0.9
    assert waveform >= 0.85


def test_an_echo_that_is_not_there_until_the_microphone_opens_is_cancelled_all_the_same(
    far: Samples,
) -> None:
    opens = 2 * SAMPLE_RATE_HZ // BLOCK_FRAMES * BLOCK_FRAMES
    processing = VoiceProcessing(ProcessingSettings())
    echo = np.concatenate((np.zeros(2880), far * ECHO_GAIN)).astype(np.int16)
    echo[:opens] = 0
    left = []
    for at in range(0, len(far) // BLOCK_FRAMES * BLOCK_FRAMES, BLOCK_FRAMES):
        processing.played(far[at : at + BLOCK_FRAMES])
        left.append(processing.captured(echo[at : at + BLOCK_FRAMES]))
    # WebRTC again, and at once: the filter alone would still be learning.
    soon = slice(opens + 2 * SAMPLE_RATE_HZ, opens + 4 * SAMPLE_RATE_HZ)
    assert level_db(echo[soon]) - level_db(np.concatenate(left)[soon]) >= 45


def test_an_echo_later_than_the_filter_reaches_is_taken_away_too(far: Samples) -> None:
    captured, left = through(
        ProcessingSettings(), far, silence(far), delay_s=echo_canceller.FILTER_S + 0.05
    )
    half = len(left) // 2
    assert level_db(captured[half:]) - level_db(left[half:]) >= 25


def test_without_the_library_echo_is_cancelled_and_what_to_install_is_logged(
    far: Samples, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(echo_canceller, "_LIBRARY", "libspeexdsp-missing.so.1")
    echo_canceller.find_speex.cache_clear()
    try:
        with caplog.at_level(logging.INFO):
            captured, left = through(ProcessingSettings(), far, silence(far))
    finally:
        echo_canceller.find_speex.cache_clear()
    assert "apt-get install libspeexdsp1" in caplog.text
    half = len(left) // 2
    assert level_db(captured[half:]) - level_db(left[half:]) >= 35


def test_stages_that_are_all_off_change_nothing_and_load_nothing() -> None:
    program = (
        "import sys, numpy as np\n"
        "from bellwire.config.agent.audio import ProcessingSettings\n"
        "from bellwire.hardware.audio.voice_processing import VoiceProcessing\n"
        "off = dict.fromkeys(ProcessingSettings.model_fields, False)\n"
        "block = np.arange(480).astype(np.int16)\n"
        "stage = VoiceProcessing(ProcessingSettings(**off))\n"
        "stage.set_delay(0.06); stage.played(block)\n"
        "assert stage.captured(block) is block\n"
        "import bellwire.hardware.audio.sound\n"
        "assert not {'livekit', 'soxr'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)  # noqa: S603


@pytest.mark.parametrize("stage", list(ProcessingSettings.model_fields))
def test_each_stage_works_alone(stage: str, near: Samples) -> None:
    only = ProcessingSettings(**{name: name == stage for name in ProcessingSettings.model_fields})
    _, left = through(only, np.zeros(96_000, np.int16), near[:96_000])
    assert level_db(left) > -60
    assert not np.array_equal(left, near[: len(left)])
