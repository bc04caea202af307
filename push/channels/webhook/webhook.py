"""Webhooks: sends events to backends as Standard Webhooks, by HTTP/1.1 POST.

A target has connections of its own, few, and its own waiting for them: one that hangs delays no
other. The id and the body of an event are the same at each attempt, the time and signature new.
"""

import asyncio
import base64
import random
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version

import httpcore
import structlog

from bellwire.config.relay import WebhookTarget
from bellwire.push.channels.channel import (
    ATTEMPT_S,
    Addressee,
    ChannelAtFault,
    DeliveryFailed,
    DeliveryRefused,
)
from bellwire.push.channels.webhook.pinned_connection import (
    AddressRefused,
    LookUp,
    Lookups,
    PinnedBackend,
)
from bellwire.push.channels.webhook.webhook_target import Target, read_target
from bellwire.push.store.rows.outbox import Delivery
from bellwire.push.store.rows.webhooks import KIND
from bellwire.signaling.calls.events import CallEvent

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
_BROKEN = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError)


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
        """Nothing: a webhook is no device's channel. What targets are owed, `push.delivery.webhooks` says."""
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
        if answer.status in (429, 503) and answer.retry_after is not None:
            wait_s = max(wait_s, _read_retry_after(answer.retry_after, self._now()))
        return min(wait_s, left_s)


class _Way:
    """The connections to one target."""

    def __init__(self, target: Target, lookups: Lookups) -> None:
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
        except _BROKEN as error:
            cause = _first_cause(error)
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
                _header(response, b"retry-after"),
            )


async def _read_off(response: httpcore.Response) -> None:
    """Reads a short body, so that its connection can be used again; a long or slow one is cut off."""
    size = 0
    with suppress(TimeoutError, *_BROKEN):
        async with asyncio.timeout(_BODY_S):
            async for part in response.aiter_stream():
                size += len(part)
                if size > _BODY_LIMIT_BYTES:
                    return


def _header(response: httpcore.Response, name: bytes) -> str | None:
    return next(
        (value.decode("latin-1") for key, value in response.headers if key.lower() == name), None
    )


def _read_retry_after(text: str, now: datetime) -> float:
    """The seconds that `Retry-After` asks for, 0 where it cannot be read (RFC 9110, 10.2.3)."""
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - now).total_seconds()


def _first_cause(error: BaseException) -> BaseException:
    """What says most: httpcore hides the cause of its own error behind `from None`."""
    cause = error.__cause__ or error.__context__ or error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return cause
