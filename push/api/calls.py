"""`/v1/calls`: looking at calls; and the description of what is done to them, which
`push.api.call_requests` answers."""

import inspect
from typing import Annotated, Any, NoReturn

from fastapi import APIRouter, Header, Path, Query

from bellwire.push.api.call_operations import CALL_OPERATIONS, CallOperation
from bellwire.push.api.call_requests import XML
from bellwire.push.api.services import ActorDep, ServicesDep
from bellwire.signaling.errors import Forbidden
from bellwire.signaling.identifiers import CallSid, CallSidField, Identity, IdentityField
from bellwire.signaling.wire.answers import CallAnswer, CallListAnswer

router = APIRouter(prefix="/v1/calls", tags=["calls"])

SidPath = Annotated[CallSidField, Path(description="`CA` and 32 hex digits")]
IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255)]

_INVITE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/InviteRequest"}},
            **{
                xml: {"schema": {"type": "string", "description": "TwiML: `<Response><Dial>...`"}}
                for xml in XML
            },
        },
    }
}


def _answered_before(*_: object) -> NoReturn:
    raise AssertionError("bellwire.push.api.call_requests answers this")


@router.post("", status_code=201, openapi_extra=_INVITE_BODY)
async def create(_: ActorDep, idempotency_key: IdempotencyKey = None) -> CallAnswer:
    """Makes a call and rings every device of the invitees. The body is JSON or TwiML."""
    _answered_before(idempotency_key)


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


def _describe(operation: CallOperation) -> None:
    """Has FastAPI describe an operation, and refuse other methods at its path."""

    async def plain(call_sid: SidPath, _: ActorDep, body: Any) -> Any:  # noqa: ANN401 - set below
        _answered_before(call_sid, body)

    async def idempotent(
        call_sid: SidPath,
        _: ActorDep,
        body: Any,  # noqa: ANN401
        idempotency_key: IdempotencyKey = None,
    ) -> Any:  # noqa: ANN401
        _answered_before(call_sid, body, idempotency_key)

    endpoint = idempotent if operation.takes_idempotency_key else plain
    body: Any = operation.body
    endpoint.__annotations__["body"] = body if operation.body_required else body | None
    if not operation.body_required:
        endpoint.__defaults__ = (None,)
    router.add_api_route(
        f"/{{call_sid}}/{operation.name}",
        endpoint,
        methods=["POST"],
        name=operation.carry.__name__,
        description=inspect.getdoc(operation.carry),
        response_model=operation.answer,
    )


for _operation in CALL_OPERATIONS.values():
    _describe(_operation)
