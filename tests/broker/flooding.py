"""A device that sends as fast as one connection can and obeys no limit, and what it costs a process."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import mqtt5

from bellwire.broker.session.address import BrokerAddress

_CHUNK = 65_536


def rss_mb(pid: int | None) -> float:
    """The memory that a process has now (proc(5))."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024**2


def publish_at_qos_1(topic: str, payload: bytes) -> bytes:
    """PUBLISH at QoS 1, always as number 1."""
    return mqtt5.PublishPacket(topic, payload, qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=1).write()


def subscribe_at_qos_1(topic: str) -> bytes:
    """SUBSCRIBE."""
    topic_filter = mqtt5.TopicFilter(topic, max_qos=mqtt5.QoS.AT_LEAST_ONCE)
    return mqtt5.SubscribePacket(1, [topic_filter]).write()


def number(value: int) -> bytes:
    """A variable byte integer (MQTT 5, section 1.5.5)."""
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def publish_at_qos_0(topic: str, payload: bytes, *, response_topic: str | None = None) -> bytes:
    """PUBLISH at QoS 0, which no broker acknowledges or holds back."""
    properties = b""
    if response_topic is not None:
        properties = b"\x08" + len(response_topic).to_bytes(2) + response_topic.encode()
    body = len(topic).to_bytes(2) + topic.encode() + number(len(properties)) + properties + payload
    return b"\x30" + number(len(body)) + body


@asynccontextmanager
async def connected(
    address: BrokerAddress, client_id: str, *, packet: bytes | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare connection that the broker has let in.

    Raises:
        ConnectionRefusedError: it has not.
    """
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        asked = mqtt5.ConnectPacket(
            client_id,
            username=address.username,
            password=None if address.password is None else address.password.encode(),
            clean_start=True,
            keep_alive=60,
        )
        writer.write(packet or asked.write())
        answer = await reader.read(4)
        if len(answer) < 4 or answer[0] != 0x20 or answer[3]:
            raise ConnectionRefusedError(f"{client_id}: {answer.hex()}")
        yield reader, writer
    finally:
        writer.transport.abort()


@asynccontextmanager
async def flood(address: BrokerAddress, client_id: str, packet: bytes) -> AsyncIterator[None]:
    """Sends a packet again and again, reading nothing, for as long as the context is."""
    async with connected(address, client_id) as (_, writer):
        sending = asyncio.create_task(_send(writer, packet * (1 + _CHUNK // len(packet))))
        try:
            yield
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await sending


async def _send(writer: asyncio.StreamWriter, chunk: bytes) -> None:
    while True:
        writer.write(chunk)
        await writer.drain()
        await asyncio.sleep(0)
