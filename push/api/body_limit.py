"""The size of a request's body is bounded before it is read. FastAPI's own limit answers in plain
text where the length is declared; ours is a problem document like every other refusal."""

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from push.problems import MEDIA_TYPE, problem_of
from signaling.errors import TooLarge


class _BodyTooLarge(Exception):
    """Raised into a handler that reads past the limit."""


class BodyLimit:
    """Refuses bodies over `limit_bytes` with 413, by their declared length or once they pass it."""

    def __init__(self, app: ASGIApp, limit_bytes: int) -> None:
        self._app = app
        self._limit = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._limit:
            await self._refuse(scope, receive, send)
            return
        try:
            await self._app(scope, self._counted(receive), send)
        except _BodyTooLarge:
            await self._refuse(scope, receive, send)

    def _counted(self, receive: Receive) -> Receive:
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._limit:
                raise _BodyTooLarge
            return message

        return counted

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = problem_of(
            TooLarge(f"the body is over the limit of {self._limit} bytes", limit=self._limit)
        )
        response = JSONResponse(
            problem.model_dump(exclude_none=True),
            status_code=problem.status,
            media_type=MEDIA_TYPE,
            headers={"Connection": "close"},
        )
        await response(scope, receive, send)
