"""Devices that are registered and have not come: the broker retains that of each, so that who reads
presence by one wildcard sees every device there is.

A device's own presence takes its place. It is written where a device gets its access to the broker,
and at a relay's start where it is missing: for devices of older versions, and after a broker has lost
its disk.
"""

import asyncio
import secrets
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Protocol

import structlog

from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.messages import Incoming
from bellwire.broker.session.session import NotConnected, PublishRefused, Session
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.connections import Absent, absent_devices
from bellwire.signaling.errors import InvalidInput, Unavailable
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import (
    PRESENCE_OF_ALL,
    device_of,
    presence_topic,
    relay_echo_topic,
)
from bellwire.signaling.wire.station import Presence, presence_document

log = structlog.get_logger(__name__)

_ECHO_WITHIN_S = 30.0
_TRY_AGAIN_S = 5.0
_TRY_AGAIN_LATEST_S = 300.0


class Publishing(Protocol):
    """What this needs of a session."""

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """See `Session.publish`."""


async def retain_registered(session: Publishing, device: DeviceId, at: datetime) -> None:
    """Has the broker retain that a device was registered, and has not come since. Where the broker is
    away, the next start of a relay makes it good."""
    presence = Presence(online=False, registered_at=at)
    try:
        await session.publish(presence_topic(device), presence_document(presence), retain=True)
    except NotConnected as error:
        log.warning("not retained that a device is registered", device_id=device, error=str(error))


class AbsentDevices:
    """Writes, once, what the broker lacks of devices that are not there.

    Args:
        address: The broker, as the relay.
        database: Says which devices are registered, and which were there before.
    """

    def __init__(self, address: BrokerAddress, database: Database) -> None:
        name = secrets.token_hex(6)
        self._database = database
        # A session of its own: what a fleet retains must not queue before the calls.
        self._session = Session(address, f"bellwire-presence-{name}")
        self._echo_topic = relay_echo_topic(name)
        self._echoed = asyncio.Event()
        self._heard: dict[DeviceId, bytes] = {}
        self._written: dict[DeviceId, bytes] = {}
        self._session.subscribe(PRESENCE_OF_ALL, self._take_presence)
        self._session.subscribe(self._echo_topic, lambda _: self._echoed.set())
        self._session.on_disconnected(self._heard.clear)

    async def run(self) -> None:
        """Returns once the broker retains a presence of every device that is registered, or does not
        take it."""
        async with asyncio.TaskGroup() as tasks:
            holding = tasks.create_task(self._session.run())
            pause_s = _TRY_AGAIN_S
            while True:
                await self._session.wait_connected()
                try:
                    await self._write_missing()
                    break
                except PublishRefused as error:
                    log.warning("absent devices not retained: see docs/mqtt.md", error=str(error))
                    break
                except (NotConnected, TimeoutError, Unavailable) as error:
                    log.warning("absent devices not retained yet", error=str(error))
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _TRY_AGAIN_LATEST_S)
            holding.cancel()

    async def _write_missing(self) -> None:
        await self._hear_all()
        # Asked after that: who came meanwhile is there, or was heard.
        absent = await self._database.read(absent_devices)
        missing = {each.device: each for each in absent if each.device not in self._heard}
        await self._write(missing)
        if missing:
            log.info("absent devices retained", devices=len(missing))

    async def _hear_all(self) -> None:
        """Waits until all that was said before has come: the broker keeps a session's messages in order."""
        self._echoed.clear()
        await self._session.publish(self._echo_topic, b"")
        async with asyncio.timeout(_ECHO_WITHIN_S):
            await self._echoed.wait()

    async def _write(self, missing: Mapping[DeviceId, Absent]) -> None:
        self._written.clear()
        for device, absent in missing.items():
            if device in self._heard:
                continue
            registered = Presence(online=False, registered_at=absent.registered_at)
            document = presence_document(Presence(online=False) if absent.was_seen else registered)
            self._written[device] = document
            await self._session.publish(presence_topic(device), document, retain=True)
        if not self._written:
            return
        # Who came, or was removed, in that very moment has its own word written over: it is given back.
        await self._hear_all()
        for device in self._written.keys() & self._heard.keys():
            await self._session.publish(presence_topic(device), self._heard[device], retain=True)

    def _take_presence(self, message: Incoming) -> None:
        with suppress(InvalidInput):
            device = device_of(message.topic)
            if message.payload != self._written.get(device):
                self._heard[device] = message.payload
