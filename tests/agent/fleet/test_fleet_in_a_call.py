"""A call whose device is configured anew while people talk: what can change does, nobody hears it,
and what is wired waits until they have hung up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from bellwire.agent.calls.call import CallStatus
from bellwire.agent.main import Agent
from bellwire.agent.media.sound_card import SoundCard
from bellwire.broker.session.session import Session
from bellwire.cli.demo.station import SimulatedStation
from bellwire.config.agent.settings import AgentSettings
from bellwire.hardware.audio.block import BLOCK_FRAMES, SAMPLE_RATE_HZ, Block
from bellwire.hardware.audio.simulated_card import SimulatedSoundCard
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import config_topic
from tests.broker.running import held, soon
from tests.config.fleet_parts import document
from tests.conftest import PATIENCE_S, register_station
from tests.system.mqtt_ear import address_of_own_broker
from tests.system.scene import Record

TONE = (8000 * np.sin(2 * np.pi * 440 * np.arange(60 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ)).astype(
    np.int16
)
PLAIN = {"echo_cancellation": False, "noise_suppression": False, "gain_control": False}
"""Noise suppression takes a steady tone for noise."""

_TRIES = 12
"""On a machine that is busy with something else sound breaks by itself, now and then."""


@dataclass
class Phone:
    """An agent with a sound card, and what its speaker has played."""

    agent: Agent
    fingers: SimulatedStation
    card: SimulatedSoundCard
    calls: Record = field(default_factory=Record)
    played: list[Block] = field(default_factory=list)

    async def hears(self, blocks: int) -> list[Block]:
        """The next so many blocks of its speaker."""
        beginning = len(self.played)
        async with asyncio.timeout(PATIENCE_S):
            while len(self.played) < beginning + blocks:  # noqa: ASYNC110
                await asyncio.sleep(0.05)  # blocks come at their own pace, from a thread
        return self.played[beginning : beginning + blocks]

    async def until(self, status: CallStatus) -> None:
        await self.calls.until(lambda call: call.status is status, status)


@asynccontextmanager
async def phone(settings: AgentSettings) -> AsyncIterator[Phone]:
    fingers, card = SimulatedStation(settings), SimulatedSoundCard()
    sound = SoundCard(settings.audio, initialise=card.initialised)
    agent = Agent(settings, pin_factory=fingers.pins, card=sound, allow_loopback=True)
    here = Phone(agent, fingers, card)
    agent.phone.watch(here.calls.note)
    card.listen(here.played.append)
    ready = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        working = tasks.create_task(agent.run(ready.set))
        async with asyncio.timeout(PATIENCE_S):
            await ready.wait()
        yield here
        working.cancel()


def longest_gap(blocks: list[Block]) -> int:
    """The most blocks of 10 ms in a row in which the tone is not heard."""
    loudness = [float(np.sqrt(np.mean(block.astype(np.float64) ** 2))) for block in blocks]
    longest = gap = 0
    for loud in loudness:
        gap = gap + 1 if loud < 0.1 * float(np.median(loudness)) else 0
        longest = max(longest, gap)
    return longest


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    from tests.forking import ForkedRelay

    async with ForkedRelay(tmp_path / "relay") as relay:
        headers = {"Authorization": f"Bearer {relay.access.api_key}"}
        async with httpx.AsyncClient(
            base_url=relay.access.url, headers=headers, timeout=PATIENCE_S
        ) as plain:
            yield plain


async def settings_of(http: httpx.AsyncClient, name: str, *calls: str) -> AgentSettings:
    settings = await register_station(http, name, calls=calls)
    audio = settings.audio.model_validate({"processing": PLAIN})
    return settings.model_copy(update={"audio": audio})


CHANGE: dict[str, Any] = {
    "audio": {"speaker_volume": 0.7, "ring_volume": 0.1, "processing": {"gain_control": True}},
    "behaviour": {"quiet_hours": [{"start": "00:00", "end": "23:59"}]},
    "log_level": "warning",
    "panel": {"ringer": {"cadence_s": [1, 1]}},
}


async def test_nobody_hears_that_a_device_is_configured_during_a_call(
    http: httpx.AsyncClient, tmp_path: Path
) -> None:
    operator = Session(address_of_own_broker(tmp_path / "relay"), "operator", sleep=soon)
    lobby_file, desk_file = (
        await settings_of(http, "lobby", "desk"),
        await settings_of(http, "desk"),
    )
    async with held(operator), phone(lobby_file) as lobby, phone(desk_file) as desk:
        lobby.card.say(np.tile(TONE, 3))
        await lobby.fingers.press("1")
        await desk.until(CallStatus.PENDING)
        await desk.fingers.press("a")
        await desk.until(CallStatus.OPEN)
        while longest_gap(await desk.hears(100)) or not np.any(desk.played[-1]):
            pass  # until the tone flows

        revision = 0
        gaps = []
        while len(gaps) < _TRIES and not any(gap <= 1 for gap in gaps):
            listening = asyncio.create_task(desk.hears(300))
            for settings in ({}, CHANGE) if gaps else (CHANGE, {}, CHANGE):
                revision += 1
                for device in (lobby, desk):
                    await configure(operator, device, settings, revision)
            gaps.append(longest_gap(await listening))
        assert min(gaps) <= 1, gaps

        for device in (lobby, desk):
            now, file = device.agent.live.now, device.agent.settings
            assert (now.audio.speaker_volume, now.audio.processing.gain_control) == (0.7, True)
            assert (now.log_level, len(now.behaviour.quiet_hours)) == ("warning", 1)
            assert now.panel == file.panel, "the bell waits"
            assert device.agent.live.waiting == ("panel",)
            [call] = device.agent.device.calls
            assert call.status() is CallStatus.OPEN
        await desk.fingers.press("h")
        for device in (lobby, desk):
            await device.until(CallStatus.CLOSED)
            ringer = device.agent.live.now.panel.ringer
            assert ringer is not None and ringer.cadence_s == (1, 1), "and changes when it is over"
            assert device.agent.live.waiting == ()


async def configure(
    operator: Session, phone: Phone, settings: dict[str, Any], revision: int
) -> None:
    """Changes a device's layer; returns once it has the settings in force."""
    done = asyncio.Event()
    phone.agent.live.watch(lambda _, __: done.set())
    topic = config_topic(DeviceId(phone.agent.settings.device_id))
    await operator.publish(topic, document(settings, revision), retain=True)
    async with asyncio.timeout(PATIENCE_S):
        await done.wait()


def test_a_gap_in_a_tone_is_found() -> None:
    blocks = list(TONE[: 100 * BLOCK_FRAMES].reshape(-1, BLOCK_FRAMES))
    assert longest_gap(blocks) == 0
    blocks[50] = blocks[51] = np.zeros(BLOCK_FRAMES, np.int16)
    assert longest_gap(blocks) == 2
