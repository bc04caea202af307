"""One agent: panel, link and phone together, until told to stop."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

import structlog
from gpiozero import Factory

from agent.link import Link
from agent.phone import Phone
from broker.address import parse_broker_url
from config.agent import AgentSettings
from hardware.panel import Panel
from signaling.identifiers import DeviceId

log = structlog.get_logger(__name__)


class Agent:
    """The parts of one device. Build it in a running loop; `run` it once.

    Args:
        settings: What the device is and how it is wired.
        pin_factory: The pins; None takes the Pi's own.

    Raises:
        PanelError: a pin cannot be used.
        InvalidInput: the broker's URL or CA file is wrong.
    """

    def __init__(self, settings: AgentSettings, *, pin_factory: Factory | None = None) -> None:
        address = parse_broker_url(
            settings.broker.url,
            username=settings.broker.username,
            password=settings.broker.password.get_secret_value(),
            ca_file=settings.broker.ca_file,
        )
        self.settings = settings
        self.link = Link(address, DeviceId(settings.device_id))
        self.panel = Panel(settings.panel, pin_factory=pin_factory)
        self.phone = Phone(settings, self.link, self.panel, now=lambda: datetime.now(UTC))

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Works until cancelled; `ready` is called once the panel works and the relay can be heard."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.panel.run())
                await self.panel.ready()
                tasks.create_task(self.phone.run())
                tasks.create_task(self.link.run())
                log.info(
                    "agent works",
                    device_id=self.settings.device_id,
                    identity=self.settings.identity,
                )
                await self.link.wait_connected()
                ready()
        finally:
            self.panel.close()


async def run_agent(
    settings: AgentSettings,
    stop: asyncio.Event,
    *,
    pin_factory: Factory | None = None,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Runs one agent until `stop` is set; as `Agent`."""
    agent = Agent(settings, pin_factory=pin_factory)
    async with asyncio.TaskGroup() as tasks:
        working = tasks.create_task(agent.run(ready))
        await stop.wait()
        working.cancel()
    log.info("agent stopped", device_id=settings.device_id)
