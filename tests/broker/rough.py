"""A broker that speaks as few do, or as none should."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress

from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.connection import packet_at
from tests.conftest import PATIENCE_S


def whole_packets(data: bytes) -> list[tuple[int, int]]:
    """Where each packet that has come whole begins and ends."""
    found, at = [], 0
    while (packet := packet_at(data, at, 1 << 28)) is not None:
        found.append((at, packet[1]))
        at = packet[1]
    return found


class RoughBroker:
    """What speaks to a connection as a broker would not, or as few do."""

    def __init__(self, *answers: bytes, only_first: bool = False) -> None:
        self._answers = answers
        self._only_first = only_first
        self._writers: list[asyncio.StreamWriter] = []
        self.came = b""
        self.grown = asyncio.Event()

    @asynccontextmanager
    async def address(self) -> AsyncIterator[BrokerAddress]:
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            try:
                yield BrokerAddress("127.0.0.1", server.sockets[0].getsockname()[1])
            finally:
                for writer in self._writers:
                    writer.close()

    def say(self, data: bytes, to: int = -1) -> None:
        self._writers[to].write(data)

    async def until(self, kind: int, count: int) -> None:
        """Waits until so many packets of a type have come."""
        async with asyncio.timeout(PATIENCE_S):
            while self.count(kind) < count:
                self.grown.clear()
                await self.grown.wait()

    def count(self, kind: int) -> int:
        return sum(self.came[at] & 0xF0 == kind & 0xF0 for at, _ in whole_packets(self.came))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        if len(self._writers) == 1 or not self._only_first:
            for answer in self._answers:
                writer.write(answer)
        with closing(writer), suppress(ConnectionError):  # closed also where the test ends before
            while data := await reader.read(65_536):
                self.came += data
                self.grown.set()
