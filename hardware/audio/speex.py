"""The echo canceller of SpeexDSP (Debian's libspeexdsp1), by ctypes: an adaptive filter that takes the
echo out and lets the near voice be, and a suppressor for what the filter leaves.

Names and numbers are those of its speex_echo.h and speex_preprocess.h.
"""

import ctypes
import weakref
from collections.abc import Callable
from functools import cache

import numpy as np

from bellwire.hardware.audio.block import BLOCK_FRAMES, SAMPLE_RATE_HZ, Block

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
