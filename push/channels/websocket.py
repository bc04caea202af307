"""The stream of a browser, or of an app in the foreground. Nothing is pushed on this way: an event is
appended to the device's stream, with the document that MQTT would carry, and its reader is woken.

A change is committed by any of several relays; the one whose reader it concerns hears of it over the
broker. Should that fail, a reader looks for itself now and then: nothing depends on the wake but speed.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import Collection

import structlog
from pydantic import TypeAdapter, ValidationError

from bellwire.broker.session.messages import Incoming
from bellwire.broker.session.session import NotConnected, Session
from bellwire.config.waiting import Alarm
from bellwire.push.channels.channel import refuse_if_too_large
from bellwire.signaling.calls.events import CallEvent, document_within, what_to_shorten
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import STREAMS_GROWN

log = structlog.get_logger(__name__)

STREAM = "websocket"
"""The kind of channel that is a stream."""

LIMIT_BYTES = 16 * 1024
"""Generous: nothing on this way has a limit of its own. It bounds what an unread stream can cost."""

_AT_ONCE = 500
_DEVICES: TypeAdapter[list[DeviceId]] = TypeAdapter(list[DeviceId])


def compose_stream_event(event: CallEvent) -> str:
    """The document that carries an event, but for what an invite says to one device alone.

    Raises:
        TooLarge: it is over the limit.
    """
    document = document_within(event, LIMIT_BYTES)
    refuse_if_too_large(
        len(document.encode()),
        LIMIT_BYTES,
        what=event.event,
        kind=STREAM,
        shorten=what_to_shorten(event),
    )
    return document


class StreamReaders:
    """Wakes the readers of streams, here and at other relays.

    Args:
        session: The broker.
        alone: Whether no other relay shares the database, so that nobody else need be told.
    """

    def __init__(self, session: Session, *, alone: bool) -> None:
        self._session = session
        self._alone = alone
        self._readers: defaultdict[DeviceId, set[Alarm]] = defaultdict(set)
        self._to_tell: set[DeviceId] = set()
        self._telling = asyncio.Event()
        if not alone:
            session.subscribe(STREAMS_GROWN, self._take)

    def wake(self, devices: Collection[DeviceId]) -> None:
        """Tells the readers of some devices' streams to look."""
        self._wake_here(devices)
        if devices and not self._alone:
            self._to_tell.update(devices)
            self._telling.set()

    def attach(self, device: DeviceId, alarm: Alarm) -> None:
        """Has a reader's alarm rung when its stream has grown."""
        self._readers[device].add(alarm)

    def detach(self, device: DeviceId, alarm: Alarm) -> None:
        """Undoes `attach`."""
        self._readers[device].discard(alarm)
        if not self._readers[device]:
            del self._readers[device]

    async def run(self) -> None:
        """Tells other relays, until cancelled; what comes up meanwhile goes together."""
        while True:
            await self._telling.wait()
            self._telling.clear()
            devices, self._to_tell = sorted(self._to_tell), set()
            for start in range(0, len(devices), _AT_ONCE):
                document = json.dumps(devices[start : start + _AT_ONCE]).encode()
                try:
                    await self._session.publish(STREAMS_GROWN, document, expires_in_s=10)
                except NotConnected as error:
                    log.info("other relays not told of new events", error=str(error))

    def _take(self, message: Incoming) -> None:
        try:
            self._wake_here(_DEVICES.validate_json(message.payload))
        except ValidationError:
            log.warning("word of new events not understood", topic=message.topic)

    def _wake_here(self, devices: Collection[DeviceId]) -> None:
        for device in devices:
            for alarm in self._readers.get(device, ()):
                alarm.ring()
