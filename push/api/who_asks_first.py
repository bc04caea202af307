"""Who asks is known before a body is read. FastAPI reads and parses a body before it looks at anything
else, so that a stranger would have the relay do that work. Their answer needs no byte of it, also where
they wait for `100 Continue`."""

from starlette.types import ASGIApp, Receive, Scope, Send

from push.api.admission import let_in
from push.api.problem_responses import refusal_response
from push.api.services import Services, identify
from push.metrics import Metrics
from signaling.errors import Refusal, Unauthenticated

_SIGNED = "/v1/twilio/"
"""Whose credentials are a signature that covers the body."""

_STRANGERS_BODY = "body-of-stranger"
"""The reason of `bellwire_refused_total`."""


class WhoAsksFirst:
    """Refuses requests with a body from strangers, without its body.

    Args:
        app: What serves the others, and asks again.
        services: The relay's parts.
    """

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request (ASGI)."""
        if _has_body_and_needs_credentials(scope):
            headers = dict(scope["headers"])
            try:
                actor = await identify(
                    self._services,
                    _text(headers.get(b"authorization")),
                    _text(headers.get(b"x-api-key")),
                    None,
                )
                let_in(scope, actor.identity)
            except Refusal as refusal:
                count_unread_body(self._services.metrics, scope, refusal)
                await refusal_response(refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _has_body_and_needs_credentials(scope: Scope) -> bool:
    if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
        return False
    return not scope["path"].startswith(_SIGNED) and _has_body(scope)


def count_unread_body(metrics: Metrics, scope: Scope, refusal: Refusal) -> None:
    """Counts a request that is refused before its body is read, where it has one and is a stranger's."""
    if isinstance(refusal, Unauthenticated) and _has_body(scope):
        metrics.count_refused(_STRANGERS_BODY)


def _has_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


def _text(header: bytes | None) -> str | None:
    return None if header is None else header.decode("latin-1")
