"""Problem documents as HTTP responses, with the headers that belong to them."""

import math
from collections.abc import Mapping

from fastapi.responses import JSONResponse

from push.problems import MEDIA_TYPE, problem_of
from signaling.answers import Problem
from signaling.errors import Refusal, TooManyRequests


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
