"""Refusals as problem documents (RFC 9457): the one place where an error becomes an answer, over HTTP with
the headers that belong to it."""

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import ValidationError

from bellwire.signaling.errors import (
    ERROR_TABLE,
    BadGateway,
    CallNotFound,
    CallRejected,
    Conflict,
    Forbidden,
    GatewayTimeout,
    HeadTooLarge,
    HungUp,
    InvalidInput,
    NobodyToCall,
    NotFound,
    OperationRefused,
    Refusal,
    TooLarge,
    TooManyRequests,
    TooSlow,
    Unauthenticated,
    Unavailable,
)
from bellwire.signaling.wire.answers import Problem

MEDIA_TYPE = "application/problem+json"

_STATUS: dict[type[Refusal], HTTPStatus] = {
    InvalidInput: HTTPStatus.UNPROCESSABLE_ENTITY,
    TooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HeadTooLarge: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    TooSlow: HTTPStatus.REQUEST_TIMEOUT,
    Unauthenticated: HTTPStatus.UNAUTHORIZED,
    Forbidden: HTTPStatus.FORBIDDEN,
    CallNotFound: HTTPStatus.NOT_FOUND,
    NobodyToCall: HTTPStatus.NOT_FOUND,
    NotFound: HTTPStatus.NOT_FOUND,
    Conflict: HTTPStatus.CONFLICT,
    OperationRefused: HTTPStatus.CONFLICT,
    TooManyRequests: HTTPStatus.TOO_MANY_REQUESTS,
    Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    CallRejected: HTTPStatus.FORBIDDEN,
    HungUp: HTTPStatus.CONFLICT,
    BadGateway: HTTPStatus.BAD_GATEWAY,
    GatewayTimeout: HTTPStatus.GATEWAY_TIMEOUT,
}


def problem_of(refusal: Refusal) -> Problem:
    """The problem document of a refusal; where it has a code, with what the error table says of that."""
    kind = None if refusal.code is None else ERROR_TABLE[refusal.code]
    return Problem(
        type=problem_type(refusal.slug),
        title=refusal.title,
        status=_STATUS[type(refusal)],
        detail=refusal.detail,
        code=refusal.code,
        explanation=None if kind is None else kind.explanation,
        causes=None if kind is None else kind.causes,
        solutions=None if kind is None else kind.solutions,
        **refusal.fields,
    )


def problem_of_validation(error: ValidationError, *within: str) -> Problem:
    """The problem document of a body that is not what its schema takes; `errors` names each place,
    as it stands `within`."""
    return invalid_body(
        [
            {
                "at": ".".join(str(part) for part in (*within, *problem["loc"])),
                "problem": problem["msg"],
            }
            for problem in error.errors(
                include_url=False, include_input=False, include_context=False
            )
        ]
    )


def invalid_body(errors: list[dict[str, str]]) -> Problem:
    """The problem document of a bad body, its places known."""
    return Problem(
        type=problem_type(InvalidInput.slug),
        title=InvalidInput.title,
        status=HTTPStatus.UNPROCESSABLE_ENTITY,
        detail="; ".join(f"{e['at'] or 'body'}: {e['problem']}" for e in errors[:5]),
        errors=errors[:50],
    )


def problem_of_defect() -> Problem:
    """The problem document of what should not happen; the relay's log says more."""
    kind = ERROR_TABLE[31500]
    return Problem(
        type=problem_type("internal"),
        title=kind.description,
        status=HTTPStatus.INTERNAL_SERVER_ERROR,
        detail="the relay failed; its log says more",
        code=kind.code,
        explanation=kind.explanation,
        causes=kind.causes,
        solutions=kind.solutions,
    )


def problem_type(slug: str) -> str:
    """The URI reference that names a kind of problem; docs/http.md describes each."""
    return f"/problems/{slug}"


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """A problem document as a response."""
    return JSONResponse(
        problem.model_dump(mode="json", exclude_none=True),
        status_code=problem.status,
        media_type=MEDIA_TYPE,
        headers=dict(headers or {}),
    )


def refusal_response(refusal: Refusal) -> JSONResponse:
    """The response to a request that is refused."""
    problem = problem_of(refusal)
    headers = {"WWW-Authenticate": "Bearer"} if problem.status == 401 else {}
    if problem.status == 503:
        headers["Retry-After"] = "1"
    if isinstance(refusal, TooManyRequests):
        headers["Retry-After"] = str(max(1, math.ceil(refusal.retry_after_s)))
    return problem_response(problem, headers)


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": description}
    for status, description in {
        401: "No credentials, or bad ones",
        403: "The credentials do not reach this far, or the call is somebody else's",
        404: "There is no such thing, or nobody to call",
        409: "The state does not allow the operation",
        413: "The body, or the invite on one of its channels, is too large",
        422: "The request is not valid",
        429: "More is asked for an app or a device than it may be: `Retry-After` says when to ask again",
        503: "The relay cannot do this now",
    }.items()
}
"""The refusals that a route may give, as its OpenAPI description has them."""

REFUSALS_BY_BACKEND: dict[int | str, dict[str, Any]] = {
    502: {"model": Problem, "description": "The backend, asked whom to ring, gave no good answer"},
    504: {"model": Problem, "description": "The backend, asked whom to ring, was silent"},
}
"""The same, of the route that asks a backend."""
