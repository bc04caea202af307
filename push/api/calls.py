"""`/v1/calls`: making calls, looking at them, and what is done to them."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response

from push.api.services import ActorDep, Services, ServicesDep
from push.auth import Actor
from push.calls import Invite
from push.invites import invite_from_json, invite_from_twiml
from signaling.answers import CallAnswer, CallListAnswer
from signaling.errors import Forbidden, InvalidInput
from signaling.identifiers import CallSid, CallSidField, DeviceId, Identity, IdentityField
from signaling.requests import InviteRequest, OperationRequest, RejectRequest
from signaling.rules import Accept, Cancel, Command, End, Quit, Received, Reject
from signaling.twiml import parse_twiml

router = APIRouter(prefix="/v1/calls", tags=["calls"])

SidPath = Annotated[CallSidField, Path(description="`CA` and 32 hex digits")]
_XML = ("application/xml", "text/xml")

_INVITE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/InviteRequest"}},
            "application/xml": {
                "schema": {"type": "string", "description": "TwiML: `<Response><Dial><Client>`"}
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
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
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


@router.post("/{call_sid}/cancel")
async def cancel(
    call_sid: SidPath,
    services: ServicesDep,
    actor: ActorDep,
    body: OperationRequest | None = None,
) -> CallAnswer:
    """Withdraws the invitations while nobody has accepted: the caller may, and a server."""
    if actor.is_server and (body is None or body.identity is None):
        identity = None
    else:
        identity, _, _ = _who(actor, body)
    data = "" if body is None else body.extended_data
    return await _carry_out(services, call_sid, Cancel(identity, services.calls.now(), data))


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
    """Ends the call: in advanced mode for all, in common mode it hangs up, as `quit` does."""
    identity, device, data = _who(actor, body)
    return await _carry_out(services, call_sid, End(identity, device, services.calls.now(), data))


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
        idempotency_key=idempotency_key,
    )


async def _carry_out(services: Services, call_sid: str, command: Command) -> CallAnswer:
    return CallAnswer.of(await services.calls.carry_out(CallSid(call_sid), command))


def _who(actor: Actor, body: OperationRequest | None) -> tuple[Identity, DeviceId | None, str]:
    """As whom an operation is done, and the extended data it carries."""
    body = body or OperationRequest()
    return *actor.acting_as(body.identity, body.device_id), body.extended_data
