"""A session that hears much does so over a connection of its own, which does little else.

paho-mqtt takes a tenth of a millisecond for each message that comes, before anybody can say that it is
not wanted: a device that floods would have a relay read for seconds what it then refuses, before what
all others ask. Here it is taken from the broker at once, since what waits there waits before what all
others send: its topic is read first, and who listens says by that alone whether the rest is worth
reading (`mqtt5` reads a message whole, and 80 kB of user properties take it a millisecond); all of it is
acknowledged.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from functools import lru_cache
from typing import NamedTuple

import mqtt5
import structlog

from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.client import Client
from bellwire.broker.session.connection import FAILURE, BrokerConnection, let_in
from bellwire.broker.session.messages import Incoming
from bellwire.broker.session.session import Farewell, Handler, NotConnected, Session
from bellwire.config.waiting import Sleep

_CATCH_UP_S = 30.0
_ECHO_AGAIN_S = 2.0
_SUBSCRIBE_S = 10.0
_TOPICS_KNOWN = 100_000
_PUBLISH, _QOS = 3, 0x06
"""The type of a PUBLISH, and the bits of its first byte that say its QoS (3.3.1)."""

log = structlog.get_logger(__name__)

Admit = Callable[[str], bool]
"""Whether a message on this topic is worth reading; all that is known of it is the topic."""


class Route(NamedTuple):
    """Who hears the messages of a topic filter; `admit` None takes all of them."""

    topic_filter: str
    handler: Handler
    admit: Admit | None = None


Hearers = tuple[tuple[Admit | None, Handler, str], ...]


class ReceivingSession(Session):
    """See `Session`. Where one of its connections is lost, all begin anew.

    Args:
        echo_topic: A topic that it may both publish and subscribe to, where `read_retained` is to wait
            until all has come.
    """

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        *,
        echo_topic: str | None = None,
        session_expiry_s: int = 0,
        farewell: Farewell | None = None,
        response_topic: str | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        super().__init__(
            address,
            client_id,
            session_expiry_s=session_expiry_s,
            farewell=farewell,
            response_topic=response_topic,
            sleep=sleep,
        )
        self._echo_topic = echo_topic
        self._routes: list[Route] = []
        self._received: list[tuple[str, bool]] = []
        self._in: ReceivingConnection | None = None
        self._echoes: dict[bytes, asyncio.Event] = {}
        if echo_topic is not None:
            self.receive(echo_topic, self._take_echo)

    def hear(self, topic_filter: str, handler: Handler, *, admit: Admit | None = None) -> None:
        """Has `handler` called on the loop with each message that comes on a filter; those of which
        `admit` says no by their topic alone are not read. Call before `run`."""
        self._routes.append(Route(topic_filter, handler, admit))

    def receive(
        self,
        topic_filter: str,
        handler: Handler,
        *,
        admit: Admit | None = None,
        retained: bool = True,
    ) -> None:
        """As `hear`, and subscribes at each connection, at QoS 1; without `retained` only what is
        published from then on comes by this. Call before `run`."""
        self.hear(topic_filter, handler, admit=admit)
        self._received.append((topic_filter, retained))

    async def catch_up(self) -> None:
        """Waits until all that the broker has sent so far to who hears it is here.

        Raises:
            NotConnected: the broker is not there, or was to send more than it keeps for one session.
        """
        if self._echo_topic is None:
            raise ValueError("this session has no echo topic")
        # What is said now on a topic that it hears comes back after all that was on its way.
        nonce, heard = secrets.token_bytes(12), asyncio.Event()
        self._echoes[nonce] = heard
        receiving = self._receiving()
        try:
            async with asyncio.timeout(_CATCH_UP_S):
                while not heard.is_set():
                    await receiving.publish(self._echo_topic, nonce)
                    # Where more was to come than the broker keeps, it has thrown the echo away, too.
                    with suppress(TimeoutError):
                        await asyncio.wait_for(heard.wait(), _ECHO_AGAIN_S)
        except TimeoutError as error:
            raise NotConnected("the broker did not send all that it keeps") from error
        finally:
            del self._echoes[nonce]

    async def read_retained(self, *topic_filters: str) -> None:
        """Has the broker send what is retained on filters once, to who hears their topics. Where the
        session has an echo topic it has then all come.

        Raises:
            NotConnected: as `catch_up`.
        """
        receiving = self._receiving()
        await receiving.subscribe(*topic_filters)
        if self._echo_topic is not None:
            await self.catch_up()
        lasting = {topic_filter for topic_filter, _ in self._received}
        if passing := [name for name in topic_filters if name not in lasting]:
            await receiving.unsubscribe(*passing)

    def _take_echo(self, message: Incoming) -> None:
        if (heard := self._echoes.get(message.payload)) is not None:
            heard.set()

    def _receiving(self) -> "ReceivingConnection":
        if self._in is None:
            raise NotConnected(f"no connection to the broker {self.address.url}")
        return self._in

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Client]:
        receiving = ReceivingConnection(self.address, f"{self.client_id}-in", tuple(self._routes))
        async with let_in(receiving):
            self._in = receiving
            try:
                async with super()._connection() as client, self._leaving_with(receiving, client):
                    yield client
            finally:
                self._in = None

    async def _set_up(self, client: Client) -> None:
        receiving = self._receiving()
        for topic_filter, retained in self._received:
            for refused in await receiving.subscribe(topic_filter, retained=retained):
                log.error("broker refused a subscription", topic=refused, client_id=self.client_id)
        await super()._set_up(client)

    @asynccontextmanager
    async def _leaving_with(
        self, connection: BrokerConnection, client: Client
    ) -> AsyncIterator[None]:
        """Has the session's other connection end with this one."""

        def leave(lost: asyncio.Future[str]) -> None:
            log.warning(
                "a connection was lost", client_id=connection.client_id, error=lost.result()
            )
            self._up.clear()
            client.leave()

        connection.lost.add_done_callback(leave)
        try:
            yield
        finally:
            connection.lost.remove_done_callback(leave)


class ReceivingConnection(BrokerConnection):
    """One connection; see `BrokerConnection`, too.

    Args:
        routes: Who hears what; kept, and may grow.
    """

    # Not the broker's own limit (20 in mosquitto), which would have it wait for an acknowledgement
    # after each few messages; its limits of bytes hold all the same. Nor 65,535, which MQTT 5 says where
    # nothing is said: `mqtt5` then says nothing, and mosquitto takes its own.
    _ACCEPTS_AT_ONCE = 65_534
    _LONGEST_PACKET = 1 << 20

    def __init__(self, address: BrokerAddress, client_id: str, routes: Collection[Route]) -> None:
        super().__init__(address, client_id)
        self._routes = routes
        self._known: dict[bytes, Hearers] = {}
        self._acknowledged: list[bytes] = []
        self._asked: dict[int, asyncio.Future[list[int]]] = {}

    async def subscribe(self, *topic_filters: str, retained: bool = True) -> list[str]:
        """Subscribes to filters; returns those that the broker refuses.

        Raises:
            NotConnected: the connection is lost, or the broker too slow.
        """
        packet_id = self._unused_packet_id()
        handling = mqtt5.RetainHandling
        filters = [
            mqtt5.TopicFilter(
                topic_filter,
                max_qos=mqtt5.QoS.AT_LEAST_ONCE,
                retain_as_published=False,
                retain_handling=handling.SEND_ALWAYS if retained else handling.SEND_NEVER,
            )
            for topic_filter in topic_filters
        ]
        codes = await self._ask(packet_id, mqtt5.SubscribePacket(packet_id, filters).write())
        return [name for name, code in zip(topic_filters, codes, strict=True) if code >= FAILURE]

    async def unsubscribe(self, *topic_filters: str) -> None:
        """Undoes `subscribe`.

        Raises:
            NotConnected: as there.
        """
        packet_id = self._unused_packet_id()
        await self._ask(packet_id, mqtt5.UnsubscribePacket(packet_id, [*topic_filters]).write())

    def data_received(self, data: bytes) -> None:
        """Takes what the broker says."""
        super().data_received(data)
        if self._acknowledged:
            self._write(b"".join(self._acknowledged))
            self._acknowledged.clear()

    def _read(self, data: bytes, at: int, begin: int, end: int) -> None:
        """A message is what a flood costs: what a device sends over its limits goes no further than
        `admit`."""
        if data[at] >> 4 != _PUBLISH or not self.ready.done():
            super()._read(data, at, begin, end)
            return
        topic_end = begin + 2 + (data[begin] << 8 | data[begin + 1])
        topic = data[begin + 2 : topic_end]
        if data[at] & _QOS:
            packet_id = data[topic_end] << 8 | data[topic_end + 1]
            self._acknowledged.append(mqtt5.PubAckPacket(packet_id).write())
        hearers = self._known.get(topic)
        if hearers is None:
            hearers = self._hearers(topic)
        wanted = [handler for admit, handler, name in hearers if admit is None or admit(name)]
        if wanted and (message := _message(memoryview(data)[at:end])) is not None:
            for handler in wanted:
                handler(message)

    def _take(self, packet: mqtt5.Packet) -> None:
        if isinstance(packet, mqtt5.SubAckPacket | mqtt5.UnsubAckPacket) and self.ready.done():
            answer = self._asked.pop(packet.packet_id, None)
            if answer is not None and not answer.done():
                answer.set_result([code.value for code in packet.reason_codes])
        else:
            super()._take(packet)

    def _lose(self, why: str) -> None:
        super()._lose(why)
        asked, self._asked = self._asked, {}
        for answer in asked.values():
            if not answer.done():
                answer.set_exception(NotConnected(why))
                answer.exception()  # Who waited no longer is not to be told.

    async def _ask(self, packet_id: int, packet: bytes) -> list[int]:
        if self.lost.done():
            raise NotConnected(self.lost.result())
        answer: asyncio.Future[list[int]] = self._loop.create_future()
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


def _message(packet: memoryview) -> Incoming | None:
    """A message as it is handed on; None where it cannot be read: whose fault that is, a device's or the
    broker's, nobody knows, and the others' messages are to come all the same."""
    try:
        read, _ = mqtt5.read(packet)
    except ValueError as error:
        log.warning("a message cannot be read", error=str(error))
        return None
    assert isinstance(read, mqtt5.PublishPacket)  # noqa: S101 - its type was looked at
    return Incoming(
        topic=read.topic,
        payload=read.payload,
        retained=read.retain,
        response_topic=read.response_topic,
        correlation=read.correlation_data,
        expires_in_s=read.message_expiry_interval,
    )
