"""A real mosquitto that tests may kill, freeze and cut devices off from, and raw looks at it."""

import asyncio
import contextlib
import itertools
import os
import signal
import socket
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import aiomqtt
from aiomqtt import Client, MqttError, ProtocolVersion

from bellwire.broker.embedded import EmbeddedBroker, free_port
from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.messages import Incoming
from bellwire.broker.session.session import Session
from bellwire.signaling.identifiers import DeviceId, mqtt_client_id
from tests.conftest import PATIENCE_S
from tests.system.scene import mosquitto_pid

_numbers = itertools.count(1)


async def soon(seconds: float) -> None:
    """A sleep between attempts that keeps tests fast."""
    await asyncio.sleep(min(seconds, 0.02))


class RunningBroker:
    """The relay's own mosquitto. Once it has died it stays dead until `start`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._may_start = asyncio.Event()
        self._died = asyncio.Event()
        self.refused: list[str] = []
        """The reasons of the logins that it has refused."""
        self.embedded = EmbeddedBroker(
            folder / "broker", count_refused=self.refused.append, sleep=self._wait_for_start
        )
        self.address = self.embedded.prepare()
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self.embedded.run())
        await self._until_it_listens()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._running is not None:
            self.send(signal.SIGCONT)
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running

    @property
    def pid(self) -> int | None:
        return mosquitto_pid(self._folder)

    def send(self, number: signal.Signals) -> None:
        if self.pid is not None:
            os.kill(self.pid, number)

    async def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Ends it; returns once it is dead."""
        self._died.clear()
        self._may_start.clear()
        self.send(number)
        async with asyncio.timeout(PATIENCE_S):
            await self._died.wait()

    async def start(self) -> None:
        """Starts it again; returns once it takes connections."""
        self._may_start.set()
        await self._until_it_listens()

    async def restart(self, number: signal.Signals = signal.SIGKILL) -> None:
        await self.kill(number)
        await self.start()

    async def _wait_for_start(self, _: float) -> None:
        self._died.set()
        await self._may_start.wait()

    async def _until_it_listens(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection(self.address.host, self.address.port)
                    writer.close()
                    return
                await asyncio.sleep(0.01)


class Wire:
    """A TCP way to a broker that can be cut and mended: one client is away, all others are not."""

    def __init__(self, broker: BrokerAddress) -> None:
        self._broker = broker
        self._server: asyncio.Server | None = None
        self._open: set[StreamWriter] = set()
        self._port = 0

    async def __aenter__(self) -> Self:
        await self.mend()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cut()

    @property
    def address(self) -> BrokerAddress:
        """The broker's address over this wire."""
        return replace(self._broker, port=self._port)

    def cut(self) -> None:
        """Resets all connections, and refuses each new one until `mend`."""
        if self._server is not None:
            self._server.close()
        for writer in tuple(self._open):
            writer.transport.abort()

    async def mend(self) -> None:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self._port or free_port()
        )
        self._port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._open.add(writer)
        with contextlib.closing(writer):  # also where the test ends before the broker has answered
            try:
                far_reader, far_writer = await asyncio.open_connection(
                    self._broker.host, self._broker.port
                )
            except OSError:
                writer.transport.abort()
                return
            self._open.add(far_writer)
            if writer.transport.is_closing():  # it was cut meanwhile
                far_writer.transport.abort()
                return
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        self._open -= {writer, far_writer}

    async def _pump(self, reader: StreamReader, writer: StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def held(session: Session) -> AsyncIterator[Session]:
    """A session that runs, connected, and is cancelled at the end."""
    running = asyncio.create_task(session.run())
    try:
        async with asyncio.timeout(PATIENCE_S):
            await session.wait_connected()
        yield session
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


@asynccontextmanager
async def raw_client(
    address: BrokerAddress, *, will: aiomqtt.Will | None = None, client_id: str | None = None
) -> AsyncIterator[Client]:
    """A connection that none of Bellwire's own code holds; a device's has its account's client id."""
    async with Client(
        address.host,
        address.port,
        username=address.username,
        password=address.password,
        identifier=client_id or own_client_id(address),
        protocol=ProtocolVersion.V5,
        will=will,
        socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
    ) as client:
        yield client


def own_client_id(address: BrokerAddress) -> str:
    """The one client id that a device's account may have; the relay's may have any."""
    if address.username in (None, "bellwire-relay"):
        return f"raw-{next(_numbers)}"
    return mqtt_client_id(DeviceId(address.username or ""), address.password or "")


async def is_let_in(address: BrokerAddress) -> bool:
    try:
        async with raw_client(address):
            return True
    except MqttError as error:
        assert "Not authorized" in str(error), error
        return False


class Inbox:
    """A handler that keeps what came, for whoever waits for it."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self._queue: asyncio.Queue[Incoming] = asyncio.Queue()

    def take(self, message: Incoming) -> None:
        self.taken.append(message.payload)
        self._queue.put_nowait(message)

    async def next(self) -> Incoming:
        async with asyncio.timeout(PATIENCE_S):
            return await self._queue.get()

    async def until(self, payload: bytes) -> list[bytes]:
        """Waits for this payload; all that has come so far."""
        while (await self.next()).payload != payload:
            pass
        return list(self.taken)
