"""A fleet's device without a panel: its own MQTT session, and the agent's code for layers and commands."""

import asyncio
from datetime import UTC, datetime
from importlib.metadata import version

from pydantic import SecretStr

from bellwire.agent.fleet.commands import Commands
from bellwire.agent.fleet.follower import FleetFollower
from bellwire.agent.fleet.live_settings import LiveSettings
from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.session import Farewell, Session
from bellwire.config.agent.settings import AgentSettings, BrokerSettings
from bellwire.config.fleet.last_good import LastGood
from bellwire.signaling.identifiers import DeviceId, mqtt_client_id
from bellwire.signaling.topics import presence_topic
from bellwire.signaling.wire.station import Presence, presence_document


class SimulatedAgent:
    """One device.

    Args:
        device: Its id.
        address: The broker, with credentials that let it reach its own topics.
        settings: What its own file says beside.
        last_good: Where it keeps its layers; None keeps them nowhere.
    """

    def __init__(
        self,
        device: DeviceId,
        address: BrokerAddress,
        settings: dict[str, object] | None = None,
        *,
        last_good: LastGood | None = None,
    ) -> None:
        self.settings = AgentSettings.model_validate(
            {
                "device_id": device,
                "identity": device,
                "broker": BrokerSettings(
                    url=address.url, username=device, password=SecretStr(address.password or "")
                ),
                **(settings or {}),
            }
        )
        gone = presence_document(Presence(online=False))
        self.session = Session(
            address,
            mqtt_client_id(device, address.password or ""),
            session_expiry_s=3600,
            farewell=Farewell(presence_topic(device), gone, delay_s=1),
        )
        self.live = LiveSettings(self.settings)
        self.fleet = FleetFollower(
            self.settings,
            self.session,
            self.live,
            last_good=last_good,
            now=lambda: datetime.now(UTC),
        )
        self.rang: list[bool] = []
        """What its ringer was told: on, off."""
        self.commands = Commands(device, self.session, is_idle=lambda: True, ring=self._note_ring)
        self._presence = presence_topic(device)
        self.session.on_connected(self._say_online)

    async def run(self) -> None:
        """Works until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.session.run())
            tasks.create_task(self.fleet.run())
            tasks.create_task(self.commands.run())

    def _note_ring(self, on: bool) -> bool:
        self.rang.append(on)
        return True

    async def _say_online(self) -> None:
        document = presence_document(Presence(online=True, software=version("bellwire")))
        await self.session.publish(self._presence, document, retain=True)
