"""What one call says to its other parties through the relay: an application's messages, and the
documents by which the devices agree on their sound."""

import secrets
from datetime import timedelta

import structlog
from pydantic import JsonValue, ValidationError

from bellwire.agent.calls.record import Message
from bellwire.agent.calls.signalling import CallRequests, error_of
from bellwire.agent.link import RequestRefused
from bellwire.signaling.calls.events import CallMessage
from bellwire.signaling.errors import CallError, InvalidInput
from bellwire.signaling.identifiers import CallSid, Identity, parse_identity
from bellwire.signaling.wire.media import MEDIA_MESSAGE_TYPE, MediaDocument, parse_media
from bellwire.signaling.wire.operations import DeviceFeedback, DeviceMessage, FeedbackIssue

log = structlog.get_logger(__name__)

_WITHIN = timedelta(seconds=60)


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


async def deliver(requests: CallRequests, message: DeviceMessage) -> None:
    """Says a message.

    Raises:
        CallError: it could not be said.
    """
    try:
        await requests.ask(message, within=_WITHIN)
    except RequestRefused as refused:
        raise error_of(refused) from refused


async def say_media(
    requests: CallRequests, sid: CallSid, who: Identity, document: MediaDocument
) -> None:
    """Tells one party something of the sound. One that cannot be told any more is no loss: whoever
    waits for it gives up by itself."""
    content: JsonValue = document.model_dump(mode="json", exclude_none=True)
    try:
        await deliver(requests, new_message(sid, content, MEDIA_MESSAGE_TYPE, [who]))
    except (CallError, InvalidInput) as error:
        log.warning("media document not said", kind=document.kind, to=who, error=str(error))


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


async def rate(
    requests: CallRequests, sid: CallSid, score: int | None, issue: str | None
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
    try:
        await requests.ask(feedback, within=_WITHIN)
    except RequestRefused as refused:
        raise error_of(refused) from refused
    return known


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
