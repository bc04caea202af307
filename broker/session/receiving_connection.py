"""A connection to a broker that hears, at QoS 1 (MQTT 5, sections 3.3, 3.8 and 4.9).

Whatever one device sends, it is taken from the broker at once: what waits there waits before what all
others send. So a message's topic is read first, and who listens says by that alone whether the rest is
worth reading; all of it is acknowledged.
"""

import asyncio
from collections.abc import Callable, Collection
from functools import lru_cache
from typing import NamedTuple

from paho.mqtt import MQTTException

from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.messages import Incoming
from bellwire.broker.session.packets import (
    SUBACK,
    UNSUBACK,
    number_at,
    reason_codes,
    subscribe_packet,
    unsubscribe_packet,
)
from bellwire.broker.session.publishing_connection import PublishingConnection
from bellwire.broker.session.session import NotConnected

_PUBLISH, _RETAINED, _QOS = 0x30, 0x01, 0x06
_ACKNOWLEDGED = b"\x40\x02"
"""PUBACK, whose reason is then 0, success."""
_LONGEST = 1 << 20
_TOPICS_KNOWN = 100_000
_SUBSCRIBE_S = 10.0

Admit = Callable[[str], bool]
"""Whether a message on this topic is worth reading; all that is known of it is the topic."""


class Route(NamedTuple):
    """Who hears the messages of a topic filter; `admit` None takes all of them."""

    topic_filter: str
    handler: Callable[[Incoming], None]
    admit: Admit | None = None


Hearers = tuple[tuple[Admit | None, Callable[[Incoming], None], str], ...]


class ReceivingConnection(PublishingConnection):
    """One connection; see `PublishingConnection`, too.

    Args:
        routes: Who hears what; kept, and may grow.
    """

    # Not the broker's own limit (20 in mosquitto), which would have it wait for an acknowledgement
    # after each few messages; its limits of bytes hold all the same.
    _RECEIVE_MAXIMUM = 65_535

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        loop: asyncio.AbstractEventLoop,
        routes: Collection[Route],
    ) -> None:
        super().__init__(address, client_id, loop)
        self._routes = routes
        self._known: dict[bytes, Hearers] = {}
        self._acknowledged: list[bytes] = []
        self._asked: dict[int, asyncio.Future[bytes]] = {}

    async def subscribe(self, *topic_filters: str, retained: bool = True) -> list[str]:
        """Subscribes to filters; returns those that the broker refuses.

        Raises:
            NotConnected: the connection is lost, or the broker too slow.
        """
        packet_id = self._unused_packet_id()
        packet = subscribe_packet(packet_id, topic_filters, retained=retained)
        codes = await self._ask(packet_id, packet)
        return [name for name, code in zip(topic_filters, codes, strict=True) if code >= 0x80]

    async def unsubscribe(self, *topic_filters: str) -> None:
        """Undoes `subscribe`.

        Raises:
            NotConnected: as there.
        """
        packet_id = self._unused_packet_id()
        await self._ask(packet_id, unsubscribe_packet(packet_id, topic_filters))

    def data_received(self, data: bytes) -> None:
        """Takes what the broker says."""
        self._silent_looks = 0
        data = self._unread + data if self._unread else data
        at = 0
        try:
            while (packet := _packet_at(data, at)) is not None:
                kind, (begin, at) = data[at], packet
                if kind & 0xF0 == _PUBLISH:
                    self._hear(kind, data, begin, at)
                else:
                    self._take(kind & 0xF0, data[begin:at])
        except (ValueError, LookupError, MQTTException) as error:
            self._abort(f"what speaks at {self.address.url} is no MQTT 5 broker: {error}")
        self._unread = data[at:]
        if self._acknowledged:
            self._write(b"".join(self._acknowledged))
            self._acknowledged.clear()
        if self._waiting:
            self._send_waiting()

    def _hear(self, kind: int, data: bytes, begin: int, end: int) -> None:
        """A message. This is what a flood costs: what a device sends over its limits goes no further
        than `admit`."""
        topic_end = begin + 2 + (data[begin] << 8 | data[begin + 1])
        topic = data[begin + 2 : topic_end]
        if kind & _QOS:
            self._acknowledged.append(_ACKNOWLEDGED + data[topic_end : topic_end + 2])
            topic_end += 2
        hearers = self._known.get(topic)
        for admit, handler, name in self._hearers(topic) if hearers is None else hearers:
            if admit is None or admit(name):
                handler(_incoming(name, data[topic_end:end], retained=kind & _RETAINED))

    def _take(self, kind: int, body: bytes) -> None:
        if kind in (SUBACK, UNSUBACK) and self.ready.done():
            answer = self._asked.pop(int.from_bytes(body[:2]), None)
            if answer is not None and not answer.done():
                answer.set_result(reason_codes(body))
        else:
            super()._take(kind, body)

    def _lose(self, why: str) -> None:
        super()._lose(why)
        asked, self._asked = self._asked, {}
        for answer in asked.values():
            if not answer.done():
                answer.set_exception(NotConnected(why))
                answer.exception()  # Who waited no longer is not to be told.

    async def _ask(self, packet_id: int, packet: bytes) -> bytes:
        if self.lost.done():
            raise NotConnected(self.lost.result())
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._asked[packet_id] = answer
        self._write(packet)
        try:
            async with asyncio.timeout(_SUBSCRIBE_S):
                return await answer
        except TimeoutError as error:
            raise NotConnected(f"the broker did not confirm within {_SUBSCRIBE_S:g} s") from error
        finally:
            self._asked.pop(packet_id, None)

    def _unused_packet_id(self) -> int:
        while True:
            self._packet_id = packet_id = self._free_packet_id()
            if packet_id not in self._asked:
                return packet_id

    def _hearers(self, topic: bytes) -> Hearers:
        """Who hears a topic that has not been met before."""
        name = topic.decode()
        hearers = tuple(
            (route.admit, route.handler, name)
            for route in self._routes
            if _matches(route.topic_filter, name)
        )
        if len(self._known) >= _TOPICS_KNOWN:
            self._known.clear()
        self._known[topic] = hearers
        return hearers


def _matches(topic_filter: str, topic: str) -> bool:
    """Whether a filter takes a topic (4.7, 4.8.2): an operator meets 100,000 topics in seconds."""
    wanted, levels = _levels(topic_filter), topic.split("/")
    if wanted[-1] == "#":
        wanted = wanted[:-1]
        levels = levels[: len(wanted)]
    return len(wanted) == len(levels) and all(
        want in ("+", level) for want, level in zip(wanted, levels, strict=True)
    )


@lru_cache(maxsize=256)
def _levels(topic_filter: str) -> list[str]:
    levels = topic_filter.split("/")
    return levels[2:] if levels[0] == "$share" else levels


def _packet_at(data: bytes, at: int) -> tuple[int, int] | None:
    """Where the body of a packet begins and ends; None where it has not arrived whole."""
    left = len(data) - at
    if left < 2:
        return None
    length, begin = data[at + 1], at + 2
    if length > 0x7F:
        if left < 5:
            return None  # Its body alone has 128 bytes.
        length, begin = number_at(data, at + 1)
        if length > _LONGEST:
            raise ValueError(f"a packet of {length} bytes")
    end = begin + length
    return (begin, end) if end <= len(data) else None


def _incoming(topic: str, rest: bytes, *, retained: int) -> Incoming:
    """A message, from its properties on (3.3.2.3)."""
    if rest[0] == 0:
        return Incoming(topic, rest[1:], bool(retained), None, None, None)
    length, at = number_at(rest, 0)
    end = at + length
    response_topic = correlation = expires_in_s = None
    while at < end:
        name, at = rest[at], at + 1
        if name == 0x02:
            expires_in_s, at = int.from_bytes(rest[at : at + 4]), at + 4
        elif name == 0x01:  # payload format
            at += 1
        elif name == 0x0B:  # subscription identifier
            _, at = number_at(rest, at)
        elif name in (0x03, 0x08, 0x09, 0x26):  # content type, ..., user property
            text, at = _binary(rest, at)
            if name == 0x08:
                response_topic = text.decode(errors="replace")
            elif name == 0x09:
                correlation = text
            elif name == 0x26:
                _, at = _binary(rest, at)
        else:
            raise ValueError(f"a PUBLISH with property {name}")
    return Incoming(topic, rest[end:], bool(retained), response_topic, correlation, expires_in_s)


def _binary(data: bytes, at: int) -> tuple[bytes, int]:
    end = at + 2 + int.from_bytes(data[at : at + 2])
    return data[at + 2 : end], end
