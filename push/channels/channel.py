"""What every channel is: it composes an event as its payload, and sends it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from bellwire.push.store.rows.devices import ChannelRow, DeviceRow
from bellwire.push.store.rows.outbox import Delivery
from bellwire.signaling.calls.calls import Call
from bellwire.signaling.calls.events import CallEvent
from bellwire.signaling.errors import TooLarge

ATTEMPT_S = 4.0
"""How long one attempt may take at most: it ends before its lease does, so that no other process
takes the delivery over while it is being sent."""


class DeliveryFailed(Exception):
    """The attempt failed and another may succeed, not before `retry_after_s` seconds where the
    other side has said so."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class DeviceAway(DeliveryFailed):
    """The device is not there: another attempt is worth while once it has come."""


class ChannelAtFault(DeliveryFailed):
    """No delivery of this app can succeed until an operator mends something, such as a revoked key.
    It is kept until it expires, and tried again seldom."""


class DeliveryRefused(Exception):
    """This delivery was refused for good, whatever is done."""


class TokenDead(DeliveryRefused):
    """The device's push token is dead: since a moment where the other side says when."""

    def __init__(self, reason: str, since: datetime | None = None) -> None:
        super().__init__(reason)
        self.since = since


def refuse_if_too_large(size: int, limit: int, *, what: str, kind: str, shorten: str) -> None:
    """Lets pass what a channel can carry.

    Args:
        size: How long it is, and `limit`: may be, in bytes.
        what: What would be sent.
        kind: The kind of channel.
        shorten: What to shorten where it is too long.

    Raises:
        TooLarge: it is too long; says all that.
    """
    if size > limit:
        raise TooLarge(
            f"{what} would be {size} bytes over {_SPOKEN[kind]}, and the limit is {limit}:"
            f" shorten {shorten}",
            size=size,
            limit=limit,
            channel=kind,
        )


_SPOKEN = {"apns": "APNs", "fcm": "FCM", "mqtt": "MQTT", "websocket": "WebSocket"}


@dataclass(slots=True, unsafe_hash=True)  # frozen, it is made eight times slower
class Addressee:
    """Whom an event goes to: a device, one of its channels, and the call it is about."""

    call: Call
    device: DeviceRow
    channel: ChannelRow


class Channel(Protocol):
    """One kind of way to reach devices."""

    kind: str

    def compose(self, event: CallEvent, to: Addressee) -> str | None:
        """The payload that carries the event, None where this channel does not carry such events.

        Raises:
            TooLarge: it is over this channel's limit; says the size, the limit and what to shorten.
        """
        ...

    async def send(self, delivery: Delivery, left_s: float) -> str:
        """Sends a payload; `left_s` seconds are left of its life. Returns once it was taken over,
        within `ATTEMPT_S`, with what the other side calls it, or nothing.

        Raises:
            DeliveryFailed: it was not; DeviceAway and ChannelAtFault say why.
            DeliveryRefused: it never will be; TokenDead: nor will any other to this token.
        """
        ...
