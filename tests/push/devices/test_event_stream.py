"""A stream that has nothing to say says so: heartbeats, by a clock that the test moves, at the ASGI
interface and on a real database."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import pytest
from starlette.types import Message
from starlette.websockets import WebSocket

from bellwire.push.access.tokens import Actor
from bellwire.push.devices.event_stream import HEARTBEAT_S
from bellwire.push.store.engine.sqlite import SqliteDatabase
from bellwire.push.store.rows.devices import ChannelRow, DeviceRow, put_device
from bellwire.push.store.rows.events import StreamEvent, append_events
from bellwire.signaling.identifiers import DeviceId, Identity
from tests.conftest import PATIENCE_S
from tests.push.clock import Clock
from tests.push.parts import parts_on

PHONE, ALICE = DeviceId("phone"), Identity("alice")
FAR_MS = 2**52


class Socket:
    """The two ends of an ASGI connection that a client holds."""

    def __init__(self) -> None:
        self._in: asyncio.Queue[Message] = asyncio.Queue()
        self._out: asyncio.Queue[Message] = asyncio.Queue()
        self._in.put_nowait({"type": "websocket.connect"})
        self.app = WebSocket({"type": "websocket"}, self._in.get, self._out.put)

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_S):
            message: dict[str, Any] = json.loads((await self._out.get())["text"])
            return message

    def is_quiet(self) -> bool:
        return self._out.empty()

    def leave(self) -> None:
        self._in.put_nowait({"type": "websocket.disconnect", "code": 1001})


class Scene:
    """A phone that reads its stream."""

    def __init__(self, database: SqliteDatabase, clock: Clock) -> None:
        self.database = database
        self.clock = clock
        self.parts = parts_on(database, clock)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Socket]:
        """The phone's socket, once it has been told that it is open."""
        row = DeviceRow(PHONE, ALICE, (ChannelRow("websocket"),))
        await self.database.write(lambda c: put_device(c, row, 0))
        socket = Socket()
        stream = await self.parts.connections.open_stream(PHONE, None)
        await socket.app.accept()
        await socket._out.get()  # that it was accepted
        async with asyncio.TaskGroup() as tasks:
            serve = self.parts.event_stream.serve(socket.app, Actor(ALICE, PHONE), stream)
            serving = tasks.create_task(serve)
            assert (await socket.next())["event"] == "stream.opened"
            yield socket
            socket.leave()
            await serving

    async def passes(self, seconds: int) -> None:
        for _ in range(seconds):
            await self.clock.until_asleep()
            self.clock.advance(1)
        await self.clock.until_asleep()

    async def grow(self, event_id: str) -> None:
        event = StreamEvent(PHONE, event_id, f'{{"event":"x","id":"{event_id}"}}', FAR_MS)
        await self.database.write(lambda c: append_events(c, [event]))


@pytest.fixture
def scene(database: SqliteDatabase, clock: Clock) -> Scene:
    return Scene(database, clock)


async def test_a_quiet_stream_says_at_every_interval_that_it_is_there(scene: Scene) -> None:
    async with scene.reading() as socket:
        for _ in range(3):
            await scene.passes(int(HEARTBEAT_S) - 1)
            assert socket.is_quiet()
            await scene.passes(1)
            beat = await socket.next()
            assert beat["event"] == "stream.heartbeat"
            assert datetime.fromisoformat(beat["at"]) == scene.clock.now()


async def test_an_event_is_as_good_as_a_heartbeat(scene: Scene) -> None:
    async with scene.reading() as socket:
        await scene.passes(10)
        # No word of it reaches this relay: it looks for itself.
        await scene.grow("e1")
        await scene.passes(5)
        assert await socket.next() == {"cursor": 1, "event": "x", "id": "e1"}
        await scene.passes(10)
        assert socket.is_quiet()
        await scene.passes(5)
        assert (await socket.next())["event"] == "stream.heartbeat"


async def test_more_events_than_are_read_at_once_come_in_one_go_and_in_order(scene: Scene) -> None:
    async with scene.reading() as socket:
        for number in range(250):
            await scene.grow(f"e{number}")
        await scene.passes(5)
        assert [(await socket.next())["id"] for _ in range(250)] == [f"e{n}" for n in range(250)]


async def test_an_event_whose_time_is_over_is_not_sent(scene: Scene) -> None:
    async with scene.reading() as socket:
        over = StreamEvent(PHONE, "over", '{"event":"x","id":"over"}', 1000)
        await scene.database.write(lambda c: append_events(c, [over]))
        await scene.grow("later")
        await scene.passes(5)
        assert await socket.next() == {"cursor": 2, "event": "x", "id": "later"}
