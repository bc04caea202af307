"""Plays what one clock produced at the pace of another, without a gap.

The network's 10 ms and the sound card's are not the same: 200 ppm apart, they lose or gain a block
every 50 s. `DriftingSource` watches how full its ring is and reads it ever so slightly faster or
slower (at most 0.1 %, 1.7 cents of pitch, which nobody hears), by a windowed-sinc interpolation.
"""

import numpy as np
from numpy.typing import NDArray

from hardware.audio.block import BLOCK_FRAMES, BLOCK_S, SILENCE, Block, saturated
from hardware.audio.ring import SampleRing

TARGET_FRAMES = 2 * BLOCK_FRAMES
"""What the ring holds on the average: 20 ms, of all mouth-to-ear latency the part that is ours."""
_MAX_FRAMES = TARGET_FRAMES + 8 * BLOCK_FRAMES

_TAPS = 16
_PHASES = 1024
_BEFORE = _TAPS // 2 - 1

_MAX_PPM = 1000.0
_PPM_FOR_FRAME = 1.0
# Critically damped: the fill's change for one ppm is 0.048 frames a second.
_PPM_FOR_FRAME_SECOND = 0.048 * _PPM_FOR_FRAME**2 / 4
_SMOOTHING_S = 1.0


def _interpolation_kernels() -> NDArray[np.float32]:
    """Kaiser-windowed sinc, shape (_PHASES + 1, _TAPS): row p is for p / _PHASES of a frame."""
    phase = np.arange(_PHASES + 1)[:, None] / _PHASES
    offset = np.arange(_TAPS)[None, :] - _BEFORE - phase
    window = np.i0(8.0 * np.sqrt(np.maximum(0, 1 - (offset / (_TAPS / 2)) ** 2))) / np.i0(8.0)
    kernels = np.sinc(offset) * window
    normal: NDArray[np.float32] = (kernels / kernels.sum(axis=1, keepdims=True)).astype(np.float32)
    return normal


_KERNELS = _interpolation_kernels()
_TAP_INDEX = np.arange(_TAPS)
_FRAME_INDEX = np.arange(BLOCK_FRAMES)


class DriftingSource:
    """One who is heard, whose clock is not the sound card's.

    `play` is for any one thread, `pull` for the sound card's. Until 20 ms have come, and again
    after a gap, it gives silence. What has piled up (a thread that was held up) is dropped down to 20 ms.

    Args:
        volume: 0 to 1, and may be changed at any time.
    """

    def __init__(self, volume: float = 1.0) -> None:
        self.volume = volume
        self.gaps = 0
        """How often nothing was there to play, though it had begun."""
        self.jumps = 0
        """How often sound was dropped, because too much was there."""
        self._ring = SampleRing(_MAX_FRAMES + 8 * BLOCK_FRAMES)
        self._phase = 0.0
        self._is_playing = False
        self._error_frames = 0.0
        self._integral_ppm = 0.0
        self._ppm = 0.0

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

    def pull(self) -> Block:
        """The next 10 ms by the sound card's clock. Never blocks."""
        waiting = len(self._ring)
        if not self._is_playing:
            if waiting < TARGET_FRAMES + _TAPS:
                return SILENCE
            self._is_playing, self._error_frames = True, 0.0
        if waiting > _MAX_FRAMES:
            self.jumps += 1
            self._ring.skip(waiting - TARGET_FRAMES)
            waiting, self._error_frames = TARGET_FRAMES, 0.0
        step = 1 + self._ppm * 1e-6
        positions = self._phase + step * _FRAME_INDEX
        needed = int(positions[-1]) + _TAPS
        if waiting < needed:
            self.gaps += 1
            self._is_playing = False
            return SILENCE
        block = _interpolate(self._ring.peek(needed), positions)
        consumed, self._phase = divmod(self._phase + step * BLOCK_FRAMES, 1.0)
        self._ring.skip(int(consumed))
        self._adapt(len(self._ring))
        return block

    def _adapt(self, fill: int) -> None:
        # Half a block: a fill is seen right after a pull, on the average half a period after a push.
        error = fill + BLOCK_FRAMES / 2 - TARGET_FRAMES
        self._error_frames += (error - self._error_frames) * BLOCK_S / _SMOOTHING_S
        self._integral_ppm = _limited(
            self._integral_ppm + _PPM_FOR_FRAME_SECOND * self._error_frames * BLOCK_S
        )
        self._ppm = _limited(self._integral_ppm + _PPM_FOR_FRAME * self._error_frames)


def _limited(ppm: float) -> float:
    return min(_MAX_PPM, max(-_MAX_PPM, ppm))


def _interpolate(samples: NDArray[np.int16], positions: NDArray[np.floating]) -> Block:
    whole = positions.astype(np.intp)
    phases = np.rint((positions - whole) * _PHASES).astype(np.intp)
    taps = samples.astype(np.float32)[whole[:, None] + _TAP_INDEX]
    return saturated(np.einsum("ft,ft->f", taps, _KERNELS[phases]))
