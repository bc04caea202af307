"""Which devices are there, and over which kind of connection, as rows.

A stream is held by one relay, which says again and again that it still is; a stream that nobody has
held for a while is lost, whether its device or its relay has died.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, bindparam, insert, select, update

from bellwire.push.store.tables import channels, connections, devices
from bellwire.signaling.identifiers import DeviceId, Identity


@dataclass(frozen=True, slots=True)
class ConnectionRow:
    """The newest connection of a kind that a device had. `relay` is empty where none holds it."""

    device_id: DeviceId
    kind: str
    connection: str
    online: bool
    relay: str = ""
    seen_at_ms: int = 0


_OF_DEVICE = select(connections).where(
    connections.c.device_id == bindparam("device"), connections.c.kind == bindparam("its_kind")
)


def find_connection(connection: Connection, device: DeviceId, kind: str) -> ConnectionRow | None:
    """The newest connection of a kind that a device had, or None."""
    row = connection.execute(_OF_DEVICE, {"device": device, "its_kind": kind}).one_or_none()
    if row is None:
        return None
    return ConnectionRow(device, kind, row.connection, row.online, row.relay, row.seen_at_ms)


def is_online(connection: Connection, device: DeviceId, kind: str) -> bool:
    """Whether a device is there over a kind of connection."""
    row = find_connection(connection, device, kind)
    return row is not None and row.online


def put_connection(connection: Connection, row: ConnectionRow, at_ms: int) -> None:
    """Keeps a device's newest connection of a kind."""
    values = {
        "connection": row.connection,
        "relay": row.relay,
        "online": row.online,
        "seen_at_ms": at_ms,
    }
    changed = connection.execute(
        update(connections)
        .where(connections.c.device_id == row.device_id, connections.c.kind == row.kind)
        .values(values)
    )
    if changed.rowcount == 0:
        connection.execute(
            insert(connections), {"device_id": row.device_id, "kind": row.kind, **values}
        )


def let_go(connection: Connection, device: DeviceId, kind: str, which: str, at_ms: int) -> None:
    """Notes that a connection is no longer held, if no newer one has taken its place."""
    connection.execute(
        update(connections)
        .where(
            connections.c.device_id == device,
            connections.c.kind == kind,
            connections.c.connection == which,
        )
        .values(relay="", seen_at_ms=at_ms)
    )


def hold_on(connection: Connection, relay: str, at_ms: int) -> None:
    """Notes that a relay still holds the connections that it holds."""
    connection.execute(
        update(connections).where(connections.c.relay == relay).values(seen_at_ms=at_ms)
    )


def lost_connections(
    connection: Connection, kind: str, unseen_since_ms: int, limit: int
) -> list[ConnectionRow]:
    """Up to `limit` connections of a kind that count as standing and that nobody has held since."""
    rows = connection.execute(
        select(connections)
        .where(
            connections.c.kind == kind,
            connections.c.online,
            connections.c.seen_at_ms < unseen_since_ms,
        )
        .limit(limit)
    )
    return [
        ConnectionRow(DeviceId(row.device_id), row.kind, row.connection, row.online, row.relay)
        for row in rows
    ]


def online_devices_of(connection: Connection, identity: Identity) -> set[DeviceId]:
    """The devices of an identity that are there over any kind of connection."""
    rows = connection.execute(
        select(connections.c.device_id)
        .join(devices)
        .where(devices.c.identity == identity, connections.c.online)
    )
    return {DeviceId(device) for device in rows.scalars()}


def online_since(connection: Connection, kind: str) -> dict[DeviceId, int]:
    """The devices that are there over a kind of connection, and when that was noted, in Unix
    milliseconds."""
    rows = connection.execute(
        select(connections.c.device_id, connections.c.seen_at_ms).where(
            connections.c.kind == kind, connections.c.online
        )
    )
    return {DeviceId(device): at_ms for device, at_ms in rows}


@dataclass(frozen=True, slots=True)
class Absent:
    """A device with the MQTT channel that is not there. `was_seen`: it has been since it was registered."""

    device: DeviceId
    registered_at: datetime
    was_seen: bool


_ABSENT = (
    select(devices.c.device_id, devices.c.registered_at_ms, connections.c.online)
    .select_from(
        devices.join(channels).outerjoin(
            connections,
            (connections.c.device_id == devices.c.device_id)
            & (connections.c.kind == channels.c.kind),
        )
    )
    .where(channels.c.kind == "mqtt", connections.c.online.is_not(True))
)


def absent_devices(connection: Connection) -> list[Absent]:
    """The devices with the MQTT channel that are not there."""
    return [
        Absent(
            DeviceId(row.device_id),
            datetime.fromtimestamp(row.registered_at_ms / 1000, UTC),
            row.online is not None,
        )
        for row in connection.execute(_ABSENT)
    ]
