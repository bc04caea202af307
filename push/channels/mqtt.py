"""MQTT 5 to a device's own topic: QoS 1, never retained, expiring with the event."""

from bellwire.broker.session.session import NobodyListens, NotConnected, Session
from bellwire.push.channels.channel import (
    Addressee,
    DeliveryFailed,
    DeviceAway,
    refuse_if_too_large,
)
from bellwire.push.store.rows.outbox import Delivery
from bellwire.signaling.calls.events import (
    CallEvent,
    CallMessage,
    document_within,
    what_to_shorten,
)
from bellwire.signaling.topics import call_topic

LIMIT_BYTES = 5120
"""As APNs': so that an identity can add a mobile without its invites growing too long. What the relay itself
adds to an invite for each device (`push.channels.live_invite`) is not counted."""

MESSAGE_LIMIT_BYTES = 10 * 1024
"""Messages are never pushed: room for the longest content (`signaling.wire.requests`) and what
is around it."""


class MqttChannel:
    """See `push.channels.channel.Channel`."""

    kind = "mqtt"

    def __init__(self, session: Session) -> None:
        self._session = session

    def compose(self, event: CallEvent, to: Addressee) -> str:
        """See `Channel.compose`."""
        del to
        limit = MESSAGE_LIMIT_BYTES if isinstance(event, CallMessage) else LIMIT_BYTES
        document = document_within(event, limit)
        refuse_if_too_large(
            len(document.encode()),
            limit,
            what=event.event,
            kind=self.kind,
            shorten=what_to_shorten(event),
        )
        return document

    async def send(self, delivery: Delivery, left_s: float) -> str:
        """See `Channel.send`."""
        try:
            await self._session.publish(
                call_topic(delivery.device_id),
                delivery.payload.encode(),
                expires_in_s=left_s,
                to_somebody=True,
            )
        except NobodyListens as error:
            raise DeviceAway(str(error)) from error
        except NotConnected as error:
            raise DeliveryFailed(str(error)) from error
        return ""
