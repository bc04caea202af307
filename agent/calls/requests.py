"""What a device asks its relay about its calls, as often as it takes, and the messages by which the
parties of one speak to each other: an application's own, and those that agree on the sound.

A hang-up holds here at once; the relay hears of it sooner or later.
"""

import secrets
from collections.abc import Sequence
from datetime import timedelta

import structlog
from pydantic import JsonValue, ValidationError

from bellwire.agent.calls.record import Message
from bellwire.agent.link import Link, RequestRefused
from bellwire.signaling.calls.calls import CallState, RejectStatus, UserState
from bellwire.signaling.calls.events import CallMessage, ErrorInvitee
from bellwire.signaling.errors import ERROR_TABLE, CallError, InvalidInput
from bellwire.signaling.identifiers import CallSid, Identity, parse_identity
from bellwire.signaling.wire.answers import CallAnswer, Problem
from bellwire.signaling.wire.media import MEDIA_MESSAGE_TYPE, MediaDocument, parse_media
from bellwire.signaling.wire.operations import (
    DeviceCancel,
    DeviceFeedback,
    DeviceMessage,
    DeviceOperation,
    DeviceQuit,
    DeviceReject,
    DeviceRoom,
    FeedbackIssue,
    RejectionStatus,
)

log = structlog.get_logger(__name__)

PERSISTENCE = timedelta(minutes=5)
"""How long a hang-up or rejection is repeated while the relay is away."""

_MESSAGE_WITHIN = timedelta(seconds=60)
_ROOM_WITHIN = timedelta(seconds=10)
_TURNS = 3
_FORBIDDEN = 31403
_NOT_UNDERSTOOD = 422
_BY_HTTP_STATUS = {401: 20151, 404: 31481, 408: 31408, 429: 31503, 500: 31500, 502: 31502}


class RelayRequests:
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

    async def tell_until_heard(self, operation: DeviceOperation) -> Problem | None:
        """Tells the relay something that holds here whatever it answers; returns why it refused it,
        if it did."""
        answer = await self._tell(operation)
        return answer if isinstance(answer, Problem) else None

    async def _tell(self, operation: DeviceOperation) -> CallAnswer | Problem | None:
        """The relay's answer, or why it refused; None where there was none."""
        try:
            return await self._link.ask(operation, within=PERSISTENCE)
        except RequestRefused as error:
            log.info("relay did not take it", operation=operation.operation, error=str(error))
            return error.problem
        except CallError as error:
            log.warning("relay not told", operation=operation.operation, error=str(error))
        return None

    async def reject(
        self,
        sid: CallSid,
        status: RejectStatus = RejectStatus.REJECTED,
        extended_data: str = "",
    ) -> None:
        """Rejects an invite on behalf of a person."""
        operation = DeviceReject(
            operation="reject",
            call_sid=sid,
            status=RejectionStatus(status),
            extended_data=extended_data,
        )
        await self.tell_until_heard(operation)

    async def turn_away(self, sid: CallSid, status: RejectStatus) -> None:
        """Rejects an invite by itself, with nobody's hand on it, and says so; to a relay that is too
        old to hear it, which refuses what it does not know, it is a rejection like any other."""
        problem = await self.tell_until_heard(
            DeviceReject(
                operation="reject", call_sid=sid, status=RejectionStatus(status), automatic=True
            )
        )
        if problem is not None and problem.status == _NOT_UNDERSTOOD:
            await self.reject(sid, status)

    async def withdraw(self, sid: CallSid, extended_data: str = "") -> None:
        """Gives up an outgoing call; where somebody has just accepted it, hangs up. The relay then
        refuses to cancel, or has cancelled the others alone."""
        answer = await self._tell(
            DeviceCancel(operation="cancel", call_sid=sid, extended_data=extended_data)
        )
        goes_on = isinstance(answer, CallAnswer) and answer.state is not CallState.ENDED
        if goes_on or (isinstance(answer, Problem) and answer.state):
            await self.leave(sid, extended_data)

    async def cancel(
        self, sid: CallSid, to: Sequence[Identity] | None, extended_data: str = ""
    ) -> tuple[ErrorInvitee, ...]:
        """Withdraws invitations, of all where none are named; returns who of them could not be cancelled.

        Raises:
            CallError: the relay did not take it.
        """
        operation = DeviceCancel(
            operation="cancel",
            call_sid=sid,
            to=None if to is None else [*to],
            extended_data=extended_data,
        )
        try:
            answer = await self.ask(operation, within=_MESSAGE_WITHIN)
        except RequestRefused as refused:
            raise error_of(refused) from refused
        return () if to is None else answer.error_invitees

    async def leave(self, sid: CallSid, extended_data: str = "") -> None:
        """Hangs up. An accept may still be on its way, so where the relay does not yet know of one
        the invite is rejected instead."""
        quits = DeviceQuit(operation="quit", call_sid=sid, extended_data=extended_data)
        rejects = DeviceReject(operation="reject", call_sid=sid, extended_data=extended_data)
        for _ in range(_TURNS):
            problem = await self.tell_until_heard(quits)
            if problem is None or not UserState(problem.state or "").pending:
                return
            problem = await self.tell_until_heard(rejects)
            if problem is None or UserState(problem.state or "") is not UserState.ACCEPTED:
                return

    async def deliver(self, said: DeviceMessage | DeviceFeedback) -> None:
        """Says a message to the others in a call, or to the relay how good it was.

        Raises:
            CallError: it could not be said.
        """
        try:
            await self.ask(said, within=_MESSAGE_WITHIN)
        except RequestRefused as refused:
            raise error_of(refused) from refused

    async def say_media(self, sid: CallSid, who: Identity, document: MediaDocument) -> None:
        """Tells one party something of the sound. One that cannot be told any more is no loss: whoever
        waits for it gives up by itself."""
        content: JsonValue = document.model_dump(mode="json", exclude_none=True)
        try:
            await self.deliver(new_message(sid, content, MEDIA_MESSAGE_TYPE, [who]))
        except (CallError, InvalidInput) as error:
            log.warning("media document not said", kind=document.kind, to=who, error=str(error))

    async def rate(
        self, sid: CallSid, score: int | None, issue: str | None
    ) -> FeedbackIssue | None:
        """Says how good a call was; returns the issue as it was understood.

        Raises:
            InvalidInput: the score is not 1 to 5 or None, or the issue is none.
            CallError: the relay did not take it.
        """
        try:
            known = None if issue is None else FeedbackIssue(issue)
            feedback = DeviceFeedback(operation="feedback", call_sid=sid, score=score, issue=known)
        except ValueError as error:
            issues = ", ".join(FeedbackIssue)
            raise InvalidInput(
                f"feedback is a score of 1 to 5 or None, and one of {issues} or None"
            ) from error
        await self.deliver(feedback)
        return known


def error_of(refused: RequestRefused) -> CallError:
    """A refusal as an error of the call, by the relay's own code where it gives one."""
    problem = refused.problem
    code = problem.code if problem.code in ERROR_TABLE else None
    return CallError(
        code or _BY_HTTP_STATUS.get(problem.status, _FORBIDDEN), problem.detail, problem.title
    )


def new_message(
    sid: CallSid, content: JsonValue, message_type: str, to: list[Identity] | None = None
) -> DeviceMessage:
    """A message with a SID of its own, so that it is heard once however often it is said.

    Raises:
        InvalidInput: it cannot be said; tells why.
    """
    try:
        return DeviceMessage(
            operation="message",
            call_sid=sid,
            content=content,
            message_type=message_type,
            to=None if to is None else list(to),
            voice_event_sid=f"KX{secrets.token_hex(16)}",
        )
    except ValidationError as error:
        raise InvalidInput(f"not a message: {_first_problem(error)}") from error


def as_sent(message: DeviceMessage) -> Message:
    """A message as its sender's application is told of it."""
    return Message(
        message.content,
        message.content_type,
        message.message_type,
        message.voice_event_sid or "",
    )


def as_received(message: CallMessage) -> Message:
    """A message as the application of who hears it is told of it."""
    return Message(
        message.content,
        message.content_type,
        message.message_type,
        message.voice_event_sid,
        message.from_,
        message.attestation,
    )


def media_in(message: CallMessage) -> MediaDocument | None:
    """What a message says of the sound; None where it makes no sense."""
    try:
        return parse_media(message.content)
    except ValidationError as error:
        log.warning("media document not understood", problems=error.error_count())
        return None


def sender_of(message: CallMessage) -> Identity | None:
    """Who says it; None where a server does, or nobody that can be told from its name."""
    try:
        return None if message.from_ is None else parse_identity(message.from_)
    except InvalidInput as error:
        log.warning("a message from nobody", error=str(error))
        return None


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
