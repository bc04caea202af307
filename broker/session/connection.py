"""A connection of its own to a broker, beside the session's: it publishes at QoS 1 (MQTT 5, sections 3.3
and 4.9), waits for what the broker confirms, and notices where the broker has gone.

`mqtt5` reads and writes the packets. How long a packet is is looked at here first: a codec cannot know
how much of it may be kept until it is whole.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, TypeVar, cast

import mqtt5

from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.session import (
    REFUSED_CREDENTIALS,
    CredentialsRefused,
    NobodyListens,
    NotConnected,
    PublishRefused,
)
from bellwire.signaling.wire.station import KEEP_ALIVE_S

_RECEIVE_MAXIMUM = 65_535
"""What MQTT 5 lets be on its way where the other side says nothing."""
_CONNECT_S = 5.0
_CONFIRM_S = 10.0
_LOOK_EVERY_S = 0.5
FAILURE = 0x80
"""Reason codes (2.4) are failures from here on."""

Connected = TypeVar("Connected", bound="BrokerConnection")


@asynccontextmanager
async def let_in(connection: Connected) -> AsyncIterator[Connected]:
    """Connects, and gives the connection once the broker has let it in.

    Raises:
        CredentialsRefused: it does not take the address's user name or password.
        NotConnected: it does not let it in, or does not answer in time.
        OSError: it cannot be reached.
    """
    loop, address = asyncio.get_running_loop(), connection.address
    is_open = False
    try:
        try:
            async with asyncio.timeout(_CONNECT_S):
                await loop.create_connection(
                    lambda: connection, address.host, address.port, ssl=address.tls_context()
                )
                is_open = True
                await connection.ready
        except TimeoutError:
            raise NotConnected(f"the broker {address.url} did not answer in time") from None
        yield connection
    finally:
        if not is_open:
            # Who is cancelled meanwhile has its transport closed by uvloop, which tells nobody, and raises
            # where that is written to.
            connection.connection_lost(None)
        connection.close()


@dataclass(slots=True)
class _Message:
    """One to be confirmed, not later than `deadline` by the loop's clock."""

    topic: str
    payload: bytes
    expiry_s: int | None
    correlation: bytes | None
    deadline: float
    confirmed: asyncio.Future[None]


class BrokerConnection(asyncio.Protocol):
    """One connection; `let_in` opens it. Not more messages are on their way than the broker wants (Receive
    Maximum); the others wait here, in their order.

    Args:
        address: The broker, and how to log in.
        client_id: The connection's name.
        confirm_s: How long the broker may take to confirm, in seconds.
    """

    _ACCEPTS_AT_ONCE: ClassVar[int] = _RECEIVE_MAXIMUM
    _LONGEST_PACKET: ClassVar[int] = 65_536

    def __init__(
        self, address: BrokerAddress, client_id: str, *, confirm_s: float = _CONFIRM_S
    ) -> None:
        loop = asyncio.get_running_loop()
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
        self._most_on_their_way = _RECEIVE_MAXIMUM
        self._keepalive_s = KEEP_ALIVE_S
        self._is_paused = False
        self._packet_id = 0
        self._waiting: deque[_Message] = deque()
        self._on_their_way: dict[int, _Message] = {}
        self._unwritten: list[bytes] = []
        self._wrote_at = loop.time()
        self._silent_looks = 0
        self._next_look: asyncio.TimerHandle | None = None

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        expiry_s: int | None = None,
        correlation: bytes | None = None,
    ) -> asyncio.Future[None]:
        """Publishes. What is returned is done once the broker has confirmed; it fails with
        NobodyListens, with PublishRefused where the broker does not take the message, and with
        NotConnected where the connection is lost or the broker too slow."""
        confirmed: asyncio.Future[None] = self._loop.create_future()
        if self.lost.done():
            confirmed.set_exception(NotConnected(self.lost.result()))
            return confirmed
        deadline = self._loop.time() + self._confirm_s
        self._waiting.append(_Message(topic, payload, expiry_s, correlation, deadline, confirmed))
        self._send_waiting()
        return confirmed

    def close(self) -> None:
        """Takes leave."""
        if self._transport is not None and not self.lost.done():
            self._flush()
            self._write(mqtt5.DisconnectPacket().write())
            self._transport.close()
            self._lose("the connection was closed")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asks to be let in."""
        self._transport = cast("asyncio.Transport", transport)
        password = self.address.password
        self._transport.write(
            mqtt5.ConnectPacket(
                self.client_id,
                username=self.address.username,
                password=None if password is None else password.encode(),
                clean_start=True,
                keep_alive=self._keepalive_s,
                receive_max=self._ACCEPTS_AT_ONCE,
            ).write()
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
        data = self._unread + data if self._unread else data
        at = 0
        try:
            while (packet := packet_at(data, at, self._LONGEST_PACKET)) is not None:
                begin, end = packet
                self._read(data, at, begin, end)
                at = end
        except (ValueError, IndexError) as error:
            self._abort(f"what speaks at {self.address.url} is no MQTT 5 broker: {error}")
        self._unread = data[at:]
        if self._waiting:
            self._send_waiting()

    def _read(self, data: bytes, at: int, begin: int, end: int) -> None:
        """Reads the packet that stands at `at`, and whose body at `begin`.

        Raises:
            ValueError, IndexError: this is not MQTT, or not what a broker has to say.
        """
        del begin
        packet, _ = mqtt5.read(memoryview(data)[at:end])
        self._take(packet)

    def _take(self, packet: mqtt5.Packet) -> None:
        if not self.ready.done():
            if not isinstance(packet, mqtt5.ConnAckPacket):
                raise ValueError(f"a {type(packet).__name__} before it lets anybody in")
            self._take_connack(packet)
        elif isinstance(packet, mqtt5.PubAckPacket):
            self._take_puback(packet)
        elif isinstance(packet, mqtt5.DisconnectPacket):
            self._abort(f"the broker ends the connection: {_said(packet.reason_code)}")
        elif not isinstance(packet, mqtt5.PingRespPacket):
            raise ValueError(f"a {type(packet).__name__}")

    def _take_connack(self, packet: mqtt5.ConnAckPacket) -> None:
        code = packet.reason_code
        if code.value >= FAILURE:
            why = f"the broker does not let {self.client_id} in: {_said(code)}"
            if code.value in REFUSED_CREDENTIALS:
                self.ready.set_exception(CredentialsRefused(why))
            self._abort(why)
            return
        self._most_on_their_way = packet.receive_max
        self._keepalive_s = packet.server_keep_alive or KEEP_ALIVE_S
        self.ready.set_result(None)
        self._look()

    def _take_puback(self, packet: mqtt5.PubAckPacket) -> None:
        message = self._on_their_way.pop(packet.packet_id, None)
        if message is None or message.confirmed.done():
            return
        code = packet.reason_code
        if code == mqtt5.PubAckReasonCode.SUCCESS:
            message.confirmed.set_result(None)
        elif code == mqtt5.PubAckReasonCode.NO_MATCHING_SUBSCRIBERS:
            message.confirmed.set_exception(NobodyListens(f"nobody listens on {message.topic}"))
        else:
            message.confirmed.set_exception(
                PublishRefused(f"the broker refuses a message on {message.topic}: {_said(code)}")
            )

    def _send_waiting(self) -> None:
        while (
            self._waiting
            and len(self._on_their_way) < self._most_on_their_way
            and not self._is_paused
        ):
            message = self._waiting.popleft()
            if message.confirmed.done():
                continue  # Nobody waits for it any more.
            packet_id = self._free_packet_id()
            try:
                packet = mqtt5.PublishPacket(
                    message.topic,
                    message.payload,
                    qos=mqtt5.QoS.AT_LEAST_ONCE,
                    packet_id=packet_id,
                    message_expiry_interval=message.expiry_s,
                    correlation_data=message.correlation,
                ).write()
            except (ValueError, OverflowError) as error:
                message.confirmed.set_exception(
                    PublishRefused(f"a message on {message.topic} cannot be published: {error}")
                )
                continue
            self._packet_id = packet_id
            self._on_their_way[packet_id] = message
            if not self._unwritten:
                self._loop.call_soon(self._flush)
            self._unwritten.append(packet)

    def _free_packet_id(self) -> int:
        packet_id = self._packet_id
        while True:
            packet_id = packet_id % _RECEIVE_MAXIMUM + 1
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
            self._write(mqtt5.PingReqPacket().write())

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
            self.ready.exception()  # Who waited no longer is not to be told.
        messages = [*self._on_their_way.values(), *self._waiting]
        self._on_their_way.clear()
        self._waiting.clear()
        for message in messages:
            if not message.confirmed.done():
                message.confirmed.set_exception(NotConnected(why))


def packet_at(data: bytes, at: int, longest: int) -> tuple[int, int] | None:
    """Where the body of the packet that stands at `at` begins and ends (2.1.4); None where it has not
    arrived whole.

    Raises:
        ValueError: its length has no end, or is over `longest` bytes.
    """
    length, begin = 0, at + 1
    for shift in (0, 7, 14, 21):
        if begin >= len(data):
            return None
        byte = data[begin]
        begin += 1
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    else:
        raise ValueError("a packet whose length has no end")
    if length > longest:
        raise ValueError(f"a packet of {length} bytes")
    return (begin, begin + length) if begin + length <= len(data) else None


def _said(
    code: mqtt5.ConnAckReasonCode | mqtt5.PubAckReasonCode | mqtt5.DisconnectReasonCode,
) -> str:
    """A reason code in words."""
    return code.name.replace("_", " ").capitalize()
