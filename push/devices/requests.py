"""Devices over MQTT: their requests, answered on the response topic they name, and their presence.

The broker's rights make sure that a request on a device's topic is that device's; an answer goes
only to a topic of the same device, whatever the request names. That a device confirms its presence, again
and again (:mod:`signaling.wire.station`), is nothing new, and goes no further; when it stops doing so is
:mod:`push.devices.presence_watch`'s to notice. A device that floods is refused, and
waits for itself alone: all is taken from the broker at once, where it would stand in others' way, and
what is kept here is bounded for each device and for all.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime
from typing import Any

import structlog
from pydantic import ValidationError

from bellwire.broker.session.messages import Incoming
from bellwire.broker.session.receiving import ReceivingSession
from bellwire.broker.session.session import BACKOFF_LONGEST_S, NotConnected
from bellwire.config.waiting import Sleep
from bellwire.push.access.tokens import Actor
from bellwire.push.devices.connections import Connections
from bellwire.push.devices.operations import DeviceOperations
from bellwire.push.devices.rate_limits import DeviceRateLimits, FairTurns
from bellwire.push.devices.registration import Devices
from bellwire.push.problems import problem_of
from bellwire.signaling.errors import (
    InvalidInput,
    Refusal,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
)
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import (
    PRESENCE_OF_ALL,
    PRESENCE_SHARED,
    REQUESTS_SHARED,
    device_of,
    device_part,
    presence_topic,
    response_topic,
)
from bellwire.signaling.wire.answers import DeviceResponse
from bellwire.signaling.wire.station import parse_presence

log = structlog.get_logger(__name__)

_AT_ONCE = 256
_AT_ONCE_OF_ONE = 32
_WAITING_OF_ONE = 200
"""What a device's bucket holds by default, so that it is the bucket that refuses."""
_WAITING_IN_ALL = 4096
_FLICKER_S = 0.5
"""Between two looks at a device that comes and goes more often."""
_GRACE_S = 2.0
_GRACE_READ_S = BACKOFF_LONGEST_S + 5.0
"""How long a device that is said to have gone may take to say that it is back: longer where that is
read from before the relay's own connection, since a device that found no broker may have just begun
its longest wait."""


class DeviceRequests:
    """Serves what devices ask over MQTT."""

    def __init__(
        self,
        session: ReceivingSession,
        operations: DeviceOperations,
        devices: Devices,
        connections: Connections,
        rate_limits: DeviceRateLimits,
        *,
        now: Callable[[], datetime],
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._now = now
        self._sleep = sleep
        self._session = session
        self._operations = operations
        self._devices = devices
        self._connections = connections
        self._tasks: asyncio.TaskGroup | None = None
        self._rate_limits = rate_limits
        self._turns = FairTurns(
            self._serve,
            at_once=_AT_ONCE,
            of_one=_AT_ONCE_OF_ONE,
            waiting_of_one=_WAITING_OF_ONE,
            waiting_in_all=_WAITING_IN_ALL,
        )
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._presence: dict[str, Incoming] = {}
        self._unread_presence: set[str] = set()
        """The topics of which the last has yet to be looked at."""
        self._noted: dict[str, bytes] = {}
        """With what word, by topic, devices have come that are there. The same again only confirms it."""
        self._gone: dict[DeviceId, datetime | None] = {}
        """Since when the devices have gone that have a moment to be back; None for one that is."""
        session.receive(REQUESTS_SHARED, self._take_request, admit=self._is_heard)
        session.receive(PRESENCE_SHARED, self._take_presence)
        session.on_connected(self._read_presence)

    async def run(self) -> None:
        """Serves until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self._turns.run())
            try:
                await asyncio.Event().wait()
            finally:
                self._tasks = None

    def take_as_noted(self, words: Mapping[DeviceId, bytes]) -> None:
        """Takes what the broker retains of devices whose coming was noted before this relay listened: it
        is not noted anew when they confirm it."""
        for device, word in words.items():
            self._noted.setdefault(presence_topic(device), word)

    def forget_noted(self, device: DeviceId) -> None:
        """Another relay may have noted that a device has gone: what it says next is news."""
        self._noted.pop(presence_topic(device), None)

    def _is_heard(self, topic: str) -> bool:
        return self._rate_limits.is_heard(device_part(topic))

    def _take_request(self, message: Incoming) -> None:
        device = device_part(message.topic)
        wait_s = self._rate_limits.wait_s(device)
        if not wait_s and self._turns.bring(device, message):
            return
        refusal = self._rate_limits.refuse(device, wait_s=wait_s or 1.0)
        if refusal is not None:
            self._spawn(self._refuse(message, refusal))

    def _take_presence(self, message: Incoming) -> None:
        if self._tasks is None or self._noted.get(message.topic) == message.payload:
            return
        self._noted.pop(message.topic, None)
        if not message.payload:
            return
        is_served = message.topic in self._presence
        if message.topic in self._unread_presence:
            self._rate_limits.count_presence_unread()
        self._presence[message.topic] = message
        self._unread_presence.add(message.topic)
        if not is_served:
            self._tasks.create_task(self._serve_presence_of(message.topic))

    async def _read_presence(self) -> None:
        """Learns who has gone while no relay was listening; who came says so again by itself."""
        await self._session.read_retained(PRESENCE_OF_ALL)

    async def _serve(self, message: Incoming) -> None:
        await self._say(message, await self._answer(message))

    async def _refuse(self, message: Incoming, refusal: TooManyRequests) -> None:
        problem = problem_of(refusal)
        await self._say(message, DeviceResponse(status=problem.status, problem=problem))

    async def _say(self, message: Incoming, response: DeviceResponse) -> None:
        if message.response_topic is None:
            return
        device = device_of(message.topic)
        if message.response_topic != response_topic(device):
            log.warning("device named a foreign response topic", device_id=device)
            return
        try:
            await self._session.publish(
                message.response_topic,
                response.document(),
                expires_in_s=30,
                correlation=message.correlation,
            )
        except NotConnected as error:
            log.warning(
                "answer not sent, the device will ask again", device_id=device, error=str(error)
            )

    async def _answer(self, message: Incoming) -> DeviceResponse:
        try:
            actor = await self._actor(device_of(message.topic))
        except Refusal as refusal:
            problem = problem_of(refusal)
            return DeviceResponse(status=problem.status, problem=problem)
        return await self._operations.answer(message.payload, actor, "mqtt")

    async def _actor(self, device: DeviceId) -> Actor:
        identity = await self._devices.identity_of(device)
        if identity is None:
            raise Unauthenticated(f"the device {device} is not registered")
        return Actor(identity, device)

    async def _serve_presence_of(self, topic: str) -> None:
        """One device's presence, one after the other, and of what comes meanwhile the last: who goes
        and comes at once is there."""
        try:
            while True:
                message = self._presence[topic]
                self._unread_presence.discard(topic)
                await self._serve_presence(message)
                if self._presence[topic] is message:
                    return
                await self._sleep(_FLICKER_S)
        finally:
            del self._presence[topic]
            self._unread_presence.discard(topic)

    async def _serve_presence(self, message: Incoming) -> None:
        try:
            device = device_of(message.topic)
            presence = parse_presence(message.payload)
        except (InvalidInput, ValidationError):
            log.warning("presence not understood", topic=message.topic)
            return
        if presence.never_seen:
            return  # A relay says so. The device has not gone: it has yet to come.
        if presence.online:
            if not message.retained:
                if device in self._gone:
                    self._gone[device] = None
                is_noted = await self._note_presence(device, online=True)
                # Without `since` it is of an older version: then each time may be another connection.
                if is_noted and presence.since and self._presence[message.topic] is message:
                    self._noted[message.topic] = message.payload
            return
        is_watched = device in self._gone
        if self._gone.get(device) is None:
            self._gone[device] = self._now()
        if not is_watched:
            grace_s = _GRACE_READ_S if message.retained else _GRACE_S
            self._spawn(self._note_gone_unless_back(device, grace_s))

    async def _note_gone_unless_back(self, device: DeviceId, grace_s: float) -> None:
        """A broker that restarts says of all its devices that they have gone, and they are back in a
        moment: so a device has that moment, and the relay its own connection."""
        try:
            while (since := self._gone[device]) is not None:
                await self._sleep(grace_s)
                while not self._session.connected:
                    await self._session.wait_connected()
                    await self._sleep(_GRACE_READ_S)
                if self._gone[device] == since:
                    break
        finally:
            del self._gone[device]
        if since is not None:
            await self._note_presence(device, online=False, since=since)

    async def _note_presence(
        self, device: DeviceId, *, online: bool, since: datetime | None = None
    ) -> bool:
        async with self._room:
            try:
                if online:
                    await self._connections.session_came(device)
                else:
                    await self._connections.session_went(device, since)
            except Unavailable as error:
                log.warning("presence not noted", device_id=device, error=str(error))
                return False
        log.info("device presence", device_id=device, online=online)
        return True

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if self._tasks is None:
            work.close()
        else:
            self._tasks.create_task(work)
