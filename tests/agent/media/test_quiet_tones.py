"""A code that is typed is not heard from the loudspeaker: what is played is decoded, by the product's
own detector and by a much less particular one; and a voice is left as it is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bellwire.agent.media.dtmf import DtmfDetector, QuietTones, tone_blocks
from bellwire.agent.media.engine.interface import BLOCK_FRAMES, SAMPLE_RATE_HZ, Block
from bellwire.hardware.audio.drift import DriftingSource
from tests.agent.media.test_dtmf import (
    ALL_DIGITS,
    COLUMN_HZ,
    ROW_HZ,
    SPEECH,
    VOICES,
    Sound,
    silence,
    tone,
)
from tests.speech import Sound as Samples
from tests.speech import fraction_heard, say


class Speaker:
    """A loudspeaker behind the buffer of a real sound card's; it keeps what it plays."""

    def __init__(self) -> None:
        self.source = DriftingSource()
        self.played: list[Block] = []

    def play(self, source: str, block: Block) -> None:
        del source
        self.source.play(block)

    def take_back(self, source: str, blocks: int) -> None:
        del source
        self.source.take_back(blocks)

    def pull(self) -> None:
        self.played.append(self.source.pull())


class Note:
    """Keeps what is left of each block."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []

    def play(self, source: str, block: Block) -> None:
        del source
        self.blocks.append(block.copy())

    def take_back(self, source: str, blocks: int) -> None:
        del source
        for block in self.blocks[-blocks:]:
            block[:] = 0


def as_samples(sound: Sound) -> Samples:
    return (np.clip(sound, -1, 1) * 32767).astype(np.int16)


def played(sound: Sound, late: tuple[int, ...] = (), *, guarded: bool = True) -> Samples:
    """What the loudspeaker plays of a sound; the blocks whose numbers are `late` come together with the
    next one. Without the guard: as it was before."""
    speaker = Speaker()
    quiet = QuietTones(speaker, "alice")
    blocks = as_samples(sound)[: len(sound) // BLOCK_FRAMES * BLOCK_FRAMES].reshape(
        -1, BLOCK_FRAMES
    )
    waiting: list[Block] = []
    for number, block in enumerate(blocks):
        waiting.append(block)
        if number not in late:
            for one in waiting:
                quiet.play(one) if guarded else speaker.play("alice", one)
            waiting.clear()
        speaker.pull()
    for _ in range(8):
        speaker.pull()
    return np.concatenate(speaker.played)


def digits_in(samples: Samples) -> str:
    """What the product's own detector hears."""
    detector = DtmfDetector()
    blocks = samples[: len(samples) // BLOCK_FRAMES * BLOCK_FRAMES].reshape(-1, BLOCK_FRAMES)
    return "".join(digit for block in blocks if (digit := detector.hear(block)) is not None)


_WINDOW = SAMPLE_RATE_HZ * 12 // 1000


def loosely_heard(samples: Samples) -> str:
    """What somebody hears who takes 12 ms of anything for a digit where half of it is two of the tones."""
    seconds = np.arange(_WINDOW) / SAMPLE_RATE_HZ
    frequencies = [*dict.fromkeys(ROW_HZ.values()), *dict.fromkeys(COLUMN_HZ.values())]
    waves = np.exp(-2j * np.pi * np.outer(frequencies, seconds))
    digits = {
        (row, column): digit
        for digit in ALL_DIGITS
        for row, column in [(ROW_HZ[digit], COLUMN_HZ[digit])]
    }
    found, last = "", ""
    for at in range(0, len(samples) - _WINDOW, SAMPLE_RATE_HZ // 400):
        window = samples[at : at + _WINDOW].astype(np.float64)
        power = float(window @ window)
        here = ""
        if power > _WINDOW * 30.0**2:  # -60 dB of full scale
            strengths = 2 * np.abs(waves @ window) ** 2 / _WINDOW / power
            row, column = int(strengths[:4].argmax()), 4 + int(strengths[4:].argmax())
            if strengths[row] + strengths[column] > 0.5 and strengths[[row, column]].min() > 0.02:
                here = digits[frequencies[row], frequencies[column]]
        if here and here != last:
            found += here
        last = here
    return found


def typed(
    code: str, *, before: Sound, dbfs: float = -16, offset_ms: float = 0, **how: float
) -> Sound:
    presses = [part for digit in code for part in (tone(digit, 100, dbfs=dbfs, **how), silence(70))]
    return np.concatenate([before, silence(offset_ms), *presses, silence(100)])


def test_without_the_guard_a_recording_tells_the_code_to_both() -> None:
    recording = played(typed("4711", before=silence(100)), guarded=False)
    assert digits_in(recording) == "4711"
    assert loosely_heard(recording) == "4711"


@settings(max_examples=60, deadline=None)
@given(
    code=st.text(ALL_DIGITS, min_size=4, max_size=6),
    offset_ms=st.floats(0, 10),
    dbfs=st.floats(-40, -3),
    off=st.tuples(st.floats(-0.015, 0.015), st.floats(-0.015, 0.015)),
    twist_db=st.floats(-8, 4),
)
def test_a_typed_code_is_in_no_recording_of_the_loudspeaker(
    code: str, offset_ms: float, dbfs: float, off: tuple[float, float], twist_db: float
) -> None:
    sound = typed(
        code,
        before=silence(100),
        offset_ms=offset_ms,
        dbfs=dbfs,
        low_off=off[0],
        high_off=off[1],
        high_over_low_db=twist_db,
    )
    recording = played(sound)
    assert digits_in(recording) == ""
    assert loosely_heard(recording) == ""


@settings(max_examples=30, deadline=None)
@given(offset_ms=st.floats(0, 10), every=st.integers(4, 20))
def test_no_digit_is_heard_where_blocks_come_two_at_a_time(offset_ms: float, every: int) -> None:
    sound = typed("4711", before=silence(100), offset_ms=offset_ms)
    recording = played(sound, late=tuple(range(3, len(sound) // BLOCK_FRAMES, every)))
    assert digits_in(recording) == ""
    assert len(loosely_heard(recording)) <= 1, "at most the beginning of one"


def test_tones_said_in_band_in_a_room_are_not_heard_either() -> None:
    said = [block for digit in "4711" for block in tone_blocks(digit)]
    recording = played(np.concatenate(said).astype(np.float64) / 32768)
    assert digits_in(recording) == loosely_heard(recording) == ""


def test_a_voice_before_and_after_a_code_is_heard() -> None:
    voice = say("Good evening, it is me", "en").astype(np.float64) / 32768
    recording = played(np.concatenate([voice, typed("4711", before=silence(30)), voice]))
    assert digits_in(recording) == ""
    half = len(recording) // 2
    for part in (recording[:half], recording[half:]):
        assert fraction_heard(as_samples(voice), part) > 0.95


@pytest.mark.parametrize("voice", VOICES)
def test_of_speech_hardly_anything_is_silenced_and_never_for_long(voice: str) -> None:
    spoken = say(SPEECH, voice)
    blocks = spoken[: len(spoken) // BLOCK_FRAMES * BLOCK_FRAMES].reshape(-1, BLOCK_FRAMES)
    speaker = Note()
    quiet = QuietTones(speaker, "alice")
    for block in blocks:
        quiet.play(block)
    loud = np.abs(blocks).max(axis=1) > 0
    silenced = loud & (np.abs(np.stack(speaker.blocks)).max(axis=1) == 0)
    assert silenced.sum() <= 0.01 * loud.sum()
    longest = max(len(run) for run in "".join(" x"[int(one)] for one in silenced).split(" "))
    assert longest <= 10, "100 ms"


@pytest.mark.parametrize("hz", [400.0, 425.0, 440.0, 770.0, 1000.0, 1336.0])
def test_one_tone_alone_is_heard(hz: float) -> None:
    seconds = np.arange(SAMPLE_RATE_HZ // 2) / SAMPLE_RATE_HZ
    recording = played(0.3 * np.sin(2 * np.pi * hz * seconds))
    assert np.abs(recording[SAMPLE_RATE_HZ // 10 : SAMPLE_RATE_HZ // 4]).max() > 9000
