"""What stands before the routes, from the outside in: every request is counted, who floods is refused, who
asks is known, and the body is bounded. All of it costs less than what it saves, so it is plain ASGI.

A flood is refused before a signature is verified, a body read, a route looked for or the database asked.
Who asks is known before a body is read: FastAPI reads and parses it before it looks at anything else, so
that a stranger would have the relay do that work. Their answer needs no byte of it, also where they wait
for `100 Continue`. Whoever sends it slowly is asked again once it is there: they may have been shut out
meanwhile.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress

from prometheus_client import Counter, Histogram
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bellwire.config.waiting import Sleep
from bellwire.push.access.tokens import Actor
from bellwire.push.api.server.admission import let_in
from bellwire.push.api.who_asks import bearer_of, header_text, identify
from bellwire.push.metrics import Metrics
from bellwire.push.parts import Relay
from bellwire.push.problems import problem_of, problem_response, refusal_response
from bellwire.signaling.errors import Refusal, TooLarge, Unauthenticated, Unavailable

_SIGNED = "/v1/twilio/"
"""Whose credentials are a signature that covers the body."""

_HELD_S = 0.5
"""How late who floods is refused at least, and at most twice as late. Whoever asks again as soon as they are
answered would else have the relay do nothing but refuse; they are told to wait a second anyway."""
_GOLDEN = 0.618034
"""The multiples of this lie apart from each other, modulo 1: what comes at once is not refused at once."""
_HELD_AT_ONCE = 4096

_STRANGERS_BODY = "body-of-stranger"
"""The reason of `bellwire_refused_total`."""

_AT_ONCE_S = 0.1
"""What is believed of who asks when their body begins is believed when it ends, this much later at most."""

_DRAIN_BYTES = 16 * 1024 * 1024
_DRAIN_S = 2.0


class Counted:
    """Counts and times requests by their route, never by their path."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._clock = clock
        self._known: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500
        started = self._clock()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if route != "unmatched" else "any"
            seconds = self._clock() - started
            requests, request_seconds = self._counters(method, route, status)
            requests.inc()
            request_seconds.observe(seconds)

    def _counters(self, method: str, route: str, status: int) -> tuple[Counter, Histogram]:
        """Looked up once: their labels are few, and looking them up costs more than counting."""
        key = (method, route, status)
        if key not in self._known:
            self._known[key] = (
                self._metrics.requests.labels(*key),
                self._metrics.request_seconds.labels(method, route),
            )
        return self._known[key]


def shown_to_browsers(app: ASGIApp, origins: Collection[str]) -> ASGIApp:
    """An application whose answers, refusals among them, the pages of some origins may read (CORS). No
    cookies are asked for: a page shows its access token itself. An API key belongs in no page, so that
    the header for it is not among those that may be sent."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=[*origins],
        allow_methods=["GET", "POST", "PUT", "DELETE"],
        allow_headers=["Authorization", "Content-Type", "Idempotency-Key"],
        expose_headers=["Idempotent-Replayed", "Retry-After", "WWW-Authenticate"],
    )


class RateLimitFirst:
    """Refuses requests by access tokens that have asked too often. Only such as the relay has found good
    before, and that are good still: all others go on to where that is looked at.

    Args:
        app: What serves the others, and counts them.
        relay: Knows who asks, and how often they have.
        sleep: Waits.
    """

    def __init__(self, app: ASGIApp, relay: Relay, *, sleep: Sleep = asyncio.sleep) -> None:
        self._app = app
        self._relay = relay
        self._sleep = sleep
        self._held = 0
        self._number = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request (ASGI)."""
        refused = self._refused(scope)
        if refused is None:
            await self._app(scope, receive, send)
            return
        refusal, has_place = refused
        # The door, where those wait who have no place, is small: answered late, they would fill it.
        if has_place and self._held < _HELD_AT_ONCE:
            self._held += 1
            self._number += 1
            try:
                await self._sleep(_HELD_S * (1 + self._number * _GOLDEN % 1))
            finally:
                self._held -= 1
        await refusal_response(refusal)(scope, receive, send)

    def _refused(self, scope: Scope) -> tuple[Refusal, bool] | None:
        """Why a request is not served, if so, and whether its connection has a place."""
        actor = self._known(scope)
        if actor is None or actor.token is None or actor.identity is None:
            return None
        access = self._relay.access.ended
        try:
            access.must_be_fresh()
        except Unavailable:
            return None
        if access.refusal(actor.token, actor.identity, actor.device) is not None:
            return None
        refusal = self._relay.devices.rate_limits.refusal(actor.identity, actor.device)
        if refusal is None:
            return None
        try:
            let_in(scope, actor.identity)  # it is no stranger's connection
        except Refusal as no_place:
            return no_place, False
        return refusal, True

    def _known(self, scope: Scope) -> Actor | None:
        """Whom an access token in the header stands for, where that is known without looking."""
        headers = dict(scope["headers"]) if _needs_credentials(scope) else {}
        token = bearer_of(header_text(headers, b"authorization"))
        if token is None or b"x-api-key" in headers:
            return None
        return self._relay.access.tokens.verified(token)


class WhoAsksFirst:
    """Refuses requests with a body from strangers, without its body. Of the others, says in the scope's
    `user` who asks.

    Args:
        app: What serves the others.
        relay: Knows who asks, and how often they have.
        clock: Tells the time, in seconds that only grow.
    """

    def __init__(
        self, app: ASGIApp, relay: Relay, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._app = app
        self._relay = relay
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request (ASGI)."""
        headers = dict(scope["headers"]) if _needs_credentials(scope) else {}
        if b"transfer-encoding" not in headers and headers.get(b"content-length", b"0") == b"0":
            await self._app(scope, receive, send)
            return

        async def asks() -> Actor:
            authorization = header_text(headers, b"authorization")
            return await identify(
                self._relay, authorization, header_text(headers, b"x-api-key"), None
            )

        try:
            actor = await asks()
            let_in(scope, actor.identity)
        except Refusal as refusal:
            if isinstance(refusal, Unauthenticated):
                self._relay.ground.metrics.count_refused(_STRANGERS_BODY)
            await refusal_response(refusal)(scope, receive, send)
            return
        scope["user"] = actor
        body = _Signed(receive, asks, self._clock)
        answer = _Held(send, body)
        with suppress(_BodyRefused):
            await self._app(scope, body.receive, answer.send)
        if body.refusal is not None:
            await refusal_response(body.refusal)(scope, receive, send)


class _Signed:
    """A body of somebody who is asked again where its end is late in coming: they could else begin as many
    requests as they have connections, be shut out, and have them done after that."""

    def __init__(
        self, receive: Receive, asks: Callable[[], Awaitable[Actor]], clock: Callable[[], float]
    ) -> None:
        self._receive = receive
        self._asks = asks
        self._clock = clock
        self._asked_at = clock()
        self.refusal: Refusal | None = None

    @property
    def is_refused(self) -> bool:
        return self.refusal is not None

    async def receive(self) -> Message:
        message = await self._receive()
        is_whole = message["type"] == "http.request" and not message.get("more_body", False)
        if is_whole and self._clock() - self._asked_at > _AT_ONCE_S:
            try:
                await self._asks()
            except Refusal as refusal:
                self.refusal = refusal
                raise _BodyRefused(403) from refusal
        return message


def _needs_credentials(scope: Scope) -> bool:
    if scope["type"] != "http":
        return False
    path: str = scope["path"]
    return path.startswith("/v1/") and not path.startswith(_SIGNED)


class BodyLimit:
    """Refuses bodies over `limit_bytes` with 413, by their declared length or once they pass it. FastAPI's
    own limit answers in plain text; this is a problem document like every other refusal.

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
        length = _length(declared)
        if length > self._limit:
            if b"expect" not in headers and length <= _DRAIN_BYTES:
                await _drain(receive)
            await self._refuse(scope, receive, send)
            return
        if b"content-length" in headers and b"transfer-encoding" not in headers:
            # The server reads no more than was declared (RFC 9112, 6.3).
            await self._app(scope, receive, send)
            return
        body = _Bounded(receive, self._limit)
        answer = _Held(send, body)
        with suppress(_BodyRefused):
            await self._app(scope, body.receive, answer.send)
        if body.is_refused:
            await _drain(receive)
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._metrics.count_refused("body-too-large")
        problem = problem_of(
            TooLarge(f"the body is over the limit of {self._limit} bytes", limit=self._limit)
        )
        await problem_response(problem, {"Connection": "close"})(scope, receive, send)


def _length(declared: bytes) -> int:
    """What a `Content-Length` says, 0 where it is no number. Python reads no number of thousands of
    digits, be they zeros, which the server lets through."""
    return int(declared.lstrip(b"0") or b"0") if declared.isdigit() else 0


class _Bounded:
    """A body that may be read up to its limit."""

    def __init__(self, receive: Receive, limit_bytes: int) -> None:
        self._receive = receive
        self._left = limit_bytes
        self.is_refused = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            self.is_refused = True
            raise _BodyRefused(413)
        return message


class _Held:
    """Lets an answer through unless the body was refused: then the refusal is the answer."""

    def __init__(self, send: Send, body: _Bounded | _Signed) -> None:
        self._send = send
        self._body = body

    async def send(self, message: Message) -> None:
        if not self._body.is_refused:
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


class _BodyRefused(HTTPException):
    """Raised into a handler that reads a body which is not to be heard. FastAPI hides what is no
    HTTPException."""
