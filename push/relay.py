"""A whole relay: opens what it needs, serves until told to stop, and closes in order.

Stopping: no new requests, those in flight finish; then the loops that send, fire and listen; then
the database; last the broker, if it is the relay's own child.

Opens the push channels that the settings name, each a long-lived thing with a `run` of its own.
"""

import asyncio
import fcntl
import hashlib
import json
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import structlog
import uvicorn

from bellwire.broker.accounts.credentials import DynamicSecurity
from bellwire.broker.embedded import EmbeddedBroker
from bellwire.broker.fleet.rollout_guard import guard_rollouts
from bellwire.broker.session.address import BrokerAddress, parse_broker_url
from bellwire.broker.session.publishing import PublishingSession
from bellwire.broker.session.receiving import ReceivingSession
from bellwire.broker.session.session import Session
from bellwire.config.private_file import write_private
from bellwire.config.relay import RelaySettings
from bellwire.push.access.api_keys import open_api_keys
from bellwire.push.access.revocation import Access, open_access
from bellwire.push.access.tokens import AccessTokens, open_access_tokens
from bellwire.push.api.app import served_app
from bellwire.push.api.server.admission import Admission, bounds_of, raise_descriptor_limit
from bellwire.push.api.server.guarded_http import GuardedStream, guarded_by
from bellwire.push.api.services import Services
from bellwire.push.calls.calls import Calls
from bellwire.push.calls.groups import Groups
from bellwire.push.calls.ice_servers import open_ice_servers
from bellwire.push.calls.policy import CallPolicy
from bellwire.push.calls.rate_limits import RateLimits
from bellwire.push.calls.rooms import open_rooms
from bellwire.push.calls.twilio_notifications import TwilioNotifications, read_auth_token
from bellwire.push.channels.channel import Channel
from bellwire.push.channels.mqtt import MqttChannel
from bellwire.push.channels.payload import PushPayload
from bellwire.push.channels.webhook.channel import WebhookChannel
from bellwire.push.channels.websocket import STREAM, StreamReaders
from bellwire.push.data_disk import DataDisk, look_at_disk
from bellwire.push.delivery.dead_tokens import DeadTokens
from bellwire.push.delivery.outbox import Outbox
from bellwire.push.delivery.owed import Deliveries
from bellwire.push.delivery.webhook_events import Webhooks
from bellwire.push.devices.absent import AbsentDevices
from bellwire.push.devices.connections import Connections
from bellwire.push.devices.devices import Devices
from bellwire.push.devices.door_reports import DoorReports
from bellwire.push.devices.event_stream import EventStream
from bellwire.push.devices.metrics import DeviceMetrics
from bellwire.push.devices.operations import LIMIT_BYTES, DeviceOperations
from bellwire.push.devices.rate_limits import DeviceRateLimits
from bellwire.push.devices.requests import DeviceRequests
from bellwire.push.metrics import Metrics
from bellwire.push.store.engine.database import Database, open_database
from bellwire.push.store.rows.calls import to_ms
from bellwire.push.store.rows.deliveries import forget_results
from bellwire.push.store.rows.devices import registered_among
from bellwire.push.store.rows.events import forget_expired
from bellwire.push.store.rows.outbox import make_all_due
from bellwire.signaling.errors import InvalidInput, Unavailable
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import OPERATORS_ECHO


class PushChannel(Channel, Protocol):
    """A channel that reaches devices through somebody else's push service."""

    async def run(self) -> None:
        """Holds its connections and credentials ready until cancelled; without it nothing is sent."""
        ...


async def open_push_channels(
    settings: RelaySettings,
    tokens: AccessTokens,
    metrics: Metrics,
    *,
    now: Callable[[], datetime],
) -> dict[str, PushChannel]:
    """The push channels of the settings' apps, by kind.

    Raises:
        InvalidInput: credentials are missing, cannot be read, or are none.
    """
    account_sid = settings.account_sid or _account_sid(settings.issuer)
    payload = PushPayload(account_sid, tokens.connect_token)
    # Key files are read, and what is not needed is not even imported: firebase-admin takes long.
    return await asyncio.to_thread(_open, settings, payload, metrics, now)


def _open(
    settings: RelaySettings, payload: PushPayload, metrics: Metrics, now: Callable[[], datetime]
) -> dict[str, PushChannel]:
    channels: dict[str, PushChannel] = {}
    if settings.apns:
        from bellwire.push.channels.apns.channel import ApnsChannel

        channels["apns"] = ApnsChannel(settings.apns, payload, metrics, now=now)
    if settings.fcm:
        from bellwire.push.channels.fcm.channel import FcmChannel

        channels["fcm"] = FcmChannel(settings.fcm, payload, metrics, now=now)
    return channels


def _account_sid(issuer: str) -> str:
    """`twi_account_sid` where none is set: the same for all relays of one issuer."""
    return f"AC{hashlib.sha256(issuer.encode()).hexdigest()[:32]}"


log = structlog.get_logger(__name__)

_SETTLE_AFTER_S = 0.05
_HOUSEKEEPING_S = 3600.0
_GRACE_S = 5
_KEEP_ALIVE_S = 75
"""Longer than those before a relay keep an idle connection (httpx 5 s, nginx 60 s): where the server is
the first to close, a request may be on its way already, and is lost."""
_SOCKET_BUFFER_BYTES = 128 * 1024
_RESULTS_KEPT = timedelta(days=7)
_OVERDUE_BY = timedelta(seconds=0.25)
_OVERDUE_EVERY_S = 0.4
_OVERDUE_AT_ONCE = 500


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling: the relay decides when to stop."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield


async def serve(
    settings: RelaySettings,
    stop: asyncio.Event,
    *,
    ready: Callable[[str], None] = lambda _: None,
    now: Callable[[], datetime] = utc_now,
) -> None:
    """Runs a relay until `stop` is set. `ready` is called with its URL once it serves.

    Raises:
        InvalidInput: a setting is wrong. Those of webhooks, Twilio and TURN are looked at before
            anything is started.
        Unavailable: the address or the data directory is in use, or mosquitto is missing.
    """
    descriptors = raise_descriptor_limit()  # for the broker too, which inherits it
    async with aclosing(await asyncio.to_thread(_Files, settings, now)) as files:
        listener = _listen(settings)
        with _data_folder(settings.data), listener:
            host, port = listener.getsockname()[:2]
            url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            metrics = Metrics()
            async with (
                _broker(settings, metrics) as address,
                _database(settings) as database,
            ):
                await _serve(
                    settings,
                    metrics,
                    files,
                    database,
                    address,
                    listener,
                    descriptors,
                    url,
                    stop,
                    ready,
                    now,
                )
    log.info("relay stopped")


class _Files:
    """What is made of the settings and of the files that they name, and needs nothing else. Making it
    reads them, and blocks.

    Raises:
        InvalidInput: a setting is wrong, or its file.
    """

    def __init__(self, settings: RelaySettings, now: Callable[[], datetime]) -> None:
        token_file = settings.twilio_auth_token_file
        self.auth_token = None if token_file is None else read_auth_token(token_file)
        self.ice_servers = open_ice_servers(settings, now=now)
        self.rooms_of = open_rooms(settings)
        self.webhook_channel = WebhookChannel(settings.webhooks, now=now)

    async def aclose(self) -> None:
        """Closes the connections of webhooks."""
        await self.webhook_channel.aclose()


async def _serve(
    settings: RelaySettings,
    metrics: Metrics,
    files: _Files,
    database: Database,
    address: BrokerAddress,
    listener: socket.socket,
    descriptors: int,
    url: str,
    stop: asyncio.Event,
    ready: Callable[[str], None],
    now: Callable[[], datetime],
) -> None:
    bounds = bounds_of(settings, descriptors)
    admission = Admission(bounds, settings.trusted_proxies, metrics)
    disk = DataDisk(settings.data)
    session = PublishingSession(address, f"bellwire-relay-{secrets.token_hex(6)}")
    provisioner = DynamicSecurity(session)
    access = await open_access(database, metrics, now=now)
    tokens = await open_access_tokens(database, settings.issuer, now, lambda: access.revision)
    pushes = await open_push_channels(settings, tokens, metrics, now=now)
    channels: dict[str, Channel] = {"mqtt": MqttChannel(session), **pushes}
    streams = StreamReaders(session, alone=not database.shared)
    webhooks = Webhooks(settings.webhooks, now=now)
    webhook_channel = files.webhook_channel
    dead_tokens = DeadTokens(database, streams, metrics, now=now, on_event=webhooks.event)
    outbox = Outbox(
        database,
        # No device has a webhook, so that is not among the kinds that devices may register.
        {**channels, webhook_channel.kind: webhook_channel},
        metrics,
        now=now,
        settle_after_s=_SETTLE_AFTER_S,
        on_dead_token=dead_tokens.report,
    )
    deliveries = Deliveries(
        outbox, channels, streams, now=now, webhooks=webhooks, sign_invite=tokens.signed_invite
    )
    rate_limits = RateLimits(
        settings.app_invites_per_s,
        settings.device_invites_per_s,
        emergency_callers=settings.emergency_callers,
        on_refused=metrics.count_refused,
    )
    policy = CallPolicy(settings.policy, metrics.count_refused)
    calls = Calls(database, deliveries, metrics, rate_limits, policy, now=now)
    devices = Devices(
        database,
        provisioner,
        settings.device_broker or address.url,
        (*channels, STREAM),
        {"apns": settings.apns, "fcm": settings.fcm},
        streams,
        access,
        session=session,
        now=now,
    )
    connections = Connections(database, calls, deliveries, now=now)
    rooms = files.rooms_of(calls)
    operations = DeviceOperations(
        calls,
        metrics,
        tokens,
        files.ice_servers,
        rooms,
        DoorReports(database, calls, metrics, now=now, on_event=webhooks.event),
        check_after_s=settings.not_received_after_s,
    )
    session.on_connected(lambda: outbox.retry_now("mqtt"))
    device_floods = DeviceRateLimits(settings.device_requests_per_s, metrics)
    requests = DeviceRequests(session, operations, devices, connections, device_floods, now=now)

    if not database.shared:
        # Whatever is leased was leased by a process that has died.
        await database.write(lambda c: make_all_due(c, to_ms(now())))
        await calls.load_deadlines()
    device_metrics = DeviceMetrics(
        database, Session(address, f"bellwire-metrics-{secrets.token_hex(6)}"), now=now
    )
    app = served_app(
        Services(
            settings=settings,
            database=database,
            session=session,
            provisioner=provisioner,
            calls=calls,
            groups=Groups(database),
            devices=devices,
            device_floods=device_floods,
            connections=connections,
            event_stream=EventStream(
                connections, streams, operations, access, device_floods, now=now
            ),
            access=access,
            api_keys=await open_api_keys(database, settings.data / "api-key", access, now),
            tokens=tokens,
            metrics=metrics,
            device_metrics=device_metrics,
            webhooks=webhooks,
            webhook_channel=webhook_channel,
            twilio=TwilioNotifications(
                database, outbox, channels, files.auth_token, rate_limits, now=now
            ),
            ice_servers=files.ice_servers,
            rooms=rooms,
            disk=disk,
        )
    )
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=_GRACE_S,
            timeout_keep_alive=_KEEP_ALIVE_S,
            http=guarded_by(admission),
            ws=GuardedStream,
            backlog=bounds.backlog,
            ws_max_size=2 * LIMIT_BYTES,
            ws_ping_interval=10.0,
            ws_ping_timeout=10.0,
            server_header=False,
            proxy_headers=False,  # the admission reads them
        )
    )
    async with asyncio.TaskGroup() as tasks:
        loops = [
            tasks.create_task(admission.watch()),
            tasks.create_task(session.run()),
            tasks.create_task(requests.run()),
            tasks.create_task(outbox.run()),
            tasks.create_task(streams.run()),
            *(tasks.create_task(channel.run()) for channel in pushes.values()),
            tasks.create_task(connections.run()),
            tasks.create_task(calls.deadlines.run()),
            tasks.create_task(rooms.run()),
            tasks.create_task(access.run()),
            tasks.create_task(device_metrics.run()),
            tasks.create_task(_guard_rollouts(address, database, metrics, now)),
            tasks.create_task(AbsentDevices(address, database).run()),
            tasks.create_task(_keep_house(database, calls, webhooks, access, settings, disk, now)),
            tasks.create_task(_announce(settings, url, session, ready)),
        ]
        if database.shared:
            loops.append(tasks.create_task(_take_over_deadlines(calls)))
        stopping = tasks.create_task(_stop_when(stop, server))
        await server.serve(sockets=[listener])
        log.info("relay stopping")
        for task in (stopping, *loops):
            task.cancel()


async def _announce(
    settings: RelaySettings, url: str, session: Session, ready: Callable[[str], None]
) -> None:
    await session.wait_connected()
    # For the commands on this machine: `bellwire devices`, `call` and `doctor` find the relay here, and
    # doctor what it was told to do, be it in the environment of another process.
    document = {"url": url, "all_may_ring_all": settings.policy.lets_all_ring_all}
    write_private(settings.data / "relay.json", json.dumps(document))
    log.info("relay serves", url=url, data=str(settings.data), broker=session.address.url)
    ready(url)


async def _stop_when(stop: asyncio.Event, server: uvicorn.Server) -> None:
    await stop.wait()
    server.should_exit = True


async def _guard_rollouts(
    address: BrokerAddress, database: Database, metrics: Metrics, now: Callable[[], datetime]
) -> None:
    # A session of its own: what a fleet reports must not queue before the calls.
    session = ReceivingSession(
        address, f"bellwire-guard-{secrets.token_hex(6)}", echo_topic=OPERATORS_ECHO
    )

    async def registered(devices: Collection[DeviceId]) -> Collection[DeviceId]:
        asked = [*devices]
        return await database.read(lambda c: registered_among(c, asked))

    await guard_rollouts(
        session,
        registered,
        author="bellwire-relay",
        now=now,
        count_refused=metrics.count_refused,
    )


async def _take_over_deadlines(
    calls: Calls, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> None:
    """Fires the deadlines that the relay which set them has not: it has died, or is slow."""
    while True:
        try:
            overdue = await calls.overdue(_OVERDUE_BY, _OVERDUE_AT_ONCE)
            calls.deadlines.refill((call_sid, to_ms(calls.now())) for call_sid in overdue)
        except Unavailable as error:
            log.warning("deadlines of other relays not seen to", error=str(error))
        await sleep(_OVERDUE_EVERY_S)


async def _keep_house(
    database: Database,
    calls: Calls,
    webhooks: Webhooks,
    access: Access,
    settings: RelaySettings,
    disk: DataDisk,
    now: Callable[[], datetime],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    while True:
        if (found := await disk.state()).is_low:
            log.warning("data disk nearly full", data=str(settings.data), free=found.free_bytes)
        try:
            await calls.forget_old(timedelta(seconds=settings.idempotency_keep_s))
            await database.write(lambda c: forget_expired(c, to_ms(now())))
            await database.write(webhooks.forget_old)
            await access.forget_old()
            await database.write(lambda c: forget_results(c, to_ms(now() - _RESULTS_KEPT)))
        except Unavailable as error:
            log.warning("old rows not removed", error=str(error))
        await sleep(_HOUSEKEEPING_S)


def _listen(settings: RelaySettings) -> socket.socket:
    try:
        host, port = settings.host, settings.port
    except ValueError as error:
        raise InvalidInput(f"--listen {settings.listen}: must be HOST:PORT ({error})") from error
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        # Of what the kernel keeps for who neither reads nor is read: by itself it takes megabytes.
        listener.setsockopt(socket.SOL_SOCKET, buffer, _SOCKET_BUFFER_BYTES)
    try:
        listener.bind((host or "127.0.0.1", port))
    except OSError as error:
        listener.close()
        raise Unavailable(
            f"cannot listen on {settings.listen}: {error.strerror or error};"
            " stop what uses it, or give another --listen HOST:PORT"
        ) from error
    return listener


@contextmanager
def _data_folder(data: Path) -> Iterator[None]:
    """The data directory, held by this process alone."""
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (data / "lock").open("w")
    except OSError as error:
        raise Unavailable(f"cannot use the data directory {data}: {error.strerror}") from error
    with lock:
        problem = look_at_disk(data).problem
        if problem is not None:
            raise Unavailable(problem)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Unavailable(
                f"another relay uses the data directory {data}: stop it, or give another --data DIR"
            ) from error
        yield


@asynccontextmanager
async def _broker(settings: RelaySettings, metrics: Metrics) -> AsyncIterator[BrokerAddress]:
    """The broker named in the settings, or one of the relay's own while it runs."""
    if settings.broker is not None:
        password = settings.broker_password
        yield parse_broker_url(
            settings.broker,
            username=settings.broker_username,
            password=None if password is None else password.get_secret_value(),
            ca_file=settings.broker_ca_file,
        )
        return
    broker = EmbeddedBroker(
        settings.data / "broker", port=settings.broker_port, count_refused=metrics.count_refused
    )
    address = broker.prepare()
    async with asyncio.TaskGroup() as tasks:
        child = tasks.create_task(broker.run())
        try:
            yield address
        finally:
            child.cancel()


@asynccontextmanager
async def _database(settings: RelaySettings) -> AsyncIterator[Database]:
    url = None if settings.database is None else settings.database.get_secret_value()
    database = await asyncio.to_thread(open_database, url, settings.data)
    try:
        yield database
    finally:
        await database.close()
