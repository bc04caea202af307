"""Hearing digits: what counts as a press, at which levels and frequencies, and what does not."""

import asyncio
import subprocess

import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bellwire.agent.media.dtmf import (
    MAX_DIGITS,
    DialStep,
    DtmfDetector,
    InbandTones,
    check_digits,
    dial_steps,
)
from bellwire.agent.media.engine.interface import BLOCK_FRAMES, SAMPLE_RATE_HZ
from bellwire.signaling.errors import InvalidInput

Sound = NDArray[np.float64]

ALL_DIGITS = "1234567890*#"
ROW_HZ = {
    key: hz
    for keys, hz in zip(["123", "456", "789", "*0#"], [697, 770, 852, 941], strict=True)
    for key in keys
}
COLUMN_HZ = {
    key: hz
    for keys, hz in zip(["147*", "2580", "369#"], [1209, 1336, 1477], strict=True)
    for key in keys
}


def tone(
    digit: str,
    ms: float = 100,
    *,
    dbfs: float = -16,
    low_off: float = 0,
    high_off: float = 0,
    high_over_low_db: float = 0,
) -> Sound:
    """A digit; `dbfs` is the power of both tones together against a full-scale sine's."""
    seconds = np.arange(int(ms * SAMPLE_RATE_HZ / 1000)) / SAMPLE_RATE_HZ
    ratio = 10 ** (high_over_low_db / 20)
    low = 10 ** (dbfs / 20) / np.hypot(1, ratio)
    return low * np.sin(2 * np.pi * ROW_HZ[digit] * (1 + low_off) * seconds) + low * ratio * np.sin(
        2 * np.pi * COLUMN_HZ[digit] * (1 + high_off) * seconds + 1
    )


def silence(ms: float) -> Sound:
    return np.zeros(int(ms * SAMPLE_RATE_HZ / 1000))


def heard(*sounds: Sound) -> str:
    """What a new detector hears in these sounds, one after the other, and then silence."""
    sound = np.concatenate([*sounds, silence(60)])
    blocks = sound[: len(sound) // BLOCK_FRAMES * BLOCK_FRAMES].reshape(-1, BLOCK_FRAMES)
    samples = (np.clip(blocks, -1, 1) * 32767).astype(np.int16)
    detector = DtmfDetector()
    return "".join(digit for block in samples if (digit := detector.hear(block)) is not None)


@pytest.mark.parametrize("digit", ALL_DIGITS)
def test_each_digit_is_heard_once_however_long_it_is_pressed(digit: str) -> None:
    assert heard(silence(35), tone(digit, 40)) == digit
    assert heard(tone(digit, 3000)) == digit


async def test_digits_said_in_place_of_a_voice_are_heard_and_then_the_voice_goes_on() -> None:
    tones, voice = InbandTones(), np.full(BLOCK_FRAMES, 5000, np.int16)
    assert tones.replace(voice) is voice
    saying = asyncio.create_task(tones.say(ALL_DIGITS + "11"))
    await asyncio.sleep(0)
    detector, digits = DtmfDetector(), ""
    while (block := tones.replace(voice)) is not voice:
        digits += detector.hear(block) or ""
    await saying
    assert digits == ALL_DIGITS + "11"


async def test_digits_that_are_given_up_are_said_no_further() -> None:
    tones, voice = InbandTones(), np.full(BLOCK_FRAMES, 5000, np.int16)
    saying = asyncio.create_task(tones.say("123"))
    await asyncio.sleep(0)
    assert tones.replace(voice) is not voice
    saying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saying
    assert tones.replace(voice) is voice


@settings(max_examples=60, deadline=None)
@given(
    digits=st.text(ALL_DIGITS, min_size=1, max_size=6),
    offset_ms=st.floats(0, 10),
    tone_ms=st.floats(40, 90),
    pause_ms=st.floats(40, 90),
    dbfs=st.floats(-30, -3),
    off=st.tuples(st.floats(-0.015, 0.015), st.floats(-0.015, 0.015)),
    twist_db=st.floats(-8, 4),
)
def test_what_q24_obliges_to_hear_is_heard_wherever_the_blocks_cut_it(
    digits: str,
    offset_ms: float,
    tone_ms: float,
    pause_ms: float,
    dbfs: float,
    off: tuple[float, float],
    twist_db: float,
) -> None:
    presses = []
    for digit in digits:
        pressed = tone(
            digit, tone_ms, dbfs=dbfs, low_off=off[0], high_off=off[1], high_over_low_db=twist_db
        )
        presses += [pressed, silence(pause_ms)]
    assert heard(silence(offset_ms), *presses) == digits


@settings(max_examples=40, deadline=None)
@given(digit=st.sampled_from(ALL_DIGITS), offset_ms=st.floats(0, 10), ms=st.floats(1, 23))
def test_a_tone_under_24_ms_is_no_press(digit: str, offset_ms: float, ms: float) -> None:
    assert heard(silence(offset_ms), tone(digit, ms)) == ""


@settings(max_examples=40, deadline=None)
@given(
    digit=st.sampled_from(ALL_DIGITS),
    off=st.floats(0.035, 0.2),
    upwards=st.booleans(),
    of_low=st.booleans(),
)
def test_a_frequency_3_5_percent_off_is_no_digit(
    digit: str, off: float, upwards: bool, of_low: bool
) -> None:
    hz = ROW_HZ if of_low else COLUMN_HZ
    shifted = hz[digit] * (1 + (off if upwards else -off))
    if any(abs(shifted / other - 1) < 0.035 for other in hz.values()):
        return  # so far off that it is near the next row's or column's
    relative = shifted / hz[digit] - 1
    pressed = tone(
        digit, 200, low_off=relative if of_low else 0, high_off=0 if of_low else relative
    )
    assert heard(pressed) == ""


@pytest.mark.parametrize("twist_db", [-14, 9])
def test_tones_of_unlike_strength_are_no_digit(twist_db: float) -> None:
    assert heard(tone("5", 200, high_over_low_db=twist_db)) == ""


def test_one_tone_alone_is_no_digit() -> None:
    seconds = np.arange(SAMPLE_RATE_HZ // 2) / SAMPLE_RATE_HZ
    for hz in (*ROW_HZ.values(), *COLUMN_HZ.values()):
        assert heard(0.3 * np.sin(2 * np.pi * hz * seconds)) == ""


@pytest.mark.parametrize("digit", ALL_DIGITS)
def test_a_gap_of_10_ms_is_the_same_press(digit: str) -> None:
    held = tone(digit, 200)
    for start_ms in range(80, 90, 3):
        torn = held.copy()
        start = start_ms * SAMPLE_RATE_HZ // 1000
        torn[start : start + BLOCK_FRAMES] = 0
        assert heard(torn) == digit


def test_digits_are_heard_in_noise_20_db_under_them() -> None:
    noise = np.random.default_rng(24)
    presses = [
        part for digit in ALL_DIGITS * 10 for part in (tone(digit, 45, dbfs=-30), silence(45))
    ]
    sound = np.concatenate(presses)
    power = 0.5 * 10 ** (-30 / 10)
    sound += noise.normal(0, np.sqrt(power / 100), len(sound))
    assert heard(sound) == ALL_DIGITS * 10


def test_noise_alone_is_no_digit() -> None:
    assert heard(np.random.default_rng(24).normal(0, 0.1, 20 * SAMPLE_RATE_HZ)) == ""


SPEECH = (
    "Good evening, this is the parcel service. I have a box for flat nine, and one for six; could you "
    "please open the door? Thank you. Seven, eight, three. We are in a meeting until a quarter to five. "
    "Who is there? Oh, it is you! Come up to the second floor, turn left, mind the bicycles. "
)
VOICES = ("en-us", "en-gb-scotland", "en+f3", "en+m7", "de", "fr+f2")


@pytest.mark.parametrize("voice", VOICES)
def test_speech_presses_no_digit(voice: str) -> None:
    spoken = subprocess.run(  # noqa: S603 - our own text
        ["espeak-ng", "-v", voice, "--stdout", SPEECH],  # noqa: S607
        capture_output=True,
        check=True,
        timeout=60,
    ).stdout
    samples = np.frombuffer(spoken[44 : len(spoken) // 2 * 2], np.int16)
    sound = soxr.resample(samples.astype(np.float64) / 32768, 22_050, SAMPLE_RATE_HZ)
    assert len(sound) > 12 * SAMPLE_RATE_HZ
    assert heard(sound) == ""
    assert heard(sound * 0.1, tone("4")) == "4"


def test_a_block_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="480"):
        DtmfDetector().hear(np.zeros(160, np.int16))


@given(st.text(ALL_DIGITS + "w", min_size=1, max_size=MAX_DIGITS))
def test_digits_that_can_be_sent_are_sent_whole_and_in_order(digits: str) -> None:
    steps = dial_steps(digits)
    assert "".join(step.tones + "w" * round(step.then_wait_s / 0.5) for step in steps) == digits


def test_each_w_waits_half_a_second() -> None:
    assert dial_steps("w12ww3") == (DialStep("", 0.5), DialStep("12", 1.0), DialStep("3", 0.0))


@pytest.mark.parametrize(
    "digits", ["", "12a", "1 2", "W", "+49", "1\n", "٣", "1" * (MAX_DIGITS + 1)]
)
def test_anything_but_digits_star_hash_and_w_is_refused(digits: str) -> None:
    with pytest.raises(InvalidInput, match="0-9"):
        check_digits(digits)


def test_a_refusal_names_the_place_and_not_the_digits() -> None:
    with pytest.raises(InvalidInput, match="place 5 of 6") as refused:
        check_digits("1234x6")
    assert "1234" not in str(refused.value)
