"""The demo's stage: a relay with its broker as real processes, and two simulated stations here; and what its
calls are told by: the steps of each and their times, none waited for too long."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import SecretStr
from rich.table import Table

from bellwire.agent.main import Agent
from bellwire.agent.media.sound_card import SoundCard
from bellwire.cli.demo.station import SimulatedStation
from bellwire.cli.process.relay import RelayProcess
from bellwire.cli.relay_client import RelayClient
from bellwire.config.agent.settings import AgentSettings, BrokerSettings, default_panel
from bellwire.hardware.audio.simulated_card import SimulatedSoundCard
from bellwire.signaling.errors import Unavailable
from bellwire.signaling.wire.requests import ChannelRequest, DeviceRequest

T = TypeVar("T")

STEP_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Station:
    """One device of the demo: its agent, the fingers on its buttons, and the mouth and ears at its
    sound card."""

    agent: Agent
    fingers: SimulatedStation
    card: SimulatedSoundCard

    @property
    def name(self) -> str:
        """Its identity, and its device's id."""
        return self.agent.settings.identity


@dataclass(frozen=True, slots=True)
class Stage:
    """What is on the stage."""

    client: RelayClient
    lobby: Station
    desk: Station
    relay: RelayProcess


@asynccontextmanager
async def demo_stage(data: Path | None = None) -> AsyncIterator[Stage]:
    """A stage, set up and, at the end, cleared: nothing is left on the machine.

    Raises:
        Unavailable: the relay did not start; says what its log says.
    """
    with tempfile.TemporaryDirectory(prefix="bellwire-demo-") as folder:
        async with RelayProcess(data or Path(folder) / "data") as relay:
            with RelayClient(relay.access) as client:
                lobby = await _station(client, "lobby", calls="desk")
                desk = await _station(client, "desk", calls="lobby")
                async with asyncio.TaskGroup() as tasks:
                    running = [tasks.create_task(s.agent.run()) for s in (lobby, desk)]
                    for station in (lobby, desk):
                        await station.agent.link.wait_connected()
                    try:
                        yield Stage(client, lobby, desk, relay)
                    finally:
                        for task in running:
                            task.cancel()


async def register_station(
    client: RelayClient, name: str, calls: tuple[str, ...] = ()
) -> AgentSettings:
    """Registers a device of an identity of the same name; the settings of its agent.

    Raises:
        RelayRefused, Unavailable: the relay did not take it.
    """
    request = DeviceRequest(
        identity=name, channels=[ChannelRequest(kind="mqtt")], rotate_credentials=True
    )
    device = await asyncio.to_thread(client.put_device, name, request)
    if device.mqtt is None:
        raise Unavailable(f"the relay gave {name} no broker credentials")
    return AgentSettings(
        device_id=name,
        identity=name,
        broker=BrokerSettings(
            url=device.mqtt.url,
            username=device.mqtt.username,
            password=SecretStr(device.mqtt.password),
        ),
        panel=default_panel(list(calls)),
    )


async def _station(client: RelayClient, name: str, calls: str) -> Station:
    settings = await register_station(client, name, (calls,))
    fingers = SimulatedStation(settings)
    card = SimulatedSoundCard()
    sound = SoundCard(settings.audio, initialise=card.initialised)
    agent = Agent(settings, pin_factory=fingers.pins, card=sound, allow_loopback=True)
    return Station(agent, fingers, card)


@dataclass(slots=True)
class Timeline:
    """What happened when, in milliseconds since the beginning."""

    title: str
    started: float
    steps: list[tuple[float, str, str]] = field(default_factory=list)

    def note(self, who: str, what: str, at: float | None = None) -> float:
        """Notes a step at a `time.perf_counter`, now by default; returns its milliseconds."""
        ms = ((time.perf_counter() if at is None else at) - self.started) * 1000
        self.steps.append((ms, who, what))
        return ms

    def table(self) -> Table:
        """The steps in their order."""
        table = Table("ms", "who", "what", title=self.title)
        table.columns[0].justify = "right"
        for ms, who, what in sorted(self.steps):
            table.add_row(f"{ms:.1f}", who, what)
        return table


async def within(what: str, happening: Awaitable[T]) -> T:
    """Waits for something that has to happen.

    Raises:
        Unavailable: it did not within 10 s; says what.
    """
    try:
        async with asyncio.timeout(STEP_TIMEOUT_S):
            return await happening
    except TimeoutError as error:
        raise Unavailable(f"waited {STEP_TIMEOUT_S:g} s in vain: {what}") from error
