"""WebSockets of who will not read, and WebSockets while strangers hold every place."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conftest import PATIENCE_S
from tests.push.hostile import WAITS, Raw, Target, attacked
from tests.push.streams import register_for_stream, streaming
from tests.push.support import fresh, serving

MASKED_PING = b"\x89\xfd\0\0\0\0" + b"p" * 125
"""The longest that a ping may be; masked by zeros."""
EMPTY_MESSAGE = b"\x81\x80\0\0\0\0"


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


async def test_pings_of_who_reads_no_answer_cost_no_memory_and_end(tmp_path: Path) -> None:
    """Such a relay cuts off sooner than others who does not read."""
    settings = {"max_connections": 64, "trusted_proxies": []}
    async with attacked(tmp_path, times={f"{WAITS}:STALLED_S": 4.0}, **settings) as target:
        raw = await handshaken(target, b"?token=" + await token(target))
        assert (await raw.answer()).status_code == 101
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        before, sent, grown_mb = target.resident_mb(), 0, 0.0
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(2 * PATIENCE_S):
                while True:
                    raw.send(MASKED_PING * 2000)
                    await raw.writer.drain()
                    sent += 2000
                    grown_mb = max(grown_mb, target.resident_mb() - before)
                    assert grown_mb < 12
        # Answers are as long as pings. How many are sent until it ends, the machine's load decides.
        assert grown_mb * 1_000_000 < sent * len(MASKED_PING) / 4


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


async def test_streams_full_of_empty_messages_cost_no_memory(target: Target) -> None:
    """Each takes the place of the one before, and whoever opened them keeps them all."""
    query = b"?token=" + await token(target)
    before = target.resident_mb()
    for _ in range(20):
        raw = await handshaken(target, query)
        assert (await raw.answer()).status_code == 101
        raw.send(EMPTY_MESSAGE * 80_000)
        await asyncio.sleep(0.05)
    assert target.resident_mb() - before < 40  # without bounds, 8 MB for each
    await target.must_answer_within(PATIENCE_S)


async def test_what_a_device_said_before_it_was_lost_is_done(target: Target) -> None:
    web, called = fresh("web"), fresh("called")
    async with serving(target.relay) as running:
        await register_for_stream(running, called)
        async with streaming(running, web) as stream:
            invite = {"operation": "invite", "to": [called], "request_id": "last words"}
            messages = [{"ack": stream.cursor}] * 60 + [{**invite, "extended_data": "x" * 2000}]
            for message in messages:
                await stream.socket.send(json.dumps(message))
            stream.socket.transport.close()
        calls = []
        async with asyncio.timeout(PATIENCE_S):
            while not calls:
                calls = (await running.http.get("/v1/calls")).json()["calls"]
