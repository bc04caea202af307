"""Tells the relay, and by it the backends, of who has typed too many wrong door codes; and the relay, which
counts them, of those for whom a door stayed shut since nobody vouches for them.

It is told as soon as the relay can be reached, for a while; a relay of a version before does not know
the request, which changes nothing here.
"""

import asyncio
from collections import deque
from datetime import timedelta

import structlog
from pydantic import ValidationError

from bellwire.agent.calls.call import Call
from bellwire.agent.door.authorization import LockOut
from bellwire.agent.link import Link, RequestRefused
from bellwire.signaling.errors import CallError
from bellwire.signaling.wire.operations import (
    LOCK_OUTS_OF_A_CALL,
    DeviceDoorLockedOut,
    DeviceDoorNotVerified,
)

log = structlog.get_logger(__name__)

_KEPT = 32
_WITHIN = timedelta(minutes=10)


class DoorReporter:
    """What one device has to tell.

    Args:
        link: Its way to the relay.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._waiting: deque[DeviceDoorLockedOut | DeviceDoorNotVerified] = deque(maxlen=_KEPT)
        self._came = asyncio.Event()
        self._numbers: dict[str, int] = {}
        self._not_verified: dict[tuple[str, str], None] = {}
        self._complained = False

    def add_lock_out(self, lock_out: LockOut, call: Call) -> None:
        """Has it told, after those before; of a call that has had very many, no more."""
        number = self._numbers.pop(call.sid, 0) + 1
        self._numbers[call.sid] = number
        while len(self._numbers) > _KEPT:
            del self._numbers[next(iter(self._numbers))]
        if not call.sid or number > LOCK_OUTS_OF_A_CALL:
            return
        try:
            operation = DeviceDoorLockedOut(
                operation="door_locked_out",
                call_sid=call.sid,
                caller=lock_out.who or None,
                doors=lock_out.doors,
                wrong_codes=lock_out.wrong_codes,
                locked_for_s=lock_out.lasts_s,
                lock_out=number,
            )
        except ValidationError as error:
            log.error("lock-out cannot be told", problems=error.error_count())
            return
        self._tell_of(operation)

    def add_not_verified(self, who: str, call: Call) -> None:
        """Has it told that a door stayed shut for somebody who is not verified, once in a call."""
        key = (call.sid, who)
        if not call.sid or key in self._not_verified:
            return
        self._not_verified[key] = None
        while len(self._not_verified) > _KEPT:
            del self._not_verified[next(iter(self._not_verified))]
        self._tell_of(
            DeviceDoorNotVerified(operation="door_not_verified", call_sid=call.sid, caller=who)
        )

    def _tell_of(self, operation: DeviceDoorLockedOut | DeviceDoorNotVerified) -> None:
        self._waiting.append(operation)
        self._came.set()

    async def run(self) -> None:
        """Tells until cancelled."""
        while True:
            await self._came.wait()
            self._came.clear()
            while self._waiting:
                await self._tell(self._waiting.popleft())

    async def _tell(self, operation: DeviceDoorLockedOut | DeviceDoorNotVerified) -> None:
        try:
            await self._link.request(operation, within=_WITHIN)
        except RequestRefused as error:
            if not self._complained:
                log.warning(
                    "the relay takes no word of what happens at a door: upgrade it where it does not know"
                    " the request",
                    call_sid=operation.call_sid,
                    error=str(error),
                )
            self._complained = True
        except CallError as error:
            log.warning(
                "what happened at a door is not told", call_sid=operation.call_sid, error=str(error)
            )
