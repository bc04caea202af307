"""Takes the echo of the loudspeaker out of what the microphone hears, where an adaptive filter can.

`SpeexEchoCanceller` is the filter (SpeexDSP, Debian's libspeexdsp1, by ctypes; names and numbers are
those of its speex_echo.h and speex_preprocess.h). It needs to be told which block was played when one
was captured (`Alongside`) and judged by how well it knows the way (`EchoPath`); where only the far voice
is heard, what it leaves is made quieter (`FarAlone`). `hardware.audio.voice_processing` puts them together.
"""

import ctypes
import math
import weakref
from collections import deque
from collections.abc import Callable
from functools import cache

import numpy as np

from bellwire.hardware.audio.block import BLOCK_FRAMES, SAMPLE_RATE_HZ, SILENCE, Block, saturated

FILTER_S = 0.2
"""The longest echo, from when it was given to the speaker: a longer filter learns more slowly."""

_LIBRARY = "libspeexdsp.so.1"
_ECHO_SET_SAMPLING_RATE = 24
_PREPROCESS_SET_NOISE_SUPPRESS = 18
_PREPROCESS_SET_ECHO_STATE = 24
_NOISE_SUPPRESS_DB = -15


class NoSpeex(Exception):
    """The library is not installed; says what to do."""


class SpeexEchoCanceller:
    """Takes the echo of what is played out of what is captured. One thread's.

    Args:
        noise_suppression: Whether noise is made quieter, by up to 15 dB.

    Raises:
        NoSpeex: there is no such library here.
    """

    def __init__(self, *, noise_suppression: bool) -> None:
        self._library = library = find_speex()
        taps = round(FILTER_S * SAMPLE_RATE_HZ)
        self._filter = ctypes.c_void_p(library.speex_echo_state_init(BLOCK_FRAMES, taps))
        self._freed_with_it(library.speex_echo_state_destroy, self._filter)
        rate_hz = ctypes.c_int(SAMPLE_RATE_HZ)
        library.speex_echo_ctl(self._filter, _ECHO_SET_SAMPLING_RATE, ctypes.byref(rate_hz))
        self._suppressor = ctypes.c_void_p(
            library.speex_preprocess_state_init(BLOCK_FRAMES, SAMPLE_RATE_HZ)
        )
        self._freed_with_it(library.speex_preprocess_state_destroy, self._suppressor)
        # It is one suppressor: with no noise suppressed it still takes what is left of the echo.
        noise_db = ctypes.c_int(_NOISE_SUPPRESS_DB if noise_suppression else 0)
        self._set(_PREPROCESS_SET_NOISE_SUPPRESS, ctypes.byref(noise_db))
        self._set(_PREPROCESS_SET_ECHO_STATE, self._filter)

    def cancel(self, captured: Block, played: Block) -> tuple[Block, Block]:
        """What the filter leaves of a captured block, and what the suppressor leaves of that, 10 ms
        later.

        Args:
            captured: From the microphone.
            played: What the speaker was given then: the echo comes `FILTER_S` later at the most.
        """
        left = np.empty_like(captured)
        self._library.speex_echo_cancellation(
            self._filter, _address(captured), _address(played), _address(left)
        )
        clean = left.copy()
        self._library.speex_preprocess_run(self._suppressor, _address(clean))
        return left, clean

    def _freed_with_it(
        self, free: Callable[[ctypes.c_void_p], object], state: ctypes.c_void_p
    ) -> None:
        # Not at the end of the process, where a thread may still use it.
        weakref.finalize(self, free, state).atexit = False

    def _set(self, request: int, value: object) -> None:
        self._library.speex_preprocess_ctl(self._suppressor, request, value)


@cache
def find_speex() -> ctypes.CDLL:
    """Loads the library.

    Raises:
        NoSpeex: there is no such library here.
    """
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise NoSpeex(f"{error}: apt-get install libspeexdsp1") from error
    for name in ("speex_echo_state_init", "speex_preprocess_state_init"):
        getattr(library, name).restype = ctypes.c_void_p
    return library


def _address(block: Block) -> ctypes.c_void_p:
    return np.ascontiguousarray(block).ctypes.data_as(ctypes.c_void_p)


_MOST_WAITING = 12
"""In blocks. More is no burst of callbacks: nothing is captured, or one clock is slower."""
_SHORTEST_WATCH, _LONGEST_WATCH = 100, 3200
"""In blocks, 1 to 32 s: what was never needed for so long is dropped; longer after each shortage."""

_SLOW, _QUICK = 0.06, 0.2
"""The share of a new block in a mean power: 160 ms and 50 ms."""
_LOUD_DB = -45.0
"""What is played tells of the way from here on. In dB of full scale, as all levels here."""
_KNOWN_DB = 24.0
_FORGOTTEN_DB = 18.0
"""From which attenuation of the echo on the filter is relied upon, and below which no longer. Two sound
cards 50 ppm apart stay below: no such filter can follow that."""
_NO_ECHO_DB = 40.0
_NO_ECHO_BLOCKS = 30
"""What comes back so much weaker, for so long, needs no cancelling."""
_ECHO_DB = 3.0
"""Of what is captured, what is taken out only where there is an echo."""
_ON_THE_WAY = 25
"""In blocks, more than the filter's 200 ms: what has just been played is no echo yet."""
_LOST_DB_PER_BLOCK = 0.01
"""1 dB in a second in which the far voice speaks: in double talk nothing is learnt for a while."""

_ONLY_FAR_DB = 12.0
"""What of a block the filter takes away where nobody speaks here; a voice 12 dB below the echo shows."""
_QUIETER = 10 ** (-10 / 20)
_CLOSING = 0.2
_RAMP = np.linspace(0, 1, BLOCK_FRAMES, dtype=np.float32)


class Alongside:
    """Pairs each captured block with one that was played, by order and not by time: threads are late,
    sound cards are not. A block that waits makes the echo seem to come earlier, so as few wait as the
    bursts of the callbacks allow."""

    def __init__(self) -> None:
        self._waiting: deque[Block] = deque()
        self._watch = _SHORTEST_WATCH
        self._seen = 0
        self._least = _MOST_WAITING

    def played(self, block: Block) -> None:
        """Takes in what the speaker is given."""
        self._waiting.append(block)
        if len(self._waiting) > _MOST_WAITING:
            self._waiting.popleft()

    def pull(self) -> Block:
        """What was played alongside the next captured block; silence where nothing was."""
        if not self._waiting:
            if self._seen:
                self._watch = min(_LONGEST_WATCH, 2 * self._watch)
            self._begin_watch()
            return SILENCE
        block = self._waiting.popleft()
        self._seen += 1
        self._least = min(self._least, len(self._waiting))
        if self._seen >= self._watch:
            for _ in range(self._least):
                self._waiting.popleft()
            self._begin_watch()
        return block

    def _begin_watch(self) -> None:
        self._seen, self._least = 0, _MOST_WAITING


class EchoPath:
    """How well a filter knows the way, judged by what it took out when only the far voice spoke."""

    def __init__(self) -> None:
        self.is_known = False
        """Whether the filter can be relied upon: it takes the echo out, or there is none."""
        self._known_db = 0.0
        self._without = 0
        self._played = self._heard = self._captured = self._left = 0.0
        self._before: deque[float] = deque(maxlen=_ON_THE_WAY)

    def see(self, played: Block, captured: Block, left: Block) -> None:
        """Takes in one block of each: given to the speaker, captured, and left by the filter."""
        power = _power(captured)
        self._played += (_power(played) - self._played) * _QUICK
        self._heard += (power - self._heard) * _QUICK
        self._captured += (power - self._captured) * _SLOW
        self._left += (_power(left) - self._left) * _SLOW
        self._before.append(self._played)
        played_db = _db(min(self._before))
        if played_db < _LOUD_DB:
            return
        taken_db = _db(self._captured) - _db(self._left)
        if taken_db >= _ECHO_DB and self._without:
            self._without, self._known_db = 0, taken_db  # that was a microphone not yet open
        if played_db - _db(self._heard) >= _NO_ECHO_DB:
            self._without += 1
        if self._without >= _NO_ECHO_BLOCKS:
            taken_db = 2 * _KNOWN_DB - _FORGOTTEN_DB
        self._known_db = max(taken_db, self._known_db - _LOST_DB_PER_BLOCK)
        self.is_known = self._known_db >= (_FORGOTTEN_DB if self.is_known else _KNOWN_DB)


class FarAlone:
    """Makes quieter, by 10 dB, what is left where only the far voice is heard: a gentle form of a
    nonlinear processor (ITU-T G.168, 3.15). It opens within a block and closes over some."""

    def __init__(self) -> None:
        self._gain = 1.0

    def less(self, clean: Block, captured: Block, left: Block) -> Block:
        """What is sent of `clean`, of which the filter was given `captured` and had `left`."""
        is_alone = _db(_power(captured)) - _db(_power(left)) >= _ONLY_FAR_DB
        before, wanted = self._gain, _QUIETER if is_alone else 1.0
        self._gain = wanted if wanted > before else before + (wanted - before) * _CLOSING
        return saturated(clean * (before + (self._gain - before) * _RAMP))


def _power(block: Block) -> float:
    wide = block.astype("f4")
    return float(wide @ wide) / len(block) / 32768.0**2


def _db(power: float) -> float:
    return 10 * math.log10(power + 1e-10)
