"""The parts of a relay that a test puts together itself, on a real database, with its own clock and
without a broker."""

from dataclasses import dataclass

from bellwire.broker.accounts.credentials import DynamicSecurity
from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.session import Session
from bellwire.push.access.revocation import Access
from bellwire.push.access.tokens import AccessTokens, new_signing_key
from bellwire.push.calls.calls import Calls
from bellwire.push.calls.ice_servers import IceServers
from bellwire.push.calls.rate_limits import RateLimits
from bellwire.push.calls.rooms import Rooms
from bellwire.push.calls.routing import Routing
from bellwire.push.channels.mqtt import MqttChannel
from bellwire.push.channels.websocket import StreamReaders
from bellwire.push.delivery.outbox import Outbox
from bellwire.push.delivery.owed import Deliveries
from bellwire.push.devices.connections import Connections
from bellwire.push.devices.door_reports import DoorReports
from bellwire.push.devices.event_stream import EventStream
from bellwire.push.devices.operations import DeviceOperations
from bellwire.push.devices.rate_limits import DeviceRateLimits
from bellwire.push.devices.registration import Devices
from bellwire.push.metrics import Metrics
from bellwire.push.store.engine.database import Database
from tests.push.clock import Clock


@dataclass
class Parts:
    """One relay process, as far as it needs no network."""

    database: Database
    calls: Calls
    connections: Connections
    event_stream: EventStream
    operations: DeviceOperations
    devices: Devices


def parts_on(database: Database, clock: Clock, device_invites_per_s: float = 1000) -> Parts:
    """The parts of a relay on a database, by a clock."""
    metrics = Metrics()
    session = Session(BrokerAddress("127.0.0.1", 1), "no-broker")
    streams = StreamReaders(session, alone=True)
    channels = {"mqtt": MqttChannel(session)}
    outbox = Outbox(database, channels, metrics, now=clock.now, sleep=clock.sleep)
    deliveries = Deliveries(outbox, channels, streams, now=clock.now)
    calls = Calls(
        database, deliveries, metrics, RateLimits(1000, device_invites_per_s), now=clock.now
    )
    connections = Connections(database, calls, deliveries, now=clock.now, sleep=clock.sleep)
    tokens = AccessTokens(database, [new_signing_key()], "bellwire", clock.now)
    ice_servers = IceServers((), (), None, 3600, now=clock.now)
    rooms = Rooms(None, "", calls)
    door_reports = DoorReports(database, calls, metrics, now=clock.now)
    operations = DeviceOperations(
        calls,
        Routing(calls, database),
        metrics,
        tokens,
        ice_servers,
        rooms,
        door_reports,
        check_after_s=5,
    )
    access = Access(database, metrics, now=clock.now)
    event_stream = EventStream(
        connections,
        streams,
        operations,
        access,
        DeviceRateLimits(1e6, metrics),
        now=clock.now,
        sleep=clock.sleep,
    )
    devices = Devices(
        database,
        DynamicSecurity(session),
        "mqtt://none",
        channels,
        {},
        streams,
        access,
        session=session,
        now=clock.now,
    )
    return Parts(database, calls, connections, event_stream, operations, devices)
