"""An MQTT 5 subscriber that costs next to nothing, so that a bench measures the relay."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_CONNECT, _CONNACK, _SUBSCRIBE, _SUBACK = 0x10, 0x20, 0x82, 0x90
_CLEAN_WITH_PASSWORD = 0xC2


class _Listener(asyncio.Protocol):
    """Takes the broker's two answers, and after them throws away what comes."""

    def __init__(self) -> None:
        self.answers: asyncio.Queue[bytes] = asyncio.Queue()
        self.heard_bytes = 0
        self.listens = False

    def data_received(self, data: bytes) -> None:
        self.heard_bytes += len(data)
        if not self.listens:
            self.answers.put_nowait(data)


@asynccontextmanager
async def listening(
    port: int, username: str, password: str, topic_filter: str
) -> AsyncIterator[None]:
    """Subscribed (QoS 0) to what is published at a broker on this machine.

    Raises:
        SystemExit: the broker refuses, or nothing was heard.
    """
    loop = asyncio.get_running_loop()
    transport, ear = await loop.create_connection(_Listener, "127.0.0.1", port)
    no_keepalive_no_properties = b"\0\0\0"
    for packet, body, answer in (
        (
            _CONNECT,
            _text("MQTT") + bytes([5, _CLEAN_WITH_PASSWORD]) + no_keepalive_no_properties
            + _text("bench-listener") + _text(username) + _text(password),
            _CONNACK,
        ),
        (_SUBSCRIBE, b"\0\1\0" + _text(topic_filter) + b"\0", _SUBACK),
    ):  # fmt: skip
        transport.write(bytes([packet, len(body)]) + body)
        said = await ear.answers.get()
        if said[0] != answer or said[3 if answer == _CONNACK else -1] >= 0x80:
            raise SystemExit(f"the broker does not let the bench listen: {said.hex()}")
    ear.listens, ear.heard_bytes = True, 0
    yield
    transport.close()
    if not ear.heard_bytes:
        raise SystemExit("the relay has published nothing")


def _text(value: str) -> bytes:
    encoded = value.encode()
    return len(encoded).to_bytes(2, "big") + encoded
