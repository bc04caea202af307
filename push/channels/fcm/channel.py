"""FCM to Android apps: data-only messages of high priority, by firebase-admin (spec §2)."""

import asyncio
import json
from collections.abc import Callable, Mapping
from datetime import datetime

from bellwire.config.relay import FcmApp
from bellwire.push.alarm import Sleep
from bellwire.push.channels.channel import (
    Addressee,
    ChannelAtFault,
    DeliveryRefused,
    refuse_if_too_large,
)
from bellwire.push.channels.fcm.app import FcmSender
from bellwire.push.channels.fcm.fault import Fault
from bellwire.push.channels.payload import PushPayload
from bellwire.push.metrics import Metrics
from bellwire.push.store.rows.outbox import Delivery
from bellwire.signaling.calls.events import CallEvent, what_to_shorten

LIMIT_BYTES = 4096
"""Google's limit of a message's data, names and values together."""

_ENVELOPE_BYTES = 196
"""What we count for the parts of a message that Google adds to the data."""


class FcmChannel:
    """See `push.channels.channel.Channel`. `run` must be running for anything to move.

    Args:
        apps: Android apps by package name.
        payload: Writes the keys.
        metrics: Counts apps at fault.

    Raises:
        InvalidInput: an app's settings are wrong. Files are read: construct it in a thread.
    """

    kind = "fcm"

    def __init__(
        self,
        apps: Mapping[str, FcmApp],
        payload: PushPayload,
        metrics: Metrics,
        *,
        now: Callable[[], datetime],
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._payload = payload
        self._senders = {
            name: FcmSender(name, app, Fault(metrics, self.kind, name), now=now, sleep=sleep)
            for name, app in apps.items()
        }

    def compose(self, event: CallEvent, to: Addressee) -> str | None:
        """See `Channel.compose`."""
        keys = self._payload.keys(event, to)
        return None if keys is None else compose_data(keys, event.event, what_to_shorten(event))

    async def send(self, delivery: Delivery, left_s: float) -> str:
        """See `Channel.send`. Returns the message's name, `projects/.../messages/...`."""
        sender = self._senders.get(delivery.app)
        if sender is None:
            raise ChannelAtFault(f"the relay's settings name no FCM app {delivery.app}")
        if not delivery.token:
            raise DeliveryRefused("the device has no FCM token")
        data: dict[str, str] = json.loads(delivery.payload)
        return await sender.send(delivery.token, data, delivery.call_sid, left_s)

    async def run(self) -> None:
        """Keeps each app's access token fresh until cancelled; then closes."""
        async with asyncio.TaskGroup() as tasks:
            for sender in self._senders.values():
                tasks.create_task(sender.run())


def compose_data(keys: Mapping[str, str], what: str, shorten: str) -> str:
    """The payload that holds these keys.

    Args:
        keys: All of a message's data.
        what: What the message is, and `shorten`: what to shorten where it is too large.

    Raises:
        TooLarge: it is over FCM's limit.
    """
    size = _ENVELOPE_BYTES + sum(len(k.encode()) + len(v.encode()) for k, v in keys.items())
    refuse_if_too_large(size, LIMIT_BYTES, what=what, kind=FcmChannel.kind, shorten=shorten)
    return json.dumps(keys, ensure_ascii=False, separators=(",", ":"))
