"""Devices and their channels as rows."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from bellwire.push.store.prepared import Prepared, PreparedForList, Row
from bellwire.push.store.rows.access import revoke_device
from bellwire.push.store.rows.deliveries import refuse_owed
from bellwire.push.store.rows.outbox import make_failed_due
from bellwire.push.store.tables import channels, connections, devices
from bellwire.signaling.identifiers import DeviceId, Identity


@dataclass(slots=True, unsafe_hash=True)  # frozen, it is made eight times slower
class ChannelRow:
    """One way to reach a device."""

    kind: str
    app: str = ""
    environment: str | None = None
    token: str | None = None
    """What the push service knows the device by; None for other kinds."""


@dataclass(slots=True, unsafe_hash=True)  # frozen, it is made eight times slower
class DeviceRow:
    """A registered device."""

    device_id: DeviceId
    identity: Identity
    channels: tuple[ChannelRow, ...]


_TAKEN_OVER = "another device has registered this token"

_SELECT = (
    select(
        devices.c.device_id,
        devices.c.identity,
        channels.c.kind,
        channels.c.app,
        channels.c.environment,
        channels.c.token,
    )
    .select_from(devices.outerjoin(channels))
    .order_by(devices.c.device_id, channels.c.kind)
)
_ALL = Prepared(_SELECT)
_OF_IDENTITIES = PreparedForList(
    lambda identities: _SELECT.where(devices.c.identity.in_(identities))
)
_REGISTERED = PreparedForList(
    lambda asked: select(devices.c.device_id).where(devices.c.device_id.in_(asked))
)
_OF_ID = Prepared(_SELECT.where(devices.c.device_id == bindparam("device")))


def devices_of(connection: Connection, identities: Collection[Identity]) -> list[DeviceRow]:
    """All devices of some identities."""
    return _devices(_OF_IDENTITIES.rows(connection, [*identities]))


def identities_of(connection: Connection, ids: Collection[str]) -> dict[str, str]:
    """Whose devices some are, of those that there are."""
    rows = connection.execute(
        select(devices.c.device_id, devices.c.identity).where(devices.c.device_id.in_(ids))
    )
    return {row.device_id: row.identity for row in rows}


def find_device(connection: Connection, device: DeviceId) -> DeviceRow | None:
    """The device with this id, or None."""
    found = _devices(_OF_ID.rows(connection, device=device))
    return found[0] if found else None


def registered_among(connection: Connection, asked: Collection[DeviceId]) -> set[DeviceId]:
    """Those of some ids that devices are registered under."""
    return {DeviceId(device_id) for (device_id,) in _REGISTERED.rows(connection, [*asked])}


def all_devices(connection: Connection) -> list[DeviceRow]:
    """All devices, by id."""
    return _devices(_ALL.rows(connection))


def put_device(connection: Connection, device: DeviceRow, at_ms: int) -> None:
    """Registers a device, in place of what was registered under its id. What was on its way to
    another identity's device of this id is not for this one; what was on its way to this one stays
    so, and what has failed is tried again with the new token. Every channel counts as registered
    now: a token that died before, and came to life again, is good."""
    known = find_device(connection, device.device_id)
    if known is not None and known.identity != device.identity:
        delete_device(connection, device.device_id, at_ms)
        known = None
    if known is None:
        connection.execute(
            insert(devices),
            {
                "device_id": device.device_id,
                "identity": device.identity,
                "registered_at_ms": at_ms,
                # Beyond every number that a device of this id may have had before.
                "sequence": at_ms,
            },
        )
    else:
        connection.execute(
            update(devices)
            .where(devices.c.device_id == device.device_id)
            .values(identity=device.identity, registered_at_ms=at_ms)
        )
        connection.execute(delete(channels).where(channels.c.device_id == device.device_id))
        for channel in device.channels:
            if channel.token is not None and channel not in known.channels:
                make_failed_due(connection, channel.kind, at_ms, device.device_id)
        kinds = [channel.kind for channel in device.channels]
        connection.execute(
            delete(connections).where(
                connections.c.device_id == device.device_id, connections.c.kind.not_in(kinds)
            )
        )
    _take_over_tokens(connection, device, at_ms)
    if device.channels:
        connection.execute(
            insert(channels),
            [
                {
                    "device_id": device.device_id,
                    "kind": channel.kind,
                    "app": channel.app,
                    "environment": channel.environment,
                    "token": channel.token,
                    "registered_at_ms": at_ms,
                }
                for channel in device.channels
            ],
        )


def _take_over_tokens(connection: Connection, device: DeviceRow, at_ms: int) -> None:
    """A push token is one installation of an app: whichever device had it before has it no longer,
    and is owed nothing over it any more."""
    for channel in device.channels:
        if channel.token is not None:
            before = connection.execute(
                delete(channels)
                .where(
                    channels.c.token == channel.token,
                    channels.c.kind == channel.kind,
                    channels.c.app == channel.app,
                    channels.c.device_id != device.device_id,
                )
                .returning(channels.c.device_id)
            ).scalars()
            for owner in before.all():
                refuse_owed(connection, owner, channel.kind, channel.app, _TAKEN_OVER, at_ms)


def remove_channel(
    connection: Connection, device: DeviceId, channel: ChannelRow, since_ms: int | None = None
) -> bool:
    """Removes a channel whose token is dead, unless it has another token by now, or was registered
    after the token died, at `since_ms`. Whether it did."""
    dead = (
        (channels.c.device_id == device)
        & (channels.c.kind == channel.kind)
        & (channels.c.app == channel.app)
        & (channels.c.token == channel.token)
    )
    if since_ms is not None:
        dead &= channels.c.registered_at_ms <= since_ms
    return connection.execute(delete(channels).where(dead)).rowcount > 0


def delete_device(connection: Connection, device: DeviceId, at_ms: int) -> bool:
    """Removes a device, its channels, what was owed to it, and its access tokens; False where there was
    none."""
    revoke_device(connection, device, at_ms)
    return connection.execute(delete(devices).where(devices.c.device_id == device)).rowcount > 0


def _devices(rows: Iterable[Row]) -> list[DeviceRow]:
    found: dict[str, DeviceRow] = {}
    for device, identity, kind, app, environment, token in rows:
        channel = () if kind is None else (ChannelRow(kind, app, environment, token),)
        known = found.get(device)
        found[device] = DeviceRow(
            DeviceId(device),
            Identity(identity),
            channel if known is None else known.channels + channel,
        )
    return list(found.values())
