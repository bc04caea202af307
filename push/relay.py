"""A whole relay: opens what it needs, serves until told to stop, and closes in order. What it is made of
stands in `push.parts`.

Stopping: no new requests, those in flight finish; then the loops that send, fire and listen; then
the database; last the broker, if it is the relay's own child.
"""

import asyncio
import fcntl
import json
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
import uvicorn

from bellwire.broker.embedded import EmbeddedBroker
from bellwire.broker.session.address import BrokerAddress, parse_broker_url
from bellwire.broker.session.publishing import PublishingSession
from bellwire.config.private_file import write_private
from bellwire.config.relay import RelaySettings
from bellwire.push.api.app import served_app
from bellwire.push.api.before_routes import shown_to_browsers
from bellwire.push.api.server.admission import Admission, bounds_of, raise_descriptor_limit
from bellwire.push.api.server.guarded_http import GuardedStream, guarded_by
from bellwire.push.data_disk import look_at_disk
from bellwire.push.devices.insights import INSIGHTS_KEPT
from bellwire.push.devices.operations import LIMIT_BYTES
from bellwire.push.metrics import Metrics
from bellwire.push.parts import Files, Ground, Relay, open_relay
from bellwire.push.store.engine.database import Database, open_database
from bellwire.push.store.rows.deliveries import forget_results
from bellwire.push.store.rows.events import forget_expired
from bellwire.push.store.rows.quality import forget_insights
from bellwire.push.store.tables import to_ms
from bellwire.signaling.errors import InvalidInput, Unavailable

log = structlog.get_logger(__name__)

_HOUSEKEEPING_S = 3600.0
_GRACE_S = 5
_KEEP_ALIVE_S = 75
"""Longer than those before a relay keep an idle connection (httpx 5 s, nginx 60 s): where the server is
the first to close, a request may be on its way already, and is lost."""
_SOCKET_BUFFER_BYTES = 128 * 1024
_RESULTS_KEPT = timedelta(days=7)


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
    metrics = Metrics()
    async with aclosing(await asyncio.to_thread(Files, settings, now)) as files:
        listener = _listen(settings)
        with _data_folder(settings.data), listener:
            async with _broker(settings, metrics) as address, _database(settings) as database:
                session = PublishingSession(address, f"bellwire-relay-{secrets.token_hex(6)}")
                ground = Ground(settings, files, database, session, metrics, now)
                relay = await open_relay(ground)
                await _serve(
                    relay, listener, descriptors, stop, lambda: _say_ready(relay, listener, ready)
                )
    log.info("relay stopped")


def _say_ready(relay: Relay, listener: socket.socket, ready: Callable[[str], None]) -> None:
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    settings, broker = relay.ground.settings, relay.ground.session.address.url
    # For the commands on this machine: `bellwire devices`, `call` and `doctor` find the relay here, and
    # doctor what it was told to do, be it in the environment of another process.
    document = {"url": url, "all_may_ring_all": settings.all_may_ring_all}
    write_private(settings.data / "relay.json", json.dumps(document))
    log.info("relay serves", url=url, data=str(settings.data), broker=broker)
    ready(url)


async def _serve(
    relay: Relay,
    listener: socket.socket,
    descriptors: int,
    stop: asyncio.Event,
    ready: Callable[[], None],
) -> None:
    settings, metrics = relay.ground.settings, relay.ground.metrics
    bounds = bounds_of(settings, descriptors)
    admission = Admission(
        bounds,
        settings.trusted_proxies,
        metrics,
        shown=lambda app: shown_to_browsers(app, settings.cors_origins),
    )
    server = _Server(
        uvicorn.Config(
            served_app(relay),
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
            tasks.create_task(relay.run()),
            tasks.create_task(_keep_house(relay)),
            tasks.create_task(_announce(relay, ready)),
            tasks.create_task(_stop_when(stop, server)),
        ]
        await server.serve(sockets=[listener])
        log.info("relay stopping")
        for task in loops:
            task.cancel()


async def _announce(relay: Relay, ready: Callable[[], None]) -> None:
    await relay.ground.session.wait_connected()
    ready()


async def _stop_when(stop: asyncio.Event, server: uvicorn.Server) -> None:
    await stop.wait()
    server.should_exit = True


async def _keep_house(
    relay: Relay, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> None:
    settings, database, now = relay.ground.settings, relay.ground.database, relay.ground.now
    while True:
        if (found := await relay.disk.state()).is_low:
            log.warning("data disk nearly full", data=str(settings.data), free=found.free_bytes)
        try:
            await relay.calls.calls.forget_old(timedelta(seconds=settings.idempotency_keep_s))
            await database.write(lambda c: forget_expired(c, to_ms(now())))
            await database.write(relay.delivery.webhooks.forget_old)
            await relay.access.ended.forget_old()
            await database.write(lambda c: forget_results(c, to_ms(now() - _RESULTS_KEPT)))
            await database.write(lambda c: forget_insights(c, to_ms(now() - INSIGHTS_KEPT)))
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
