"""How requests that make and move calls come to their endpoints: they carry nearly all of a relay's load.

FastAPI describes these routes as all others, but its way to an endpoint (dependencies, exit stacks,
validation of what the endpoint itself has made) costs several times what they do.
"""

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from bellwire.push.api.query import refuse_unknown
from bellwire.push.api.who_asks import CALL_SCOPE, authenticate_by, header_text, take_turn
from bellwire.push.parts import Relay
from bellwire.push.problems import problem_of_validation, problem_response, refusal_response
from bellwire.signaling.errors import InvalidInput, Refusal
from bellwire.signaling.identifiers import CallSid, parse_call_sid
from bellwire.signaling.wire.operations import OPERATIONS, Operation

_IDEMPOTENCY_KEY_LIMIT = 255


class CallRoute(APIRoute):
    """The route of an operation. Its endpoint is given by name what it takes: `relay` and `actor`;
    `call_sid` where the path has one; `body`, or the `request` where it reads that itself; and
    `idempotency_key`. It answers with a model, or with a response."""

    def __init__(self, path: str, *described: Any, **more: Any) -> None:  # noqa: ANN401 - as FastAPI's own
        super().__init__(path, *described, **more)
        (self._operation,) = (
            operation
            for operation in OPERATIONS.values()
            if (operation.path, {operation.method}) == (path, self.methods)
        )
        self.app = self._serve

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answer = await self._answer(scope, receive)
        except ClientDisconnect:
            return
        except Refusal as refusal:
            await refusal_response(refusal)(scope, receive, send)
        except ValidationError as error:
            within = () if self._operation.body is None else ("body",)
            await problem_response(problem_of_validation(error, *within))(scope, receive, send)
        else:
            if isinstance(answer, Response):
                await answer(scope, receive, send)
                return
            body = answer.model_dump_json(by_alias=True).encode()
            length = (b"content-length", b"%d" % len(body))
            start = {
                "type": "http.response.start",
                "status": self.status_code or 200,
                "headers": [(b"content-type", b"application/json"), length],
            }
            await send(start)
            await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, receive: Receive) -> BaseModel | Response:
        operation = self._operation
        relay: Relay = scope["app"].state.relay
        headers = dict(scope["headers"])
        actor = await authenticate_by(
            relay,
            scope,
            CALL_SCOPE,
            authorization=header_text(headers, b"authorization"),
            api_key=header_text(headers, b"x-api-key"),
        )
        take_turn(relay, actor)
        refuse_unknown(scope["query_string"], ())
        given: dict[str, Any] = {"relay": relay, "actor": actor}
        call_sid: CallSid | None = None
        if scope["path_params"]:
            given["call_sid"] = call_sid = parse_call_sid(scope["path_params"]["call_sid"])
        actor.may_reach(call_sid)
        if operation.takes_idempotency_key:
            given["idempotency_key"] = _key(header_text(headers, b"idempotency-key"))
        if operation.body is None:
            given["request"] = Request(scope, receive)
        else:
            content_type = header_text(headers, b"content-type")
            given["body"] = _parsed(operation, operation.body, content_type, await _read(receive))
        answer: BaseModel | Response = await self.endpoint(**given)
        return answer


class CallsFirst:
    """Has the routes of an application that are `CallRoute`s answer before what else the application does
    with a request: what FastAPI puts around all its routes, too, costs as much as moving a call.

    Args:
        app: Describes these routes, and serves all others.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._routes = {
            route.path.rpartition("/")[2]: route
            for route in app.routes
            if isinstance(route, CallRoute)
        }
        """By the last part of their paths."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request (ASGI)."""
        if scope["type"] == "http":
            route = self._routes.get(scope["path"].rpartition("/")[2])
            if route is not None:
                match, found = route.matches(scope)
                if match is Match.FULL:
                    scope.update(found, app=self._app)
                    await route.app(scope, receive, send)
                    return
        await self._app(scope, receive, send)


def media_type(content_type: str | None) -> str:
    """What a `Content-Type` names, "" where there is none."""
    return (content_type or "").partition(";")[0].strip().lower()


def _parsed(
    operation: Operation, model: type[BaseModel], content_type: str | None, body: bytes
) -> BaseModel:
    if not body and not operation.body_required:
        return model()
    shown = media_type(content_type)
    if shown not in ("", "application/json"):
        raise InvalidInput(f"Content-Type {shown[:80]}: send application/json")
    return model.model_validate_json(body)


def _key(shown: str | None) -> str | None:
    if shown is not None and not 1 <= len(shown) <= _IDEMPOTENCY_KEY_LIMIT:
        raise InvalidInput(
            f"Idempotency-Key must be 1 to {_IDEMPOTENCY_KEY_LIMIT} characters, not {len(shown)}"
        )
    return shown


async def _read(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)
