"""How an agent's process keeps its memory, so that it stays small and no voice waits for it."""

import ctypes
import gc

_M_ARENA_MAX = -8
"""glibc's malloc.h, mallopt(3)."""
_ARENAS = 2
_FULL_LOOKS = 1_000
"""Looks at the younger objects for each one at all: millions of objects, where none is ever idle."""


def share_arenas() -> None:
    """Has glibc serve all threads from two arenas. Each call brings threads of its own (WebRTC,
    PortAudio); by default they take up to eight arenas a core, each of which keeps what its threads
    once held. Call it before they start; where malloc is another one it does nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)


class Collector:
    """Looks for cycles of garbage when nobody is speaking. A look at everything stops all threads, the
    voice's too: 60 ms on a PC, several times that on a Pi, and the other side's jitter buffer then
    waits 80 ms longer for some seconds. What stands since the start is not looked at again at all."""

    def __init__(self) -> None:
        self._has_libraries = False

    def start(self) -> None:
        """To be called once the agent works: what stands now is not looked at again."""
        gc.collect()
        gc.freeze()
        young, middle, _ = gc.get_threshold()
        gc.set_threshold(young, middle, _FULL_LOOKS)

    def look(self) -> None:
        """To be called when no call is in progress: looks at everything else."""
        gc.collect()
        if not self._has_libraries:
            gc.freeze()  # WebRTC's and the others, which the first call has loaded
            self._has_libraries = True
