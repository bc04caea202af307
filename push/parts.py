"""What a relay is made of, room by room: each opens its parts, and runs what of them runs.

`Ground` is what all stand on; `Relay` is the whole, as the HTTP interface has it. Nothing is heard of the
broker before all rooms are open, so that nothing that it says is missed: `run` comes last.
"""

import asyncio
import hashlib
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from bellwire.broker.accounts.credentials import DynamicSecurity
from bellwire.broker.fleet.rollout_guard import guard_rollouts
from bellwire.broker.session.publishing import PublishingSession
from bellwire.broker.session.receiving import ReceivingSession
from bellwire.broker.session.session import Session
from bellwire.config.relay import RelaySettings
from bellwire.push.access.api_keys import ApiKeys, open_api_keys
from bellwire.push.access.revocation import Access, open_access
from bellwire.push.access.tokens import AccessTokens, open_access_tokens
from bellwire.push.backend.callbacks import CallbackChannel, Callbacks
from bellwire.push.backend.requests import BackendRequests, OwnHost
from bellwire.push.backend.voice_url import VoiceUrl
from bellwire.push.calls.calls import Calls
from bellwire.push.calls.groups import Groups
from bellwire.push.calls.ice_servers import IceServers, open_ice_servers
from bellwire.push.calls.policy import CallPolicy
from bellwire.push.calls.rate_limits import RateLimits
from bellwire.push.calls.rooms import Rooms, open_rooms
from bellwire.push.calls.routing import Routing
from bellwire.push.calls.twilio_notifications import TwilioNotifications, read_auth_token
from bellwire.push.channels.channel import Channel
from bellwire.push.channels.live_invite import LiveInvites
from bellwire.push.channels.mqtt import MqttChannel
from bellwire.push.channels.payload import PushPayload
from bellwire.push.channels.webhook.channel import WebhookChannel
from bellwire.push.channels.websocket import STREAM, StreamReaders
from bellwire.push.data_disk import DataDisk
from bellwire.push.delivery.dead_tokens import DeadTokens
from bellwire.push.delivery.outbox import Outbox
from bellwire.push.delivery.owed import Deliveries
from bellwire.push.delivery.webhook_events import OnEvent, Webhooks
from bellwire.push.devices.connections import Connections
from bellwire.push.devices.door_reports import DoorReports
from bellwire.push.devices.event_stream import EventStream
from bellwire.push.devices.insights import Insights
from bellwire.push.devices.metrics import DeviceMetrics
from bellwire.push.devices.operations import DeviceOperations
from bellwire.push.devices.presence_watch import PresenceWatch
from bellwire.push.devices.rate_limits import DeviceRateLimits
from bellwire.push.devices.registration import Devices
from bellwire.push.devices.requests import DeviceRequests
from bellwire.push.fleet import keep_fleet
from bellwire.push.metrics import Metrics
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.devices import registered_among
from bellwire.push.store.rows.outbox import make_all_due
from bellwire.push.store.tables import to_ms
from bellwire.signaling.calls.dials import Callback, CallbackMethod
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import OPERATORS_ECHO

_SETTLE_AFTER_S = 0.05


class Files:
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
        self.backend = None if self.auth_token is None else _backend(settings, self.auth_token)

    async def aclose(self) -> None:
        """Closes the connections of webhooks, and to the backend."""
        await self.webhook_channel.aclose()
        if self.backend is not None:
            await self.backend.aclose()


def _backend(settings: RelaySettings, auth_token: str) -> BackendRequests:
    own = None
    if settings.voice_url is not None:
        own = OwnHost(
            settings.voice_url,
            settings.voice_url_allow_private_network,
            settings.voice_url_ca_file,
        )
    return BackendRequests(auth_token, own)


def account_sid(settings: RelaySettings) -> str:
    """The account that the relay says it is: the same for all relays of one issuer, where none is set."""
    made = f"AC{hashlib.sha256(settings.issuer.encode()).hexdigest()[:32]}"
    return settings.account_sid or made


@dataclass(frozen=True, slots=True)
class Ground:
    """What all rooms stand on. `session` is the relay's connection to the broker."""

    settings: RelaySettings
    files: Files
    database: Database
    session: PublishingSession
    metrics: Metrics
    now: Callable[[], datetime]

    def another_session(self, purpose: str) -> Session:
        """A connection to the broker for one purpose, so that it does not queue before the calls."""
        return Session(self.session.address, f"bellwire-{purpose}-{secrets.token_hex(6)}")


@dataclass(frozen=True, slots=True)
class AccessParts:
    """Who may ask: API keys, access tokens, and which of them have ended."""

    ended: Access
    api_keys: ApiKeys
    tokens: AccessTokens


async def open_access_parts(on: Ground) -> AccessParts:
    """Reads the keys; makes those that there must be."""
    settings, database = on.settings, on.database
    ended = await open_access(database, on.metrics, now=on.now)
    tokens = await open_access_tokens(database, settings.issuer, on.now, lambda: ended.revision)
    api_keys = await open_api_keys(database, settings.data / "api-key", ended, on.now)
    return AccessParts(ended, api_keys, tokens)


class PushChannel(Channel, Protocol):
    """A channel that reaches devices through somebody else's push service."""

    async def run(self) -> None:
        """Holds its connections and credentials ready until cancelled; without it nothing is sent."""
        ...


@dataclass(frozen=True, slots=True)
class DeliveryParts:
    """How what happens comes to devices and backends. `channels` are those that devices may register;
    of these `pushes` go through a push service."""

    channels: Mapping[str, Channel]
    pushes: Mapping[str, PushChannel]
    streams: StreamReaders
    outbox: Outbox
    owed: Deliveries
    webhooks: Webhooks
    webhook_channel: WebhookChannel

    async def run(self) -> None:
        """Sends until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.outbox.run())
            tasks.create_task(self.streams.run())
            for channel in self.pushes.values():
                tasks.create_task(channel.run())


async def open_delivery_parts(on: Ground, tokens: AccessTokens) -> DeliveryParts:
    """Opens the channels that the settings name.

    Raises:
        InvalidInput: a push service's credentials are missing, cannot be read, or are none.
    """
    database, now = on.database, on.now
    account = account_sid(on.settings)
    # Key files are read, and what is not needed is not even imported: firebase-admin takes long.
    payload = PushPayload(account, tokens.connect_token)
    pushes = await asyncio.to_thread(_push_channels, on, payload)
    channels: dict[str, Channel] = {"mqtt": MqttChannel(on.session), **pushes}
    streams = StreamReaders(on.session, alone=not database.shared)
    webhooks = Webhooks(on.settings.webhooks, now=now)
    webhook_channel = on.files.webhook_channel
    dead_tokens = DeadTokens(database, streams, on.metrics, now=now, on_event=webhooks.event)
    callback_channel = CallbackChannel(
        on.files.backend, database, webhooks.event, on.metrics.count_refused, now=now
    )
    outbox = Outbox(
        database,
        # No device has a webhook or a callback, so these are not among the kinds that devices may register.
        {
            **channels,
            webhook_channel.kind: webhook_channel,
            callback_channel.kind: callback_channel,
        },
        on.metrics,
        now=now,
        settle_after_s=_SETTLE_AFTER_S,
        on_dead_token=dead_tokens.report,
        on_event=webhooks.event,
    )
    owed = Deliveries(
        outbox,
        channels,
        streams,
        now=now,
        webhooks=webhooks,
        sign_invite=tokens.signed_invite,
        for_device=LiveInvites(account, tokens.connect_token).document,
    )
    on.session.on_connected(lambda: outbox.retry_now("mqtt"))
    if not database.shared:
        # Whatever is leased was leased by a process that has died.
        await database.write(lambda c: make_all_due(c, to_ms(now())))
    return DeliveryParts(channels, pushes, streams, outbox, owed, webhooks, webhook_channel)


def _push_channels(on: Ground, payload: PushPayload) -> dict[str, PushChannel]:
    settings, metrics = on.settings, on.metrics
    channels: dict[str, PushChannel] = {}
    if settings.apns:
        from bellwire.push.channels.apns.channel import ApnsChannel

        channels["apns"] = ApnsChannel(settings.apns, payload, metrics, now=on.now)
    if settings.fcm:
        from bellwire.push.channels.fcm.channel import FcmChannel

        channels["fcm"] = FcmChannel(settings.fcm, payload, metrics, now=on.now)
    return channels


@dataclass(frozen=True, slots=True)
class CallParts:
    """Calls, whom they may be for, and what they are connected by."""

    calls: Calls
    routing: Routing
    groups: Groups
    rooms: Rooms
    ice_servers: IceServers
    twilio: TwilioNotifications
    alone: bool
    """Whether no other relay fires deadlines, too."""

    async def run(self) -> None:
        """Fires deadlines, and looks after the rooms, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.calls.deadlines.run())
            tasks.create_task(self.rooms.run())
            if not self.alone:
                tasks.create_task(self.calls.deadlines.take_over(self.calls.overdue))


async def open_call_parts(on: Ground, delivery: DeliveryParts) -> CallParts:
    """Takes up the deadlines of calls that an earlier process left."""
    settings, database, now = on.settings, on.database, on.now
    limits = RateLimits(
        settings.app_invites_per_s,
        settings.device_invites_per_s,
        emergency_callers=settings.emergency_callers,
        on_refused=on.metrics.count_refused,
    )
    policy = CallPolicy(settings.policy_in_force, on.metrics.count_refused)
    callbacks = Callbacks(delivery.outbox, account_sid(settings), now=now)
    calls = Calls(
        database,
        delivery.owed,
        on.metrics,
        limits,
        policy,
        callbacks,
        now=now,
        max_invitees=settings.max_invitees,
    )
    routing = Routing(calls, database, callbacks, _voice_url(on))
    twilio = TwilioNotifications(
        database, delivery.outbox, delivery.channels, on.files.auth_token, limits, now=now
    )
    if not database.shared:
        await calls.load_deadlines()
    return CallParts(
        calls,
        routing,
        Groups(database),
        on.files.rooms_of(calls),
        on.files.ice_servers,
        twilio,
        alone=not database.shared,
    )


def _voice_url(on: Ground) -> VoiceUrl | None:
    settings = on.settings
    if settings.voice_url is None or on.files.backend is None:
        return None
    return VoiceUrl(
        on.files.backend,
        Callback(settings.voice_url, CallbackMethod(settings.voice_method)),
        timeout_s=settings.voice_url_timeout_s,
        account_sid=account_sid(settings),
        count=on.metrics.count_voice_url,
    )


@dataclass(frozen=True, slots=True)
class DeviceParts:
    """Which devices there are, which of them are there, and what they ask."""

    registered: Devices
    connections: Connections
    rate_limits: DeviceRateLimits
    requests: DeviceRequests
    watch: PresenceWatch
    event_stream: EventStream
    metrics: DeviceMetrics
    insights: Insights

    async def run(self, on: Ground) -> None:
        """Hears devices, and keeps who is there, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.requests.run())
            tasks.create_task(self.connections.run())
            tasks.create_task(self.metrics.run())
            tasks.create_task(self.insights.run())
            tasks.create_task(_guard_rollouts(on))
            tasks.create_task(keep_fleet(on.session.address, on.database, now=on.now))
            tasks.create_task(self.watch.run())


def open_device_parts(
    on: Ground, access: AccessParts, delivery: DeliveryParts, calls: CallParts
) -> DeviceParts:
    """Makes them; from then on the broker's session knows who takes what devices say."""
    settings, database, session, now = on.settings, on.database, on.session, on.now
    registered = Devices(
        database,
        DynamicSecurity(session),
        settings.device_broker or session.address.url,
        (*delivery.channels, STREAM),
        {"apns": settings.apns, "fcm": settings.fcm},
        delivery.streams,
        access.ended,
        session=session,
        now=now,
    )
    connections = Connections(database, calls.calls, delivery.owed, now=now)
    on_event = delivery.webhooks.event
    operations = DeviceOperations(
        calls.calls,
        calls.routing,
        on.metrics,
        access.tokens,
        calls.ice_servers,
        calls.rooms,
        DoorReports(database, calls.calls, on.metrics, now=now, on_event=on_event),
        check_after_s=settings.not_received_after_s,
    )
    limits = DeviceRateLimits(settings.device_requests_per_s, on.metrics)
    requests = DeviceRequests(session, operations, registered, connections, limits, now=now)
    return DeviceParts(
        registered,
        connections,
        limits,
        requests,
        PresenceWatch(session.address, database, requests, now=now),
        EventStream(connections, delivery.streams, operations, access.ended, limits, now=now),
        DeviceMetrics(database, on.another_session("metrics"), now=now),
        _insights(on, on_event),
    )


def _insights(on: Ground, on_event: OnEvent) -> Insights:
    # A session of its own, as for the metrics.
    session = ReceivingSession(on.session.address, f"bellwire-insights-{secrets.token_hex(6)}")
    return Insights(on.database, session, on.metrics, now=on.now, on_event=on_event)


async def _guard_rollouts(on: Ground) -> None:
    # A session of its own: what a fleet reports must not queue before the calls.
    session = ReceivingSession(
        on.session.address, f"bellwire-guard-{secrets.token_hex(6)}", echo_topic=OPERATORS_ECHO
    )

    async def registered(devices: Collection[DeviceId]) -> Collection[DeviceId]:
        asked = [*devices]
        return await on.database.read(lambda c: registered_among(c, asked))

    await guard_rollouts(
        session,
        registered,
        author="bellwire-relay",
        now=on.now,
        count_refused=on.metrics.count_refused,
    )


@dataclass(frozen=True, slots=True)
class Relay:
    """A relay's rooms, open."""

    ground: Ground
    disk: DataDisk
    access: AccessParts
    delivery: DeliveryParts
    calls: CallParts
    devices: DeviceParts

    @property
    def writes_to_disk(self) -> bool:
        """Whether this relay needs the disk of its data folder: for SQLite, or a broker of its own."""
        return not self.ground.database.shared or self.ground.settings.broker is None

    async def run(self) -> None:
        """Sends, fires and listens until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.ground.session.run())
            tasks.create_task(self.access.ended.run())
            tasks.create_task(self.delivery.run())
            tasks.create_task(self.calls.run())
            tasks.create_task(self.devices.run(self.ground))


async def open_relay(on: Ground) -> Relay:
    """Opens every room, each with those that it needs.

    Raises:
        InvalidInput: as `open_delivery_parts`.
        Unavailable: the database is away.
    """
    access = await open_access_parts(on)
    delivery = await open_delivery_parts(on, access.tokens)
    calls = await open_call_parts(on, delivery)
    devices = open_device_parts(on, access, delivery, calls)
    return Relay(on, DataDisk(on.settings.data), access, delivery, calls, devices)
