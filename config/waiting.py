"""Waiting, for all who wait: a sleep that tests replace, an alarm that ends one early, and the backoff
of whoever tries again."""

import asyncio
import random
from collections.abc import Awaitable, Callable

Sleep = Callable[[float], Awaitable[None]]
"""`asyncio.sleep`, or what stands in for it: waits so many seconds."""


class Alarm:
    """One waiter, woken by time or by `ring`. A ring while nobody waits is not lost."""

    def __init__(self, sleep: Sleep = asyncio.sleep) -> None:
        self._sleep = sleep
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wakes the waiter, now or when it next waits."""
        self._rung.set()

    async def wait(self, longest_s: float | None) -> None:
        """Waits for a ring, but at most `longest_s` seconds; None waits for the ring alone."""
        if longest_s is None:
            await self._rung.wait()
        else:
            sleeping = asyncio.ensure_future(self._sleep(longest_s))
            ringing = asyncio.ensure_future(self._rung.wait())
            try:
                await asyncio.wait({sleeping, ringing}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                sleeping.cancel()
                ringing.cancel()
        self._rung.clear()


def backoff_s(
    attempt: int,
    spread: Callable[[float, float], float] = random.uniform,
    *,
    first_s: float = 0.25,
    longest_s: float = 30.0,
    least: float = 0.0,
) -> float:
    """How many seconds to wait before attempt number `attempt` (from 0): doubled each time up to
    `longest_s`, and of that a part by chance, so that those who lost the same thing do not all come
    back at once. `least` is the smallest part: 1 for no jitter."""
    wait_s = min(longest_s, first_s * 2.0 ** min(attempt, 16))
    return spread(least * wait_s, wait_s)
