"""The demo's stage: a relay with its broker as real processes, and two simulated stations here."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from bellwire.agent.main import Agent
from bellwire.agent.media.sound_card import SoundCard
from bellwire.cli.demo.station import SimulatedStation
from bellwire.cli.process.client import RelayClient
from bellwire.cli.process.relay import RelayProcess
from bellwire.config.agent.settings import AgentSettings, BrokerSettings, default_panel
from bellwire.hardware.audio.simulated_card import SimulatedSoundCard
from bellwire.signaling.errors import Unavailable
from bellwire.signaling.wire.requests import ChannelRequest, DeviceRequest


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
