"""A real Janus, started with the very files of `deploy/janus` on a port of its own; it can be killed and
started again."""

import asyncio
import contextlib
import json
import shutil
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from bellwire.broker.embedded import free_port
from tests.conftest import PATIENCE_S

DEPLOY = Path(__file__).parents[1] / "deploy"
SECRET = "what-relay-and-janus-share"
_JANUS = shutil.which("janus")
_PLUGIN = next(Path("/usr/lib").glob("*/janus/plugins/libjanus_audiobridge.so"), None)

needs_janus = pytest.mark.skipif(
    _JANUS is None or _PLUGIN is None, reason="janus is not installed (Debian package janus)"
)


class RunningJanus:
    """Janus on loopback."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self.url = f"ws://127.0.0.1:{port}"
        self._folder = folder
        self._process: Process | None = None

    async def start(self) -> None:
        """Starts it, and waits until it listens."""
        self._process = await asyncio.create_subprocess_exec(
            *(str(_JANUS), "--configs-folder", str(self._folder), "--disable-colors"),
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=DEVNULL,
        )
        await (await self.opened()).close()

    async def kill(self) -> None:
        """Kills it, without a word to anybody."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def opened(self) -> ClientConnection:
        """A connection, as soon as it listens."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    return await connect(self.url, subprotocols=[Subprotocol("janus-protocol")])
                except OSError:
                    await asyncio.sleep(0.05)

    async def rooms(self, secret: str = SECRET) -> dict[str, int]:
        """Its rooms, and how many are in each."""
        async with await self.opened() as socket:
            session = (await ask(socket, secret, janus="create"))["data"]["id"]
            attach = {"session_id": session, "plugin": "janus.plugin.audiobridge"}
            handle = (await ask(socket, secret, janus="attach", **attach))["data"]["id"]
            here = {"janus": "message", "session_id": session, "handle_id": handle}
            body = {"request": "list", "admin_key": secret}
            answer = await ask(socket, secret, **here, body=body)
            rooms = answer["plugindata"]["data"]["list"]
            return {room["room"]: room["num_participants"] for room in rooms}

    async def until_rooms_are(self, *guests: int) -> None:
        """Waits until it has so many rooms, each with so many in it."""
        async with asyncio.timeout(PATIENCE_S):
            while sorted((await self.rooms()).values()) != sorted(guests):  # noqa: ASYNC110 - Janus does not tell
                await asyncio.sleep(0.05)


async def ask(socket: ClientConnection, secret: str, **request: object) -> dict[str, Any]:
    """Janus' own answer to a request."""
    await socket.send(json.dumps({"transaction": "t", "apisecret": secret, **request}))
    async with asyncio.timeout(PATIENCE_S):
        answer: dict[str, Any] = json.loads(await socket.recv())
        return answer


@asynccontextmanager
async def janus(folder: Path, secret: str | None = SECRET) -> AsyncIterator[RunningJanus]:
    """Janus with the files of `deploy/janus`, and one secret in place of theirs; None leaves theirs."""
    port = free_port()
    _write_files(folder, port, secret)
    running = RunningJanus(folder, port)
    try:
        await running.start()
        yield running
    finally:
        await running.kill()


def _write_files(folder: Path, port: int, secret: str | None) -> None:
    assert _PLUGIN is not None
    for file in (DEPLOY / "janus").iterdir():
        text = file.read_text().replace("/etc/janus", str(folder)).replace("8188", str(port))
        text = text.replace("x86_64-linux-gnu", _PLUGIN.parts[3])
        if secret is not None:
            for name in ("API", "ROOMS"):
                text = text.replace(f"CHANGE-ME-{name}", secret)
        (folder / file.name).write_text(text)
