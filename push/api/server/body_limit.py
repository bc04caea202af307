"""The size of a request's body is bounded before it is read. FastAPI's own limit answers in plain
text where the length is declared; ours is a problem document like every other refusal."""

import asyncio
from contextlib import suppress

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bellwire.push.metrics import Metrics
from bellwire.push.problems import MEDIA_TYPE, problem_of
from bellwire.signaling.errors import TooLarge

_DRAIN_BYTES = 16 * 1024 * 1024
_DRAIN_S = 2.0


class _BodyTooLarge(HTTPException):
    """Raised into a handler that reads past the limit. FastAPI hides what is no HTTPException."""

    def __init__(self) -> None:
        super().__init__(413)


class BodyLimit:
    """Refuses bodies over `limit_bytes` with 413, by their declared length or once they pass it.

    Args:
        app: What serves the others.
        limit_bytes: How long a body may be.
        metrics: Counts what is refused.
    """

    def __init__(self, app: ASGIApp, limit_bytes: int, metrics: Metrics) -> None:
        self._app = app
        self._limit = limit_bytes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._limit:
            if b"expect" not in headers and int(declared) <= _DRAIN_BYTES:
                await _drain(receive)
            await self._refuse(scope, receive, send)
            return
        if b"content-length" in headers and b"transfer-encoding" not in headers:
            # The server reads no more than was declared (RFC 9112, 6.3).
            await self._app(scope, receive, send)
            return
        body = _Bounded(receive, self._limit)
        answer = _Held(send, body)
        with suppress(_BodyTooLarge):
            await self._app(scope, body.receive, answer.send)
        if body.is_over:
            await _drain(receive)
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._metrics.count_refused("body-too-large")
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


class _Bounded:
    """A body that may be read up to its limit."""

    def __init__(self, receive: Receive, limit_bytes: int) -> None:
        self._receive = receive
        self._left = limit_bytes
        self.is_over = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            self.is_over = True
            raise _BodyTooLarge
        return message


class _Held:
    """Lets an answer through unless the body was too long: then the refusal is the answer."""

    def __init__(self, send: Send, body: _Bounded) -> None:
        self._send = send
        self._body = body

    async def send(self, message: Message) -> None:
        if not self._body.is_over:
            await self._send(message)


async def _drain(receive: Receive) -> None:
    """Takes what a client is still sending, so that it comes to read the answer; within bounds."""
    left = _DRAIN_BYTES
    try:
        async with asyncio.timeout(_DRAIN_S):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return
