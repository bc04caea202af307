"""What is done to a call over HTTP: each operation's body, who may do it, and what it comes to."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel

from bellwire.push.access.tokens import Actor
from bellwire.push.api.services import Services
from bellwire.push.calls.invites import invite_more_command, message_command
from bellwire.signaling.calls.commands import (
    Accept,
    Cancel,
    Command,
    End,
    Ignore,
    Join,
    Quit,
    Received,
    Reject,
)
from bellwire.signaling.identifiers import CallSid, DeviceId, Identity
from bellwire.signaling.wire.answers import CallAnswer, MessageAnswer
from bellwire.signaling.wire.requests import (
    FeedbackRequest,
    InviteMoreRequest,
    MessageRequest,
    OperationRequest,
    ReceivedRequest,
    RejectRequest,
)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request for an operation: by whom, on which call, and under which Idempotency-Key."""

    services: Services
    actor: Actor
    call_sid: CallSid
    idempotency_key: str | None = None

    async def carry_out(self, command: Command) -> CallAnswer:
        """The call, moved by a command."""
        return CallAnswer.of(await self.services.calls.carry_out(self.call_sid, command))


class Carry(Protocol):
    """Does an operation. Its docstring is the operation's description."""

    __name__: str
    __doc__: str | None

    def __call__(self, asked: Asked, body: Any) -> Awaitable[CallAnswer]:  # noqa: ANN401 - its own body model
        """The answer."""
        ...


@dataclass(frozen=True, slots=True)
class CallOperation:
    """An operation: its path under a call, what its body is, and what does it."""

    name: str
    carry: Carry
    body: type[BaseModel]
    body_required: bool = False
    answer: type[CallAnswer] = CallAnswer
    takes_idempotency_key: bool = False

    @property
    def path(self) -> str:
        """The route, as documents and metrics name it."""
        return f"/v1/calls/{{call_sid}}/{self.name}"


CALL_OPERATIONS: dict[str, CallOperation] = {}


def _operation(
    name: str,
    body: type[BaseModel] = OperationRequest,
    *,
    body_required: bool = False,
    answer: type[CallAnswer] = CallAnswer,
    takes_idempotency_key: bool = False,
) -> Callable[[Carry], Carry]:
    def keep(carry: Carry) -> Carry:
        CALL_OPERATIONS[name] = CallOperation(
            name, carry, body, body_required, answer, takes_idempotency_key
        )
        return carry

    return keep


@_operation("received", ReceivedRequest)
async def received(asked: Asked, body: ReceivedRequest) -> CallAnswer:
    """A device confirms that the invite arrived; the first to name its channel tells how long it took."""
    identity, device = asked.actor.acting_as(body.identity, body.device_id)
    now, attestation = asked.services.calls.now(), asked.actor.attestation
    return await asked.carry_out(
        Received(identity, device, now, body.channel, body.app or "", attestation)
    )


@_operation("accept")
async def accept(asked: Asked, body: OperationRequest) -> CallAnswer:
    """Accepts for an identity; the first of its devices to answer becomes its main device."""
    return await _do(asked, Accept, body)


@_operation("reject", RejectRequest)
async def reject(asked: Asked, body: RejectRequest) -> CallAnswer:
    """Rejects for an identity, with status `rejected` or `busy`."""
    identity, device = asked.actor.acting_as(body.identity, body.device_id)
    return await asked.carry_out(
        Reject(
            identity,
            device,
            asked.services.calls.now(),
            body.status,
            body.extended_data,
            asked.actor.attestation,
            bool(body.automatic),
        )
    )


@_operation("ignore")
async def ignore(asked: Asked, body: OperationRequest) -> CallAnswer:
    """One device falls silent; the caller hears ringing on and the others ring on."""
    identity, device = asked.actor.acting_as(body.identity, body.device_id)
    return await asked.carry_out(Ignore(identity, device, asked.services.calls.now()))


@_operation("cancel")
async def cancel(asked: Asked, body: OperationRequest) -> CallAnswer:
    """Withdraws the invitations while nobody has accepted: the caller may, and a server."""
    identity, _ = _who_or_server(asked.actor, body)
    return await asked.carry_out(Cancel(identity, asked.services.calls.now(), body.extended_data))


@_operation("invite", InviteMoreRequest, body_required=True)
async def invite(asked: Asked, body: InviteMoreRequest) -> CallAnswer:
    """Invites more users into a call in advanced mode: who is in it may, and a server."""
    identity, device = _who_or_server(asked.actor, body)
    now = asked.services.calls.now()
    return await asked.carry_out(invite_more_command(body, asked.actor, identity, device, at=now))


@_operation("join")
async def join(asked: Asked, body: OperationRequest) -> CallAnswer:
    """Comes into a call in advanced mode uninvited, comes back, or takes it over on another device."""
    return await _do(asked, Join, body)


@_operation("quit")
async def quit_call(asked: Asked, body: OperationRequest) -> CallAnswer:
    """Hangs up: the user leaves the call. With fewer than two left, the call has ended."""
    return await _do(asked, Quit, body)


@_operation("end")
async def end(asked: Asked, body: OperationRequest) -> CallAnswer:
    """Ends the call: in advanced mode for all, in common mode it hangs up, as `quit` does. A server
    that names no identity ends either for all."""
    identity, device = _who_or_server(asked.actor, body)
    now, attestation = asked.services.calls.now(), asked.actor.attestation
    return await asked.carry_out(End(identity, device, now, body.extended_data, attestation))


@_operation(
    "messages",
    MessageRequest,
    body_required=True,
    answer=MessageAnswer,
    takes_idempotency_key=True,
)
async def message(asked: Asked, body: MessageRequest) -> MessageAnswer:
    """Tells the other parties something; a server that names no identity tells all."""
    identity, device = _who_or_server(asked.actor, body)
    command = message_command(
        body,
        asked.actor,
        identity,
        device,
        at=asked.services.calls.now(),
        idempotency_key=asked.idempotency_key,
    )
    answer = await asked.carry_out(command)
    return MessageAnswer(**answer.model_dump(), voice_event_sid=command.voice_event_sid)


@_operation("feedback", FeedbackRequest, body_required=True)
async def rate(asked: Asked, body: FeedbackRequest) -> CallAnswer:
    """Says how good the call was, in place of what the same device said before."""
    identity, device = asked.actor.acting_as(body.identity, body.device_id)
    return CallAnswer.of(await asked.services.calls.rate(asked.call_sid, identity, device, body))


async def _do(
    asked: Asked, command: type[Accept | Join | Quit], body: OperationRequest
) -> CallAnswer:
    identity, device = asked.actor.acting_as(body.identity, body.device_id)
    now, attestation = asked.services.calls.now(), asked.actor.attestation
    return await asked.carry_out(command(identity, device, now, body.extended_data, attestation))


def _who_or_server(
    actor: Actor, body: InviteMoreRequest | MessageRequest | OperationRequest
) -> tuple[Identity | None, DeviceId | None]:
    """As whom an operation is done that a server may do on nobody's behalf."""
    if actor.is_server and body.identity is None:
        return None, None
    return actor.acting_as(body.identity, body.device_id)
