"""One agent: panel, link and phone together, until told to stop."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import structlog
from gpiozero import Factory

from agent.fleet import Fleet
from agent.health import HealthReports
from agent.link import Link
from agent.live_settings import LiveSettings
from agent.phone import Phone
from agent.rewiring import panel_of
from broker.address import parse_broker_url
from config.agent import AgentSettings
from config.last_good import LastGood
from signaling.identifiers import DeviceId

log = structlog.get_logger(__name__)


class Agent:
    """The parts of one device. Build it in a running loop; `run` it once.

    Args:
        settings: What the device is and how it is wired.
        pin_factory: The pins; None takes the Pi's own.
        last_good: The fleet's layers of its last run, and where they are kept.

    Raises:
        PanelError: a pin of its own file cannot be used.
        InvalidInput: the broker's URL or CA file is wrong.
    """

    def __init__(
        self,
        settings: AgentSettings,
        *,
        pin_factory: Factory | None = None,
        last_good: LastGood | None = None,
    ) -> None:
        address = parse_broker_url(
            settings.broker.url,
            username=settings.broker.username,
            password=settings.broker.password.get_secret_value(),
            ca_file=settings.broker.ca_file,
        )
        self.settings = settings
        self.link = Link(address, DeviceId(settings.device_id))
        self.live = LiveSettings(settings, is_idle=self._is_idle)
        self.fleet = Fleet(settings, self.link.session, self.live, last_good=last_good, now=_now)
        self.panel = panel_of(
            self.live, settings.panel, self.fleet.report_fault, pin_factory=pin_factory
        )
        self.phone = Phone(settings, self.link, self.panel, now=_now, live=self.live)
        self.phone.watch(lambda _: self.live.settle())
        self.health = HealthReports(
            settings.device_id,
            self.link.session,
            self.live,
            now=_now,
            call=lambda: "idle" if self.phone.call is None else self.phone.call.status.value,
            fleet=self.fleet,
        )
        self.link.listen(lambda event, _: self.health.hear_time(event.at))

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Works until cancelled; `ready` is called once the panel works and the relay can be heard."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.panel.run())
                await self.panel.ready()
                tasks.create_task(self.phone.run())
                tasks.create_task(self.link.run())
                tasks.create_task(self.live.run())
                tasks.create_task(self.fleet.run())
                tasks.create_task(self.health.run())
                log.info(
                    "agent works",
                    device_id=self.settings.device_id,
                    identity=self.settings.identity,
                )
                await self.link.wait_connected()
                ready()
        finally:
            self.panel.close()

    def _is_idle(self) -> bool:
        """Whether nobody is rung, called or let in: the moment to rewire. True before it works."""
        if not hasattr(self, "phone"):
            return True
        door = self.panel.door
        return self.phone.call is None and not (door is not None and door.is_open)


def _now() -> datetime:
    return datetime.now(UTC)


async def run_agent(
    settings: AgentSettings,
    stop: asyncio.Event,
    *,
    pin_factory: Factory | None = None,
    ready: Callable[[], None] = lambda: None,
    state: Path | None = None,
    set_log_level: Callable[[str], None] = lambda _: None,
) -> None:
    """Runs one agent until `stop` is set; as `Agent`. `state` is the folder where it keeps the fleet's
    layers, None for nowhere; `set_log_level` is called at the start and when the level changes."""
    last_good = None
    if state is not None:
        last_good = await asyncio.to_thread(LastGood, state, settings.device_id)
    agent = Agent(settings, pin_factory=pin_factory, last_good=last_good)
    set_log_level(agent.live.now.log_level)
    agent.live.watch(lambda _, now: set_log_level(now.log_level))
    async with asyncio.TaskGroup() as tasks:
        working = tasks.create_task(agent.run(ready))
        await stop.wait()
        working.cancel()
    log.info("agent stopped", device_id=settings.device_id)
