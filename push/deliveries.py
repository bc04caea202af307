"""What a change of a call owes to devices: notices become rows, in the transaction of the change.

A device reached by pushing (MQTT, later APNs and FCM) is owed a delivery in the outbox; one that
reads a stream (WebSocket) gets the event appended to its stream. Both leave with `send`, once the
change is committed.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from push.channels.channel import Addressee, Channel
from push.channels.websocket import compose_stream_event
from push.outbox import Outbox
from push.store.call_rows import live_calls_of, to_ms
from push.store.device_rows import ChannelRow, DeviceRow, find_device
from push.store.event_rows import StreamEvent
from push.store.outbox_rows import Delivery, owed_already
from push.store.unit_of_work import UnitOfWork
from push.streams import Streams
from push.webhooks import Webhooks
from signaling.calls import Call
from signaling.events import CallReceived
from signaling.identifiers import DeviceId
from signaling.rules import Notice, Recipient, invite_event

EVENT_LIFE = timedelta(hours=1)
"""How long an event that is no invite waits for a device that is away."""

STREAM = "websocket"


@dataclass(frozen=True, slots=True)
class Owed:
    """What has been kept and is now to be sent: deliveries to push, streams that have grown."""

    deliveries: tuple[Delivery, ...] = ()
    streams: frozenset[DeviceId] = frozenset()


class Deliveries:
    """Keeps what is owed, and sends it once it is committed.

    Args:
        outbox: Sends deliveries.
        channels: The ways to push, by kind.
        streams: The streams that are read.
        now: Tells the time.
        webhooks: What operators' backends are owed.
        sign_invite: Puts the relay's word on who calls into an invite.
    """

    def __init__(
        self,
        outbox: Outbox,
        channels: Mapping[str, Channel],
        streams: Streams,
        *,
        now: Callable[[], datetime],
        webhooks: Webhooks | None = None,
        sign_invite: Callable[[CallReceived], CallReceived] = lambda invite: invite,
    ) -> None:
        self._sign_invite = sign_invite
        self._webhooks = webhooks
        self._outbox = outbox
        self._channels = channels
        self._streams = streams
        self._now = now

    def owe(
        self,
        unit: UnitOfWork,
        call: Call,
        notices: Iterable[Notice],
        devices: Collection[DeviceRow] | None = None,
        *,
        kinds: Collection[str] | None = None,
    ) -> Owed:
        """Keeps what notices of a call owe to devices: all of the identities they name, unless told which,
        over all kinds of channels that these have, unless told which.

        Raises:
            TooLarge: an event is over a channel's limit; nothing was kept.
        """
        notices = tuple(notices)
        if devices is None:
            identities = {r.identity for notice in notices for r in notice.recipients}
            devices = unit.devices_of(identities)
        deliveries: list[Delivery] = []
        events: list[StreamEvent] = []
        for notice, device, channel in _ways(map(self._signed, notices), devices, kinds):
            event, device_id = notice.event, device.device_id
            expires_at_ms = to_ms(_end_of_life(notice))
            if channel.kind == STREAM:
                document = compose_stream_event(event)
                events.append(StreamEvent(device_id, event.id, document, expires_at_ms))
            else:
                way = self._channels.get(channel.kind)
                if way is None:
                    continue  # Of an app that the relay's settings no longer hold.
                payload = way.compose(event, Addressee(call, device, channel))
                if payload is not None:
                    deliveries.append(
                        Delivery(
                            event.id,
                            device_id,
                            channel.kind,
                            payload,
                            expires_at_ms,
                            call.call_sid,
                            channel.app,
                            channel.environment,
                            channel.token,
                        )
                    )
        if kinds is None and self._webhooks is not None:
            deliveries += self._webhooks.deliveries(unit.connection, notices)
        unit.owe(deliveries, self._outbox.leased_until_ms)
        unit.append(events)
        return Owed(tuple(deliveries), frozenset(event.device_id for event in events))

    def _signed(self, notice: Notice) -> Notice:
        event = notice.event
        if not isinstance(event, CallReceived):
            return notice
        return Notice(self._sign_invite(event), notice.recipients)

    def owe_live_invites(self, unit: UnitOfWork, device_id: DeviceId, kind: str) -> Owed:
        """Keeps, for a device that has come online, the invites of its identity that are alive."""
        connection = unit.connection
        device = find_device(connection, device_id)
        if device is None:
            return Owed()
        now = self._now()
        alive = [
            (call, Notice(invite_event(call, user), (Recipient(user.identity),)))
            for call in live_calls_of(connection, device.identity)
            for user in call.pending
            if user.identity == device.identity and user.expires_at > now
        ]
        under_way = owed_already(connection, [n.event.id for _, n in alive], device_id, kind)
        owed = [
            self.owe(unit, call, [notice], [device], kinds=(kind,))
            for call, notice in alive
            if notice.event.id not in under_way
        ]
        return Owed(
            tuple(delivery for part in owed for delivery in part.deliveries),
            frozenset(device for part in owed for device in part.streams),
        )

    async def settle(self) -> None:
        """Counts as delivered, from now on, what this relay has delivered so far."""
        await self._outbox.settle()

    async def retry(self, device_id: DeviceId, kind: str) -> None:
        """Tries again what did not reach a device while it was away."""
        await self._outbox.retry_now(kind, device_id)

    def send(self, owed: Owed) -> None:
        """Sends what was kept. It must be committed."""
        self._outbox.dispatch(owed.deliveries)
        self._streams.wake(owed.streams)


def _ways(
    notices: Iterable[Notice], devices: Collection[DeviceRow], kinds: Collection[str] | None
) -> Iterator[tuple[Notice, DeviceRow, ChannelRow]]:
    """Each notice with each device it means and each way to that device."""
    for notice in notices:
        for device in devices:
            if _is_meant(device, notice.recipients):
                for channel in device.channels:
                    if kinds is None or channel.kind in kinds:
                        yield notice, device, channel


def _end_of_life(notice: Notice) -> datetime:
    event = notice.event
    return event.expires_at if isinstance(event, CallReceived) else event.at + EVENT_LIFE


def _is_meant(device: DeviceRow, recipients: tuple[Recipient, ...]) -> bool:
    return any(
        recipient.identity == device.identity and recipient.reaches(device.device_id)
        for recipient in recipients
    )
