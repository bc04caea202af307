"""DTMF, the tones of a keypad: hears the digits in decoded sound, checks those to be sent, says them as
sound where telephone events (RFC 4733) do not get through, and keeps them from the loudspeaker.

Tones of RFC 4733 reach the decoded sound as tones, so the one detector hears those and in-band ones.
Limits are ITU-T Q.23 and Q.24: a tone counts from 40 ms on and never under 24 ms, a pause of 40 ms
ends it and a gap of 10 ms does not, each frequency within 1.5 % of its own and never 3.5 % off, the
high one at most 4 dB over and 8 dB under the low one.
"""

import asyncio
import cmath
import contextlib
import math
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bellwire.agent.media.engine.interface import BLOCK_FRAMES, SAMPLE_RATE_HZ, Block
from bellwire.agent.media.sound import Voice
from bellwire.hardware.audio.block import SILENCE
from bellwire.hardware.audio.tones import ToneCadence, rendered
from bellwire.signaling.errors import InvalidInput

MAX_DIGITS = 128
PAUSE_S = 0.5
"""What a `w` waits (seed 003, Call.sendDigits)."""
TONE_MS, TONE_GAP_MS = 160, 70
"""How long a tone sounds, and the silence after it: as Twilio's client sends them (twilio-voice.js,
call.ts); both whole blocks."""

_DIGITS = re.compile(r"[0-9*#w]*")
_STEP = re.compile(r"([0-9*#]*)(w*)")

ROWS_HZ = (697.0, 770.0, 852.0, 941.0)
COLUMNS_HZ = (1209.0, 1336.0, 1477.0)
"""The two groups of a keypad's tones (ITU-T Q.23)."""
_KEYS = ("123", "456", "789", "*0#")

_FULL_SCALE = np.float32(1 / 32768)
_HOP_S = BLOCK_FRAMES / SAMPLE_RATE_HZ
_WINDOW_FRAMES = 2 * BLOCK_FRAMES
_TOLERANCE = 0.025
_HIGH_OVER_LOW_MAX = 10**0.5  # 4 dB and 1 dB for the codec
_HIGH_OVER_LOW_MIN = 10**-0.9  # -8 dB and 1 dB for the codec
_TONE_SHARE_MIN = 0.8
_WINDOWS_ALIKE_MIN = 0.5
_TONE_POWER_MIN = 0.5 * 10**-4.4  # each tone -44 dBFS
_WINDOWS_TO_BEGIN = 2
_WINDOWS_TO_END = 4


@dataclass(frozen=True, slots=True)
class DialStep:
    """Tones to send at once (`0-9*#`, may be empty), then how long to wait."""

    tones: str
    then_wait_s: float


def check_digits(digits: str) -> str:
    """The digits, if they can be sent (seed 003, Call.sendDigits).

    Raises:
        InvalidInput: they are empty, over 128, or hold anything but `0-9 * # w`.
    """
    if not digits or len(digits) > MAX_DIGITS:
        raise InvalidInput(f"digits to send are 1 to {MAX_DIGITS} of 0-9 * # w, not {len(digits)}")
    allowed = _DIGITS.match(digits)
    if allowed is not None and allowed.end() < len(digits):
        # The place and not the character: what is dialled may be somebody's code.
        raise InvalidInput(
            f"digits to send are 0-9 * # and w (a pause of half a second); "
            f"the one at place {allowed.end() + 1} of {len(digits)} is none of them"
        )
    return digits


def dial_steps(digits: str) -> tuple[DialStep, ...]:
    """The digits as runs of tones and pauses: `12ww3` is 12, a second, 3.

    Raises:
        InvalidInput: as `check_digits`.
    """
    return tuple(
        DialStep(run[1], len(run[2]) * PAUSE_S)
        for run in _STEP.finditer(check_digits(digits))
        if run[0]
    )


def tone_frequencies(digit: str) -> tuple[float, float]:
    """The two frequencies of a digit, `0-9*#`, in Hz (ITU-T Q.23)."""
    row = next(row for row, keys in enumerate(_KEYS) if digit in keys)
    return ROWS_HZ[row], COLUMNS_HZ[_KEYS[row].index(digit)]


class DtmfDetector:
    """Hears the digits in one stream of sound. Feed it every block of the stream, in order; each peer of
    a call of several needs its own.

    How: a Goertzel transform (a Hann window of 20 ms, one step per block) at each of the seven
    frequencies. Two successive windows together judge 30 ms: the phase between them gives each tone's
    true frequency, and the two tones must be nearly all there is, which speech never is for long.
    """

    def __init__(self) -> None:
        self._last_block: NDArray[np.float32] = np.zeros(BLOCK_FRAMES, dtype=np.float32)
        self._before = _NO_TONES
        self._candidate: str | None = None
        self._heard_for = 0
        self._absent_for = _WINDOWS_TO_END
        self._pressed: str | None = None

    def hear(self, block: Block) -> str | None:
        """The digit whose press this block confirms, once per press; None otherwise.

        Args:
            block: The next 10 ms, int16, shape (480,).

        Raises:
            ValueError: the block has another shape.
        """
        if block.shape != (BLOCK_FRAMES,):
            raise ValueError(f"a block has shape ({BLOCK_FRAMES},), not {block.shape}")
        samples = block.astype(np.float32) * _FULL_SCALE
        window = _transform(np.concatenate((self._last_block, samples)))
        found = _digit_in(self._before, window)
        self._last_block, self._before = samples, window
        return self._follow(found)

    def _follow(self, found: str | None) -> str | None:
        if self._pressed is not None:
            self._absent_for = 0 if found == self._pressed else self._absent_for + 1
            if self._absent_for < _WINDOWS_TO_END:
                return None
            self._pressed = None
        self._heard_for = self._heard_for + 1 if found == self._candidate else 1
        self._candidate = found
        if found is None or self._heard_for < _WINDOWS_TO_BEGIN:
            return None
        self._pressed, self._absent_for = found, 0
        return found


@dataclass(frozen=True, slots=True)
class _Window:
    """20 ms of sound: each tone's complex amplitude and its square, and the power of all of it."""

    amplitudes: list[complex]
    squares: list[float]
    power: float


_TONES_HZ = ROWS_HZ + COLUMNS_HZ
_ROWS = len(ROWS_HZ)
_NO_TONES = _Window([0j] * len(_TONES_HZ), [0.0] * len(_TONES_HZ), 0.0)
_HANN = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(_WINDOW_FRAMES) + 0.5) / _WINDOW_FRAMES)
_HANN /= _HANN.sum()
_POWER_WEIGHTS = _HANN.astype(np.float32)
_CYCLES = np.outer(_TONES_HZ, np.arange(_WINDOW_FRAMES) / SAMPLE_RATE_HZ)
_GOERTZEL = (
    np.stack((_HANN * np.cos(2 * np.pi * _CYCLES), -_HANN * np.sin(2 * np.pi * _CYCLES)), axis=1)
    .reshape(2 * len(_TONES_HZ), _WINDOW_FRAMES)
    .astype(np.float32)
)
"""Real and imaginary rows in turn: the product is an array of complex numbers as it lies in memory."""


def _transform(samples: NDArray[np.float32]) -> _Window:
    power = float(_POWER_WEIGHTS @ (samples * samples))
    if power < 2 * _TONE_POWER_MIN:
        return _NO_TONES
    amplitudes: list[complex] = (_GOERTZEL @ samples).view(np.complex64).tolist()
    return _Window(amplitudes, [a.real * a.real + a.imag * a.imag for a in amplitudes], power)


def _digit_in(before: _Window, after: _Window) -> str | None:
    """The digit that both windows hold."""
    strengths = [a + b for a, b in zip(before.squares, after.squares, strict=True)]
    low_strength, high_strength = max(strengths[:_ROWS]), max(strengths[_ROWS:])
    share_of_all = _TONE_SHARE_MIN * (before.power + after.power) / 2
    if low_strength + high_strength <= share_of_all * _RESPONSE_MIN**2:
        return None
    row, column = strengths.index(low_strength), strengths.index(high_strength, _ROWS)
    low, high = _tone_power(before, after, row), _tone_power(before, after, column)
    if low is None or high is None or low + high < share_of_all:
        return None
    if not _HIGH_OVER_LOW_MIN <= high / low <= _HIGH_OVER_LOW_MAX:
        return None
    return _KEYS[row][column - _ROWS]


def _tone_power(before: _Window, after: _Window, tone: int) -> float | None:
    """The mean power of one tone over both windows; None where it is too weak, off its frequency, or
    not in both alike."""
    weaker, stronger = sorted((before.squares[tone], after.squares[tone]))
    if weaker < _WINDOWS_ALIKE_MIN * stronger or weaker == 0:
        return None
    hop_turns = _TONES_HZ[tone] * _HOP_S
    turn = after.amplitudes[tone] * before.amplitudes[tone].conjugate()
    off_hz = cmath.phase(turn * cmath.exp(-2j * math.pi * hop_turns)) / (2 * math.pi * _HOP_S)
    if abs(off_hz) > _TOLERANCE * _TONES_HZ[tone]:
        return None
    power = (weaker + stronger) / _hann_response(off_hz) ** 2
    return power if power >= _TONE_POWER_MIN else None


def _hann_response(off_hz: float) -> float:
    """What the window leaves of a tone so far from where it is looked for, 1 at 0 Hz."""
    periods = off_hz * 2 * _HOP_S
    return float(np.sinc(periods)) / (1 - periods * periods)


_RESPONSE_MIN = _hann_response(_TOLERANCE * COLUMNS_HZ[-1])


class InbandTones:
    """What one way of a call says in place of its voice: Janus' AudioBridge takes no telephone events,
    its answer leaves them out, and mixes what it decodes."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Block, Callable[[], object] | None]] = deque()

    async def say(self, tones: str) -> None:
        """Has tones (`0-9*#`, one or more) replace the next blocks; returns when they were taken."""
        loop, said = asyncio.get_running_loop(), asyncio.Event()
        blocks = [block for tone in tones for block in tone_blocks(tone)]
        last = len(blocks) - 1
        self._waiting.extend(
            (block, (lambda: loop.call_soon_threadsafe(said.set)) if number == last else None)
            for number, block in enumerate(blocks)
        )
        try:
            await said.wait()
        finally:
            self._waiting.clear()

    def replace(self, block: Block) -> Block:
        """What is sent in place of the next block of the voice: often itself. Any one thread."""
        try:
            tone, told = self._waiting.popleft()
        except IndexError:
            return block
        if told is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                told()
        return tone


def tone_blocks(tone: str) -> list[Block]:
    """One digit as sound, and the silence after it."""
    cadence = ToneCadence(tone_frequencies(tone), (TONE_MS / 1000, TONE_GAP_MS / 1000))
    return list(rendered(cadence).reshape(-1, BLOCK_FRAMES))


_TAKEN_BACK = 2
"""Blocks before the first that looks like a tone: its beginning is in the last of them, or in none."""
_HELD = 2
"""Blocks after the last one, whose end may be in the next."""
_BEGINS_AT, _GOES_ON_AT = 0.65, 0.4
"""Share of a block's power that is in a pair of tones. A tone has 0.67 and more, 2.5 % off its
frequencies, and 0.65 where 7 ms of it are in the block; speech had as much in 4 of 8,710 blocks."""
_EACH_AT_LEAST = 0.03
"""Share of the weaker tone of the pair: -8 dB leave it 0.04, and one tone alone is none."""
_QUIETEST_POWER = 1.0
"""-90 dB of full scale: nobody hears what is under it."""

_FADE_IN = np.linspace(0, 1, BLOCK_FRAMES, dtype=np.float32)


class QuietTones:
    """Plays one source, silent while a tone of a keypad lasts: a door's code is not for the ears of
    whoever stands before the station's loudspeaker. For one thread.

    `DtmfDetector` is sure of a press after 30 ms, most of which would have been heard. Here one block
    that looks like a tone is enough, and what waits to be played is taken back: nothing is delayed for
    it, as the 20 ms that bridge two clocks hold the beginning of the tone still.

    Args:
        voice: The speaker.
        source: The party's name there.
    """

    def __init__(self, voice: Voice, source: str) -> None:
        self._voice = voice
        self._source = source
        self._silent_for = 0

    def play(self, block: Block) -> None:
        """Plays the next block, or silence in its place."""
        was_silent = self._silent_for > 0
        if looks_like_a_tone(block, goes_on=was_silent):
            if not was_silent:
                self._voice.take_back(self._source, _TAKEN_BACK)
            self._silent_for = 1 + _HELD
        if self._silent_for == 0:
            self._voice.play(self._source, block)
            return
        self._silent_for -= 1
        if self._silent_for == 0:
            self._voice.play(self._source, (block * _FADE_IN).astype(np.int16))
        else:
            self._voice.play(self._source, SILENCE)


def looks_like_a_tone(block: Block, *, goes_on: bool = False) -> bool:
    """Whether two tones of a keypad, one of each group, are most of what a block holds. Where one
    `goes_on`, less of it is enough.

    How: the share of the block's power in the plane of each pair's four waves (sine and cosine of
    both), which is exact where Fourier's windows of 10 ms would not tell the rows apart.
    """
    samples = block.astype(np.float32)
    power = float(samples @ samples)
    if power < _QUIETEST_POWER * BLOCK_FRAMES:
        return False
    in_waves = _WAVES @ samples
    in_pairs = (in_waves * in_waves).reshape(-1, 4).sum(axis=1) / power
    best = int(in_pairs.argmax())
    if in_pairs[best] < (_GOES_ON_AT if goes_on else _BEGINS_AT):
        return False
    alone = _ALONE[best] @ samples
    in_each = (alone * alone).reshape(2, 2).sum(axis=1) / power
    return goes_on or float(in_each.min()) >= _EACH_AT_LEAST


def _orthonormal(*frequencies_hz: float) -> NDArray[np.float32]:
    """Rows that span the sines and cosines of these over a block."""
    turns = 2 * np.pi * np.outer(frequencies_hz, np.arange(BLOCK_FRAMES) / SAMPLE_RATE_HZ)
    rows, _ = np.linalg.qr(np.concatenate((np.cos(turns), np.sin(turns))).T)
    return np.ascontiguousarray(rows.T, dtype=np.float32)


_PAIRS = [(row, column) for row in ROWS_HZ for column in COLUMNS_HZ]
_WAVES = np.concatenate([_orthonormal(*pair) for pair in _PAIRS])
_ALONE = np.stack([np.concatenate([_orthonormal(hz) for hz in pair]) for pair in _PAIRS])
