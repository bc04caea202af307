"""A push service in the test's hands, and the parts of a relay that push over it: on a real
database, by a clock that the test moves."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from sqlalchemy import Connection, select

from bellwire.broker.accounts.credentials import DynamicSecurity
from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.session import Session
from bellwire.push.access.revocation import Access
from bellwire.push.access.tokens import Actor
from bellwire.push.calls.calls import Calls
from bellwire.push.calls.invites import invite_from_json
from bellwire.push.calls.rate_limits import RateLimits
from bellwire.push.channels.channel import Addressee
from bellwire.push.channels.websocket import StreamReaders
from bellwire.push.delivery.dead_tokens import DeadTokens
from bellwire.push.delivery.outbox import Outbox
from bellwire.push.delivery.owed import Deliveries, report_deliveries
from bellwire.push.delivery.webhook_events import OnEvent
from bellwire.push.devices.registration import Devices
from bellwire.push.metrics import Metrics
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.calls import load_call
from bellwire.push.store.rows.devices import ChannelRow, find_device
from bellwire.push.store.rows.events import StreamEvent, events_after
from bellwire.push.store.rows.outbox import Delivery, count_owed
from bellwire.push.store.tables import outbox
from bellwire.signaling.calls.calls import Call
from bellwire.signaling.calls.commands import Received
from bellwire.signaling.calls.events import CallEvent, CallReceived, event_document
from bellwire.signaling.identifiers import ChannelKind, DeviceId, Identity
from bellwire.signaling.wire.answers import DeliveryAnswer
from bellwire.signaling.wire.operations import InviteRequest
from bellwire.signaling.wire.requests import ChannelRequest, DeviceRequest
from tests.conftest import PATIENCE_S
from tests.push.clock import Clock

APP = "com.example.app"


class PushService:
    """A push channel. It takes over what it is sent, answers for a token with the error in `says`,
    and lets nobody through while it is not `open`."""

    def __init__(self, kind: str = "fcm") -> None:
        self.kind = kind
        self.says: dict[str | None, Exception] = {}
        self.carries: tuple[type[CallEvent], ...] = (CallReceived,)
        self.open = asyncio.Event()
        self.open.set()
        self.tried: asyncio.Queue[Delivery] = asyncio.Queue()

    def compose(self, event: CallEvent, to: Addressee) -> str | None:
        del to
        return event_document(event) if isinstance(event, self.carries) else None

    async def send(self, delivery: Delivery, left_s: float) -> str:
        assert left_s > 0
        self.tried.put_nowait(delivery)
        await self.open.wait()
        if (error := self.says.get(delivery.token)) is not None:
            raise error
        return f"message to {delivery.device_id}"

    async def next(self) -> Delivery:
        async with asyncio.timeout(PATIENCE_S):
            return await self.tried.get()


def fcm(token: str, app: str = APP) -> ChannelRequest:
    return ChannelRequest(kind="fcm", app=app, token=token)


def apns(token: str) -> ChannelRequest:
    return ChannelRequest(kind="apns", app=APP, token=token, environment="production")


STREAM = ChannelRequest(kind="websocket")


class PushingRelay:
    """The parts of one relay process. `service` plays FCM, `backend` a webhook."""

    def __init__(
        self, database: Database, clock: Clock, *, on_event: OnEvent | None = None
    ) -> None:
        self.database = database
        self.clock = clock
        self.service, self.apns = PushService(), PushService("apns")
        self.backend = PushService("webhook")
        self.metrics = Metrics()
        session = Session(BrokerAddress("127.0.0.1", 1), "no-broker")
        self.streams = StreamReaders(session, alone=True)
        channels = {c.kind: c for c in (self.service, self.apns, self.backend)}
        dead_tokens = DeadTokens(
            database, self.streams, self.metrics, now=clock.now, on_event=on_event
        )
        self.outbox = Outbox(
            database,
            channels,
            self.metrics,
            now=clock.now,
            sleep=clock.sleep,
            on_dead_token=dead_tokens.report,
            on_event=on_event,
        )
        deliveries = Deliveries(self.outbox, channels, self.streams, now=clock.now)
        rate_limits = RateLimits(1000, 1000)
        self.calls = Calls(database, deliveries, self.metrics, rate_limits, now=clock.now)
        self.devices = Devices(
            database,
            DynamicSecurity(session),
            "mqtt://none",
            (*channels, "websocket"),
            {"fcm": (APP, "com.example.other"), "apns": (APP,)},
            self.streams,
            Access(database, self.metrics, now=clock.now),
            session=session,
            now=clock.now,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(self.outbox.run())
            await self.clock.until_asleep()
            yield
            running.cancel()

    async def register(self, device: str, identity: str, *channels: ChannelRequest) -> None:
        request = DeviceRequest(identity=identity, channels=list(channels))
        await self.devices.put(DeviceId(device), request)

    async def call(self, *to: str, timeout_s: float = 60) -> Call:
        """A call that a server makes."""
        invite = invite_from_json(
            InviteRequest(to=list(to), timeout=timeout_s),
            Actor(),
            new_sid=self.calls.new_sid,
            at=self.calls.now(),
            check_after_s=5,
        )
        return (await self.calls.create(invite)).call

    async def receives(
        self,
        call: Call,
        identity: str,
        device: str | None,
        channel: ChannelKind | None = None,
        app: str = "",
    ) -> None:
        """A device confirms an invite."""
        who = None if device is None else DeviceId(device)
        at = self.calls.now()
        command = Received(Identity(identity), who, at, channel, app)
        await self.calls.carry_out(call.call_sid, command)

    async def channels_of(self, device: str) -> tuple[ChannelRow, ...]:
        row = await self.database.read(lambda c: find_device(c, DeviceId(device)))
        return () if row is None else row.channels

    async def owed(self) -> int:
        return await self.database.read(count_owed)

    async def until_owed(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while await self.owed() != count:
                pass

    async def until_failed(self, attempts: int = 1) -> None:
        """Waits until every delivery has failed so often."""
        async with asyncio.timeout(PATIENCE_S):
            while any(n < attempts for n in await self.database.read(_attempts)):
                pass

    async def deliveries(self, call: Call, whose: str | None = None) -> Sequence[DeliveryAnswer]:
        """What became of a call's deliveries, as one identity or a server sees it."""
        identity = None if whose is None else Identity(whose)

        def work(connection: Connection) -> Sequence[DeliveryAnswer]:
            stored = load_call(connection, call.call_sid)
            assert stored is not None
            return report_deliveries(connection, stored, identity, self.clock.now()).deliveries

        return await self.database.read(work)

    async def stream_of(self, device: str) -> list[StreamEvent]:
        return await self.database.read(lambda c: events_after(c, DeviceId(device), 0, 0, 100))

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0


def _attempts(connection: Connection) -> Sequence[int]:
    return connection.execute(select(outbox.c.attempts)).scalars().all()
