"""What is typed to `bellwire call` while it shows a call."""

import asyncio
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import httpx

from tests.cli.command import environment
from tests.conftest import PATIENCE_S
from tests.forking import ForkedRelay


async def test_some_are_cancelled_by_name_and_who_cannot_be_is_shown(
    relay: ForkedRelay, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    for name in ("bob", "carol", "dave"):
        body = {"identity": name, "channels": [{"kind": "websocket"}]}
        assert (await http.put(f"/v1/devices/{name}", json=body)).is_success
    key = tmp_path / "key"
    key.write_text(relay.access.api_key)
    key.chmod(0o600)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bellwire", "call", "bob", "carol", "dave", "--from", "alice"),
        *("--relay", relay.access.url, "--api-key-file", str(key)),
        env=environment(),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )
    async with asyncio.timeout(2 * PATIENCE_S):
        out, err = await process.communicate(b"cancel bob\ncancel alice carol dave\n")
    assert process.returncode == 0, err
    assert "cancel: not alice (not_invited)" in out.decode()
    (call,) = (await http.get("/v1/calls")).json()["calls"]
    assert (call["state"], [user["state"] for user in call["users"]]) == (
        "ended",
        ["Accepted", "Canceled", "Canceled", "Canceled"],
    )
