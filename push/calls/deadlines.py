"""Fires the deadlines of calls: a heap in the process, refilled from the rows after a restart; and those that
another relay should have fired."""

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timedelta

import structlog

from bellwire.config.waiting import Alarm, Sleep
from bellwire.push.store.tables import to_ms
from bellwire.signaling.errors import Refusal, Unavailable
from bellwire.signaling.identifiers import CallSid

log = structlog.get_logger(__name__)

_RETRY_S = 1.0
_OVERDUE_BY = timedelta(seconds=0.25)
_OVERDUE_EVERY_S = 0.4
_OVERDUE_AT_ONCE = 500


class Deadlines:
    """When each call's next invitation runs out, and what is done then.

    Args:
        fire: Called with each call whose deadline has come; it sets the call's next one, if any.
        now: Tells the time.
        sleep: Waits.
    """

    def __init__(
        self,
        fire: Callable[[CallSid], Awaitable[None]],
        *,
        now: Callable[[], datetime],
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._fire = fire
        self._now = now
        self._sleep = sleep
        self._alarm = Alarm(sleep)
        self._heap: list[tuple[int, CallSid]] = []
        self._current: dict[CallSid, int] = {}

    def __len__(self) -> int:
        """How many calls have a deadline to come."""
        return len(self._current)

    def set(self, call_sid: CallSid, due: datetime | None) -> None:
        """Sets a call's next deadline; None where it has no more."""
        self._set_ms(call_sid, None if due is None else to_ms(due))

    def refill(self, rows: Iterable[tuple[CallSid, int]]) -> None:
        """Sets what the database holds, in Unix milliseconds."""
        for call_sid, due_ms in rows:
            self._set_ms(call_sid, due_ms)

    async def run(self) -> None:
        """Fires deadlines until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                for call_sid in self._take_due():
                    tasks.create_task(self._fire_one(call_sid))
                wait_s = None
                if self._heap:
                    wait_s = max(0.0, (self._heap[0][0] - to_ms(self._now())) / 1000)
                await self._alarm.wait(wait_s)

    async def take_over(
        self, overdue: Callable[[timedelta, int], Awaitable[Iterable[CallSid]]]
    ) -> None:
        """Fires the deadlines that the relay which set them has not: it has died, or is slow.

        Args:
            overdue: Finds calls whose deadline came so long ago, and not more of them than the number.
        """
        while True:
            try:
                missed = await overdue(_OVERDUE_BY, _OVERDUE_AT_ONCE)
                self.refill((call_sid, to_ms(self._now())) for call_sid in missed)
            except Unavailable as error:
                log.warning("deadlines of other relays not seen to", error=str(error))
            await self._sleep(_OVERDUE_EVERY_S)

    def _set_ms(self, call_sid: CallSid, due_ms: int | None) -> None:
        if due_ms is None:
            self._current.pop(call_sid, None)
        elif self._current.get(call_sid) != due_ms:
            self._current[call_sid] = due_ms
            heapq.heappush(self._heap, (due_ms, call_sid))
            if self._heap[0][1] == call_sid:
                self._alarm.ring()

    def _take_due(self) -> list[CallSid]:
        now_ms = to_ms(self._now())
        due: list[CallSid] = []
        while self._heap and self._heap[0][0] <= now_ms:
            due_ms, call_sid = heapq.heappop(self._heap)
            if self._current.get(call_sid) == due_ms:  # else it was answered or moved
                del self._current[call_sid]
                due.append(call_sid)
        return due

    async def _fire_one(self, call_sid: CallSid) -> None:
        try:
            await self._fire(call_sid)
        except (Refusal, OSError) as error:
            log.error("deadline not carried out, trying again", call_sid=call_sid, error=str(error))
            self._set_ms(call_sid, to_ms(self._now()) + int(_RETRY_S * 1000))
