"""Each answer leaves in one write. uvicorn writes an answer's head and its body one after the other,
and uvloop sends what it is given at once: a second system call, and a second packet, per request."""

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_GATHERED_AT_MOST_BYTES = 16 * 1024


class _Gathering:
    """A transport that sends what was written in one turn of the loop together. All else is the real
    one's."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []
        self._gathered_bytes = 0

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the transport's own
        self.flush()  # whatever else is asked for comes after what was written
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """See `asyncio.BaseTransport.is_closing`."""
        return self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """See `asyncio.WriteTransport.write`."""
        if len(data) > _GATHERED_AT_MOST_BYTES:
            self.flush()
            if not self._transport.is_closing():
                self._transport.write(data)  # not a copy: many may be sent the same
            return
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(data)
        self._gathered_bytes += len(data)
        if self._gathered_bytes > _GATHERED_AT_MOST_BYTES:
            self.flush()  # who sends much is to be slowed down by the transport

    def flush(self) -> None:
        """Sends what was written."""
        if self._parts:
            parts, self._parts, self._gathered_bytes = self._parts, [], 0
            if not self._transport.is_closing():
                self._transport.write(b"".join(parts))


class OneWriteProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol over a transport that gathers."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        """See `asyncio.Protocol.connection_made`."""
        super().connection_made(cast("asyncio.Transport", _Gathering(transport, self.loop)))
