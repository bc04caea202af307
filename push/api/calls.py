"""`/v1/calls`: made, moved and looked at; and what they are connected by. What can be asked of a call stands
in `signaling.wire.operations`, and how it is carried out in `push.calls.operations`."""

from enum import Enum
from functools import partial
from inspect import Parameter, Signature
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from pydantic import AwareDatetime

from bellwire.push.access.tokens import Actor
from bellwire.push.api.call_route import CallRoute, media_type
from bellwire.push.api.query import refuse_unknown_query
from bellwire.push.api.who_asks import ActorDep, AnyActorDep, RelayDep, settle_device
from bellwire.push.calls.invites import Invite, invite_from_json, invite_from_twiml
from bellwire.push.calls.operations import carry_out
from bellwire.push.delivery.owed import report_deliveries
from bellwire.push.devices.insights import insights_document
from bellwire.push.parts import Relay
from bellwire.push.problems import REFUSALS, REFUSALS_BY_BACKEND
from bellwire.push.store.rows.calls import CallFilter
from bellwire.push.store.tables import from_ms
from bellwire.signaling.calls.calls import CallState
from bellwire.signaling.errors import Forbidden, InvalidInput
from bellwire.signaling.identifiers import CallSid, CallSidField, Identity, IdentityField
from bellwire.signaling.twiml import parse_twiml
from bellwire.signaling.wire.answers import (
    CallAnswer,
    CallDeliveriesAnswer,
    CallFeedbackAnswer,
    CallInsightsAnswer,
    CallListAnswer,
    FeedbackAnswer,
    IceServersAnswer,
    RoomAnswer,
)
from bellwire.signaling.wire.operations import (
    OPERATIONS,
    AsWhom,
    DeviceIceServers,
    DeviceRoom,
    InviteRequest,
    Operation,
    RoomRequest,
)

SidPath = Annotated[CallSidField, Path(description="`CA` and 32 hex digits")]
IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255)]

_JSON = "application/json"
_XML = ("application/xml", "text/xml")
_INVITE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            _JSON: {"schema": {"$ref": "#/components/schemas/InviteRequest"}},
            **{
                xml: {"schema": {"type": "string", "description": "TwiML: `<Response><Dial>...`"}}
                for xml in _XML
            },
        },
    }
}


router = APIRouter(responses=REFUSALS, dependencies=[Depends(refuse_unknown_query)])
ice = APIRouter(tags=["media"], responses=REFUSALS)

_TAGS: list[str | Enum] = ["calls"]


async def create(
    request: Request,
    relay: RelayDep,
    actor: ActorDep,
    idempotency_key: IdempotencyKey = None,
) -> Any:  # noqa: ANN401 - a CallAnswer, or the response with one
    """Makes a call and rings every device of the invitees. The body is JSON or TwiML."""
    body = await request.body()
    invite = _invite(relay, actor, request.headers.get("content-type"), body, idempotency_key)
    created = await relay.calls.routing.create(invite)
    answer = CallAnswer.of(created.call)
    if not created.repeated:
        return answer
    return Response(
        answer.model_dump_json(by_alias=True),
        status_code=201,
        headers={"Idempotent-Replayed": "true"},
        media_type=_JSON,
    )


def _invite(
    relay: Relay, actor: Actor, content_type: str | None, body: bytes, key: str | None
) -> Invite:
    calls, shown = relay.calls.calls, media_type(content_type)
    if shown in _XML:
        settings = relay.ground.settings
        dial = parse_twiml(body, settings.voice_url)
        if dial.asks_backend and settings.twilio_auth_token_file is None:
            raise InvalidInput(
                "`action` and `statusCallback` need a relay that can sign: set twilio_auth_token_file"
            )
        return invite_from_twiml(
            dial, actor, new_sid=calls.new_sid, at=calls.now(), idempotency_key=key
        )
    if shown not in ("", _JSON):
        raise InvalidInput(
            f"Content-Type {shown[:80]}: send application/json, or application/xml for TwiML"
        )
    return invite_from_json(
        InviteRequest.model_validate_json(body),
        actor,
        new_sid=calls.new_sid,
        at=calls.now(),
        check_after_s=relay.ground.settings.not_received_after_s,
        idempotency_key=key,
    )


router.add_api_route(
    "/v1/calls",
    create,
    methods=["POST"],
    tags=_TAGS,
    status_code=201,
    response_model=CallAnswer,
    openapi_extra=_INVITE_BODY,
    responses=REFUSALS_BY_BACKEND,
    route_class_override=CallRoute,
)


@router.get("/v1/calls", tags=_TAGS)
async def list_calls(
    relay: RelayDep,
    actor: ActorDep,
    identity: Annotated[IdentityField | None, Query(description="Whose calls")] = None,
    state: Annotated[CallState | None, Query(description="Those in this state")] = None,
    since: Annotated[
        AwareDatetime | None, Query(description="Those made then or later (RFC 3339)")
    ] = None,
    until: Annotated[AwareDatetime | None, Query(description="Those made before then")] = None,
    count: Annotated[int, Query(ge=1, description="Over 100 counts as 100")] = 20,
    next_: Annotated[
        int, Query(alias="next", ge=0, le=2**63 - 1, description="0 from the newest")
    ] = 0,
) -> CallListAnswer:
    """Calls, newest first. A token sees its identity's; an API key sees all, or one identity's. A cursor
    goes on with the same filters."""
    if actor.identity is not None and identity not in (None, actor.identity):
        raise Forbidden("a token lists the calls of its own identity only")
    whose = actor.identity or (None if identity is None else Identity(identity))
    only = CallFilter(state, since, until)
    calls, following = await relay.calls.calls.list_of(whose, count=count, before=next_, only=only)
    return CallListAnswer(calls=tuple(map(CallAnswer.of, calls)), next=following)


@router.get("/v1/calls/{call_sid}", tags=_TAGS)
async def show(call_sid: SidPath, relay: RelayDep, actor: ActorDep) -> CallAnswer:
    """A call as it stands."""
    return CallAnswer.of(await relay.calls.calls.show(CallSid(call_sid), actor))


class _Endpoint:
    """The endpoint of an operation on a call. What it takes, FastAPI sees by its signature."""

    def __init__(self, operation: Operation, model: type[AsWhom]) -> None:
        self._operation = operation
        self._model = model
        takes: dict[str, Any] = {
            "call_sid": SidPath,
            "relay": RelayDep,
            "actor": ActorDep,
            "body": model if operation.body_required else model | None,
        }
        if operation.takes_idempotency_key:
            takes["idempotency_key"] = IdempotencyKey
        may_be_absent = {"idempotency_key"} if operation.body_required else {"body"}
        self.__signature__ = Signature(
            [
                Parameter(
                    name,
                    Parameter.KEYWORD_ONLY,
                    annotation=annotation,
                    default=None if name in may_be_absent else Parameter.empty,
                )
                for name, annotation in takes.items()
            ]
        )

    async def __call__(
        self,
        *,
        relay: Relay,
        actor: Actor,
        call_sid: str,
        body: AsWhom | None = None,
        idempotency_key: str | None = None,
    ) -> CallAnswer:
        """Carries it out."""
        asked = self._model() if body is None else body
        await settle_device(relay, actor, asked.device_id)
        return await carry_out(
            relay.calls.calls,
            self._operation,
            asked,
            actor,
            CallSid(call_sid),
            idempotency_key=idempotency_key,
        )


_NAMES = {"invite_more": "invite", "quit": "quit_call", "feedback": "rate"}
"""What the OpenAPI document calls an operation, where that is not its name: clients are made from it."""


def _serve_operations() -> None:
    for operation in OPERATIONS.values():
        if operation.path is None or operation.body in (None, RoomRequest):
            continue
        router.add_api_route(
            operation.path,
            _Endpoint(operation, operation.body),
            methods=[operation.method],
            tags=_TAGS,
            name=_NAMES.get(operation.name, operation.name),
            description=operation.meaning,
            response_model=operation.answer,
            route_class_override=CallRoute,
        )


_serve_operations()


@router.get("/v1/calls/{call_sid}/deliveries", tags=_TAGS)
async def deliveries(call_sid: SidPath, relay: RelayDep, actor: ActorDep) -> CallDeliveriesAnswer:
    """What became of a call's events, by device and channel. A token sees its identity's devices."""
    call = await relay.calls.calls.show(CallSid(call_sid), actor)
    return await relay.ground.database.read(
        partial(report_deliveries, call=call, whose=actor.identity, now=relay.calls.calls.now())
    )


@router.get("/v1/calls/{call_sid}/feedback", tags=_TAGS)
async def feedback(call_sid: SidPath, relay: RelayDep, actor: ActorDep) -> CallFeedbackAnswer:
    """What was said of a call's quality. A token sees its identity's."""
    rows = await relay.calls.calls.feedback_of(CallSid(call_sid), actor)
    return CallFeedbackAnswer(
        call_sid=call_sid,
        feedback=tuple(
            FeedbackAnswer(
                identity=row.identity,
                device_id=row.device_id or None,
                score=row.score,
                issue=row.issue,
                at=from_ms(row.at_ms),
            )
            for row in rows
        ),
    )


@router.get("/v1/calls/{call_sid}/insights", tags=_TAGS, response_model=CallInsightsAnswer)
async def insights(call_sid: SidPath, relay: RelayDep, actor: ActorDep) -> Response:
    """What devices told of a call: codec, quality warnings, errors, what was pressed. A token sees its
    identity's devices."""
    rows = await relay.calls.calls.insights_of(CallSid(call_sid), actor)
    return Response(insights_document(call_sid, rows), media_type="application/json")


@router.post(
    "/v1/calls/{call_sid}/room", tags=["media"], description=OPERATIONS[DeviceRoom].meaning
)
async def room(
    call_sid: SidPath, body: RoomRequest, relay: RelayDep, actor: ActorDep
) -> RoomAnswer:
    """Brings a user's sound to the room of a call."""
    await settle_device(relay, actor, body.device_id)
    identity, device = actor.acting_as(body.identity, body.device_id)
    sid = CallSid(call_sid)
    sdp = await relay.calls.rooms.enter(
        sid, identity, device, body.sdp, actor.attestation, by_server=actor.is_server
    )
    return RoomAnswer(sdp=sdp)


@ice.get("/v1/ice-servers", description=OPERATIONS[DeviceIceServers].meaning)
async def ice_servers(relay: RelayDep, actor: AnyActorDep) -> IceServersAnswer:
    """The servers to connect calls by."""
    return relay.calls.ice_servers.of(actor)
