"""How the C library of an agent's process keeps memory."""

import ctypes

_M_ARENA_MAX = -8
"""glibc's malloc.h, mallopt(3)."""
_ARENAS = 2


def share_arenas() -> None:
    """Has glibc serve all threads from two arenas. Each call brings threads of its own (WebRTC,
    PortAudio); by default they take up to eight arenas a core, each of which keeps what its threads
    once held. Call it before they start; where malloc is another one it does nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)
