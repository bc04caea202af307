"""What attackers send a relay over raw sockets, and how the relay bears it."""

import asyncio
import contextlib
import json
import resource
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import PATIENCE_S
from tests.forking import ForkedRelay
from tests.push.support import PROBLEM_TYPE, assert_problem

USUAL_OPEN_FILES = 1024
WAITS = "bellwire.push.api.server.guarded_http"
"""Where it stands how long the relay waits for a connection."""
HOME = "127.0.0.1"


@dataclass(frozen=True)
class Raw:
    """A raw connection to the relay."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> httpx.Response:
        """The next answer, whole."""
        async with asyncio.timeout(PATIENCE_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            status, *lines = head.split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines if line)
            headers = {name.lower(): value for name, value in headers.items()}
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return httpx.Response(int(status.split()[1]), headers=headers, content=body)

    async def refused(self, status: int, slug: str) -> dict[str, Any]:
        """The problem that is the next answer; the relay then closes."""
        answer = await self.answer()
        assert answer.headers["content-type"] == PROBLEM_TYPE
        assert answer.headers["connection"] == "close"
        problem = assert_problem(answer, status, slug)
        await self.until_closed()
        return problem

    async def until_closed(self) -> bytes:
        """Waits until the relay closes; what it has said."""
        said = b""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(PATIENCE_S):
                while data := await self.reader.read(65536):
                    said += data
        return said

    @property
    def is_open(self) -> bool:
        return not self.reader.at_eof() and self.reader.exception() is None


class Target:
    """A relay under attack."""

    def __init__(self, relay: ForkedRelay) -> None:
        self.relay = relay
        self.url = httpx.URL(relay.access.url)
        self.key = relay.access.api_key
        self._opened: list[asyncio.StreamWriter] = []

    async def open(self, source: str = HOME) -> Raw:
        """A connection from this address."""
        reader, writer = await asyncio.open_connection(
            self.url.host, self.url.port, local_addr=(source, 0)
        )
        self._opened.append(writer)
        return Raw(reader, writer)

    async def open_many(self, count: int, source: str = HOME, sending: bytes = b"") -> list[Raw]:
        """So many connections, each of which sends this and no more. Those that the relay resets at
        once are among them."""
        opened: list[Raw] = []
        for _ in range(count):
            with contextlib.suppress(ConnectionError):
                raw = await self.open(source)
                raw.send(sending)
                opened.append(raw)
        return opened

    def close(self) -> None:
        for writer in self._opened:
            writer.transport.abort()

    def resident_mb(self) -> float:
        """The relay's resident memory."""
        for line in Path(f"/proc/{self.relay.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise AssertionError("the relay is gone")

    async def get(self, path: str, source: str = HOME, key: str | None = None) -> httpx.Response:
        """Asks over a connection of its own, without credentials or with a key."""
        transport = httpx.AsyncHTTPTransport(local_address=source)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(
            base_url=self.url, timeout=PATIENCE_S, headers=headers, transport=transport
        ) as http:
            return await http.get(path)

    async def refusals(self) -> dict[str, float]:
        """How often was refused so far, by reason."""
        page = (await self.get("/metrics")).text
        return {
            sample.labels["reason"]: sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == "bellwire_refused_total" and sample.value
        }

    async def until_refused(self, reason: str, times: int) -> None:
        """Waits until so many have been refused for this reason."""
        async with asyncio.timeout(PATIENCE_S):
            while (await self.refusals()).get(reason, 0) < times:
                pass

    async def must_answer_within(self, seconds: float, source: str = HOME) -> None:
        """The health routes answer a stranger, and a call one with a key, over new connections."""
        for path in ("/readyz", "/healthz", "/metrics"):
            await self._must_answer_within(seconds, path, source)
        for _ in range(3):
            await self._must_answer_within(seconds, "/v1/devices", source, self.key)

    async def _must_answer_within(
        self, seconds: float, path: str, source: str, key: str | None = None
    ) -> None:
        """One of a few requests, that is: a busy machine makes any of them wait."""
        took_s: list[float] = []
        while not took_s or (min(took_s) >= seconds and sum(took_s) < PATIENCE_S):
            began = time.monotonic()
            answer = await self.get(path, source, key)
            took_s.append(time.monotonic() - began)
            assert answer.status_code == 200, answer.text
        assert min(took_s) < seconds, f"{path} took {took_s} s"

    async def p99_ms(self, count: int = 200) -> float:
        """How long one in a hundred requests of somebody with a key takes, one after the other."""
        headers = {"Authorization": f"Bearer {self.key}"}
        took = []
        async with httpx.AsyncClient(
            base_url=self.url, headers=headers, timeout=PATIENCE_S
        ) as http:
            for _ in range(count):
                began = time.perf_counter()
                assert (await http.get("/v1/calls?count=1")).status_code == 200
                took.append(1000 * (time.perf_counter() - began))
        return sorted(took)[int(0.99 * count)]


@asynccontextmanager
async def attacked(
    folder: Path,
    *,
    times: Mapping[str, float] | None = None,
    **settings: Any,  # noqa: ANN401 - of the relay
) -> AsyncIterator[Target]:
    """A relay with these settings; whatever was opened to it is closed at the end.

    Args:
        folder: For its files.
        times: How long it waits for strangers, if less than usual: see `tests.forking.forked`.
        settings: Its own.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    environment = {
        f"BELLWIRE_{name.upper()}": json.dumps(value) for name, value in settings.items()
    }
    resource.setrlimit(resource.RLIMIT_NOFILE, (USUAL_OPEN_FILES, hard))  # as a login shell has it
    try:
        async with ForkedRelay(folder / "relay", environment=environment, times=times) as relay:
            target = Target(relay)
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            try:
                yield target
            finally:
                target.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
