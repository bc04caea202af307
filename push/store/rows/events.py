"""The events of devices that read a stream, kept in each device's own order until it has read them.

A device's numbers are given out under the lock of its row, so that on any database they become
visible in their order: who has read up to a number has missed none below it.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, delete, select, update

from bellwire.push.store.prepared import Prepared, PreparedForList, insert_each
from bellwire.push.store.tables import device_events, devices
from bellwire.signaling.identifiers import DeviceId

_ADVANCE = Prepared(
    update(devices)
    .where(devices.c.device_id == bindparam("device"))
    .values(sequence=devices.c.sequence + bindparam("count"))
    .returning(devices.c.sequence)
)
_APPEND = insert_each(
    device_events, ("device_id", "sequence", "event_id", "document", "expires_at_ms")
)
_FORGET = PreparedForList(
    lambda events: (
        delete(device_events)
        .where(device_events.c.event_id.in_(events))
        .returning(
            device_events.c.event_id, device_events.c.device_id, device_events.c.expires_at_ms
        )
    )
)
_KNOWN = PreparedForList(
    lambda events: select(device_events.c.event_id).where(
        device_events.c.device_id == bindparam("device"), device_events.c.event_id.in_(events)
    )
)


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """An event in a device's stream. `sequence` 0: not kept yet."""

    device_id: DeviceId
    event_id: str
    document: str
    expires_at_ms: int
    sequence: int = 0


def append_events(connection: Connection, events: Collection[StreamEvent]) -> set[DeviceId]:
    """Appends events to their devices' streams, each once; returns whose streams have grown."""
    by_device: dict[DeviceId, list[StreamEvent]] = {}
    for event in events:
        by_device.setdefault(event.device_id, []).append(event)
    # In one order everywhere, so that two transactions never wait for each other.
    return {
        device for device in sorted(by_device) if _append(connection, device, by_device[device])
    }


def _append(connection: Connection, device: DeviceId, events: Sequence[StreamEvent]) -> bool:
    advanced = _ADVANCE.one(connection, device=device, count=len(events))
    if advanced is None:
        return False
    (last,) = advanced
    ids = [event.event_id for event in events]
    known = {event_id for (event_id,) in _KNOWN.rows(connection, ids, device=device)}
    rows = [
        {
            "device_id": device,
            "sequence": last - len(events) + number,
            "event_id": event.event_id,
            "document": event.document,
            "expires_at_ms": event.expires_at_ms,
        }
        for number, event in enumerate(events, start=1)
        if event.event_id not in known
    ]
    _APPEND.run(connection, rows)
    return bool(rows)


def events_after(
    connection: Connection, device: DeviceId, sequence: int, now_ms: int, limit: int
) -> list[StreamEvent]:
    """Up to `limit` events of a device's stream after a number, in order, without the expired."""
    rows = connection.execute(
        select(device_events)
        .where(
            device_events.c.device_id == device,
            device_events.c.sequence > sequence,
            device_events.c.expires_at_ms > now_ms,
        )
        .order_by(device_events.c.sequence)
        .limit(limit)
    )
    return [
        StreamEvent(
            DeviceId(row.device_id), row.event_id, row.document, row.expires_at_ms, row.sequence
        )
        for row in rows
    ]


def last_sequence(connection: Connection, device: DeviceId) -> int:
    """The number of the newest event that a device's stream ever had, 0 before the first."""
    last: int | None = connection.execute(
        select(devices.c.sequence).where(devices.c.device_id == device)
    ).scalar()
    return last or 0


def forget_read(connection: Connection, device: DeviceId, sequence: int) -> None:
    """Forgets what a device has read."""
    connection.execute(
        delete(device_events).where(
            device_events.c.device_id == device, device_events.c.sequence <= sequence
        )
    )


@dataclass(frozen=True, slots=True)
class Unread:
    """An event that was in a device's stream, unread."""

    event_id: str
    device_id: str
    expires_at_ms: int


def forget_stream_events(
    connection: Connection, event_ids: Sequence[str]
) -> Callable[[], list[Unread]]:
    """Forgets events that nobody need read any more. Returns what tells which stood unread."""
    rows = _FORGET.begin(connection, event_ids)
    return lambda: [Unread(*row) for row in rows()]


def forget_expired(connection: Connection, now_ms: int) -> None:
    """Forgets what nobody has read in time."""
    connection.execute(delete(device_events).where(device_events.c.expires_at_ms <= now_ms))
