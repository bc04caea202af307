"""How what is asked of a call is carried out, whichever way it was asked for: over HTTP or by a device.

`COMMANDS` makes of each operation the command of the rules that it is; `carry_out` gives it to the call.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bellwire.push.access.tokens import Actor
from bellwire.push.calls.calls import Calls
from bellwire.push.calls.invites import invite_more_command, message_command
from bellwire.signaling.calls.calls import Attestation, RejectStatus
from bellwire.signaling.calls.commands import (
    Accept,
    Cancel,
    Command,
    End,
    Ignore,
    InviteMore,
    Join,
    Quit,
    Received,
    Reject,
    Say,
)
from bellwire.signaling.identifiers import CallSid, ChannelKind, DeviceId, Identity
from bellwire.signaling.wire.answers import CallAnswer, MessageAnswer, failed
from bellwire.signaling.wire.operations import (
    CancelFields,
    DataFields,
    DeviceReject,
    FeedbackFields,
    InviteMoreFields,
    MessageFields,
    Operation,
    ReceivedFields,
    RejectionStatus,
    RejectRequest,
    Who,
)
from bellwire.signaling.wire.requests import Request


@dataclass(slots=True)  # not frozen: that is made eight times slower, and each request makes one
class Asker:
    """Who asks for an operation, as whom, when, and how it came.

    Args:
        actor: Whose credentials were shown, or whose connection it is.
        named: As whom; None for a server that acts on nobody's behalf.
        device: On which device of theirs, if one is known.
        at: The relay's time.
        over: The live connection that it came over; None for HTTP.
        idempotency_key: The `Idempotency-Key` of an HTTP request.
    """

    actor: Actor
    named: Identity | None
    device: DeviceId | None
    at: datetime
    over: ChannelKind | None = None
    idempotency_key: str | None = None

    @property
    def identity(self) -> Identity:
        """As whom, for what nobody but a user does."""
        if self.named is None:
            raise AssertionError("`signaling.wire.operations` lets nobody ask for this unnamed")
        return self.named

    @property
    def attestation(self) -> Attestation:
        """How sure it is that who is named asks."""
        return self.actor.attestation


async def carry_out(
    calls: Calls,
    operation: Operation,
    asked: Request,
    actor: Actor,
    call_sid: CallSid,
    *,
    over: ChannelKind | None = None,
    idempotency_key: str | None = None,
) -> CallAnswer:
    """Carries out what is asked of a call, by a body or a device's document, and shows the call then.

    Raises:
        Forbidden: who asks may not, or not in this name.
        CallNotFound, OperationRefused, Unavailable: as `Calls.carry_out`.
    """
    named, device = _as_whom(operation, asked, actor)
    asker = Asker(actor, named, device, calls.now(), over, idempotency_key)
    if isinstance(asked, FeedbackFields):
        rated = await calls.rate(call_sid, asker.identity, device, asked, asker.attestation)
        return CallAnswer.of(rated)
    command = COMMANDS[operation.command](asked, asker)
    moved = await calls.moved(call_sid, command)
    if isinstance(command, Say):
        return MessageAnswer.of(moved.call, voice_event_sid=command.voice_event_sid)
    if isinstance(command, Cancel) and command.to is not None:
        return CallAnswer.of(moved.call, error_invitees=failed(moved.not_cancelled))
    return CallAnswer.of(moved.call)


def _as_whom(
    operation: Operation, asked: Request, actor: Actor
) -> tuple[Identity | None, DeviceId | None]:
    # A device's document has neither: that is known from its connection.
    identity: str | None = getattr(asked, "identity", None)
    device: str | None = getattr(asked, "device_id", None)
    if operation.who is Who.USER_OR_SERVER and actor.is_server and identity is None:
        return None, None
    return actor.acting_as(identity, device)


def _received(asked: ReceivedFields, by: Asker) -> Received:
    channel = asked.channel or by.over
    return Received(by.identity, by.device, by.at, channel, asked.app or "", by.attestation)


def _accept(asked: DataFields, by: Asker) -> Accept:
    return Accept(by.identity, by.device, by.at, asked.extended_data, by.attestation)


def _reject(asked: RejectRequest | DeviceReject, by: Asker) -> Reject | Cancel:
    if asked.status is RejectionStatus.CANCELLED:
        return Cancel(by.identity, by.at, asked.extended_data, attestation=by.attestation)
    return Reject(
        by.identity,
        by.device,
        by.at,
        RejectStatus(asked.status),
        asked.extended_data,
        by.attestation,
        bool(asked.automatic),
    )


def _ignore(_: Request, by: Asker) -> Ignore:
    return Ignore(by.identity, by.device, by.at)


def _cancel(asked: CancelFields, by: Asker) -> Cancel:
    itself = None if by.named is None else by.attestation
    to = None if asked.to is None else tuple(Identity(identity) for identity in asked.to)
    return Cancel(by.named, by.at, asked.extended_data, to, attestation=itself)


def _invite_more(asked: InviteMoreFields, by: Asker) -> InviteMore:
    return invite_more_command(asked, by.actor, by.named, by.device, at=by.at)


def _join(asked: DataFields, by: Asker) -> Join:
    return Join(by.identity, by.device, by.at, asked.extended_data, by.attestation)


def _quit(asked: DataFields, by: Asker) -> Quit:
    return Quit(
        by.identity, by.device, by.at, asked.extended_data, by.attestation, by.actor.is_server
    )


def _end(asked: DataFields, by: Asker) -> End:
    return End(by.named, by.device, by.at, asked.extended_data, by.attestation, by.actor.is_server)


def _say(asked: MessageFields, by: Asker) -> Say:
    return message_command(
        asked, by.actor, by.named, by.device, at=by.at, idempotency_key=by.idempotency_key
    )


COMMANDS: Mapping[type[Command] | None, Callable[[Any, Asker], Command]] = {
    Received: _received,
    Accept: _accept,
    Reject: _reject,
    Ignore: _ignore,
    Cancel: _cancel,
    InviteMore: _invite_more,
    Join: _join,
    Quit: _quit,
    End: _end,
    Say: _say,
}
"""Makes the command of what is asked: a body, or a device's document."""
