"""MQTT 5 to a device's own topic: QoS 1, never retained, expiring with the event."""

from broker.session import NobodyListens, NotConnected, Session
from push.channels.channel import Addressee, DeliveryFailed, DeviceAway
from push.store.outbox_rows import Delivery
from signaling.errors import TooLarge
from signaling.events import CallEvent, event_document, what_to_shorten
from signaling.topics import call_topic

LIMIT_BYTES = 5120
"""As APNs': so that an identity can add a mobile without its invites growing too long."""


class MqttChannel:
    """See `push.channels.channel.Channel`."""

    kind = "mqtt"

    def __init__(self, session: Session) -> None:
        self._session = session

    def compose(self, event: CallEvent, to: Addressee) -> str:
        """See `Channel.compose`."""
        del to
        document = event_document(event)
        size = len(document.encode())
        if size > LIMIT_BYTES:
            raise TooLarge(
                f"{event.event} would be {size} bytes over MQTT, and the limit is {LIMIT_BYTES}:"
                f" shorten {what_to_shorten(event)}",
                size=size,
                limit=LIMIT_BYTES,
                channel=self.kind,
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
