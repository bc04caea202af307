"""What the echo canceller takes away and what it keeps, by a simulated room: 60 ms to come back."""

import subprocess
import sys

import numpy as np
import pytest

from config.audio import ProcessingSettings
from hardware.audio.block import BLOCK_FRAMES, Samples
from hardware.audio.level import level_db
from hardware.audio.voice_processing import VoiceProcessing
from tests.pulse import similarity, speech

ECHO_DELAY = 60 * 48
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


def through(settings: ProcessingSettings, far: Samples, near: Samples) -> tuple[Samples, Samples]:
    """The microphone's sound of a room where `far` is played and `near` said, and what is left."""
    size = min(len(far), len(near)) // BLOCK_FRAMES * BLOCK_FRAMES
    echo = np.concatenate((np.zeros(ECHO_DELAY), far * ECHO_GAIN))[:size]
    captured = np.clip(echo + near[:size], -32_768, 32_767).astype(np.int16)
    processing = VoiceProcessing(settings)
    processing.set_delay(0.06)
    left = []
    for at in range(0, size, BLOCK_FRAMES):
        processing.played(far[at : at + BLOCK_FRAMES])
        left.append(processing.captured(captured[at : at + BLOCK_FRAMES]))
    return captured, np.concatenate(left)


ECHO_ONLY = ProcessingSettings(noise_suppression=False, gain_control=False, high_pass_filter=False)


def test_echo_is_at_least_35_db_less_once_it_has_converged(far: Samples) -> None:
    captured, left = through(ECHO_ONLY, far, np.zeros(len(far), np.int16))
    half = len(left) // 2
    assert level_db(captured[half:]) - level_db(left[half:]) >= 35


def test_near_speech_is_kept_in_double_talk(far: Samples, near: Samples) -> None:
    begins = len(far) // 2
    said = np.zeros(len(far), np.int16)
    said[begins : begins + len(near)] = near[: len(far) - begins]
    _, left = through(ECHO_ONLY, far, said)
    # Against the same voice with nobody at the far end: the canceller's filter bank shifts phases,
    # which nobody hears, though a wave's correlation would.
    _, alone = through(ECHO_ONLY, np.zeros(len(far), np.int16), said)
    spoken = slice(begins, begins + len(near))
    assert similarity(left[spoken], alone[spoken]) >= 0.8
    assert level_db(left[spoken]) == pytest.approx(level_db(said[spoken]), abs=3)


def test_stages_that_are_all_off_change_nothing_and_load_nothing() -> None:
    program = (
        "import sys, numpy as np\n"
        "from config.audio import ProcessingSettings\n"
        "from hardware.audio.voice_processing import VoiceProcessing\n"
        "off = dict.fromkeys(ProcessingSettings.model_fields, False)\n"
        "block = np.arange(480).astype(np.int16)\n"
        "stage = VoiceProcessing(ProcessingSettings(**off))\n"
        "stage.set_delay(0.06); stage.played(block)\n"
        "assert stage.captured(block) is block\n"
        "import hardware.audio.sound\n"
        "assert not {'livekit', 'soxr'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)  # noqa: S603


@pytest.mark.parametrize("stage", list(ProcessingSettings.model_fields))
def test_each_stage_works_alone(stage: str, near: Samples) -> None:
    only = ProcessingSettings(**{name: name == stage for name in ProcessingSettings.model_fields})
    _, left = through(only, np.zeros(96_000, np.int16), near[:96_000])
    assert level_db(left) > -60
    assert not np.array_equal(left, near[: len(left)])
