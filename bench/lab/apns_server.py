"""APNs at the wire, as fast as Python can play it: TLS and HTTP/2 by hand, each push answered 200 with
its own `apns-id`. What it reads of a push is its `apns-id` and `apns-collapse-id`, nothing else."""

import asyncio
import ssl
import struct
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import cast

from hpack import Decoder

_PREFACE_BYTES = 24
_HEADERS, _DATA, _SETTINGS, _PING, _WINDOW_UPDATE = 1, 0, 4, 6, 8
_END_STREAM, _ACK, _PRIORITY = 0x1, 0x1, 0x20
_WINDOW = 10_000_000
_CREDIT = 1_000_000
_STREAMS = 1_000
"""As many at once as Apple allows on a connection."""

_STATUS_200_AND_ID = b"\x88\x00\x07apns-id\x24"
"""HPACK: the static `:status: 200`, then a literal `apns-id` of 36 characters (RFC 7541, 6.1, 6.2)."""


class ApnsServer:
    """Counts what it has acknowledged, by collapse id, and tells who waits for it."""

    def __init__(self) -> None:
        self.port = 0
        self.acknowledged = 0
        self._by_collapse_id: Counter[str] = Counter()
        self._waiting: dict[str, tuple[int, asyncio.Future[None]]] = {}

    async def serve(self, certificate: Path) -> asyncio.Server:
        """Starts it on a port of its own."""
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
        tls.set_alpn_protocols(["h2"])
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", 0, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def until(self, collapse_id: str, count: int) -> None:
        """Waits until this many pushes of a collapse id were acknowledged, and forgets them."""
        if self._by_collapse_id[collapse_id] < count:
            arrived = asyncio.get_running_loop().create_future()
            self._waiting[collapse_id] = (count, arrived)
            await arrived
        del self._by_collapse_id[collapse_id]

    def took(self, collapse_id: str) -> None:
        """A push is about to be acknowledged."""
        self.acknowledged += 1
        self._by_collapse_id[collapse_id] += 1
        if collapse_id in self._waiting:
            count, arrived = self._waiting[collapse_id]
            if self._by_collapse_id[collapse_id] >= count:
                del self._waiting[collapse_id]
                with suppress(asyncio.InvalidStateError):
                    arrived.set_result(None)


class _Connection(asyncio.Protocol):
    """One connection (RFC 9113, as far as a well-behaved client goes)."""

    def __init__(self, server: ApnsServer) -> None:
        self._server = server
        self._unread = b""
        self._skip = _PREFACE_BYTES
        self._decoder = Decoder()
        self._open: dict[int, tuple[bytes, str]] = {}
        self._credit = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greets."""
        self._transport = cast("asyncio.Transport", transport)
        settings = struct.pack(">HLHL", 3, _STREAMS, 4, _WINDOW)
        self._transport.write(_frame(_SETTINGS, 0, 0, settings) + self._window(_WINDOW))

    def data_received(self, data: bytes) -> None:
        """Answers what has arrived whole."""
        data = self._unread + data
        if len(data) < self._skip:
            self._unread = data
            return
        at, self._skip = self._skip, 0
        answers: list[bytes] = []
        while len(data) - at >= 9:
            length = int.from_bytes(data[at : at + 3], "big")
            if at + 9 + length > len(data):
                break
            kind, flags = data[at + 3], data[at + 4]
            stream = int.from_bytes(data[at + 5 : at + 9], "big")
            self._take(kind, flags, stream, data[at + 9 : at + 9 + length], answers)
            at += 9 + length
        self._unread = data[at:]
        if self._credit > _CREDIT:
            answers.append(self._window(self._credit))
            self._credit = 0
        if answers:
            self._transport.write(b"".join(answers))

    def _take(
        self, kind: int, flags: int, stream: int, payload: bytes, answers: list[bytes]
    ) -> None:
        if kind == _HEADERS:
            block = payload[5:] if flags & _PRIORITY else payload
            headers = cast("dict[bytes, bytes]", dict(self._decoder.decode(block, raw=True)))
            self._open[stream] = (headers[b"apns-id"], headers[b"apns-collapse-id"].decode())
        elif kind == _DATA:
            self._credit += len(payload)
            if flags & _END_STREAM:
                apns_id, collapse_id = self._open.pop(stream)
                answers.append(_frame(_HEADERS, 0x5, stream, _STATUS_200_AND_ID + apns_id))
                self._server.took(collapse_id)
        elif kind == _SETTINGS and not flags & _ACK:
            answers.append(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            answers.append(_frame(_PING, _ACK, 0, payload))

    @staticmethod
    def _window(more: int) -> bytes:
        return _frame(_WINDOW_UPDATE, 0, 0, more.to_bytes(4, "big"))


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return (
        struct.pack(">HBBBL", len(payload) >> 8, len(payload) & 255, kind, flags, stream) + payload
    )
