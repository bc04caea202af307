"""The parts of a relay that its HTTP interface needs."""

from dataclasses import dataclass

from bellwire.broker.accounts.credentials import DynamicSecurity
from bellwire.broker.session.session import Session
from bellwire.config.relay import RelaySettings
from bellwire.push.access.api_keys import ApiKeys
from bellwire.push.access.revocation import Access
from bellwire.push.access.tokens import AccessTokens
from bellwire.push.calls.calls import Calls
from bellwire.push.calls.groups import Groups
from bellwire.push.calls.ice_servers import IceServers
from bellwire.push.calls.rooms import Rooms
from bellwire.push.calls.twilio_notifications import TwilioNotifications
from bellwire.push.channels.webhook.channel import WebhookChannel
from bellwire.push.data_disk import DataDisk
from bellwire.push.delivery.webhook_events import Webhooks
from bellwire.push.devices.connections import Connections
from bellwire.push.devices.devices import Devices
from bellwire.push.devices.event_stream import EventStream
from bellwire.push.devices.metrics import DeviceMetrics
from bellwire.push.devices.rate_limits import DeviceRateLimits
from bellwire.push.metrics import Metrics
from bellwire.push.store.engine.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The parts of a relay that its HTTP interface needs."""

    settings: RelaySettings
    database: Database
    session: Session
    provisioner: DynamicSecurity
    calls: Calls
    groups: Groups
    devices: Devices
    device_floods: DeviceRateLimits
    connections: Connections
    event_stream: EventStream
    access: Access
    api_keys: ApiKeys
    tokens: AccessTokens
    metrics: Metrics
    device_metrics: DeviceMetrics
    webhooks: Webhooks
    webhook_channel: WebhookChannel
    twilio: TwilioNotifications
    ice_servers: IceServers
    rooms: Rooms
    disk: DataDisk

    @property
    def writes_to_disk(self) -> bool:
        """Whether this relay needs the disk of its data folder: for SQLite, or a broker of its own."""
        return not self.database.shared or self.settings.broker is None
