"""A connection to a broker that only publishes, at QoS 1 (MQTT 5, sections 3.3 and 4.9)."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar, cast

from paho.mqtt import MQTTException

from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.packets import (
    CONNACK,
    DISCONNECT,
    FAILURE,
    LEAVE,
    NO_MATCHING_SUBSCRIBERS,
    PING,
    PINGRESP,
    PUBACK,
    connack_properties,
    connect_packet,
    publish_packet,
    reason,
    whole_packets,
)
from bellwire.broker.session.session import (
    REFUSED_CREDENTIALS,
    CredentialsRefused,
    NobodyListens,
    NotConnected,
    PublishRefused,
)

_MOST_ON_THEIR_WAY = 65_535
_CONNECT_S = 5.0
_CONFIRM_S = 10.0
_KEEPALIVE_S = 20
_LOOK_EVERY_S = 0.5

Connection = TypeVar("Connection", bound="PublishingConnection")


@asynccontextmanager
async def open_publishing(
    address: BrokerAddress, client_id: str, *, confirm_s: float = _CONFIRM_S
) -> AsyncIterator["PublishingConnection"]:
    """A connection that the broker has let in, and that has to confirm within `confirm_s` seconds.

    Raises:
        CredentialsRefused: it does not take the address's user name or password.
        NotConnected: it does not let it in, or does not answer in time.
        OSError: it cannot be reached.
    """
    loop = asyncio.get_running_loop()
    async with let_in(PublishingConnection(address, client_id, loop, confirm_s)) as connection:
        yield connection


@asynccontextmanager
async def let_in(connection: Connection) -> AsyncIterator[Connection]:
    """A connection of whichever kind; see `open_publishing`."""
    loop, address = asyncio.get_running_loop(), connection.address
    try:
        try:
            async with asyncio.timeout(_CONNECT_S):
                await loop.create_connection(
                    lambda: connection, address.host, address.port, ssl=address.tls_context()
                )
                await connection.ready
        except TimeoutError:
            raise NotConnected(f"the broker {address.url} did not answer in time") from None
        yield connection
    finally:
        connection.close()


@dataclass(slots=True)
class _Message:
    """One to be confirmed, not later than `deadline` by the loop's clock."""

    topic: bytes
    properties: bytes
    payload: bytes
    deadline: float
    confirmed: asyncio.Future[None]


class PublishingConnection(asyncio.Protocol):
    """One connection. Not more messages are on their way than the broker wants (Receive Maximum); the
    others wait here, in their order.

    Args:
        address: The broker, and how to log in.
        client_id: The connection's name.
        loop: The loop it runs on.
        confirm_s: How long the broker may take to confirm, in seconds.
    """

    _RECEIVE_MAXIMUM: int | None = None

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        loop: asyncio.AbstractEventLoop,
        confirm_s: float = _CONFIRM_S,
    ) -> None:
        self.ready: asyncio.Future[None] = loop.create_future()
        """Done once the broker has let it in; fails with NotConnected where it does not."""
        self.lost: asyncio.Future[str] = loop.create_future()
        """Done once it is lost, or closed: says why. Its owner may not know yet."""
        self.address = address
        self.client_id = client_id
        self._loop = loop
        self._confirm_s = confirm_s
        self._transport: asyncio.Transport | None = None
        self._unread = b""
        self._most_on_their_way = _MOST_ON_THEIR_WAY
        self._keepalive_s = _KEEPALIVE_S
        self._is_paused = False
        self._packet_id = 0
        self._waiting: deque[_Message] = deque()
        self._on_their_way: dict[int, _Message] = {}
        self._unwritten: list[bytes] = []
        self._wrote_at = loop.time()
        self._silent_looks = 0
        self._next_look: asyncio.TimerHandle | None = None

    def publish(self, topic: str, properties: bytes, payload: bytes) -> asyncio.Future[None]:
        """Publishes. What is returned is done once the broker has confirmed; it fails with
        NobodyListens, with PublishRefused where the broker does not take the message, and with
        NotConnected where the connection is lost or the broker too slow."""
        confirmed: asyncio.Future[None] = self._loop.create_future()
        if self.lost.done():
            confirmed.set_exception(NotConnected(self.lost.result()))
            return confirmed
        deadline = self._loop.time() + self._confirm_s
        self._waiting.append(_Message(topic.encode(), properties, payload, deadline, confirmed))
        self._send_waiting()
        return confirmed

    def close(self) -> None:
        """Takes leave."""
        if self._transport is not None and not self.lost.done():
            self._flush()
            self._write(LEAVE)
            self._transport.close()
            self._lose("the connection was closed")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asks to be let in."""
        self._transport = cast("asyncio.Transport", transport)
        username, password = self.address.username, self.address.password
        self._transport.write(
            connect_packet(
                self.client_id,
                username,
                password,
                self._keepalive_s,
                receive_maximum=self._RECEIVE_MAXIMUM,
            )
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """Fails what is not confirmed."""
        self._lose(f"the broker was lost: {exc or 'it closed the connection'}")

    def pause_writing(self) -> None:
        """The broker reads more slowly than is written."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self._is_paused = False
        self._send_waiting()

    def data_received(self, data: bytes) -> None:
        """Takes what the broker says."""
        self._silent_looks = 0
        unread, end = self._unread + data, 0
        try:
            for kind, begin, end in whole_packets(unread):
                self._take(kind, unread[begin:end])
        except (ValueError, LookupError, MQTTException) as error:
            self._abort(f"what speaks at {self.address.url} is no MQTT 5 broker: {error}")
        self._unread = unread[end:]
        self._send_waiting()

    def _take(self, kind: int, body: bytes) -> None:
        if not self.ready.done():
            if kind != CONNACK:
                raise ValueError(f"a packet of type {kind >> 4} before it lets anybody in")
            self._let_in(body)
        elif kind == PUBACK:
            self._confirm(int.from_bytes(body[:2]), body[2] if len(body) > 2 else 0)
        elif kind == DISCONNECT:
            self._abort(f"the broker ends the connection: {reason(kind, body[0] if body else 0)}")
        elif kind != PINGRESP:
            raise ValueError(f"a packet of type {kind >> 4}")

    def _let_in(self, body: bytes) -> None:
        if body[1] >= FAILURE:
            why = f"the broker does not let {self.client_id} in: {reason(CONNACK, body[1])}"
            if body[1] in REFUSED_CREDENTIALS:
                self.ready.set_exception(CredentialsRefused(why))
            self._abort(why)
            return
        asked = connack_properties(body)
        self._most_on_their_way = getattr(asked, "ReceiveMaximum", _MOST_ON_THEIR_WAY)
        self._keepalive_s = getattr(asked, "ServerKeepAlive", 0) or _KEEPALIVE_S
        self.ready.set_result(None)
        self._look()

    def _confirm(self, packet_id: int, code: int) -> None:
        message = self._on_their_way.pop(packet_id, None)
        if message is None or message.confirmed.done():
            return
        if code >= FAILURE:
            topic, why = message.topic.decode(), reason(PUBACK, code)
            error = PublishRefused(f"the broker refuses a message on {topic}: {why}")
            message.confirmed.set_exception(error)
        elif code == NO_MATCHING_SUBSCRIBERS:
            nobody = NobodyListens(f"nobody listens on {message.topic.decode()}")
            message.confirmed.set_exception(nobody)
        else:
            message.confirmed.set_result(None)

    def _send_waiting(self) -> None:
        while (
            self._waiting
            and len(self._on_their_way) < self._most_on_their_way
            and not self._is_paused
        ):
            message = self._waiting.popleft()
            if message.confirmed.done():
                continue  # Nobody waits for it any more.
            self._packet_id = packet_id = self._free_packet_id()
            self._on_their_way[packet_id] = message
            if not self._unwritten:
                self._loop.call_soon(self._flush)
            self._unwritten.append(
                publish_packet(message.topic, packet_id, message.properties, message.payload)
            )

    def _free_packet_id(self) -> int:
        packet_id = self._packet_id
        while True:
            packet_id = packet_id % _MOST_ON_THEIR_WAY + 1
            if packet_id not in self._on_their_way:
                return packet_id

    def _flush(self) -> None:
        unwritten, self._unwritten = self._unwritten, []
        if unwritten:
            self._write(b"".join(unwritten))

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self.lost.done():
            self._transport.write(data)
            self._wrote_at = self._loop.time()

    def _look(self) -> None:
        """Gives up what is not confirmed in time, and keeps the connection alive, now and then."""
        now = self._loop.time()
        self._next_look = self._loop.call_at(now + _LOOK_EVERY_S, self._look)
        for message in chain(self._on_their_way.values(), self._waiting):
            if message.deadline > now:
                break
            if not message.confirmed.done():
                message.confirmed.set_exception(
                    NotConnected(f"the broker did not confirm within {self._confirm_s:g} s")
                )
        # Counted, not timed: a loop that was held up has answers to read before it may judge.
        self._silent_looks += 1
        if self._silent_looks * _LOOK_EVERY_S > 1.5 * self._keepalive_s:
            self._abort("the broker does not answer any more")
        elif now - self._wrote_at > self._keepalive_s / 2:
            self._write(PING)

    def _abort(self, why: str) -> None:
        self._lose(why)
        if self._transport is not None:
            self._transport.abort()

    def _lose(self, why: str) -> None:
        """Fails all that the broker has not confirmed; only the first reason counts."""
        if self.lost.done():
            return
        self.lost.set_result(why)
        if self._next_look is not None:
            self._next_look.cancel()
        if not self.ready.done():
            self.ready.set_exception(NotConnected(why))
        messages = [*self._on_their_way.values(), *self._waiting]
        self._on_their_way.clear()
        self._waiting.clear()
        for message in messages:
            if not message.confirmed.done():
                message.confirmed.set_exception(NotConnected(why))
