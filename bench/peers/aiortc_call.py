"""Two aiortc peers in a call, each a process of its own: the baseline of CPU in Python."""

import asyncio
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from bench.lab.lossy_network import namespace_command
from bench.lab.pulse_server import PulseServer, end
from bench.sound.standing_call import StandingCall

_TIMEOUT_S = 60.0


@asynccontextmanager
async def aiortc_call(
    pulse: PulseServer, *, namespaces: bool = False
) -> AsyncIterator[StandingCall]:
    """The call, from its being connected until it is left. `namespaces`: as `chromium_call`."""
    async with AsyncExitStack() as opened:
        caller, callee = [
            await _start(opened, pulse, party, role, namespaces=namespaces)
            for party, role in zip(pulse.parties, ("offer", "answer"), strict=False)
        ]
        async with asyncio.timeout(_TIMEOUT_S):
            _tell(callee, await _until(caller, "sdp"))
            _tell(caller, await _until(callee, "sdp"))
            while (await _until(callee, "state"))["state"] != "connected":
                pass
        yield StandingCall(pid=callee.pid)


async def _start(
    opened: AsyncExitStack, pulse: PulseServer, party: str, role: str, *, namespaces: bool
) -> Process:
    process = await asyncio.create_subprocess_exec(
        *namespace_command(party, inside=namespaces), sys.executable, "-m", "bench.peers.aiortc_party",
        role, env=pulse.environment_of(party), stdin=PIPE, stdout=PIPE, stderr=DEVNULL,
    )  # fmt: skip
    opened.push_async_callback(end, process)
    return process


async def _until(process: Process, key: str) -> dict[str, Any]:
    if process.stdout is None:
        raise ValueError("its output is no pipe")
    while line := await process.stdout.readline():
        document: dict[str, Any] = json.loads(line)
        if key in document:
            return document
    raise SystemExit(f"the aiortc peer ended before it said its {key}")


def _tell(process: Process, document: dict[str, Any]) -> None:
    if process.stdin is None:
        raise ValueError("its input is no pipe")
    process.stdin.write(json.dumps(document).encode() + b"\n")
