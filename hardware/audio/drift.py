"""Plays what one clock produced at the pace of another, without a gap.

The network's 10 ms and the sound card's are not the same: 200 ppm apart, they lose or gain a block
every 50 s. `DriftingSource` watches how full its ring is and reads it ever so slightly faster or
slower (at most 0.1 %, 1.7 cents of pitch, which nobody hears), by a windowed-sinc interpolation.
"""

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from bellwire.hardware.audio.block import BLOCK_FRAMES, BLOCK_S, SILENCE, Block, Samples, saturated

TARGET_FRAMES = 2 * BLOCK_FRAMES
"""What the ring holds on the average: 20 ms, of all mouth-to-ear latency the part that is ours."""
_MAX_FRAMES = TARGET_FRAMES + 8 * BLOCK_FRAMES
_LEFT_FRAMES = TARGET_FRAMES - BLOCK_FRAMES // 2
"""What it holds right after a pull, then: on the average half a period after a push."""

_TAPS = 16
_PHASES = 1024
_BEFORE = _TAPS // 2 - 1
_NEEDED = BLOCK_FRAMES + _TAPS + 1
"""What a block is made of: its frames, the taps around each, and one for a phase of 1 to 2."""
_PHASE_OF_A_PART = 0.1

_MAX_PPM = 1000.0
_PPM_FOR_FRAME = 1.0
# Critically damped: the fill's change for one ppm is 0.048 frames a second.
_PPM_FOR_FRAME_SECOND = 0.048 * _PPM_FOR_FRAME**2 / 4
_SMOOTHING_S = 1.0

_EXCESS_FRAMES = 5 * BLOCK_FRAMES // 4
"""More than the one block by which the fill changes at once where two clocks slip past one another."""
_SHORTEST_WATCH, _LONGEST_WATCH = round(1 / BLOCK_S), round(32 / BLOCK_S)


def _interpolation_kernels() -> NDArray[np.float32]:
    """Kaiser-windowed sinc, shape (_PHASES + 1, _TAPS): row p is for p / _PHASES of a frame."""
    phase = np.arange(_PHASES + 1)[:, None] / _PHASES
    offset = np.arange(_TAPS)[None, :] - _BEFORE - phase
    window = np.i0(8.0 * np.sqrt(np.maximum(0, 1 - (offset / (_TAPS / 2)) ** 2))) / np.i0(8.0)
    kernels = np.sinc(offset) * window
    normal: NDArray[np.float32] = (kernels / kernels.sum(axis=1, keepdims=True)).astype(np.float32)
    return normal


_KERNELS = _interpolation_kernels()
_FADE_IN = (np.arange(BLOCK_FRAMES) / BLOCK_FRAMES).astype(np.float32)
_FADE_OUT = np.linspace(1, 0, BLOCK_FRAMES // 10, dtype=np.float32)
"""1 ms: without it what is taken back would click."""


class DriftingSource:
    """One who is heard, whose clock is not the sound card's.

    `play` is for any one thread, `pull` for the sound card's. Until 20 ms have come, and again
    after a gap, it gives silence. What was there before it began, and what has piled up (a thread that
    was held up), is dropped down to 20 ms. What has been too much for a second is caught up with by a
    skip from one stretch of sound into one that is like it; after gaps it waits longer for that.

    Args:
        volume: 0 to 1, and may be changed at any time.
    """

    def __init__(self, volume: float = 1.0) -> None:
        self.volume = volume
        self.gaps = 0
        """How often nothing was there to play, though it had begun."""
        self.jumps = 0
        """How often sound was dropped, because far too much was there."""
        self.skips = 0
        """How often it caught up unheard."""
        self._ring = SampleRing(_MAX_FRAMES + 8 * BLOCK_FRAMES)
        self._phase = 1.0
        self._has_begun = False
        self._is_playing = False
        self._error_frames = 0.0
        self._integral_ppm = 0.0
        self._ppm = 0.0
        self._watch = _Watch()

    @property
    def ppm(self) -> float:
        """By how much it is read faster than it would be with one clock, in parts per million."""
        return self._ppm

    @property
    def fill(self) -> int:
        """How many frames wait to be played."""
        return len(self._ring)

    def play(self, block: Block) -> None:
        """Takes sound to be played. Returns at once; what has no room is dropped."""
        if not self._ring.write(block):
            self.jumps += 1

    def take_back(self, blocks: int) -> None:
        """Silences the last so many blocks, as far as they have not been pulled; they keep their time.
        For the thread that plays."""
        frames = blocks * BLOCK_FRAMES
        left = min(frames, len(self._ring))
        gains = np.zeros(left, np.float32)
        gains[: min(left, len(_FADE_OUT))] = _FADE_OUT[:left]
        self._ring.fade_last(gains)

    def pull(self) -> Block:
        """The next 10 ms by the sound card's clock. Never blocks."""
        waiting = len(self._ring)
        if not self._is_playing:
            if waiting < TARGET_FRAMES + _TAPS:
                return SILENCE
            self._is_playing, self._error_frames = True, 0.0
            if not self._has_begun:
                self._has_begun = True
                waiting = self._drop_to(_LEFT_FRAMES + BLOCK_FRAMES, waiting)
        if waiting > _MAX_FRAMES:
            self.jumps += 1
            waiting = self._drop_to(_LEFT_FRAMES + BLOCK_FRAMES, waiting)
        if waiting < _NEEDED:
            self.gaps += 1
            self._is_playing = False
            self._watch.be_patient()
            return SILENCE
        block = self._skipping(excess) if (excess := self._watch.excess) else self._read()
        self._adapt(len(self._ring))
        return block

    def _drop_to(self, frames: int, waiting: int) -> int:
        self._ring.skip(max(0, waiting - frames))
        self._error_frames = 0.0
        return min(waiting, frames)

    def _read(self) -> Block:
        block = _interpolate(self._ring.peek(_NEEDED), self._phase, self._ppm * 1e-6)
        end = self._phase + (1 + self._ppm * 1e-6) * BLOCK_FRAMES
        consumed = int(end) - 1
        self._phase = end - consumed
        self._ring.skip(consumed)
        return block

    def _skipping(self, excess: int) -> Block:
        """Fades over into what comes up to `excess` frames later, from where it is most alike."""
        self.skips += 1
        waiting = self._ring.peek(min(len(self._ring), _NEEDED + excess))
        later = _most_alike(waiting)
        before = _interpolate(waiting[:_NEEDED], self._phase, 0.0)
        after = _interpolate(waiting[later : later + _NEEDED], self._phase, 0.0)
        self._ring.skip(BLOCK_FRAMES + later)
        self._error_frames = 0.0
        self._watch.start_anew()
        return saturated(before + (after.astype(np.float32) - before) * _FADE_IN)

    def _adapt(self, fill: int) -> None:
        self._watch.see(fill)
        self._error_frames += (fill - _LEFT_FRAMES - self._error_frames) * BLOCK_S / _SMOOTHING_S
        self._integral_ppm = _limited(
            self._integral_ppm + _PPM_FOR_FRAME_SECOND * self._error_frames * BLOCK_S
        )
        self._ppm = _limited(self._integral_ppm + _PPM_FOR_FRAME * self._error_frames)


class _Watch:
    """Watches for frames that were never needed for a while. `excess` is how many those were."""

    def __init__(self) -> None:
        self.excess = 0
        self._blocks = _SHORTEST_WATCH
        self.start_anew()

    def start_anew(self) -> None:
        """What was seen says nothing any more."""
        self.excess, self._least, self._seen = 0, _MAX_FRAMES, 0

    def be_patient(self) -> None:
        """There was a gap: such an excess may have been needed."""
        self._blocks = min(_LONGEST_WATCH, 2 * self._blocks)
        self.start_anew()

    def see(self, fill: int) -> None:
        """Takes in what was left after a pull."""
        self._least = min(self._least, fill)
        self._seen += 1
        if self._seen < self._blocks:
            return
        excess = self._least - _LEFT_FRAMES
        self.start_anew()
        if excess > _EXCESS_FRAMES:
            self.excess = excess
        else:
            self._blocks = max(_SHORTEST_WATCH, self._blocks // 2)


def _limited(ppm: float) -> float:
    return min(_MAX_PPM, max(-_MAX_PPM, ppm))


def _interpolate(samples: NDArray[np.int16], phase: float, drift: float) -> Block:
    """A block read from `phase` (1 to 2) on, in steps of 1 + `drift`.

    A phase of its own for each frame would be a kernel of its own. In each part the phase moves so
    little that what two kernels make, that of its beginning and that of its end, can be mixed: the
    error is (phase moved x angular frequency)**2 / 8, -58 dB at 4 kHz and the most drift there is.
    """
    wide = samples.astype(np.float32)
    parts = 1 + int(abs(drift) * BLOCK_FRAMES / _PHASE_OF_A_PART)
    edges = [BLOCK_FRAMES * part // parts for part in range(parts + 1)]
    made = np.empty(BLOCK_FRAMES, np.float32)
    for start, end in pairwise(edges):
        first, last = (_place(phase + drift * at) for at in (start, end))
        part = made[start:end]
        part[:] = _filtered(wide, start, end, first)
        if last != first:
            mix = _FADE_IN[: end - start] * np.float32(BLOCK_FRAMES / (end - start))
            part += (_filtered(wide, start, end, last) - part) * mix
    return saturated(made)


def _place(phase: float) -> tuple[int, int]:
    """Whole frames and the nearest kernel."""
    whole = math.floor(phase)
    return whole, round((phase - whole) * _PHASES)


def _filtered(
    wide: NDArray[np.float32], start: int, end: int, place: tuple[int, int]
) -> NDArray[np.float32]:
    whole, kernel = place
    filtered: NDArray[np.float32] = np.correlate(
        wide[start + whole : end + whole + _TAPS - 1], _KERNELS[kernel], "valid"
    )
    return filtered


def _most_alike(waiting: NDArray[np.int16]) -> int:
    """By how many frames, up to what waits beyond a block and down to half of that, the sound is most
    like its beginning: no matter which in silence, whole periods in a voice."""
    longest = len(waiting) - _NEEDED
    shortest = longest // 2
    wide = waiting.astype(np.float32)
    candidates = wide[shortest : longest + BLOCK_FRAMES]
    products = np.correlate(candidates, wide[:BLOCK_FRAMES], "valid")
    squares = np.concatenate(([0.0], np.cumsum(candidates * candidates, dtype=np.float64)))
    powers = squares[BLOCK_FRAMES:] - squares[:-BLOCK_FRAMES]
    likeness = products / np.sqrt(powers + 1.0)
    return shortest + len(likeness) - 1 - int(np.argmax(likeness[::-1]))


class SampleRing:
    """A bounded first-in first-out of samples, from one thread to one other, without a lock.

    Each side moves only its own counter, and only after the samples are copied: neither ever waits
    for the other, nor sees what is half written.

    Args:
        capacity: How many samples it holds.
    """

    def __init__(self, capacity: int) -> None:
        self._kept = np.zeros(capacity, np.int16)
        self._written = 0
        self._read = 0

    def __len__(self) -> int:
        return self._written - self._read

    def write(self, samples: Samples) -> bool:
        """Appends samples. False: there was no room, and none were taken. The writer's."""
        count, capacity = len(samples), len(self._kept)
        if count > capacity - len(self):
            return False
        at = self._written % capacity
        first = min(count, capacity - at)
        self._kept[at : at + first] = samples[:first]
        self._kept[: count - first] = samples[first:]
        self._written += count
        return True

    def fade_last(self, gains: NDArray[np.float32]) -> None:
        """Makes the last samples written quieter, each by its gain, 0 to 1. The writer's: what the
        reader has already copied stays as it was."""
        count, capacity = min(len(gains), self._written), len(self._kept)
        at = np.arange(self._written - count, self._written) % capacity
        self._kept[at] = (self._kept[at] * gains[len(gains) - count :]).astype(np.int16)

    def peek(self, count: int) -> Samples:
        """A copy of the oldest `count` samples, which must be there. The reader's."""
        capacity = len(self._kept)
        at = self._read % capacity
        first = min(count, capacity - at)
        return np.concatenate((self._kept[at : at + first], self._kept[: count - first]))

    def skip(self, count: int) -> None:
        """Drops the oldest `count` samples, which must be there. The reader's."""
        self._read += count
