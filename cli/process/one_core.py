"""Keeps the threads of this process on one core.

Python runs one thread of a process at a time. Spread over two cores they move all that both touch from
one core's cache to the other's each time they take turns: on one, a relay carries a tenth more calls,
and half more where other processes want the cores too (`bench/calls`, with 2 cores).
"""

import asyncio
import ctypes
import os
import sys
from collections.abc import Awaitable, Callable, Set
from contextlib import suppress
from pathlib import Path

_STAY_S = 2.0
_CHOOSE_S = 0.05
_THREADS = Path("/proc/self/task")


async def keep_to_one_core(sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
    """Keeps them there until cancelled. Every few seconds they are let go for a moment, and then stay
    where the scheduler has put this one: no process waits for a core while another is idle. Does nothing
    where there is one core only, or no Linux with its /proc."""
    core_of_this_thread = _sched_getcpu()
    if sys.platform != "linux" or core_of_this_thread is None:
        return
    cores = os.sched_getaffinity(0)
    if len(cores) == 1:
        return
    try:
        while True:
            await sleep(_CHOOSE_S)
            _let_threads_run_on({core_of_this_thread()})
            await sleep(_STAY_S)
            _let_threads_run_on(cores)
    finally:
        _let_threads_run_on(cores)


def _let_threads_run_on(cores: Set[int]) -> None:
    for thread in _THREADS.iterdir():
        # It may have ended meanwhile, or the core not be to be had.
        with suppress(OSError, ValueError):
            os.sched_setaffinity(int(thread.name), cores)


def _sched_getcpu() -> Callable[[], int] | None:
    """The C library's, which Python has not; none where the threads cannot be seen."""
    if not _THREADS.is_dir():
        return None
    return getattr(ctypes.CDLL(None), "sched_getcpu", None)
