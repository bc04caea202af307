"""A device on a raw WebSocket: what came on its stream, in order, and the answers it got."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.conftest import PATIENCE_S
from tests.push.support import Running, fresh


class Stream:
    """An open stream. `cursor` is that of the newest event it has."""

    def __init__(self, name: str, socket: ClientConnection, opened: dict[str, Any]) -> None:
        self.name = name
        self.socket = socket
        self.opened = opened
        self.cursor: int = opened["cursor"]
        self.events: list[dict[str, Any]] = []
        self._read = 0

    async def until(self, event: str, call_sid: str | None = None) -> dict[str, Any]:
        """Waits for an event (of a call); what came before stays in `events`."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                while self._read < len(self.events):
                    document = self.events[self._read]
                    self._read += 1
                    if document["event"] == event and call_sid in (None, document["call_sid"]):
                        return document
                await self.take()

    async def ask(self, document: object) -> dict[str, Any]:
        """Sends a request (text as it is) and returns its answer."""
        if isinstance(document, dict):
            document = {"request_id": fresh("request"), **document}
        await self.socket.send(document if isinstance(document, str) else json.dumps(document))
        async with asyncio.timeout(PATIENCE_S):
            while (answer := await self.take()) is None:
                pass
        if isinstance(document, dict):
            assert answer["request_id"] == document["request_id"]
        return answer

    def seen(self, event: str, call_sid: str | None = None) -> int:
        """How often an event (of a call) has come so far."""
        return sum(
            document["event"] == event and call_sid in (None, document["call_sid"])
            for document in self.events
        )

    async def closed(self) -> tuple[int, str]:
        """Waits until the relay closes the stream; the code and the reason it gives."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    await self.take()
                except ConnectionClosed:
                    return self.socket.close_code or 0, self.socket.close_reason or ""

    async def take(self) -> dict[str, Any] | None:
        """The next message: an answer is returned, an event is kept."""
        document: dict[str, Any] = json.loads(await self.socket.recv())
        if document["event"] == "stream.response":
            return document
        if document["event"] != "stream.heartbeat":
            self.cursor = document["cursor"]
            self.events.append(document)
        return None


async def register_for_stream(running: Running, device: str, identity: str | None = None) -> None:
    """Registers a device with the WebSocket channel alone."""
    body = {"identity": identity or device, "channels": [{"kind": "websocket"}]}
    answer = await running.http.put(f"/v1/devices/{device}", json=body)
    assert answer.is_success, answer.text


def stream_url(running: Running, **query: object) -> str:
    """Where the stream is, with a query."""
    return f"{running.relay.access.url.replace('http', 'ws', 1)}/v1/events?{urlencode(query)}"


@asynccontextmanager
async def reading(
    running: Running, device: str, identity: str | None = None, **query: object
) -> AsyncIterator[Stream]:
    """The stream of a registered device, opened with its own token."""
    running.gone.discard(device)
    headers = await running.token(identity or device, device)
    async with connect(
        stream_url(running, **query), additional_headers=headers, open_timeout=PATIENCE_S
    ) as socket:
        async with asyncio.timeout(PATIENCE_S):
            opened = json.loads(await socket.recv())
        assert opened["event"] == "stream.opened", opened
        try:
            yield Stream(device, socket, opened)
        finally:
            running.gone.add(device)


@asynccontextmanager
async def streaming(
    running: Running, device: str, identity: str | None = None
) -> AsyncIterator[Stream]:
    """The stream of a device, which is registered for it."""
    await register_for_stream(running, device, identity)
    async with reading(running, device, identity) as stream:
        yield stream


def cut(stream: Stream) -> None:
    """Breaks the connection as a lost network does: without a word."""
    stream.socket.transport.abort()
