"""Requests to the backend, by form or query, signed as Twilio signs: bounded in time and size, and never into
a private network but to the very host of the voice URL, where the settings allow that. Redirects are followed
by the same rule; who may be reached, `channels.webhook.ssrf_guard` judges for each connection.
"""

import asyncio
import base64
import re
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import quote, urlencode, urljoin

import httpcore
import httpx

from bellwire.push.backend.signature import sign
from bellwire.push.channels.webhook.ssrf_guard import (
    BROKEN,
    AddressRefused,
    IpAddress,
    LookUp,
    Lookups,
    PinnedBackend,
    first_cause,
    header_of,
    is_public,
)
from bellwire.signaling.calls.dials import Callback, CallbackMethod
from bellwire.signaling.errors import InvalidInput

BODY_LIMIT_BYTES = 64 * 1024
"""Of an answer; Twilio's own limit of a TwiML document."""

CONNECTIONS = 96

_MOST_REDIRECTS = 3
_LOOKUPS_AT_ONCE = 8
_KEEP_ALIVE_S = 4.0
"""Shorter than servers keep idle connections (5 s: Node, uvicorn), so that none is closed in use."""

_REASON_LENGTH = 200
_HOST = re.compile(rb"[A-Za-z0-9._:-]+")


class BackendAtFault(Exception):
    """A backend could not be reached, or has not answered as HTTP has it; says why."""


class AnswerTooLong(BackendAtFault):
    """It has answered with more than is read."""


@dataclass(frozen=True, slots=True)
class BackendAnswer:
    """What came back: `body` is empty where it was not wanted, or is not there."""

    status: int
    body: bytes = b""
    retry_after: str | None = None

    @property
    def taken(self) -> bool:
        """Whether it is a 2xx."""
        return 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class _Url:
    """A URL as it is asked. `origin` is its scheme, host and port."""

    parsed: httpx.URL

    @classmethod
    def of(cls, text: str) -> "_Url":
        """Reads one.

        Raises:
            BackendAtFault: it is none that can be asked.
        """
        try:
            parsed = httpx.URL(text)
        except httpx.InvalidURL as error:
            raise BackendAtFault(f"{_start_of(text)} is no URL") from error
        port = parsed.port
        if parsed.scheme not in ("http", "https") or not _HOST.fullmatch(parsed.raw_host):
            raise BackendAtFault(f"{_start_of(text)} is no http(s) URL with a host")
        if port is not None and not 0 < port < 65_536:
            raise BackendAtFault(f"{_start_of(text)} has no port from 1 to 65535")
        return cls(parsed)

    @property
    def origin(self) -> tuple[bytes, bytes, int]:
        """Whose it is."""
        parsed = self.parsed
        port = parsed.port or (443 if parsed.scheme == "https" else 80)
        return parsed.raw_scheme, parsed.raw_host, port

    @property
    def as_signed(self) -> str:
        """The URL as its server sees it: without credentials and fragment."""
        parsed = self.parsed
        return f"{parsed.scheme}://{parsed.netloc.decode('ascii')}{parsed.raw_path.decode('ascii')}"

    @property
    def credentials(self) -> dict[str, str]:
        """The header that carries the URL's user and password."""
        if not self.parsed.userinfo:
            return {}
        pair = f"{self.parsed.username}:{self.parsed.password}".encode()
        return {"authorization": f"Basic {base64.b64encode(pair).decode()}"}


def _start_of(text: str) -> str:
    """What is shown of what may be no URL: no user, password or query, where an app's parameters are."""
    return repr(text.partition("?")[0].rpartition("@")[2][:80])


def shown_url(url: str) -> str:
    """A URL without what may be secret in it."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return ""
    return str(parsed.copy_with(username=None, password=None, query=None, fragment=None))


@dataclass(frozen=True, slots=True)
class OwnHost:
    """The host of the voice URL, which alone may be in a private network."""

    voice_url: str
    allow_private_network: bool = False
    ca_file: Path | None = None

    def check(self) -> None:
        """Refuses a voice URL that could never be asked.

        Raises:
            InvalidInput: it is one.
        """
        try:
            url = _Url.of(self.voice_url).parsed
        except BackendAtFault as error:
            raise InvalidInput(f"voice_url: {error}") from error
        if url.scheme == "http" and not self.allow_private_network:
            raise InvalidInput(
                "voice_url: http:// is for private networks only: use https://, or set"
                " voice_url_allow_private_network"
            )
        try:
            address = ip_address(url.host)
        except ValueError:  # A name: it is looked up for each connection.
            return
        if not self.may_reach(address):
            raise InvalidInput(f"voice_url: {address}: {self.otherwise}")

    def may_reach(self, address: IpAddress) -> bool:
        """Whether a request may go to an address: without TLS to private networks alone."""
        if is_public(address):
            return self.voice_url.lower().startswith("https:")
        return self.allow_private_network

    @property
    def otherwise(self) -> str:
        """Why an address may not be reached, and what helps."""
        if self.allow_private_network:
            return "http:// is for private networks only, use https://"
        return "a private network; if it is meant, set voice_url_allow_private_network"


class BackendRequests:
    """Asks backends. Close it with `aclose`.

    Args:
        auth_token: What requests are signed with.
        own: The host of the voice URL, where there is one.
        look_up: Looks up host names, blocking.

    Raises:
        InvalidInput: the voice URL or its CA file is not good.
    """

    def __init__(
        self, auth_token: str, own: OwnHost | None, *, look_up: LookUp = socket.getaddrinfo
    ) -> None:
        self._auth_token = auth_token
        self._lookups = Lookups(_LOOKUPS_AT_ONCE, look_up)
        self._own_origin = None
        self._own_pool = None
        if own is not None:
            own.check()
            self._own_origin = _Url.of(own.voice_url).origin
            self._own_pool = self._pool(
                _tls(own.ca_file), PinnedBackend(self._lookups, own.may_reach, own.otherwise)
            )
        self._others = self._pool(
            _tls(None),
            PinnedBackend(
                self._lookups,
                is_public,
                "a private network, where only the voice URL's own host may be",
            ),
        )

    def _pool(self, tls: ssl.SSLContext, network: PinnedBackend) -> httpcore.AsyncConnectionPool:
        return httpcore.AsyncConnectionPool(
            ssl_context=tls,
            max_connections=CONNECTIONS,
            keepalive_expiry=_KEEP_ALIVE_S,
            network_backend=network,
        )

    async def ask(
        self,
        callback: Callback,
        parameters: Mapping[str, str],
        *,
        limit_s: float,
        request_id: str = "",
        wants_body: bool = True,
    ) -> BackendAnswer:
        """Asks, and returns what is answered in the end, redirects followed.

        Args:
            callback: Where, and how.
            parameters: What it is told.
            limit_s: Within how many seconds all of it must be done.
            request_id: The same for a request that is made again.
            wants_body: Whether the answer's body matters.

        Raises:
            TimeoutError: it took longer.
            BackendAtFault: nobody could be reached who may be, or HTTP was not spoken.
        """
        async with asyncio.timeout(limit_s):
            try:
                return await self._follow(callback, parameters, request_id, wants_body=wants_body)
            except AddressRefused as error:
                raise BackendAtFault(str(error)[:_REASON_LENGTH]) from error
            except BROKEN as error:
                cause = first_cause(error)
                reason = f"{type(error).__name__}: {cause}"[:_REASON_LENGTH]
                raise BackendAtFault(reason) from error

    async def aclose(self) -> None:
        """Closes the connections."""
        self._lookups.close()
        if self._own_pool is not None:
            await self._own_pool.aclose()
        await self._others.aclose()

    async def _follow(
        self,
        callback: Callback,
        parameters: Mapping[str, str],
        request_id: str,
        *,
        wants_body: bool,
    ) -> BackendAnswer:
        method, url = callback.method, callback.url
        for _ in range(_MOST_REDIRECTS + 1):
            answer, location = await self._ask_once(
                method, url, parameters, request_id, wants_body=wants_body
            )
            if location is None:
                return answer
            if answer.status in (301, 302, 303):
                method = CallbackMethod.GET
            url = _redirected(url, location)
        raise BackendAtFault(f"it redirects more than {_MOST_REDIRECTS} times")

    async def _ask_once(
        self,
        method: CallbackMethod,
        url_text: str,
        parameters: Mapping[str, str],
        request_id: str,
        *,
        wants_body: bool,
    ) -> tuple[BackendAnswer, str | None]:
        """One request, and where its answer redirects to."""
        form = urlencode(parameters, quote_via=quote)
        is_post = method is CallbackMethod.POST
        url = _Url.of(url_text if is_post else _with_query(url_text, form))
        pool = self._pool_for(url)
        headers = {
            "host": url.parsed.netloc.decode("ascii"),
            "user-agent": f"Bellwire/{version('bellwire')}",
            "accept": "text/xml, application/xml, */*",
            "accept-encoding": "identity",
            "x-twilio-signature": sign(
                self._auth_token, url.as_signed, parameters if is_post else None
            ),
            **({"i-twilio-idempotency-token": request_id} if request_id else {}),
            **({"content-type": "application/x-www-form-urlencoded"} if is_post else {}),
            **url.credentials,
        }
        asked = httpcore.URL(
            scheme=url.parsed.raw_scheme,
            host=url.parsed.raw_host,
            port=url.parsed.port,
            target=url.parsed.raw_path,
        )
        async with pool.stream(
            method,
            asked,
            headers=list(headers.items()),
            content=form.encode() if is_post else None,
        ) as response:
            location = header_of(response, b"location")
            redirects = response.status in (301, 302, 303, 307, 308) and location is not None
            is_taken = 200 <= response.status < 300  # else nobody looks at it, and it may be long
            body = await _read(response, wanted=wants_body and is_taken)
        answer = BackendAnswer(response.status, body, header_of(response, b"retry-after"))
        return answer, location if redirects else None

    def _pool_for(self, url: _Url) -> httpcore.AsyncConnectionPool:
        if self._own_pool is not None and url.origin == self._own_origin:
            return self._own_pool
        if url.parsed.scheme != "https":
            raise BackendAtFault(
                f"{shown_url(str(url.parsed))}: http:// is for the voice URL's own host only"
            )
        return self._others


def _redirected(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise BackendAtFault(f"it redirects to {_start_of(location)}, which is no URL") from error


def _with_query(url: str, query: str) -> str:
    whole, _, _fragment = url.partition("#")
    return f"{whole}{'&' if '?' in whole else '?'}{query}"


async def _read(response: httpcore.Response, *, wanted: bool) -> bytes:
    """The body. One that is not wanted is read a little, so that its connection can be used again.

    Raises:
        AnswerTooLong: it is wanted, and too long.
    """
    if not wanted:
        with suppress(TimeoutError, AnswerTooLong, *BROKEN):
            async with asyncio.timeout(0.25):
                await _read(response, wanted=True)
        return b""
    parts: list[bytes] = []
    size = 0
    async for part in response.aiter_stream():
        size += len(part)
        if size > BODY_LIMIT_BYTES:
            raise AnswerTooLong(f"its answer is over the limit of {BODY_LIMIT_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    if ca_file is None:
        return httpx.create_ssl_context()
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # an ssl.SSLError is one
        raise InvalidInput(
            f"voice_url_ca_file: {ca_file} holds no certificates that can be read"
        ) from error
