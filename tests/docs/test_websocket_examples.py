"""The examples of docs/websocket.md, run as they stand there against a real relay, through a network
that can be cut; and what the page says of a stream that is refused."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.conftest import PATIENCE_S
from tests.docs.documents import ROOT, blocks
from tests.forking import ForkedRelay

PAGE = ROOT / "docs/websocket.md"
NODE = shutil.which("node")
AS_A_BROWSER = ("--no-warnings", "--experimental-websocket")
"""Node 20 has a browser's WebSocket if it is told to; Debian's 18 has none."""


def node_has_websockets() -> bool:
    if NODE is None:
        return False
    said = subprocess.check_output([NODE, "--version"], text=True)  # noqa: S603
    return int(said.lstrip("v").split(".")[0]) >= 20


HARNESS = """
const take = (event) => {
  console.log(event.event, event.call_sid);
  if (event.event === "call.received")
    stream.ask({ operation: "accept", call_sid: event.call_sid })
      .then((answer) => console.log("answered", answer.status, answer.call.state));
};
const freshToken = async () => process.env.TOKEN;
const stream = openStream(process.env.EVENTS.replace("/v1/events", ""), freshToken, take);
"""


def example(kind: str) -> str:
    (text,) = (block.text for block in blocks(PAGE) if block.kind == kind)
    return text


class Network:
    """What lies between a device and its relay."""

    def __init__(self, relay: str) -> None:
        self._host, _, port = relay.removeprefix("http://").partition(":")
        self._port = int(port)
        self._open: set[StreamWriter] = set()
        self.is_up = True
        self.address = ""

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        if not self.is_up:
            writer.transport.abort()
            return
        self._open.add(writer)
        with closing(writer):  # also where the test ends before the relay has answered
            far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
            self._open.add(far_writer)
            await asyncio.gather(_pass_on(reader, far_writer), _pass_on(far_reader, writer))

    def cut(self) -> None:
        self.is_up = False
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()


async def _pass_on(reader: StreamReader, writer: StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def network_to(relay: ForkedRelay) -> AsyncIterator[Network]:
    network = Network(relay.access.url)
    server = await asyncio.start_server(network.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    network.address = f"ws://{host}:{port}/v1/events"
    try:
        yield network
    finally:
        network.cut()
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def example_at_work(command: list[str], events: str, token: str) -> AsyncIterator[Process]:
    environment = {**os.environ, "EVENTS": events, "TOKEN": token}
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=PIPE, stderr=STDOUT
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def says(process: Process, line: str) -> list[str]:
    """Reads until it prints this line; all that it printed till then."""
    assert process.stdout is not None
    printed: list[str] = []
    async with asyncio.timeout(PATIENCE_S):
        while read := (await process.stdout.readline()).decode().rstrip():
            if not read.startswith("stream."):
                printed.append(read)
            if read == line:
                return printed
    raise AssertionError(f"it ended without saying {line!r}, but {printed}")


async def register(http: httpx.AsyncClient, device: str, identity: str) -> str:
    """Registers a device for streams; returns its token."""
    body = {"identity": identity, "channels": [{"kind": "websocket"}]}
    (await http.put(f"/v1/devices/{device}", json=body)).raise_for_status()
    answer = await http.post("/v1/tokens", json={"identity": identity, "device_id": device})
    token: str = answer.raise_for_status().json()["token"]
    return token


async def call(http: httpx.AsyncClient, *to: str) -> str:
    answer = await http.post("/v1/calls", json={"from": "lobby", "to": to})
    sid: str = answer.raise_for_status().json()["call_sid"]
    return sid


async def plays(command: list[str], relay: ForkedRelay, http: httpx.AsyncClient) -> None:
    """An example accepts a call and misses nothing of what happens while its network is cut. When
    its device opens another stream, or is removed, it comes to its end."""
    token = await register(http, "desk-web", "desk")
    async with (
        network_to(relay) as network,
        example_at_work(command, network.address, token) as process,
    ):
        first = await call(http, "desk")
        await says(process, f"call.user_state_changed {first}")
        shown = (await http.get(f"/v1/calls/{first}")).json()
        assert shown["state"] == "open"
        assert shown["users"][1]["main_device"] == "desk-web"

        network.cut()
        (await http.post(f"/v1/calls/{first}/quit", json={"identity": "lobby"})).raise_for_status()
        second = await call(http, "desk")
        network.is_up = True
        printed = await says(process, f"call.user_state_changed {second}")
        heard = [line for line in printed if line.startswith("call.")]
        assert heard == [
            f"call.user_state_changed {first}",  # lobby quit
            f"call.ended {first}",
            f"call.received {second}",
            f"call.user_state_changed {second}",  # and it has accepted
        ]

        url = relay.access.url.replace("http", "ws", 1)
        async with connect(f"{url}/v1/events?token={token}", open_timeout=PATIENCE_S) as other:
            await comes_to_its_end(process)
            (await http.delete("/v1/devices/desk-web")).raise_for_status()
            async with asyncio.timeout(PATIENCE_S):
                await other.wait_closed()
            assert other.close_code == 4001


async def comes_to_its_end(process: Process) -> None:
    """Waits until it has ended by itself, and well."""
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        rest = (await process.stdout.read()).decode()
        assert await process.wait() == 0, rest
    assert "call." not in rest


async def test_python_example_accepts_calls_and_loses_none_with_its_connection(
    relay: ForkedRelay, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    script = tmp_path / "phone.py"
    script.write_text(example("python"))
    await plays([sys.executable, "-W", "error", str(script)], relay, http)


@pytest.mark.skipif(not node_has_websockets(), reason="Node.js here is none, or older than 20")
async def test_browser_example_accepts_calls_and_loses_none_with_its_connection(
    relay: ForkedRelay, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    script = tmp_path / "phone.mjs"
    script.write_text(example("js") + HARNESS)
    await plays([str(NODE), *AS_A_BROWSER, str(script)], relay, http)


async def test_stream_is_refused_before_the_upgrade_as_the_page_says(
    relay: ForkedRelay, http: httpx.AsyncClient
) -> None:
    desk, lobby = await register(http, "desk-web", "desk"), await register(http, "lobby-1", "lobby")
    await http.put("/v1/devices/desk-1", json={"identity": "desk", "channels": [{"kind": "mqtt"}]})
    answer = await http.post("/v1/tokens", json={"identity": "desk"})
    of_desk = answer.json()["token"]
    refused: list[tuple[int, str]] = []
    for query in (
        "",
        "token=forged",
        f"token={lobby}&device_id=desk-web",
        f"token={of_desk}&device_id=lobby-1",
        f"token={of_desk}&device_id=desk-1",
        f"token={of_desk}&device_id=gone",
        f"token={of_desk}",
        f"token={desk}&cursor=soon",
    ):
        problem = await refusal(relay, query)
        refused.append((problem["status"], problem["type"]))
    rows = re.findall(r"^\| (\d+) \| `([^`]+)` \|", PAGE.read_text(), re.MULTILINE)
    assert list(dict.fromkeys(refused)) == [(int(status), kind) for status, kind in rows]


async def refusal(relay: ForkedRelay, query: str) -> Any:  # noqa: ANN401 - JSON
    url = relay.access.url.replace("http", "ws", 1)
    with pytest.raises(InvalidStatus) as refused:
        async with connect(f"{url}/v1/events?{query}", open_timeout=PATIENCE_S):
            pass
    response = refused.value.response
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = json.loads(response.body)
    assert problem["status"] == response.status_code
    return problem
