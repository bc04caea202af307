"""What the broker says of who is there, held against what it cannot know and the database has not heard.

A broker that is killed loses the last wills of its devices, and one that lost its disk all that they said;
a relay that is killed may take with it that a device has gone. So each relay hears of every device over a
session of its own (what a fleet says must not queue before the calls), and writes in its place:

- of one that is registered and of which nothing is retained, that it has not come, or has gone;
- of one that has stopped confirming its presence, or is there by the database alone, that it has gone. From
  then on all is as if its last will had been published: relays note it, and its calls end.

By :func:`signaling.wire.station.is_online`, as operators see it.
"""

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from pydantic import ValidationError

from bellwire.broker.fleet.reading import read_devices
from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.messages import Incoming
from bellwire.broker.session.receiving import ReceivingSession
from bellwire.broker.session.session import BACKOFF_LONGEST_S, NotConnected, PublishRefused
from bellwire.config.waiting import Sleep
from bellwire.push.devices.requests import DeviceRequests
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.connections import Absent, absent_devices, online_since
from bellwire.push.store.tables import from_ms, to_ms
from bellwire.signaling.errors import InvalidInput, Unavailable
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import (
    PRESENCE_OF_ALL,
    device_of,
    presence_topic,
    relay_echo_topic,
)
from bellwire.signaling.wire.station import (
    Presence,
    expires_at_s,
    is_online,
    parse_presence,
    presence_document,
)

log = structlog.get_logger(__name__)

_MQTT = "mqtt"
_TRY_AGAIN_S = 5.0
_LOOK_EVERY_S = 2.0
_DATABASE_EVERY = 5
"""Each so many looks also hold the database against the broker."""
BACK_WITHIN_S = BACKOFF_LONGEST_S + 5.0
"""Who lost the broker when we did is back by then, at the end of its longest wait."""


@dataclass(frozen=True, slots=True)
class _Word:
    """What a device has said last, or a relay in its place; an empty document takes it back. Times are by
    `clock`; `until_s` None is for ever."""

    document: bytes
    presence: Presence | None
    at_s: float
    until_s: float | None

    def left_s(self, now_s: float) -> float | None:
        return None if self.until_s is None else max(1.0, self.until_s - now_s)


class PresenceWatch:
    """Watches the broker's presences, and writes what they lack.

    Args:
        address: The broker, as the relay.
        database: Says which devices are registered, and which were there before.
        requests: Hears each device's presence once among all relays; is told what it need not note again,
            and what it must.
        now: Tells the time.
        clock: Tells seconds that pass.
        sleep: Waits between two looks.
        back_within_s: How long after each of its connections devices may take to be back.
    """

    def __init__(
        self,
        address: BrokerAddress,
        database: Database,
        requests: DeviceRequests,
        *,
        now: Callable[[], datetime],
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
        back_within_s: float = BACK_WITHIN_S,
    ) -> None:
        name = secrets.token_hex(6)
        self._database = database
        self._requests = requests
        self._now = now
        self._clock = clock
        self._sleep = sleep
        self._back_within_s = back_within_s
        self._session = ReceivingSession(
            address, f"bellwire-presence-{name}", echo_topic=relay_echo_topic(name)
        )
        self._heard: dict[DeviceId, _Word] = {}
        self._written: dict[DeviceId, bytes] = {}
        self._connection = 0
        self._session.receive(PRESENCE_OF_ALL, self._take)
        self._session.on_disconnected(self._begin_anew)

    async def run(self) -> None:
        """Watches until cancelled, or until the broker does not take what is written."""
        async with asyncio.TaskGroup() as tasks:
            holding = tasks.create_task(self._session.run())
            try:
                await self._run()
            except PublishRefused as error:
                log.warning("absent devices not retained: see docs/mqtt.md", error=str(error))
            holding.cancel()

    async def _run(self) -> None:
        while True:
            await self._session.wait_connected()
            try:
                await self._watch()
            except PublishRefused:
                raise
            except (NotConnected, Unavailable) as error:
                log.warning("presence not watched", error=str(error))
                await self._sleep(_TRY_AGAIN_S)

    def _begin_anew(self) -> None:
        self._heard.clear()
        self._connection += 1

    async def _watch(self) -> None:
        """Watches for as long as one connection lasts."""
        connection, began_s = self._connection, self._clock()
        await self._session.catch_up()
        await self._write_missing()
        for look in itertools.count(1):
            await self._sleep(_LOOK_EVERY_S)
            if connection != self._connection:
                return
            if self._clock() - began_s < self._back_within_s:
                continue
            gone = self._expired()
            if look % _DATABASE_EVERY == 0:
                gone |= await self._there_by_the_database_alone()
            if gone:
                await self._write_gone(gone)

    async def _write_missing(self) -> None:
        # Asked once all that the broker retains is here: who came meanwhile is there, or was heard.
        absent = await self._database.read(absent_devices)
        noted = await self._database.read(lambda c: online_since(c, _MQTT))
        self._requests.take_as_noted(
            {
                device: word.document
                for device, word in self._heard.items()
                if device in noted and _confirms(word)
            }
        )
        missing = {each.device: _absence(each) for each in absent if each.device not in self._heard}
        await self._write(missing)
        if missing:
            log.info("absent devices retained", devices=len(missing))

    def _expired(self) -> dict[DeviceId, datetime]:
        """Who has said last that it is there, and not confirmed it in time; and when it last did."""
        now_s, now = self._clock(), self._now()
        return {
            device: now - timedelta(seconds=now_s - word.at_s)
            for device, word in self._heard.items()
            if word.until_s is not None
            and word.until_s <= now_s
            and word.presence is not None
            and word.presence.online
        }

    async def _there_by_the_database_alone(self) -> dict[DeviceId, datetime]:
        """Who is there by the database, and was not by the broker for a while; and when it was noted."""
        noted = await self._database.read(lambda c: online_since(c, _MQTT))
        now_s, long_ago_ms = self._clock(), to_ms(self._now()) - round(self._back_within_s * 1000)
        return {
            device: from_ms(at_ms)
            for device, at_ms in noted.items()
            if at_ms <= long_ago_ms and self._has_gone(device, now_s)
        }

    def _has_gone(self, device: DeviceId, now_s: float) -> bool:
        word = self._heard.get(device)
        if word is None:
            return True
        if is_online(word.presence, word.until_s, now_s):
            return False
        return now_s - word.at_s >= self._back_within_s

    async def _write_gone(self, gone: Mapping[DeviceId, datetime]) -> None:
        # What waits to be read, in a process that was held up, may be that they are there. And of a very
        # large fleet at once the broker may have dropped some.
        unheard = [device for device in gone if device not in self._heard]
        await read_devices(self._session, unheard, presence_topic)
        await self._session.catch_up()
        expired, now_s = self._expired(), self._clock()
        still = {
            device: presence_document(Presence(online=False, since=since))
            for device, since in gone.items()
            if device in expired or self._has_gone(device, now_s)
        }
        await self._write(still)
        for device in still:
            self._requests.forget_noted(device)
            log.info("device no longer confirmed by the broker", device_id=device)

    async def _write(self, documents: Mapping[DeviceId, bytes]) -> None:
        """Writes in the place of devices. Who came, or was removed, in that very moment has its own word
        written over: it is given back."""
        if not documents:
            return
        before = {device: self._heard.get(device) for device in documents}
        self._written = {**documents}
        try:
            for device, document in documents.items():
                if self._heard.get(device) is before[device]:
                    await self._session.publish(presence_topic(device), document, retain=True)
            await self._session.catch_up()
        finally:
            self._written = {}
        now_s = self._clock()
        for device, document in documents.items():
            word = self._heard.get(device)
            if word is before[device]:
                presence = _parsed(document)
                self._heard[device] = _Word(document, presence, now_s, None)
            elif word is not None:
                await self._session.publish(
                    presence_topic(device),
                    word.document,
                    retain=True,
                    expires_in_s=word.left_s(now_s),
                )

    def _take(self, message: Incoming) -> None:
        with suppress(InvalidInput):
            device, document = device_of(message.topic), message.payload
            if document == self._written.get(device):
                return
            now_s = self._clock()
            before = self._heard.get(device)
            if before is not None and before.document == document:
                presence = before.presence
            else:
                presence = _parsed(document)
            until_s = expires_at_s(message.expires_in_s, now_s)
            self._heard[device] = _Word(document, presence, now_s, until_s)
            if presence is None or not presence.online:
                self._requests.forget_noted(device)


def _confirms(word: _Word) -> bool:
    """Whether the same again is no other connection of the device."""
    said = word.presence
    return said is not None and said.online and said.since is not None


def _parsed(document: bytes) -> Presence | None:
    try:
        return parse_presence(document) if document else None
    except ValidationError:
        return None


def _absence(absent: Absent) -> bytes:
    if absent.was_seen:
        return presence_document(Presence(online=False))
    return presence_document(Presence(online=False, registered_at=absent.registered_at))
