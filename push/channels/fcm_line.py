"""The line on which firebase-admin reaches FCM: one attempt a request, over one HTTP/2 connection.

It stands in for the library's own HTTP client, which refreshes tokens on the event loop, tries four
times by itself and waits for 120 s.
"""

import json
import ssl
from collections.abc import Callable, Mapping

import httpx
from firebase_admin._http_client import METRICS_HEADERS

_IDLE_S = 120.0
"""Google's front ends close a connection that is idle for four minutes: ours goes before."""


class FcmLine:
    """A connection that is made when it is needed and replaced once anything has gone wrong on it.

    httpcore does not reset the stream of a request that was cancelled, so streams that stall use up
    those that the server allows until it can send no more; and a cancelled write breaks TLS. What is
    under way on a connection that is given up may end on it.

    Args:
        trust: Whose certificates are trusted.
        authorization: The headers that authorize a request.
    """

    def __init__(
        self, trust: ssl.SSLContext, authorization: Callable[[], Mapping[str, str]]
    ) -> None:
        self._trust = trust
        self._authorization = authorization
        self._connection: _Connection | None = None
        self._closed = False

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        json: object,  # the library's name for it
    ) -> httpx.Response:
        """Sends a request once; cancelling it gives it up.

        Raises:
            httpx.HTTPStatusError: the answer is no success.
            httpx.TransportError: there was no answer.
        """
        request = httpx.Request(
            method,
            url,
            headers={
                **headers,
                **METRICS_HEADERS,
                **self._authorization(),
                "content-type": "application/json",
            },
            content=_encode(json),
        )
        connection = self._current()
        connection.under_way += 1
        try:
            response = await connection.transport.handle_async_request(request)
            await response.aread()
        except BaseException:
            self._give_up(connection)
            raise
        finally:
            connection.under_way -= 1
            await connection.close_if_done()
        response.request = request
        return response.raise_for_status()

    async def aclose(self) -> None:
        """Does nothing: firebase-admin calls it in an event loop that is not the connection's."""

    async def close(self) -> None:
        """Closes the line, once what is under way has ended."""
        self._closed = True
        connection = self._connection
        if connection is not None:
            self._give_up(connection)
            await connection.close_if_done()

    def _current(self) -> "_Connection":
        if self._closed:
            raise httpx.TransportError("the relay is stopping")
        if self._connection is None:
            self._connection = _Connection(self._trust)
        return self._connection

    def _give_up(self, connection: "_Connection") -> None:
        connection.is_given_up = True
        if self._connection is connection:
            self._connection = None


class _Connection:
    """One connection, and how many requests are under way on it."""

    def __init__(self, trust: ssl.SSLContext) -> None:
        limits = httpx.Limits(keepalive_expiry=_IDLE_S)
        self.transport = httpx.AsyncHTTPTransport(verify=trust, http2=True, limits=limits)
        self.under_way = 0
        self.is_given_up = False

    async def close_if_done(self) -> None:
        if self.is_given_up and not self.under_way:
            await self.transport.aclose()


def _encode(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
