"""Problem documents as HTTP responses, with the headers that belong to them."""

from collections.abc import Mapping

from fastapi.responses import JSONResponse

from push.problems import MEDIA_TYPE, problem_of
from signaling.answers import Problem
from signaling.errors import Refusal


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
    return problem_response(problem, headers)
