"""What every channel is: it composes an event as its payload, and sends it."""

from typing import Protocol

from push.store.device_rows import ChannelRow
from push.store.outbox_rows import Delivery
from signaling.events import CallEvent


class DeliveryFailed(Exception):
    """The attempt failed and another may succeed."""


class DeviceAway(DeliveryFailed):
    """The device is not there: another attempt is worth while once it has come."""


class Channel(Protocol):
    """One kind of way to reach devices."""

    kind: str

    def compose(self, event: CallEvent, channel: ChannelRow) -> str:
        """The payload that carries the event.

        Raises:
            TooLarge: it is over this channel's limit; says the size, the limit and what to shorten.
        """
        ...

    async def send(self, delivery: Delivery, left_s: float) -> None:
        """Sends a payload; `left_s` seconds are left of its life. Returns once it was taken over.

        Raises:
            DeliveryFailed: it was not.
            DeviceAway: it was not, since the device is away.
        """
        ...
