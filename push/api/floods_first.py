"""Who floods is refused before all else: before a signature is verified, a body read, a route looked for
or the database asked, each of which costs more than the refusal.

Who asks is known before a body is read. FastAPI reads and parses a body before it looks at anything
else, so that a stranger would have the relay do that work. Their answer needs no byte of it, also where
they wait for `100 Continue`.
"""

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from bellwire.config.waiting import Sleep
from bellwire.push.access.tokens import Actor
from bellwire.push.api.server.admission import let_in
from bellwire.push.api.services import Services
from bellwire.push.api.who_asks import identify
from bellwire.push.problems import refusal_response
from bellwire.signaling.errors import Refusal, Unauthenticated, Unavailable

_SIGNED = "/v1/twilio/"
_HELD_S = 0.5
"""How late who floods is refused at least, and at most twice as late. Whoever asks again as soon as they are
answered would else have the relay do nothing but refuse; they are told to wait a second anyway."""
_GOLDEN = 0.618034
"""The multiples of this lie apart from each other, modulo 1: what comes at once is not refused at once."""
_HELD_AT_ONCE = 4096


class FloodsFirst:
    """Refuses requests by access tokens that have asked too often. Only such as the relay has found good
    before, and that are good still: all others go on to where that is looked at.

    Args:
        app: What serves the others, and counts them.
        services: The relay's parts.
        sleep: Waits.
    """

    def __init__(self, app: ASGIApp, services: Services, *, sleep: Sleep = asyncio.sleep) -> None:
        self._app = app
        self._services = services
        self._sleep = sleep
        self._held = 0
        self._number = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request (ASGI)."""
        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
            return
        if self._held < _HELD_AT_ONCE:
            self._held += 1
            self._number += 1
            try:
                await self._sleep(_HELD_S * (1 + self._number * _GOLDEN % 1))
            finally:
                self._held -= 1
        await refusal_response(refusal)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        actor = self._known(scope)
        if actor is None or actor.token is None or actor.identity is None:
            return None
        access = self._services.access
        try:
            access.must_be_fresh()
        except Unavailable:
            return None
        if access.refusal(actor.token, actor.identity, actor.device) is not None:
            return None
        refusal = self._services.device_floods.refusal(actor.identity, actor.device)
        if refusal is not None:
            try:
                let_in(scope, actor.identity)  # it is no stranger's connection
            except Refusal as no_place:
                return no_place
        return refusal

    def _known(self, scope: Scope) -> Actor | None:
        """Whom an access token in the header stands for, where that is known without looking."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            return None
        if scope["path"].startswith(_SIGNED):
            return None
        headers = dict(scope["headers"])
        shown = headers.get(b"authorization")
        if shown is None or b"x-api-key" in headers:
            return None
        scheme, _, credentials = shown.decode("latin-1").partition(" ")
        if scheme.lower() != "bearer":
            return None
        return self._services.tokens.verified(credentials.strip())


"""Whose credentials are a signature that covers the body."""

_STRANGERS_BODY = "body-of-stranger"
"""The reason of `bellwire_refused_total`."""


class WhoAsksFirst:
    """Refuses requests with a body from strangers, without its body. Of the others, says in the scope's
    `user` who asks.

    Args:
        app: What serves the others.
        services: The relay's parts.
    """

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request (ASGI)."""
        headers = dict(scope["headers"]) if _needs_credentials(scope) else {}
        if b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0":
            try:
                actor = await identify(
                    self._services,
                    _text(headers.get(b"authorization")),
                    _text(headers.get(b"x-api-key")),
                    None,
                )
                let_in(scope, actor.identity)
            except Refusal as refusal:
                if isinstance(refusal, Unauthenticated):
                    self._services.metrics.count_refused(_STRANGERS_BODY)
                await refusal_response(refusal)(scope, receive, send)
                return
            scope["user"] = actor
        await self._app(scope, receive, send)


def _needs_credentials(scope: Scope) -> bool:
    if scope["type"] != "http":
        return False
    path: str = scope["path"]
    return path.startswith("/v1/") and not path.startswith(_SIGNED)


def _text(header: bytes | None) -> str | None:
    return None if header is None else header.decode("latin-1")
