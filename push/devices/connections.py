"""Which devices are there. One that comes online is sent the invites that are alive for it; a caller
whose device has gone before anybody accepted takes its call with it."""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog
from sqlalchemy import Connection

from bellwire.config.waiting import Sleep
from bellwire.push.calls.calls import Calls, Moved
from bellwire.push.channels.websocket import STREAM
from bellwire.push.delivery.owed import Deliveries, Owed
from bellwire.push.store.engine.database import Database
from bellwire.push.store.engine.unit_of_work import UnitOfWork, in_a_unit
from bellwire.push.store.rows.calls import ringing_calls_of
from bellwire.push.store.rows.connections import (
    ConnectionRow,
    find_connection,
    hold_on,
    let_go,
    lost_connections,
    online_devices_of,
    put_connection,
)
from bellwire.push.store.rows.devices import DeviceRow, find_device
from bellwire.push.store.rows.events import (
    StreamEvent,
    events_after,
    forget_read,
    last_sequence,
)
from bellwire.push.store.tables import to_ms
from bellwire.signaling.calls.commands import GoOffline
from bellwire.signaling.errors import NotFound, Unavailable
from bellwire.signaling.identifiers import DeviceId

log = structlog.get_logger(__name__)

STREAM_GRACE = timedelta(seconds=10)
"""How long a device whose stream broke may take to open it again before it counts as gone."""

_MQTT = "mqtt"
_SESSION = "session"
"""A device has one session at the broker, whichever connection carries it."""

_WATCH_EVERY_S = 2.0
_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class OpenStream:
    """A stream that a device reads here, and the number of the event after which it reads on."""

    device: DeviceId
    connection: str
    cursor: int


class Connections:
    """Keeps who is there, and does what follows from it. `run` must be running for streams to be held.

    Args:
        database: Where it is kept.
        calls: The relay's calls.
        deliveries: Sends invites to who has come.
        now: Tells the time.
        sleep: Waits.
    """

    def __init__(
        self,
        database: Database,
        calls: Calls,
        deliveries: Deliveries,
        *,
        now: Callable[[], datetime],
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._database = database
        self._calls = calls
        self._deliveries = deliveries
        self._now = now
        self._sleep = sleep
        self._relay = secrets.token_hex(8)

    async def session_came(self, device: DeviceId) -> None:
        """A device has come online at the broker."""
        # One that has just had an invite and lost it again is owed it anew.
        await self._deliveries.settle()
        owed = await self._database.write(in_a_unit(self._session_came, device=device))
        self._deliveries.send(owed)
        await self._deliveries.retry(device, _MQTT)

    async def session_went(self, device: DeviceId, since: datetime | None = None) -> None:
        """A device has left the broker, or was lost, and has not come back `since`."""
        await self._went(device, _MQTT, _SESSION, since)

    async def open_stream(self, device: DeviceId, cursor: int | None) -> OpenStream:
        """A device opens its stream, in place of one that it may have had: anew, with the invites
        that are alive for it, or from a cursor on, with what came after it."""
        opened, owed = await self._database.write(
            in_a_unit(self._open_stream, device=device, cursor=cursor)
        )
        self._deliveries.send(owed)
        return opened

    async def unread(self, stream: OpenStream, after: int, limit: int) -> list[StreamEvent] | None:
        """What has come in a stream after a number; None where it is this stream no longer, since
        the device has opened another or was removed."""

        def work(connection: Connection) -> list[StreamEvent] | None:
            row = find_connection(connection, stream.device, STREAM)
            if row is None or row.connection != stream.connection:
                return None
            return events_after(connection, stream.device, after, to_ms(self._now()), limit)

        return await self._database.read(work)

    async def is_open(self, stream: OpenStream) -> bool:
        """Whether the device has opened no other stream since, and is still the same one's."""
        row = await self._database.read(lambda c: find_connection(c, stream.device, STREAM))
        return row is not None and row.connection == stream.connection

    async def acknowledge(self, stream: OpenStream, cursor: int) -> None:
        """The device has what came up to a number."""

        def work(connection: Connection) -> None:
            last = last_sequence(connection, stream.device)
            forget_read(connection, stream.device, min(cursor, last))

        await self._database.write(work)

    async def close_stream(self, stream: OpenStream) -> None:
        """A stream has broken. The device may be back at once, so it is not yet gone."""
        at_ms = to_ms(self._now())
        await self._database.write(
            lambda c: let_go(c, stream.device, STREAM, stream.connection, at_ms)
        )

    async def run(self) -> None:
        """Holds this relay's streams, and finds those that nobody holds, until cancelled. While no
        relay ran, or none had its database, none could hold any: their grace begins afterwards."""
        watching_since = self._now()
        while True:
            try:
                await self._watch(watching_since)
            except Unavailable as error:
                log.warning("streams not watched", error=str(error))
                watching_since = self._now()
            await self._sleep(_WATCH_EVERY_S)

    async def _watch(self, since: datetime) -> None:
        now = self._now()
        await self._database.write(lambda c: hold_on(c, self._relay, to_ms(now)))
        if now - since < STREAM_GRACE:
            return
        unseen_since_ms = to_ms(now - STREAM_GRACE)
        lost = await self._database.read(
            lambda c: lost_connections(c, STREAM, unseen_since_ms, _AT_ONCE)
        )
        for row in lost:
            log.info("device lost", device_id=row.device_id)
            await self._went(row.device_id, STREAM, row.connection)

    async def _went(
        self, device: DeviceId, kind: str, which: str, since: datetime | None = None
    ) -> None:
        moved = await self._database.write(
            in_a_unit(self._carry_away, device=device, kind=kind, which=which, since=since)
        )
        self._calls.settle(moved)

    def _session_came(self, unit: UnitOfWork, device: DeviceId) -> Owed:
        connection = unit.connection
        if find_device(connection, device) is None:
            log.info("presence of a device that is not registered", device_id=device)
            return Owed()
        row = ConnectionRow(device, _MQTT, _SESSION, online=True)
        put_connection(connection, row, to_ms(self._now()))
        return self._deliveries.owe_live_invites(unit, device, _MQTT)

    def _open_stream(
        self, unit: UnitOfWork, device: DeviceId, cursor: int | None
    ) -> tuple[OpenStream, Owed]:
        connection = unit.connection
        if find_device(connection, device) is None:
            raise NotFound(f"there is no device {device}")
        which = secrets.token_hex(8)
        row = ConnectionRow(device, STREAM, which, online=True, relay=self._relay)
        put_connection(connection, row, to_ms(self._now()))
        last = last_sequence(connection, device)
        if cursor is not None and cursor <= last:
            forget_read(connection, device, cursor)
            owed = Owed()
        else:
            forget_read(connection, device, last)
            owed = self._deliveries.owe_live_invites(unit, device, STREAM)
            cursor = last
        # Waking the device's readers lets one that is replaced by this stream learn of it.
        return OpenStream(device, which, cursor), replace(owed, streams=frozenset({device}))

    def _carry_away(
        self,
        unit: UnitOfWork,
        device: DeviceId,
        kind: str,
        which: str,
        since: datetime | None,
    ) -> list[Moved]:
        connection = unit.connection
        known = find_device(connection, device)
        row = find_connection(connection, device, kind)
        if known is None or (row is not None and not (row.online and row.connection == which)):
            return []
        if row is not None and since is not None and row.seen_at_ms > to_ms(since):
            return []
        gone = ConnectionRow(device, kind, which, online=False)
        put_connection(connection, gone, to_ms(self._now()))
        still_there = online_devices_of(connection, known.identity)
        if device in still_there:
            return []
        return self._leave_calls(unit, known, last=not still_there)

    def _leave_calls(self, unit: UnitOfWork, device: DeviceRow, *, last: bool) -> list[Moved]:
        command = GoOffline(device.identity, device.device_id, self._calls.now(), last)
        return [
            self._calls.move(unit, call, command)
            for call in ringing_calls_of(unit.connection, device.identity)
        ]
