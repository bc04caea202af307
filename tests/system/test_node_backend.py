"""A backend written in Node on Twilio's package, unchanged but for its host name: its TwiML routes a call,
each request is signed as its package checks it, and what a relay owes it outlives that relay."""

import asyncio
import json
import os
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bellwire.broker.embedded import free_port
from bellwire.signaling.errors import Unavailable
from tests.conftest import PATIENCE_S
from tests.forking import ForkedRelay
from tests.push.support import Running, listening, serving
from tests.push.twiml_backend import AUTH_TOKEN
from tests.push.ways import OverHttp

ROOT = Path(__file__).parents[2]
MODULES = ROOT / ".venv/node/node_modules"


class NodeBackend:
    """The process, and what it was asked."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._read: list[dict[str, Any]] = []

    async def asked(self, path: str, **of: str) -> dict[str, Any]:
        """Waits for a request to a path with these parameters, whether it has come or is to come."""
        seen = 0
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for one in self._read[seen:]:
                    if one["path"] == path and of.items() <= one.items():
                        return one
                seen = len(self._read)
                assert self._process.stdout is not None
                line = await self._process.stdout.readline()
                assert line, "the backend has ended"
                self._read.append(json.loads(line))


@asynccontextmanager
async def node_backend(port: int, folder: Path) -> AsyncIterator[NodeBackend]:
    node = shutil.which("node")
    assert node is not None and MODULES.is_dir(), (
        "run script/setup: it installs Node and its modules"
    )
    process = await asyncio.create_subprocess_exec(
        node,
        str(ROOT / "tests/node_backend/backend.js"),
        str(port),
        stdout=asyncio.subprocess.PIPE,
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],
            "NODE_PATH": str(MODULES),
            "TWILIO_AUTH_TOKEN": AUTH_TOKEN,
        },
    )
    try:
        here = NodeBackend(process)
        await here.asked("listening")
        yield here
    finally:
        process.terminate()
        await process.wait()


def settings(port: int, folder: Path) -> dict[str, str]:
    token = folder / "auth-token"
    token.write_text(AUTH_TOKEN)
    return {
        "BELLWIRE_VOICE_URL": f"http://127.0.0.1:{port}/voice",
        "BELLWIRE_VOICE_URL_ALLOW_PRIVATE_NETWORK": "true",
        "BELLWIRE_TWILIO_AUTH_TOKEN_FILE": str(token),
    }


async def call_by(running: Running, caller: str, to: str, **own: str) -> tuple[int, dict[str, Any]]:
    return await OverHttp(running, caller, f"{caller}-phone").ask(
        "invite", to=[to], custom_parameters=own
    )


async def test_backend_in_node_on_twilios_package_routes_a_call(tmp_path: Path) -> None:
    port = free_port()
    async with (
        node_backend(port, tmp_path) as node,
        ForkedRelay(tmp_path / "data", environment=settings(port, tmp_path)) as relay,
        serving(relay) as running,
    ):
        await running.register("alice-phone", "alice")
        async with listening(running, "bob-phone", "bob") as at_bob:
            code, call = await call_by(running, "alice", "bob", first_name="Zoë & Söhne")
            assert code == 201, call
            sid = call["call_sid"]
            asked = await node.asked("/voice", CallSid=sid)
            assert (asked["From"], asked["first_name"]) == ("client:alice", "Zoë & Söhne")
            invite = await at_bob.until("call.received", sid)
            assert invite["custom_parameters"] == {"caller_first_name": "Zoë & Söhne"}
            for operation in ("received", "accept", "quit"):
                await at_bob.ask({"operation": operation, "call_sid": sid})
            for number, told in enumerate(("initiated", "ringing", "in-progress", "completed")):
                leg = await node.asked("/status", CallSid=sid, SequenceNumber=str(number))
                assert (leg["CallStatus"], leg["To"]) == (told, "client:bob")
            over = await node.asked("/over", CallSid=sid)
            assert over["DialCallStatus"] == "completed"
            code, problem = await call_by(running, "alice", "closed")
            assert (code, problem["code"], problem["reason"]) == (403, 31600, "busy")


TROUBLES = {
    "slow": (504, 31504, "4 s"),
    "broken": (502, 31502, "log says more"),
    "oversized": (502, 31502, "log says more"),
    "inwards": (502, 31502, "log says more"),
    "speaking": (502, 31502, "<Say>"),
}


async def test_backend_in_trouble_gives_typed_errors_and_rings_nobody(tmp_path: Path) -> None:
    port = free_port()
    async with (
        node_backend(port, tmp_path) as node,
        ForkedRelay(tmp_path / "data", environment=settings(port, tmp_path)) as relay,
        serving(relay) as running,
    ):
        await running.register("alice-phone", "alice")
        async with listening(running, "bob-phone", "bob") as at_bob:
            for to, (status, code, named) in TROUBLES.items():
                started = time.monotonic()
                answered, problem = await call_by(running, "alice", to)
                assert (answered, problem["code"]) == (status, code), problem
                assert named in problem["detail"]
                assert time.monotonic() - started < 4 + 2, "as `voice_url_timeout_s` has it"
                asked = await node.asked("/voice", To=to)
                shown = await running.http.get(f"/v1/calls/{asked['CallSid']}")
                assert shown.status_code == 404
            assert (await at_bob.ask({"operation": "list"}))["calls"] == []
            assert not at_bob.events


async def test_what_a_backend_is_owed_outlives_the_relay(tmp_path: Path) -> None:
    """The backend goes away while a call rings, the relay is killed once the call is over: the next one makes
    the requests."""
    port = free_port()
    environment = settings(port, tmp_path)
    async with ForkedRelay(tmp_path / "data", environment=environment) as relay:
        async with serving(relay) as running:
            await running.register("alice-phone", "alice")
            async with listening(running, "bob-phone", "bob") as at_bob:
                async with node_backend(port, tmp_path):
                    _, call = await call_by(running, "alice", "bob", first_name="Zoë")
                    sid = call["call_sid"]
                    await at_bob.until("call.received", sid)
                answer = await at_bob.ask({"operation": "reject", "call_sid": sid})
                assert answer["status"] == 200
        await relay.kill()
        async with node_backend(port, tmp_path) as node:
            await relay.start()
            over = await node.asked("/over", CallSid=sid)
            done = await node.asked("/status", CallSid=sid, CallStatus="busy")
    assert (over["DialCallStatus"], done["CallDuration"]) == ("busy", "0")


@pytest.mark.parametrize("missing", ["voice_url needs", "http:// is for private networks"])
async def test_voice_url_that_could_never_be_asked_ends_the_start(
    tmp_path: Path, missing: str
) -> None:
    environment = settings(1, tmp_path)
    key = "TWILIO_AUTH_TOKEN_FILE" if "needs" in missing else "VOICE_URL_ALLOW_PRIVATE_NETWORK"
    del environment[f"BELLWIRE_{key}"]
    relay = ForkedRelay(tmp_path / "data", environment=environment)
    with pytest.raises(Unavailable) as ended:
        async with relay:
            pass
    assert missing in str(ended.value)
