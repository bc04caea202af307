"""Waiting that can be woken: until a while has passed, or until told."""

import asyncio
from collections.abc import Awaitable, Callable

Sleep = Callable[[float], Awaitable[None]]


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
