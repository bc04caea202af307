"""`/v1/calls`: making calls, looking at them, and what is done to them."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response

from push.api.services import ActorDep, Services, ServicesDep
from push.auth import Actor
from push.calls import Invite
from push.invites import invite_from_json, invite_from_twiml, invite_more_command
from push.messages import message_command
from signaling.answers import CallAnswer, CallListAnswer, MessageAnswer
from signaling.commands import (
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
from signaling.errors import Forbidden, InvalidInput
from signaling.identifiers import CallSid, CallSidField, DeviceId, Identity, IdentityField
from signaling.requests import (
    FeedbackRequest,
    InviteMoreRequest,
    InviteRequest,
    MessageRequest,
    OperationRequest,
    RejectRequest,
)
from signaling.twiml import parse_twiml

router = APIRouter(prefix="/v1/calls", tags=["calls"])

SidPath = Annotated[CallSidField, Path(description="`CA` and 32 hex digits")]
IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255)]
_XML = ("application/xml", "text/xml")

_INVITE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/InviteRequest"}},
            **{
                xml: {"schema": {"type": "string", "description": "TwiML: `<Response><Dial>...`"}}
                for xml in _XML
            },
        },
    }
}


@router.post("", status_code=201, openapi_extra=_INVITE_BODY)
async def create(
    request: Request,
    response: Response,
    services: ServicesDep,
    actor: ActorDep,
    idempotency_key: IdempotencyKey = None,
) -> CallAnswer:
    """Makes a call and rings every device of the invitees. The body is JSON or TwiML."""
    invite = await _invite(request, services, actor, idempotency_key)
    created = await services.calls.create(invite)
    if created.repeated:
        response.headers["Idempotent-Replayed"] = "true"
    return CallAnswer.of(created.call)


@router.get("")
async def list_calls(
    services: ServicesDep,
    actor: ActorDep,
    identity: Annotated[IdentityField | None, Query(description="Whose calls")] = None,
    count: Annotated[int, Query(ge=1, description="Over 100 counts as 100")] = 20,
    next_: Annotated[
        int, Query(alias="next", ge=0, le=2**63 - 1, description="0 from the newest")
    ] = 0,
) -> CallListAnswer:
    """Calls, newest first. A token sees its identity's; an API key sees all, or one identity's."""
    if actor.identity is not None and identity not in (None, actor.identity):
        raise Forbidden("a token lists the calls of its own identity only")
    whose = actor.identity or (None if identity is None else Identity(identity))
    calls, following = await services.calls.list_of(whose, count=count, before=next_)
    return CallListAnswer(calls=tuple(map(CallAnswer.of, calls)), next=following)


@router.get("/{call_sid}")
async def show(call_sid: SidPath, services: ServicesDep, actor: ActorDep) -> CallAnswer:
    """A call as it stands."""
    return CallAnswer.of(await services.calls.show(CallSid(call_sid), actor))


@router.post("/{call_sid}/received")
async def received(
    call_sid: SidPath,
    services: ServicesDep,
    actor: ActorDep,
    body: OperationRequest | None = None,
) -> CallAnswer:
    """A device confirms that the invite arrived."""
    identity, device, _ = _who(actor, body)
    return await _carry_out(services, call_sid, Received(identity, device, services.calls.now()))


@router.post("/{call_sid}/accept")
async def accept(
    call_sid: SidPath,
    services: ServicesDep,
    actor: ActorDep,
    body: OperationRequest | None = None,
) -> CallAnswer:
    """Accepts for an identity; the first of its devices to answer becomes its main device."""
    identity, device, data = _who(actor, body)
    command = Accept(identity, device, services.calls.now(), data)
    return await _carry_out(services, call_sid, command)


@router.post("/{call_sid}/reject")
async def reject(
    call_sid: SidPath,
    services: ServicesDep,
    actor: ActorDep,
    body: RejectRequest | None = None,
) -> CallAnswer:
    """Rejects for an identity, with status `rejected` or `busy`."""
    body = body or RejectRequest()
    identity, device, data = _who(actor, body)
    command = Reject(identity, device, services.calls.now(), body.status, data)
    return await _carry_out(services, call_sid, command)


@router.post("/{call_sid}/ignore")
async def ignore(
    call_sid: SidPath,
    services: ServicesDep,
    actor: ActorDep,
    body: OperationRequest | None = None,
) -> CallAnswer:
    """One device falls silent; the caller hears ringing on and the others ring on."""
    identity, device, _ = _who(actor, body)
    return await _carry_out(services, call_sid, Ignore(identity, device, services.calls.now()))


@router.post("/{call_sid}/cancel")
async def cancel(
    call_sid: SidPath,
    services: ServicesDep,
    actor: ActorDep,
    body: OperationRequest | None = None,
) -> CallAnswer:
    """Withdraws the invitations while nobody has accepted: the caller may, and a server."""
    body = body or OperationRequest()
    identity, _ = _who_or_server(actor, body)
    command = Cancel(identity, services.calls.now(), body.extended_data)
    return await _carry_out(services, call_sid, command)


@router.post("/{call_sid}/invite")
async def invite_more(
    call_sid: SidPath, services: ServicesDep, actor: ActorDep, body: InviteMoreRequest
) -> CallAnswer:
    """Invites more users into a call in advanced mode: who is in it may, and a server."""
    identity, device = _who_or_server(actor, body)
    command = invite_more_command(body, identity, device, at=services.calls.now())
    return await _carry_out(services, call_sid, command)


@router.post("/{call_sid}/join")
async def join(
    call_sid: SidPath,
    services: ServicesDep,
    actor: ActorDep,
    body: OperationRequest | None = None,
) -> CallAnswer:
    """Comes into a call in advanced mode uninvited, comes back, or takes it over on another device."""
    identity, device, data = _who(actor, body)
    return await _carry_out(services, call_sid, Join(identity, device, services.calls.now(), data))


@router.post("/{call_sid}/quit")
async def quit_call(
    call_sid: SidPath,
    services: ServicesDep,
    actor: ActorDep,
    body: OperationRequest | None = None,
) -> CallAnswer:
    """Hangs up: the user leaves the call. With fewer than two left, the call has ended."""
    identity, device, data = _who(actor, body)
    return await _carry_out(services, call_sid, Quit(identity, device, services.calls.now(), data))


@router.post("/{call_sid}/end")
async def end(
    call_sid: SidPath,
    services: ServicesDep,
    actor: ActorDep,
    body: OperationRequest | None = None,
) -> CallAnswer:
    """Ends the call: in advanced mode for all, in common mode it hangs up, as `quit` does. A server
    that names no identity ends either for all."""
    body = body or OperationRequest()
    identity, device = _who_or_server(actor, body)
    command = End(identity, device, services.calls.now(), body.extended_data)
    return await _carry_out(services, call_sid, command)


@router.post("/{call_sid}/messages")
async def message(
    call_sid: SidPath,
    services: ServicesDep,
    actor: ActorDep,
    body: MessageRequest,
    idempotency_key: IdempotencyKey = None,
) -> MessageAnswer:
    """Tells the other parties something; a server that names no identity tells all."""
    identity, device = _who_or_server(actor, body)
    command = message_command(
        body,
        actor,
        identity,
        device,
        at=services.calls.now(),
        idempotency_key=idempotency_key,
    )
    answer = await _carry_out(services, call_sid, command)
    return MessageAnswer(**answer.model_dump(), voice_event_sid=command.voice_event_sid)


@router.post("/{call_sid}/feedback")
async def rate(
    call_sid: SidPath, services: ServicesDep, actor: ActorDep, body: FeedbackRequest
) -> CallAnswer:
    """Says how good the call was, in place of what the same device said before."""
    identity, device = actor.acting_as(body.identity, body.device_id)
    call = await services.calls.rate(CallSid(call_sid), identity, device, body)
    return CallAnswer.of(call)


async def _invite(
    request: Request, services: Services, actor: Actor, idempotency_key: str | None
) -> Invite:
    body = await request.body()
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type in _XML:
        return invite_from_twiml(
            parse_twiml(body),
            actor,
            new_sid=services.calls.new_sid,
            at=services.calls.now(),
            idempotency_key=idempotency_key,
        )
    if media_type not in ("", "application/json"):
        raise InvalidInput(
            f"Content-Type {media_type[:80]}: send application/json, or application/xml for TwiML"
        )
    return invite_from_json(
        InviteRequest.model_validate_json(body),
        actor,
        new_sid=services.calls.new_sid,
        at=services.calls.now(),
        check_after_s=services.settings.not_received_after_s,
        idempotency_key=idempotency_key,
    )


async def _carry_out(services: Services, call_sid: str, command: Command) -> CallAnswer:
    return CallAnswer.of(await services.calls.carry_out(CallSid(call_sid), command))


def _who(actor: Actor, body: OperationRequest | None) -> tuple[Identity, DeviceId | None, str]:
    """As whom an operation is done, and the extended data it carries."""
    body = body or OperationRequest()
    return *actor.acting_as(body.identity, body.device_id), body.extended_data


def _who_or_server(
    actor: Actor, body: InviteMoreRequest | MessageRequest | OperationRequest
) -> tuple[Identity | None, DeviceId | None]:
    """As whom an operation is done that a server may do on nobody's behalf."""
    if actor.is_server and body.identity is None:
        return None, None
    return actor.acting_as(body.identity, body.device_id)
