"""Push tokens that the push service calls dead (APNs "Unregistered", FCM UNREGISTERED): removed, counted,
and told of.

A token is removed only as it was sent to: a device that has been registered again meanwhile, with
another token or with this one after it died (Apple's 410 says when), keeps its channel.
"""

import secrets
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Literal, cast

import structlog
from sqlalchemy import Connection

from bellwire.push.channels.channel import DeliveryFailed, TokenDead
from bellwire.push.channels.websocket import STREAM, StreamReaders
from bellwire.push.delivery.owed import EVENT_LIFE
from bellwire.push.delivery.webhook_events import OnEvent
from bellwire.push.metrics import Metrics
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.devices import ChannelRow, DeviceRow, find_device, remove_channel
from bellwire.push.store.rows.events import StreamEvent, append_events
from bellwire.push.store.rows.outbox import Delivery, owe
from bellwire.push.store.tables import to_ms
from bellwire.signaling.calls.events import DeviceChannelRemoved, event_document

log = structlog.get_logger(__name__)

_REASON_MAX_LENGTH = 200
_REASONS = (
    "BadDeviceToken",
    "DeviceTokenNotForTopic",
    "ExpiredToken",
    "SenderIdMismatch",
    "Unregistered",
)
"""What APNs and FCM say of a dead token, as labels of the metric."""


class DeadTokens:
    """Removes the channels of dead tokens.

    Args:
        database: The relay's.
        streams: Woken where a device is told on its own stream.
        metrics: Counts the tokens.
        now: Tells the time.
        on_event: Makes what is owed to webhooks; None where there are none.
    """

    def __init__(
        self,
        database: Database,
        streams: StreamReaders,
        metrics: Metrics,
        *,
        now: Callable[[], datetime],
        on_event: OnEvent | None = None,
    ) -> None:
        self._database = database
        self._streams = streams
        self._metrics = metrics
        self._now = now
        self._on_event = on_event

    async def report(self, delivery: Delivery, dead: TokenDead) -> None:
        """Removes the channel that a delivery was sent over, and tells of it, once. What that owes
        is due at once.

        Raises:
            DeliveryFailed: the device was registered again since: try it with its token of now.
            Unavailable: the database is away.
        """
        removed = await self._database.write(partial(self._remove, delivery=delivery, dead=dead))
        if removed is None:
            return
        self._streams.wake({delivery.device_id})
        self._metrics.tokens_removed.labels(removed.kind, _label(removed.reason)).inc()
        log.warning(
            "push token removed",
            device_id=removed.device_id,
            identity=removed.identity,
            channel=removed.kind,
            app=removed.app,
            reason=removed.reason,
        )

    def _remove(
        self, connection: Connection, delivery: Delivery, dead: TokenDead
    ) -> DeviceChannelRemoved | None:
        channel = ChannelRow(delivery.kind, delivery.app, delivery.environment, delivery.token)
        since_ms = None if dead.since is None else to_ms(dead.since)
        is_removed = remove_channel(connection, delivery.device_id, channel, since_ms)
        device = find_device(connection, delivery.device_id)
        if device is None:
            return None
        if not is_removed:
            if any((c.kind, c.app) == (channel.kind, channel.app) for c in device.channels):
                raise DeliveryFailed(f"{dead}; the device was registered again since")
            return None
        event = self._event(device, delivery, str(dead)[:_REASON_MAX_LENGTH])
        self._tell(connection, device, event)
        return event

    def _event(self, device: DeviceRow, delivery: Delivery, reason: str) -> DeviceChannelRemoved:
        at = self._now()
        return DeviceChannelRemoved(
            id=f"DE{to_ms(at):012x}{secrets.token_hex(10)}",
            at=at,
            device_id=device.device_id,
            identity=device.identity,
            kind=cast("Literal['apns', 'fcm']", delivery.kind),
            app=delivery.app,
            reason=reason,
        )

    def _tell(self, connection: Connection, device: DeviceRow, event: DeviceChannelRemoved) -> None:
        if any(channel.kind == STREAM for channel in device.channels):
            until_ms = to_ms(event.at + EVENT_LIFE)
            document = event_document(event)
            append_events(connection, [StreamEvent(device.device_id, event.id, document, until_ms)])
        if self._on_event is not None:
            data = event.model_dump(mode="json", exclude={"event", "id", "at"})
            owed = self._on_event(connection, event.event, event.id, event.at, data)
            owe(connection, owed, leased_until_ms=to_ms(self._now()))


def _label(reason: str) -> str:
    """One of few values, whichever way a push service or its library writes them."""
    said = "".join(filter(str.isalpha, reason)).lower()
    return next((name for name in _REASONS if name.lower() in said), "other")
