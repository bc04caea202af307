"""The fleet's layers in the relay: its database keeps them and their history, so that a broker that has
lost some gets them back. The rules are in :mod:`broker.fleet.layer_keeper`.
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime

import structlog

from bellwire.broker.accounts.credentials import DynamicSecurity
from bellwire.broker.fleet.layer_keeper import Revisions, keep_layers
from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.receiving import ReceivingSession
from bellwire.config.fleet.writing import Held, Mark
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows import fleet_layers
from bellwire.push.store.tables import to_ms
from bellwire.signaling.errors import Unavailable
from bellwire.signaling.topics import OPERATORS_ECHO, LayerName

log = structlog.get_logger(__name__)

_RIGHTS_EVERY_S = 60.0


class StoredLayers:
    """See `LayerStore`; in the relay's database."""

    def __init__(self, database: Database, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now

    async def newest(self) -> dict[LayerName, Mark]:
        """See `LayerStore.newest`."""
        return await self._database.read(fleet_layers.newest_layers)

    async def history(self, name: LayerName) -> list[Held]:
        """See `LayerStore.history`."""
        return await self._database.read(lambda c: fleet_layers.layer_history(c, name))

    async def keep(self, revisions: Revisions) -> Sequence[Held]:
        """See `LayerStore.keep`."""
        at_ms = to_ms(self._now())
        return await self._database.write(lambda c: fleet_layers.keep_layers(c, revisions, at_ms))


async def keep_fleet(
    broker: BrokerAddress, database: Database, *, now: Callable[[], datetime]
) -> None:
    """Keeps the layers that a broker has, until cancelled. Operators whose account an older version has
    made may hear of it from then on."""
    # A session of its own: layers must not queue before the calls.
    session = ReceivingSession(
        broker, f"bellwire-keeper-{secrets.token_hex(6)}", echo_topic=OPERATORS_ECHO
    )
    rights, connected = DynamicSecurity(session), asyncio.Event()

    async def note_connected() -> None:
        connected.set()

    async def extend_rights() -> None:
        while True:
            with suppress(TimeoutError):  # a command of an older version may have taken some away
                await asyncio.wait_for(connected.wait(), _RIGHTS_EVERY_S)
            connected.clear()
            if not session.connected:
                continue
            try:
                given = await rights.extend_operators()
            except Unavailable as error:
                log.warning("operators keep the rights that they have", error=str(error))
                continue
            if given:
                log.info("operators have the rights of this version", given=given)

    session.on_connected(note_connected)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(extend_rights())
        tasks.create_task(keep_layers(session, StoredLayers(database, now)))
