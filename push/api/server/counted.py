"""Every request is counted and timed."""

import time
from collections.abc import Callable

from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bellwire.push.metrics import Metrics


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
