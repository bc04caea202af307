"""What a device asks the relay about its calls, as often as it takes: a hang-up holds here at once,
and the relay hears of it sooner or later."""

from datetime import timedelta

import structlog

from agent.link import Link, RequestRefused
from signaling.answers import CallAnswer
from signaling.calls import RejectStatus, UserState
from signaling.device_operations import (
    DeviceCancel,
    DeviceOperation,
    DeviceQuit,
    DeviceReject,
    DeviceRoom,
)
from signaling.errors import ERROR_TABLE, CallError
from signaling.identifiers import CallSid

log = structlog.get_logger(__name__)

PERSISTENCE = timedelta(minutes=5)
"""How long a hang-up or rejection is repeated while the relay is away."""

_ROOM_WITHIN = timedelta(seconds=10)
_TURNS = 3
_FORBIDDEN = 31403
_NOT_UNDERSTOOD = 422
_BY_HTTP_STATUS = {401: 20151, 404: 31481, 408: 31408, 429: 31503, 500: 31500, 502: 31502}


class CallRequests:
    """A device's requests to its relay.

    Args:
        link: The way there.
    """

    def __init__(self, link: Link) -> None:
        self._link = link

    async def ask(self, operation: DeviceOperation, *, within: timedelta) -> CallAnswer:
        """Asks again and again for a while; returns the call as the relay answers it.

        Raises:
            RequestRefused: the relay refused.
            CallError: 31408, no answer came in time.
        """
        return await self._link.ask(operation, within=within)

    async def enter_room(self, sid: CallSid, offer: str) -> str:
        """Brings this device's sound (SDP) to the call's room; returns the room's answer.

        Raises:
            CallError: 53401, the relay has no room, or refused; 31408, it did not answer in time.
        """
        operation = DeviceRoom(operation="room", call_sid=sid, sdp=offer)
        try:
            response = await self._link.request(operation, within=_ROOM_WITHIN)
        except RequestRefused as refused:
            raise CallError(53401, refused.problem.detail, refused.problem.title) from refused
        return response.sdp or ""

    async def tell_until_heard(self, operation: DeviceOperation) -> str | None:
        """Tells the relay something that holds here whatever it answers; returns the state that it
        refused it for."""
        try:
            await self._link.ask(operation, within=PERSISTENCE)
        except RequestRefused as error:
            log.info("relay did not take it", operation=operation.operation, error=str(error))
            return error.problem.state or ""
        except CallError as error:
            log.warning("relay not told", operation=operation.operation, error=str(error))
        return None

    async def reject(self, sid: CallSid, status: RejectStatus = RejectStatus.REJECTED) -> None:
        """Rejects an invite."""
        await self.tell_until_heard(DeviceReject(operation="reject", call_sid=sid, status=status))

    async def turn_away(self, sid: CallSid, status: RejectStatus) -> None:
        """Rejects an invite by itself, with nobody's hand on it, and says so; to a relay that is too
        old to hear it, which refuses what it does not know, it is a rejection like any other."""
        try:
            await self._link.ask(
                DeviceReject(operation="reject", call_sid=sid, status=status, automatic=True),
                within=PERSISTENCE,
            )
        except RequestRefused as refused:
            if refused.problem.status != _NOT_UNDERSTOOD:
                log.info("relay did not take it", operation="reject", error=str(refused))
                return
            await self.reject(sid, status)
        except CallError as error:
            log.warning("relay not told", operation="reject", error=str(error))

    async def withdraw(self, sid: CallSid) -> None:
        """Gives up an outgoing call; where somebody has just accepted it, hangs up."""
        if await self.tell_until_heard(DeviceCancel(operation="cancel", call_sid=sid)):
            await self.leave(sid)

    async def leave(self, sid: CallSid) -> None:
        """Hangs up. An accept may still be on its way, so where the relay does not yet know of one
        the invite is rejected instead."""
        for _ in range(_TURNS):
            state = await self.tell_until_heard(DeviceQuit(operation="quit", call_sid=sid))
            if state is None or not UserState(state).pending:
                return
            state = await self.tell_until_heard(DeviceReject(operation="reject", call_sid=sid))
            if state is None or UserState(state) is not UserState.ACCEPTED:
                return


def error_of(refused: RequestRefused) -> CallError:
    """A refusal as an error of the call, by the relay's own code where it gives one."""
    problem = refused.problem
    code = problem.code if problem.code in ERROR_TABLE else None
    return CallError(
        code or _BY_HTTP_STATUS.get(problem.status, _FORBIDDEN), problem.detail, problem.title
    )
