"""WebSockets of who will not read, and WebSockets while strangers hold every place."""

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conftest import PATIENCE_S
from tests.push.hostile import Raw, Target, attacked
from tests.push.support import fresh, serving

MASKED_PING = b"\x89\xfd\0\0\0\0" + b"p" * 125
"""The longest that a ping may be; masked by zeros."""


@pytest.fixture
async def target(tmp_path: Path) -> AsyncIterator[Target]:
    async with attacked(tmp_path, max_connections=64, trusted_proxies=[]) as attacked_one:
        yield attacked_one


async def token(target: Target) -> bytes:
    """An access token of a new device with a stream."""
    device = fresh("web")
    async with serving(target.relay) as running:
        body = {"identity": device, "channels": [{"kind": "websocket"}]}
        assert (await running.http.put(f"/v1/devices/{device}", json=body)).is_success
        shown = (await running.token(device, device))["Authorization"]
    return shown.removeprefix("Bearer ").encode()


async def handshaken(target: Target, query: bytes) -> Raw:
    """A connection that has asked for a stream."""
    raw = await target.open()
    raw.send(
        b"GET /v1/events%s HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n"
        % (query, base64.b64encode(b"0123456789abcdef"))
    )
    return raw


async def test_pings_of_who_reads_no_answer_cost_no_memory_and_end(target: Target) -> None:
    raw = await handshaken(target, b"?token=" + await token(target))
    assert (await raw.answer()).status_code == 101
    raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
    before, sent = target.resident_mb(), 0
    with pytest.raises(ConnectionError):
        async with asyncio.timeout(2 * PATIENCE_S):
            while True:
                raw.send(MASKED_PING * 2000)
                await raw.writer.drain()
                sent += 2000
                assert target.resident_mb() - before < 24
                await asyncio.sleep(0.02)
    assert sent * len(MASKED_PING) > 50_000_000


async def test_a_stream_with_a_token_is_opened_when_strangers_hold_every_place(
    target: Target,
) -> None:
    query = b"?token=" + await token(target)
    await target.open_many(1100)
    streams = [await handshaken(target, query) for _ in range(3)]
    for stream in streams:
        assert (await stream.answer()).status_code == 101
    guessed = await handshaken(target, b"?token=guessed")
    assert (await guessed.answer()).status_code == 401
    await guessed.until_closed()
    none = await handshaken(target, b"")
    await none.refused(503, "unavailable")
    assert (await target.get("/readyz")).status_code == 200
