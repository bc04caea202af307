"""A call's time limit is a deadline as any other: it holds when the relay was killed meanwhile."""

import asyncio
from pathlib import Path

from twilio.twiml.voice_response import VoiceResponse

from tests.conftest import PATIENCE_S
from tests.forking import ForkedRelay
from tests.push.support import serving


async def test_call_ends_at_its_time_limit_though_the_relay_was_killed(tmp_path: Path) -> None:
    response = VoiceResponse()
    response.dial(caller_id="client:alice", time_limit=2).client("bob")
    async with ForkedRelay(tmp_path / "data") as relay:
        async with serving(relay) as running:
            for name in ("alice", "bob"):
                await running.register(f"{name}-1", name)
            made = await running.http.post(
                "/v1/calls", content=str(response), headers={"Content-Type": "text/xml"}
            )
            sid = made.json()["call_sid"]
            accepted = await running.do(sid, "accept", identity="bob", device_id="bob-1")
            assert accepted.json()["state"] == "open"
        await relay.kill()
        await relay.start()
        async with serving(relay) as running, asyncio.timeout(PATIENCE_S):
            while (call := await running.call(sid))["state"] != "ended":  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.05)
    assert (call["end_reason"], call["ended_by"]) == ("time-limit", None)
    assert 1.9 <= call["duration_s"] <= 10
