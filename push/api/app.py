"""The HTTP interface as one ASGI application: routes, limits, and errors as problem documents."""

from importlib.metadata import version
from typing import Any

import structlog
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp

from bellwire.push.api import (
    calls,
    devices,
    events,
    groups,
    health,
    keys_and_tokens,
    twilio,
    webhooks,
)
from bellwire.push.api.before_routes import (
    BodyLimit,
    Counted,
    RateLimitFirst,
    WhoAsksFirst,
    shown_to_browsers,
)
from bellwire.push.api.call_route import CallsFirst
from bellwire.push.api.query import refuse_unknown_query
from bellwire.push.api.reference import serve_reference
from bellwire.push.parts import Relay
from bellwire.push.problems import (
    MEDIA_TYPE,
    REFUSALS,
    REFUSALS_BY_BACKEND,
    invalid_body,
    problem_of_defect,
    problem_of_validation,
    problem_response,
    problem_type,
    refusal_response,
)
from bellwire.signaling.errors import Refusal
from bellwire.signaling.wire.answers import Problem
from bellwire.signaling.wire.operations import InviteRequest

log = structlog.get_logger(__name__)

_DESCRIPTION = """\
Rings the devices of the people invited and settles who answered.

Show an API key (servers) or an access token (apps and devices) as `Authorization: Bearer ...`.
Errors are problem documents (RFC 9457), with Twilio's code where one fits.
"""


def served_app(relay: Relay) -> ASGIApp:
    """What a relay serves: the application, and what stands before its routes."""
    routes = build_app(relay)
    app: ASGIApp = BodyLimit(
        CallsFirst(routes), relay.ground.settings.max_body_bytes, relay.ground.metrics
    )
    app = RateLimitFirst(WhoAsksFirst(app, relay), relay)
    app = ServerErrorMiddleware(Counted(app, relay.ground.metrics), handler=_failed)
    return shown_to_browsers(app, relay.ground.settings.cors_origins)


def build_app(relay: Relay | None = None) -> FastAPI:
    """The application. Without a relay it serves nothing and only knows its own description."""
    app = FastAPI(
        title="Bellwire",
        version=version("bellwire"),
        summary="Call invitations on servers you own",
        description=_DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        dependencies=[Depends(refuse_unknown_query)],
        docs_url=None,
        redoc_url=None,
    )
    for router in (
        devices.router,
        groups.router,
        keys_and_tokens.tokens,
        keys_and_tokens.router,
        calls.ice,
        webhooks.router,
        twilio.router,
    ):
        app.include_router(router, responses=REFUSALS)
    app.include_router(events.router)
    app.include_router(health.router, responses={503: REFUSALS[503]})
    app.include_router(health.for_keys, responses=REFUSALS)
    _describe(app)
    _serve_the_description_made_once(app)
    serve_reference(app)
    app.router.routes[:0] = calls.router.routes
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    if relay is not None:
        app.state.relay = relay
    return app


def _describe(app: FastAPI) -> None:
    """Adds to the OpenAPI document what FastAPI cannot see: the body of `POST /v1/calls`, read raw."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schemas = document["components"]["schemas"]
        if "InviteRequest" not in schemas:
            schema = InviteRequest.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas["InviteRequest"] = schema
            # Every refusal is a problem document; FastAPI's own shape of a 422 is never sent.
            schemas.pop("HTTPValidationError", None)
            schemas.pop("ValidationError", None)
            for path in document["paths"].values():
                for operation in path.values():
                    _describe_refusals(operation["responses"])
        return document

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's documented way to extend it


def _serve_the_description_made_once(app: FastAPI) -> None:
    """FastAPI writes the document anew for each who asks, which takes as long as fifty calls."""
    made: list[bytes] = []

    async def description(request: Request) -> Response:
        del request
        if not made:
            made.append(to_json(app.openapi()))
        return Response(made[0], media_type="application/json")

    app.router.routes.insert(0, Route("/openapi.json", description, include_in_schema=False))


def _describe_refusals(responses: dict[str, Any]) -> None:
    for status, response in responses.items():
        if status in map(str, (*REFUSALS, *REFUSALS_BY_BACKEND)):
            response["content"] = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}


async def _refused(request: Request, error: Exception) -> JSONResponse:
    del request
    if not isinstance(error, Refusal):
        raise error
    return refusal_response(error)


_NO_ZONE = "write the time with its zone, such as 2026-11-21T08:00:00Z"


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    del request
    if isinstance(error, RequestValidationError):
        places = [
            {
                "at": ".".join(str(part) for part in e["loc"]),
                "problem": _NO_ZONE if e["type"] == "timezone_aware" else e["msg"],
            }
            for e in error.errors()
        ]
        return problem_response(invalid_body(places))
    if isinstance(error, ValidationError):
        return problem_response(problem_of_validation(error))
    raise error


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    del request
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == 400:
        # FastAPI's word for a body that it cannot even read as JSON.
        return problem_response(invalid_body([{"at": "body", "problem": "not valid JSON"}]))
    slugs = {404: "not-found", 405: "method-not-allowed", 413: "too-large"}
    problem = Problem(
        type=problem_type(slugs.get(error.status_code, "http")),
        title=error.detail,
        status=error.status_code,
        detail=f"{error.detail}: see /docs for what there is",
    )
    return problem_response(problem, error.headers)


async def _gone(request: Request, error: Exception) -> Response:
    del request, error
    return Response(
        status_code=400
    )  # nobody reads it: they left, or were too slow, with half a body


async def _failed(request: Request, error: Exception) -> JSONResponse:
    log.error(
        "request failed", path=request.url.path, error=type(error).__name__
    )  # uvicorn shows where
    return problem_response(problem_of_defect())


_HANDLERS = {
    Refusal: _refused,
    RequestValidationError: _invalid,
    ValidationError: _invalid,
    HTTPException: _http_error,
    ClientDisconnect: _gone,
    Exception: _failed,
}
