"""A call that sounds bad says so, and says when it is well again, to the application and to the operator.

Its sound and its wire are real; each of its seconds is made of what came over the wire since the last.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest_asyncio

from bellwire.agent.calls.call import Call
from tests.agent.talking import FRONT, Talker, connected, talker
from tests.conftest import PATIENCE_S
from tests.forking import ForkedRelay
from tests.hardware.conftest import VirtualTime
from tests.speech import RATE_HZ
from tests.system.mqtt_ear import Ear, address_of_own_broker, ear

LOSS, CONSTANT = "high-packet-loss", "constant-audio-input-level"
BLOCKS_OF_A_SECOND = 20
RELAY = "relay"


@pytest_asyncio.fixture
async def quality_http(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with ForkedRelay(tmp_path / RELAY) as relay:
        headers = {"Authorization": f"Bearer {relay.access.api_key}"}
        async with httpx.AsyncClient(
            base_url=relay.access.url, headers=headers, timeout=PATIENCE_S
        ) as plain:
            yield plain


class Bench:
    """A call, a second at a time."""

    def __init__(self, time: VirtualTime, *ends: tuple[Talker, Call]) -> None:
        self._time = time
        self._ends = ends

    async def second(self) -> None:
        """Lets some sound go over the wire, then a second pass, which each end measures."""
        measured = [len(told(talking, call, "sample")) for talking, call in self._ends]
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(t.voice.hears_more(BLOCKS_OF_A_SECOND) for t, _ in self._ends))
        await self._time.advance(1)
        for (talking, call), before in zip(self._ends, measured, strict=True):
            await talking.told[id(call)].until(
                lambda _, t=talking, c=call, n=before: len(told(t, c, "sample")) > n, "a sample"
            )

    async def until(self, event: str, name: str, talking: Talker, call: Call) -> int:
        """Lets seconds pass until an end has told it of a warning; returns how many those were."""
        for seconds in range(1, 31):
            await self.second()
            if any(it[1] == name for it in told(talking, call, event)):
                return seconds
        raise AssertionError(f"no {event} of {name}: {told(talking, call, 'sample')[-5:]}")


def told(talking: Talker, call: Call, event: str) -> list[tuple[Any, ...]]:
    return [it for it in talking.told[id(call)].noted if it[0] == event]


async def reported(listening: Ear, talking: Talker, group: str, name: str) -> dict[str, Any]:
    """The payload of an insight that came over the broker."""
    topic = f"bellwire/v1/device/{talking.device.identity}/insights"
    heard = await listening.until(
        lambda it: (it.topic, it.document["group"], it.document["name"]) == (topic, group, name),
        f"{group} {name}",
    )
    payload: dict[str, Any] = heard.document["payload"]
    return payload


async def test_a_call_on_a_bad_wire_with_a_dead_microphone_warns_until_both_are_well(
    quality_http: httpx.AsyncClient, tmp_path: Path
) -> None:
    time = VirtualTime()
    dead = np.zeros(RATE_HZ, np.int16)
    async with (
        ear(address_of_own_broker(tmp_path / RELAY), "bellwire/v1/device/+/insights") as operator,
        talker(quality_http, "near", FRONT, wired=True, time=time) as near,
        talker(quality_http, "mute", dead, wired=True, time=time) as mute,
    ):
        call, answered = await connected(near, mute)
        bench = Bench(time, (near, call), (mute, answered))
        wires = [end.board.wire for end in (near, mute) if end.board.wire is not None]
        for wire in wires:
            wire.loss = 0.25
        assert await bench.until("warning", LOSS, near, call) > 5, "every call begins choppily"
        await bench.until("warning", CONSTANT, mute, answered)
        (_, _, lost), *again = (it for it in told(near, call, "warning") if it[1] == LOSS)
        assert not again, "it is raised once"
        assert lost.threshold.value == 1
        assert max(lost.values) > 10
        assert not [it for it in told(near, call, "warning") if it[1] == CONSTANT]

        for wire in wires:
            wire.loss = 0.0
        mute.voice.say(FRONT)
        assert await bench.until("warning-cleared", LOSS, near, call) >= 3, "not at once"
        if not [it for it in told(mute, answered, "warning-cleared") if it[1] == CONSTANT]:
            await bench.until("warning-cleared", CONSTANT, mute, answered)

        for talking, its, about, name in (
            (near, call, "network-quality", LOSS),
            (mute, answered, "audio-level", CONSTANT),
        ):
            raised = await reported(operator, talking, f"{about}-warning-raised", name)
            cleared = await reported(operator, talking, f"{about}-warning-cleared", name)
            assert raised["call_sid"] == cleared["call_sid"] == its.sid
            assert raised["data"]["threshold"] == cleared["data"]["threshold"]
            assert raised["data"]["values"] != cleared["data"]["values"]
        call.disconnect()
        await mute.until(answered, "disconnect")
