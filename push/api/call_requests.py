"""`POST /v1/calls` and `POST /v1/calls/{sid}/...`, answered before FastAPI comes into it.

These carry nearly all of a relay's load, and FastAPI's way to an endpoint (routing, dependencies,
two exit stacks, validation of what the endpoint itself has made) costs several times what they do.
FastAPI still describes them (`push.api.calls`), and answers everything else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from bellwire.push.access.tokens import Actor
from bellwire.push.api.call_operations import CALL_OPERATIONS, Asked, CallOperation
from bellwire.push.api.floods_first import count_unread_body
from bellwire.push.api.server.admission import let_in
from bellwire.push.api.services import (
    CALL_SCOPE,
    Services,
    authenticate_by,
    settle_device,
    take_turn,
)
from bellwire.push.calls.invites import Invite, invite_from_json, invite_from_twiml
from bellwire.push.problems import problem_of_validation, problem_response, refusal_response
from bellwire.signaling.errors import InvalidInput, Refusal
from bellwire.signaling.identifiers import parse_call_sid
from bellwire.signaling.twiml import parse_twiml
from bellwire.signaling.wire.answers import CallAnswer
from bellwire.signaling.wire.requests import InviteRequest

XML = ("application/xml", "text/xml")
_JSON = "application/json"
_IDEMPOTENCY_KEY_LIMIT = 255

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class _Creation:
    path: str = "/v1/calls"


_CREATION = _Creation()


class CallRequests:
    """Answers what is done to calls.

    Args:
        services: The relay's parts.
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request (ASGI) of those that `is_call_request` names."""
        route: CallOperation | _Creation = scope["route"]
        try:
            status, answer, headers = await self._answer(route, scope, receive)
        except ClientDisconnect:
            return
        except Refusal as refusal:
            await refusal_response(refusal)(scope, receive, send)
        except ValidationError as error:
            within = () if route is _CREATION else ("body",)
            await problem_response(problem_of_validation(error, *within))(scope, receive, send)
        else:
            body = answer.model_dump_json(by_alias=True).encode()
            length = (b"content-length", str(len(body)).encode())
            start: dict[str, Any] = {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"content-type", b"application/json"), length, *headers],
            }
            await send(start)
            await send({"type": "http.response.body", "body": body})

    async def _answer(
        self, route: CallOperation | _Creation, scope: Scope, receive: Receive
    ) -> tuple[int, BaseModel, Headers]:
        shown = _Shown(scope["headers"])
        try:
            actor = await authenticate_by(
                self._services, CALL_SCOPE, shown.authorization, shown.api_key, None
            )
        except Refusal as refusal:
            count_unread_body(self._services.metrics, scope, refusal)
            raise
        let_in(scope, actor.identity)
        take_turn(self._services, actor)
        if isinstance(route, _Creation):
            actor.may_reach(None)
            return await self._create(actor, shown, await _read(receive))
        call_sid = parse_call_sid(scope["path"].split("/")[3])
        actor.may_reach(call_sid)
        key = shown.idempotency_key() if route.takes_idempotency_key else None
        body = _body(route, shown, await _read(receive))
        if actor.token is not None:
            await settle_device(self._services, actor, getattr(body, "device_id", None))
        return 200, await route.carry(Asked(self._services, actor, call_sid, key), body), ()

    async def _create(
        self, actor: Actor, shown: "_Shown", body: bytes
    ) -> tuple[int, BaseModel, Headers]:
        created = await self._services.calls.create(self._invite(actor, shown, body))
        headers = ((b"idempotent-replayed", b"true"),) if created.repeated else ()
        return 201, CallAnswer.of(created.call), headers

    def _invite(self, actor: Actor, shown: "_Shown", body: bytes) -> Invite:
        calls, key = self._services.calls, shown.idempotency_key()
        if shown.media_type in XML:
            return invite_from_twiml(
                parse_twiml(body),
                actor,
                new_sid=calls.new_sid,
                at=calls.now(),
                idempotency_key=key,
            )
        if shown.media_type not in ("", _JSON):
            raise InvalidInput(
                f"Content-Type {shown.media_type[:80]}:"
                " send application/json, or application/xml for TwiML"
            )
        return invite_from_json(
            InviteRequest.model_validate_json(body),
            actor,
            new_sid=calls.new_sid,
            at=calls.now(),
            check_after_s=self._services.settings.not_received_after_s,
            idempotency_key=key,
        )


class _Shown:
    """The headers that matter here."""

    def __init__(self, headers: Headers) -> None:
        found = dict(headers)
        self.authorization = _text(found.get(b"authorization"))
        self.api_key = _text(found.get(b"x-api-key"))
        media_type = (_text(found.get(b"content-type")) or "").partition(";")[0]
        self.media_type = media_type.strip().lower()
        self._idempotency_key = _text(found.get(b"idempotency-key"))

    def idempotency_key(self) -> str | None:
        """The Idempotency-Key.

        Raises:
            InvalidInput: it is empty or too long.
        """
        key = self._idempotency_key
        if key is not None and not 1 <= len(key) <= _IDEMPOTENCY_KEY_LIMIT:
            raise InvalidInput(
                f"Idempotency-Key must be 1 to {_IDEMPOTENCY_KEY_LIMIT} characters, not {len(key)}"
            )
        return key


def _text(header: bytes | None) -> str | None:
    return None if header is None else header.decode("latin-1")


def is_call_request(scope: Scope) -> bool:
    """Whether this is one of the requests answered here; keeps which, as the scope's `route`."""
    route = _route(scope)
    if route is not None:
        scope["route"] = route
    return route is not None


def _route(scope: Scope) -> CallOperation | _Creation | None:
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    path: str = scope["path"]
    if path == _CREATION.path:
        return _CREATION
    parts = path.split("/")
    if len(parts) == 5 and parts[1] == "v1" and parts[2] == "calls":
        return CALL_OPERATIONS.get(parts[4])
    return None


def _body(route: CallOperation, shown: _Shown, body: bytes) -> BaseModel:
    if not body and not route.body_required:
        return route.body()
    if shown.media_type not in ("", _JSON):
        raise InvalidInput(f"Content-Type {shown.media_type[:80]}: send {_JSON}")
    return route.body.model_validate_json(body)


async def _read(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)
