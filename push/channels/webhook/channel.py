"""Webhooks: sends events to backends as Standard Webhooks, by HTTP/1.1 POST, and checks the settings that
say where to.

A target has connections of its own, few, and its own waiting for them: one that hangs delays no
other. The id and the body of an event are the same at each attempt, the time and signature new.
Where a request may go, `ssrf_guard` judges.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import random
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from ipaddress import ip_address
from pathlib import Path

import httpcore
import httpx
import structlog

from bellwire.config.relay import WebhookTarget
from bellwire.push.channels.channel import (
    ATTEMPT_S,
    Addressee,
    ChannelAtFault,
    DeliveryFailed,
    DeliveryRefused,
)
from bellwire.push.channels.retry_after import read_retry_after
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
from bellwire.push.store.rows.outbox import Delivery
from bellwire.push.store.rows.webhooks import KIND
from bellwire.signaling.calls.events import CallEvent
from bellwire.signaling.errors import InvalidInput

log = structlog.get_logger(__name__)

LIFE_S = 3 * 24 * 3600.0
"""How long an event is owed to a target that does not take it."""

CONNECTIONS = 16
"""To one target at once."""

_WAIT_FOR_CONNECTION_S = 1.0
_KEEP_ALIVE_S = 4.0
"""Shorter than servers keep idle connections (5 s: Node, uvicorn), so that none is closed in use."""

_RETRY_FIRST_S = 5.0
_RETRY_LONGEST_S = 12 * 3600.0
_BODY_LIMIT_BYTES = 4096
_BODY_S = 0.25
_REASON_LENGTH = 200

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST = re.compile(rb"[A-Za-z0-9._:-]+")
_SECRET_PREFIX = "whsec_"  # noqa: S105 - what a secret begins with
_SECRET_BYTES = range(24, 65)
_MOST_SECRETS = 8
_FILE_LIMIT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class LastAttempt:
    """When this relay last tried a target, and what came of it."""

    at: datetime
    taken: bool
    result: str


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came of a request: `status` is 0 where nobody answered."""

    words: str
    status: int = 0
    retry_after: str | None = None
    at_fault: bool = False

    @property
    def taken(self) -> bool:
        return 200 <= self.status < 300


class WebhookChannel:
    """Sends to the targets of the settings. Close it with `aclose`.

    Args:
        targets: By name.
        now: Tells the time.
        look_up: Looks up host names, blocking.

    Raises:
        InvalidInput: a setting of a target is wrong; names it.
    """

    kind = KIND

    def __init__(
        self,
        targets: Mapping[str, WebhookTarget],
        *,
        now: Callable[[], datetime],
        look_up: LookUp = socket.getaddrinfo,
    ) -> None:
        self._now = now
        self._lookups = Lookups(len(targets), look_up)
        self._ways = {
            name: _Way(read_target(name, settings), self._lookups)
            for name, settings in targets.items()
        }
        self.last: dict[str, LastAttempt] = {}

    def compose(self, event: CallEvent, to: Addressee) -> str | None:
        """Nothing: a webhook is no device's channel, `push.delivery.webhook_events` says what it is owed."""
        del event, to
        return None

    def shown_url(self, name: str) -> str:
        """A target's URL without what may be secret in it."""
        return self._ways[name].target.shown_url

    async def send(self, delivery: Delivery, left_s: float) -> str:
        """See `Channel.send`. 2xx is taken; 410 is refused for good (Standard Webhooks); anything else
        is tried again, not before `Retry-After` where a 429 or 503 gives one."""
        name = delivery.app
        way = self._ways.get(name)
        if way is None:
            raise DeliveryRefused(f"the settings hold no webhook {name}")
        at = self._now()
        answer = await way.ask(delivery, at, min(left_s, ATTEMPT_S))
        self.last[name] = LastAttempt(at, answer.taken, answer.words)
        if answer.taken:
            return answer.words
        reason = f"webhook {name}: {answer.words}"
        if answer.status == 410:
            log.error("webhook wants no more events: remove it from the settings", webhook=name)
            raise DeliveryRefused(reason)
        kind = ChannelAtFault if answer.at_fault else DeliveryFailed
        raise kind(reason, self._wait_s(answer, left_s))

    async def aclose(self) -> None:
        """Closes the connections."""
        self._lookups.close()
        for way in self._ways.values():
            await way.aclose()

    def _wait_s(self, answer: _Answer, left_s: float) -> float:
        """In how many seconds to try again: after half as long again as the event has been owed. That
        it counts time, not attempts, keeps an event that waited for a connection from being put off
        for hours."""
        owed_s = max(0.0, LIFE_S - left_s)
        wait_s = min(_RETRY_LONGEST_S, max(_RETRY_FIRST_S, 1.5 * owed_s))
        wait_s *= random.uniform(0.9, 1.1)  # noqa: S311 - jitter, no secret
        if answer.status in (429, 503):
            asked_s = read_retry_after(answer.retry_after, self._now(), longest_s=left_s)
            wait_s = max(wait_s, asked_s or 0.0)
        return min(wait_s, left_s)


class _Way:
    """The connections to one target."""

    def __init__(self, target: "Target", lookups: Lookups) -> None:
        self.target = target
        self._free = asyncio.Semaphore(CONNECTIONS)
        url = target.url
        self._url = httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        )
        self._headers = {
            "host": url.netloc.decode("ascii"),
            "content-type": "application/json",
            "user-agent": f"Bellwire/{version('bellwire')}",
        }
        if url.userinfo:
            credentials = base64.b64encode(f"{url.username}:{url.password}".encode()).decode()
            self._headers["authorization"] = f"Basic {credentials}"
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=target.tls,
            max_connections=CONNECTIONS,
            keepalive_expiry=_KEEP_ALIVE_S,
            network_backend=PinnedBackend(lookups, target.may_reach, target.otherwise),
        )

    async def ask(self, delivery: Delivery, at: datetime, limit_s: float) -> _Answer:
        """Sends a request and says what came of it, within `limit_s` seconds."""
        deadline = asyncio.get_running_loop().time() + limit_s
        try:
            async with asyncio.timeout(min(limit_s, _WAIT_FOR_CONNECTION_S)):
                await self._free.acquire()
        except TimeoutError:
            return _Answer(f"its {CONNECTIONS} connections are all in use: it answers too slowly")
        try:
            async with asyncio.timeout_at(deadline):
                return await self._post(delivery, at)
        except TimeoutError:
            return _Answer(f"no answer within {limit_s:.1f} s")
        except AddressRefused as error:
            return _Answer(str(error)[:_REASON_LENGTH], at_fault=True)
        except BROKEN as error:
            cause = first_cause(error)
            return _Answer(f"{type(error).__name__}: {cause}"[:_REASON_LENGTH])
        finally:
            self._free.release()

    async def aclose(self) -> None:
        await self._pool.aclose()

    async def _post(self, delivery: Delivery, at: datetime) -> _Answer:
        body = delivery.payload.encode()
        headers = self._headers | self.target.sign(delivery.event_id, at, body)
        async with self._pool.stream(
            "POST", self._url, headers=list(headers.items()), content=body
        ) as response:
            await _read_off(response)
            return _Answer(
                f"answered {response.status}"
                + (", a redirect, which is not followed" if 300 <= response.status < 400 else ""),
                response.status,
                header_of(response, b"retry-after"),
            )


async def _read_off(response: httpcore.Response) -> None:
    """Reads a short body, so that its connection can be used again; a long or slow one is cut off."""
    size = 0
    with suppress(TimeoutError, *BROKEN):
        async with asyncio.timeout(_BODY_S):
            async for part in response.aiter_stream():
                size += len(part)
                if size > _BODY_LIMIT_BYTES:
                    return


@dataclass(frozen=True, slots=True)
class Target:
    """Where a backend is told of events. `secrets` are all in use: each signs."""

    name: str
    url: httpx.URL = field(repr=False)
    secrets: tuple[bytes, ...] = field(repr=False)
    allow_private_network: bool
    tls: ssl.SSLContext | None = field(repr=False)

    def may_reach(self, address: IpAddress) -> bool:
        """Whether a request may go to an address: without TLS to private networks alone."""
        if is_public(address):
            return self.url.scheme == "https"
        return self.allow_private_network

    @property
    def otherwise(self) -> str:
        """Why an address that may not be reached may not, and what helps."""
        if self.allow_private_network:
            return "http:// is for private networks only, use https://"
        return f"a private network; if it is meant, set webhooks.{self.name}.allow_private_network"

    @property
    def shown_url(self) -> str:
        """The URL without what may be secret in it."""
        return str(self.url.copy_with(username=None, password=None, query=None, fragment=None))

    def sign(self, webhook_id: str, at: datetime, body: bytes) -> dict[str, str]:
        """The headers that let the backend know who sends (Standard Webhooks, "Signature scheme")."""
        timestamp = str(int(at.timestamp()))
        signed = f"{webhook_id}.{timestamp}.".encode() + body
        signatures = (hmac.digest(secret, signed, hashlib.sha256) for secret in self.secrets)
        return {
            "webhook-id": webhook_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": " ".join(
                f"v1,{base64.b64encode(signature).decode()}" for signature in signatures
            ),
        }


def read_target(name: str, settings: WebhookTarget) -> Target:
    """The target that settings describe.

    Raises:
        InvalidInput: a setting is wrong; names it, and never shows a secret.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"webhooks.{name[:40]!r}: a name is 1 to 64 of A-Z a-z 0-9 . _ -, starting with a letter"
            " or digit"
        )
    target = Target(
        name,
        _read_url(name, settings),
        tuple(_read_secrets(name, settings.secret_file)),
        settings.allow_private_network,
        _tls(name, settings.ca_file) if settings.url.startswith("https:") else None,
    )
    try:
        address = ip_address(target.url.host)
    except ValueError:  # A name: it is looked up for each connection.
        return target
    if not target.may_reach(address):
        raise InvalidInput(f"webhooks.{name}.url: {address}: {target.otherwise}")
    return target


def _read_url(name: str, settings: WebhookTarget) -> httpx.URL:
    try:
        url = httpx.URL(settings.url)
    except httpx.InvalidURL as error:
        raise InvalidInput(f"webhooks.{name}.url is no URL") from error
    port = 443 if url.port is None else url.port
    if not _HOST.fullmatch(url.raw_host) or not 0 < port < 65_536:
        raise InvalidInput(f"webhooks.{name}.url has no host, or no port from 1 to 65535")
    if url.scheme == "http" and not settings.allow_private_network:
        raise InvalidInput(
            f"webhooks.{name}.url: http:// is for private networks only: use https://, or set"
            f" webhooks.{name}.allow_private_network"
        )
    return url


def _read_secrets(name: str, file: Path) -> Iterator[bytes]:
    where = f"webhooks.{name}.secret_file"
    try:
        with file.open("rb") as opened:
            lines = opened.read(_FILE_LIMIT_BYTES).splitlines()
    except OSError as error:
        raise InvalidInput(f"{where}: {file} cannot be read: {error.strerror or error}") from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not 1 <= len(numbered) <= _MOST_SECRETS:
        raise InvalidInput(f"{where}: {file} must hold 1 to {_MOST_SECRETS} secrets, one a line")
    for number, line in numbered:
        secret = _decode(line)
        if len(secret) not in _SECRET_BYTES:
            # Not the error that base64 gives: it would stand in a traceback beside the secret.
            raise InvalidInput(
                f"{where}: line {number} of {file} must be {_SECRET_PREFIX} and the base64 of 24 to 64"
                f' bytes: make one with `echo "{_SECRET_PREFIX}$(openssl rand -base64 32)"`'
            )
        yield secret


def _decode(line: bytes) -> bytes:
    """The bytes of a secret, none where it is no secret."""
    encoded = line.removeprefix(_SECRET_PREFIX.encode())
    if encoded == line:
        return b""
    try:
        return base64.b64decode(encoded + b"=" * (-len(encoded) % 4), validate=True)
    except binascii.Error:
        return b""


def _tls(name: str, ca_file: Path | None) -> ssl.SSLContext:
    if ca_file is None:
        return httpx.create_ssl_context()
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # an ssl.SSLError is one
        raise InvalidInput(
            f"webhooks.{name}.ca_file: {ca_file} holds no certificates that can be read"
        ) from error
