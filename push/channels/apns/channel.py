"""APNs VoIP pushes: what they say, and what becomes of them (spec §2).

Each app (bundle id) has its own connections in each of Apple's environments, so that one that fails
delays no other.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from uuid import UUID, uuid5

import structlog
from aioapns.common import APNS_RESPONSE_CODE

from bellwire.config.relay import ApnsApp
from bellwire.config.waiting import Sleep
from bellwire.push.channels.apns.connection import Answer, KeepAlive, Pool, Push
from bellwire.push.channels.apns.credentials import ProviderToken, TlsSettings, open_key
from bellwire.push.channels.apns.reasons import EXPIRED_TOKEN, failure_of
from bellwire.push.channels.channel import (
    ATTEMPT_S,
    Addressee,
    ChannelAtFault,
    DeliveryFailed,
    DeliveryRefused,
)
from bellwire.push.channels.payload import PushPayload, apns_payload
from bellwire.push.channels.retry_after import read_http_date, read_retry_after
from bellwire.push.metrics import Metrics
from bellwire.push.store.rows.outbox import Delivery
from bellwire.signaling.calls.events import (
    CallCancelled,
    CallEnded,
    CallEvent,
    CallReceived,
    what_to_shorten,
)
from bellwire.signaling.errors import InvalidInput

log = structlog.get_logger(__name__)

_COLLAPSE_ID_BYTES = 64
_LONGEST_RETRY_AFTER_S = 3600.0
_PUSH_IDS = UUID("9f1c4a52-6d0e-5b7a-8c39-2e4f7d10b6a3")
_PRODUCTION, _SANDBOX = "production", "sandbox"
_ENVIRONMENTS = (_PRODUCTION, _SANDBOX)


class ApnsChannel:
    """See `push.channels.channel.Channel`. Reads the apps' files when it is made: make it in a
    thread, and keep `run` running on the loop.

    Args:
        apps: By bundle id.
        payload: Writes the keys of pushes.
        metrics: Shows which apps are at fault.
        now: Tells the time.
        sleep: Waits.
        keep: When connections are asked for a sign of life.

    Raises:
        InvalidInput: a key, certificate or server of an app is not what it should be; names the
            setting and the file.
    """

    kind = "apns"

    def __init__(
        self,
        apps: Mapping[str, ApnsApp],
        payload: PushPayload,
        metrics: Metrics,
        *,
        now: Callable[[], datetime],
        sleep: Sleep = asyncio.sleep,
        keep: KeepAlive | None = None,
    ) -> None:
        self._apps = dict(apps)
        self._payload = payload
        self._metrics = metrics
        self._now = now
        self._sleep = sleep
        self._keep = keep or KeepAlive()
        self._tls = {bundle_id: TlsSettings(bundle_id, app) for bundle_id, app in apps.items()}
        self._tokens = _open_tokens(self._apps, now)
        for bundle_id, app in self._apps.items():
            self._tls[bundle_id].context()
            _check_server(bundle_id, app.server)
            metrics.push_app_fault.labels(self.kind, bundle_id).set(0)
        self._pools: dict[tuple[str, str], Pool] = {}
        self._faults: dict[tuple[str, str], str] = {}
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Opens the connections and keeps them warm until cancelled, then closes them. Those of
        the sandbox open when first used."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                for pool in self._pools.values():
                    tasks.create_task(pool.run())
                for bundle_id in self._apps:
                    self._pool(bundle_id, _PRODUCTION)
                await asyncio.Event().wait()
            finally:
                self._tasks = None

    def compose(self, event: CallEvent, to: Addressee) -> str | None:
        """See `Channel.compose`. That an invite is over is pushed only where the app's settings ask
        for it, and only to who was rung: each VoIP push must be reported to CallKit."""
        app = self._apps.get(to.channel.app)
        if app is None:
            return None
        if not isinstance(event, CallReceived) and not (app.cancel_by_push and _stops(event, to)):
            return None
        keys = self._payload.keys(event, to)
        if keys is None:
            return None
        return apns_payload(keys, event.event, what_to_shorten(event))

    async def send(self, delivery: Delivery, left_s: float) -> str:
        """See `Channel.send`. The apns-id is the same at every attempt."""
        bundle_id, environment = delivery.app, delivery.environment or _PRODUCTION
        token = delivery.token
        if bundle_id not in self._apps or environment not in _ENVIRONMENTS:
            raise DeliveryRefused("the relay's settings no longer hold this app")
        if not token or not token.isascii() or not token.isalnum():
            raise DeliveryRefused("the device has no APNs token")
        deadline = asyncio.get_running_loop().time() + min(left_s, ATTEMPT_S)
        try:
            answer = await self._attempt(bundle_id, environment, delivery, token, deadline)
        except ChannelAtFault as error:
            self._note_fault(bundle_id, environment, str(error), str(error))
            raise
        if answer.status != APNS_RESPONSE_CODE.SUCCESS:
            raise await self._failure(bundle_id, environment, answer)
        if self._faults:
            self._note_success(bundle_id, environment)
        return answer.notification_id

    async def _attempt(
        self, bundle_id: str, environment: str, delivery: Delivery, token: str, deadline: float
    ) -> Answer:
        """Sends it; once more at once where the provider token was too old."""
        pool = self._pool(bundle_id, environment)
        provider = self._tokens.get(bundle_id)
        push = self._push(bundle_id, delivery, token, deadline)
        answer = await pool.send(push)
        if provider is None or answer.description != EXPIRED_TOKEN:
            return answer
        if provider.renew(push.authorization or ""):
            answer = await pool.send(self._push(bundle_id, delivery, token, deadline))
        return answer

    def _push(self, bundle_id: str, delivery: Delivery, token: str, deadline: float) -> Push:
        expiration = delivery.expires_at_ms // 1000
        if expiration <= self._now().timestamp():
            expiration = 0  # Less than a second is left: now or never.
        collapse_id = delivery.call_sid or delivery.event_id
        return Push(
            token,
            delivery.payload.encode(),
            apns_id=push_id(delivery),
            topic=_topic(bundle_id),
            expiration=str(expiration),
            collapse_id=collapse_id.encode()[:_COLLAPSE_ID_BYTES].decode(errors="ignore"),
            deadline=deadline,
            answer=asyncio.get_running_loop().create_future(),
        )

    async def _failure(
        self, bundle_id: str, environment: str, answer: Answer
    ) -> DeliveryFailed | DeliveryRefused:
        now, headers = self._now(), answer.headers
        failure = failure_of(
            answer.status,
            answer.description or "",
            timestamp_ms=answer.timestamp,
            retry_after_s=read_retry_after(
                _text(headers, b"retry-after"), now, longest_s=_LONGEST_RETRY_AFTER_S
            ),
            server_clock=read_http_date(_text(headers, b"date")),
            now=now,
        )
        if isinstance(failure, ChannelAtFault):
            kind = answer.description or answer.status
            self._note_fault(bundle_id, environment, kind, str(failure))
            with suppress(InvalidInput):  # The connections there are go on with what they have.
                if await asyncio.to_thread(self._tls[bundle_id].changed):
                    self._pool(bundle_id, environment).reopen()
        return failure

    def _pool(self, bundle_id: str, environment: str) -> Pool:
        key = bundle_id, environment
        pool = self._pools.get(key)
        if pool is None:
            app = self._apps[bundle_id]
            pool = self._pools[key] = Pool(
                f"{bundle_id} ({environment})",
                _topic(bundle_id),
                size=app.connections,
                sandbox=environment == _SANDBOX,
                server=app.server,
                tls=self._tls[bundle_id],
                provider=self._tokens.get(bundle_id),
                keep=self._keep,
                sleep=self._sleep,
            )
            if self._tasks is not None:
                self._tasks.create_task(pool.run())
        return pool

    def _note_fault(self, bundle_id: str, environment: str, kind: str, reason: str) -> None:
        """Alarms once for each kind: a push that fails alike says nothing new."""
        if self._faults.get((bundle_id, environment)) != kind:
            self._faults[bundle_id, environment] = kind
            log.error(
                "apns refuses an app: its calls do not ring until this is mended",
                app=bundle_id,
                environment=environment,
                reason=reason,
            )
        self._metrics.push_app_fault.labels(self.kind, bundle_id).set(1)

    def _note_success(self, bundle_id: str, environment: str) -> None:
        if self._faults.pop((bundle_id, environment), None) is None:
            return
        log.info("apns takes an app's pushes again", app=bundle_id, environment=environment)
        if not any((bundle_id, other) in self._faults for other in _ENVIRONMENTS):
            self._metrics.push_app_fault.labels(self.kind, bundle_id).set(0)


def push_id(delivery: Delivery) -> str:
    """The apns-id of a delivery, the same for life: a retry never rings twice."""
    return str(uuid5(_PUSH_IDS, f"{delivery.event_id}/{delivery.device_id}/{delivery.app}"))


def _text(headers: Mapping[bytes, bytes], name: bytes) -> str | None:
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")


def _topic(bundle_id: str) -> str:
    return f"{bundle_id}.voip"


def _stops(event: CallEvent, to: Addressee) -> bool:
    """Whether the device was ringing until this event: not where its user was in the call."""
    if isinstance(event, CallCancelled):
        return event.reason != "joined_elsewhere"
    if isinstance(event, CallEnded):
        user = to.call.user(to.device.identity)
        return user is not None and user.state.pending
    return True


def _open_tokens(
    apps: Mapping[str, ApnsApp], now: Callable[[], datetime]
) -> dict[str, ProviderToken]:
    """One provider of tokens for each key: Apple limits how often a key's token changes."""
    providers: dict[tuple[Path, str, str], ProviderToken] = {}
    tokens: dict[str, ProviderToken] = {}
    for bundle_id, app in apps.items():
        if app.key_file is None or app.key_id is None or app.team_id is None:
            continue
        key = app.key_file, app.key_id, app.team_id
        if key not in providers:
            providers[key] = ProviderToken(
                open_key(bundle_id, app.key_file), app.key_id, app.team_id, now
            )
        tokens[bundle_id] = providers[key]
    return tokens


def _check_server(bundle_id: str, server: str | None) -> None:
    if server is not None:
        host, _, port = server.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) <= 65_535:
            raise InvalidInput(f"apns.{bundle_id}.server: {server} must be HOST:PORT")
