"""What a change of a call owes to devices: notices become rows, in the transaction of the change.

A device reached by pushing (MQTT, APNs, FCM) is owed a delivery in the outbox; one that reads a stream
(WebSocket) gets the event appended to it. Both leave with `send`, once the change is committed.
`report_deliveries` tells afterwards what became of them, device by device and channel by channel.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection

from bellwire.push.channels.channel import Addressee, Channel
from bellwire.push.channels.payload import is_invite
from bellwire.push.channels.websocket import STREAM, StreamReaders, compose_stream_event
from bellwire.push.delivery.outbox import Outbox
from bellwire.push.delivery.undelivered import tries_of
from bellwire.push.delivery.webhook_events import Webhooks
from bellwire.push.store.engine.unit_of_work import UnitOfWork
from bellwire.push.store.rows.calls import live_calls_of
from bellwire.push.store.rows.deliveries import (
    DeliveryRow,
    owed_of_call,
    results_of_call,
    unread_of_call,
)
from bellwire.push.store.rows.devices import ChannelRow, DeviceRow, find_device
from bellwire.push.store.rows.events import StreamEvent, Unread
from bellwire.push.store.rows.outbox import Delivery, Forgotten, owe, owed_already
from bellwire.push.store.tables import from_ms, to_ms
from bellwire.signaling.calls.calls import Call, User
from bellwire.signaling.calls.events import CallEvent, CallFeedback, CallReceived, Try
from bellwire.signaling.calls.rules import Notice, Recipient, invite_event
from bellwire.signaling.identifiers import DeviceId, Identity
from bellwire.signaling.wire.answers import CallDeliveriesAnswer, DeliveryAnswer
from bellwire.signaling.wire.requests import PUSH_KINDS

EVENT_LIFE = timedelta(hours=1)
"""How long an event that is no invite waits for a device that is away."""

ForDevice = Callable[[str, CallEvent, DeviceRow], str]
"""Writes an event's document for one device, which reads it over MQTT or its stream."""

PUSHED_NOTICE_LIFE = timedelta(seconds=5)
"""How long a push that an invite is over is worth a try, should the invite's own time be over before."""

_EVENTS = 200
"""Of how many of a call's newest events it is told what is owed."""


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
        for_device: Puts what is for one device alone into the document of an invite.
    """

    def __init__(
        self,
        outbox: Outbox,
        channels: Mapping[str, Channel],
        streams: StreamReaders,
        *,
        now: Callable[[], datetime],
        webhooks: Webhooks | None = None,
        sign_invite: Callable[[CallReceived], CallReceived] = lambda invite: invite,
        for_device: ForDevice = lambda document, _, __: document,
    ) -> None:
        self._sign_invite = sign_invite
        self._webhooks = webhooks
        self._outbox = outbox
        self._channels = channels
        self._streams = streams
        self._for_device = for_device
        self._now = now

    @property
    def backend_hears(self) -> bool:
        """Whether a message to the backend reaches a webhook."""
        return self._webhooks is not None and self._webhooks.wants("call.message")

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
            expires_at_ms = to_ms(_end_of_life(notice, call, device, channel.kind))
            if channel.kind == STREAM:
                document = self._for_device(compose_stream_event(event), event, device)
                events.append(StreamEvent(device_id, event.id, document, expires_at_ms))
            else:
                way = self._channels.get(channel.kind)
                if way is None:
                    continue  # Of an app that the relay's settings no longer hold.
                payload = way.compose(event, Addressee(call, device, channel))
                if payload is not None and channel.kind == "mqtt":
                    payload = self._for_device(payload, event, device)
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
            deliveries += self._webhooks.deliveries(unit.connection, call, notices)
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

    def note_forgotten(
        self,
        unit: UnitOfWork,
        forgotten: list[Forgotten],
        unread: list[Unread],
        *,
        user: User,
        at: datetime,
    ) -> None:
        """Keeps that an invite which is over has not arrived, where that is so; whoever was not rung by a
        VoIP push is told of the end by none: it would be shown as a call."""
        results = self._outbox.undelivered.keep_forgotten(
            unit.connection,
            forgotten,
            unread,
            call_sid=user.invite_id.rpartition("-")[0],
            invited_ms=to_ms(user.invited_at or at),
            at_ms=to_ms(at),
        )
        unrung = {(r.call_sid, r.device_id, r.kind, r.app) for r in results if r.kind == "apns"}
        if unrung:
            unit.take_back(
                lambda owed: (
                    (owed.call_sid, owed.device_id, owed.kind, owed.app) in unrung
                    and not is_invite(owed.payload)
                )
            )

    def tell_backends(self, connection: Connection, event: CallFeedback) -> None:
        """Has webhooks told of what no rule of calls makes, in a transaction that keeps it."""
        if self._webhooks is None:
            return
        data = event.model_dump(mode="json", exclude_none=True)
        owed = self._webhooks.event(connection, event.event, event.id, event.at, data)
        owe(connection, owed, leased_until_ms=to_ms(self._now()))

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


def _end_of_life(notice: Notice, call: Call, device: DeviceRow, kind: str) -> datetime:
    event = notice.event
    if isinstance(event, CallReceived):
        return event.expires_at
    if kind not in PUSH_KINDS:
        return event.at + EVENT_LIFE
    # A push that an invite is over is worth nothing once the phone has stopped ringing by itself: shown
    # later, it would be a call of long ago.
    user = call.user(device.identity)
    soon = event.at + PUSHED_NOTICE_LIFE
    return soon if user is None else max(soon, user.expires_at)


def _is_meant(device: DeviceRow, recipients: tuple[Recipient, ...]) -> bool:
    return any(
        recipient.identity == device.identity and recipient.reaches(device.device_id)
        for recipient in recipients
    )


def report_deliveries(
    connection: Connection, call: Call, whose: Identity | None, now: datetime
) -> CallDeliveriesAnswer:
    """The deliveries of a call to the devices of one identity, or to all."""
    first = max(1, call.events - _EVENTS + 1)
    events = [f"{call.call_sid}-{number}" for number in range(first, call.events + 1)]
    # In this order: what is settled meanwhile is found twice, and never missed.
    owed = owed_of_call(connection, call.call_sid, events, whose, to_ms(now))
    invites = [user.invite_id for user in call.users if user.invite_id]
    unread = unread_of_call(connection, invites, whose, to_ms(now))
    results = results_of_call(connection, call.call_sid, whose)
    known = {_way(row) for row in results}
    owed += [row for row in unread if _way(row) not in known]  # some confirm before they have read
    by_way = {_way(row): row for row in owed}
    answers = {_way(row): _answer(row, None, call) for row in owed}
    answers |= {_way(row): _answer(row, by_way.get(_way(row)), call) for row in results}
    return CallDeliveriesAnswer(
        call_sid=call.call_sid,
        deliveries=tuple(answers[way] for way in sorted(answers)),
    )


def _tries(row: DeliveryRow) -> tuple[Try, ...]:
    """All attempts: those that failed, and the one that settled it."""
    tries = tries_of(row.tries)
    if row.at_ms is None or row.result not in ("sent", "refused"):
        return tries
    return (*tries, Try(at=from_ms(row.at_ms), result=row.result, answer=row.detail))


def _way(row: DeliveryRow) -> tuple[str, str, str, int, str]:
    number = row.event_id.rpartition("-")[2]
    place = int(number) if number.isdigit() else 0
    return row.device_id, row.kind, row.app, place, row.event_id


def _answer(row: DeliveryRow, owed: DeliveryRow | None, call: Call) -> DeliveryAnswer:
    """What one row says; `owed` says more where only the confirmation is known."""
    still_owed = owed if row.result is None else None
    received_ms, latency_ms = row.received_at_ms, None
    invited = next((user for user in call.users if user.invite_id == row.event_id), None)
    if received_ms is not None and invited is not None and invited.invited_at is not None:
        latency_ms = max(0, received_ms - to_ms(invited.invited_at))
    # A device may have been given to somebody else since.
    is_in_call = row.identity is not None and call.user(row.identity) is not None
    return DeliveryAnswer.model_validate(
        {
            "device_id": row.device_id,
            "identity": row.identity if is_in_call else None,
            "channel": row.kind,
            "app": row.app or None,
            "event_id": row.event_id,
            "state": "received" if received_ms is not None else row.result or "owed",
            "detail": row.detail if still_owed is None else still_owed.detail,
            "attempts": row.attempts if still_owed is None else still_owed.attempts,
            "at": None if row.at_ms is None else from_ms(row.at_ms),
            "received_at": None if received_ms is None else from_ms(received_ms),
            "latency_ms": latency_ms,
            "event": None if invited is None else "call.received",
            "tries": _tries(row if still_owed is None else still_owed),
        }
    )
