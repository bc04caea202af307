"""TURN: a real coturn on this machine, with credentials it takes and others."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator

import pytest

from bellwire.agent.media.engine.interface import IceServer
from bellwire.agent.media.engine.wrtc_engine import WrtcEngine
from bellwire.broker.embedded import free_port
from tests.agent.media.party import Party
from tests.conftest import PATIENCE_S


@pytest.fixture
async def turn_url() -> AsyncIterator[str]:
    port = free_port()
    # fmt: off
    server = await asyncio.create_subprocess_exec(
        "/usr/bin/turnserver", "-n", "--listening-ip=127.0.0.1", "--relay-ip=127.0.0.1",
        f"--listening-port={port}", "--lt-cred-mech", "--user=door:secret", "--realm=bellwire",
        "--no-tls", "--no-dtls", "--no-cli", "--allow-loopback-peers", "--log-file=/dev/null",
        "--pidfile=/dev/null", "--userdb=/dev/null",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )
    # fmt: on
    try:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.to_thread(answers, port)
        yield f"turn:127.0.0.1:{port}?transport=udp"
    finally:
        server.terminate()
        await server.wait()


def answers(port: int) -> None:
    """Waits until a STUN binding request (RFC 8489) is answered."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.1)
        client.connect(("127.0.0.1", port))
        for _ in range(int(PATIENCE_S * 10)):
            try:
                client.send(b"\x00\x01\x00\x00\x21\x12\xa4\x42" + bytes(12))
                client.recv(512)
            except ConnectionRefusedError:
                time.sleep(0.02)
            except TimeoutError:
                continue
            else:
                return
    raise AssertionError("coturn did not answer")


@pytest.mark.parametrize(("password", "relayed"), [("secret", True), ("guess", False)])
async def test_a_turn_server_relays_for_whoever_knows_its_credentials(
    engine: WrtcEngine, turn_url: str, password: str, relayed: bool
) -> None:
    server = IceServer((turn_url,), "door", password)
    party = Party(lambda listeners: engine.connect((server,), listeners))
    await party.peer.create_offer()
    kinds = []
    async with asyncio.timeout(PATIENCE_S):
        while (candidate := await party.candidates.get()).candidate:
            kinds.append(candidate.candidate.partition(" typ ")[2].split()[0])
    assert "host" in kinds
    assert ("relay" in kinds) is relayed
