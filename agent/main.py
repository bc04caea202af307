"""One agent: panel, link, device, phone, sound and fleet together, until told to stop."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import structlog
from gpiozero import Factory

from bellwire.agent.calls.caller_verification import CallerVerification
from bellwire.agent.calls.device import Device
from bellwire.agent.door.doors import Doors
from bellwire.agent.door.reports import DoorReporter
from bellwire.agent.door.wrong_codes import WrongCodes
from bellwire.agent.fleet.commands import Commands
from bellwire.agent.fleet.device_copies import DeviceCopies
from bellwire.agent.fleet.follower import FleetFollower
from bellwire.agent.fleet.health import HealthReports
from bellwire.agent.fleet.live_settings import LiveSettings
from bellwire.agent.link import Link
from bellwire.agent.media.engine.interface import IceServer
from bellwire.agent.media.sound import DeviceSound, told_and_configured, webrtc_engine
from bellwire.agent.media.sound_card import SoundCard
from bellwire.agent.memory import Collector
from bellwire.agent.station.dialling import Dialling
from bellwire.agent.station.incoming import IncomingCalls
from bellwire.agent.station.phone import Phone, panel_of
from bellwire.broker.session.address import parse_broker_url
from bellwire.config.agent.settings import AgentSettings, ConfigurableSettings
from bellwire.config.agent.telemetry import CallNow, Fault
from bellwire.config.fleet.last_good import LastGood
from bellwire.signaling.identifiers import DeviceId, Identity

log = structlog.get_logger(__name__)


class Agent:
    """The parts of one device. Build it in a running loop; `run` it once.

    Args:
        settings: What the device is and how it is wired.
        pin_factory: The pins; None takes the Pi's own.
        last_good: The fleet's layers of its last run, and where they are kept.
        wrong_codes: The wrong door codes of its last run, and where they are kept.
        card: Its sound card; None where it has none: calls are then opened without sound.
        allow_loopback: Whether the other end may be on this machine, as in a simulation.
        root: Where the kernel says whether it keeps a pin's level, as `hardware.panel.panel.Panel` takes it.

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
        wrong_codes: WrongCodes | None = None,
        card: SoundCard | None = None,
        allow_loopback: bool = False,
        root: Path | None = None,
    ) -> None:
        address = parse_broker_url(
            settings.broker.url,
            username=settings.broker.username,
            password=settings.broker.password.get_secret_value(),
            ca_file=settings.broker.ca_file,
        )
        self.settings = settings
        self._card = card
        self._sound = None
        if card is not None:
            self._sound = DeviceSound(
                lambda: webrtc_engine(allow_loopback=allow_loopback), card, self._ice_servers
            )
        device_id = DeviceId(settings.device_id)
        self.link = Link(address, device_id)
        self.device = Device(
            Identity(settings.identity),
            device_id,
            self.link,
            now=_now,
            verify_caller=CallerVerification(self.link.keys).verify,
        )
        self.live = LiveSettings(settings, is_idle=self._is_idle)
        self.fleet = FleetFollower(
            settings, self.link.session, self.live, last_good=last_good, now=_now
        )
        self.panel = panel_of(
            self.live, settings.panel, self.fleet.report_fault, pin_factory=pin_factory, root=root
        )
        self.incoming = IncomingCalls(self.live, self.device, now=_now)
        self.dialling = Dialling(self.live, self.device)
        self.phone = Phone(self.device, self.panel, self.incoming, self.dialling, card)
        self.phone.watch(lambda _: self.live.settle())
        self.door_reports = DoorReporter(self.link)
        self.doors = Doors(
            self.live,
            self.device,
            self.panel,
            wrong_codes=wrong_codes,
            is_connected=lambda: self.link.connected,
            on_lock_out=self.door_reports.add_lock_out,
            on_not_verified=self.door_reports.add_not_verified,
            on_status=lambda: self.health.report_now(),
        )
        self.health = HealthReports(
            settings.device_id,
            self.link.session,
            self.live,
            now=_now,
            call=self._call_now,
            fleet=self.fleet,
        )
        self.health.add_faults(self._sound_faults)
        if card is not None:
            card.on_ring_tone = self._tell_of_ring_tone
        self.health.add_faults(self.doors.faults)
        self.health.add_door(lambda: self.doors.status)
        copies = DeviceCopies(device_id, self.link.session, on_met=self.health.report_soon)
        self.health.add_faults(copies.faults)
        self.phone.watch(self.health.hear_call)
        self.link.listen(lambda event, _: self.health.hear_time(event.at))
        self.commands = Commands(
            device_id, self.link.session, is_idle=lambda: not self.device.calls, ring=self._ring
        )
        self.live.watch(self._follow_settings)
        self._follow_settings(self.live.now, self.live.now)

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Works until cancelled; `ready` is called once the panel works and the relay can be heard."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.panel.run())
                await self.panel.ready()
                if self._card is not None:
                    tasks.create_task(self._card.run())
                parts = (
                    *(self.device, self.incoming, self.dialling, self.phone, self.link),
                    *(self.live, self.fleet, self.health, self.commands),
                    *(self.doors, self.door_reports),
                )
                for part in parts:
                    tasks.create_task(part.run())
                log.info(
                    "agent works",
                    device_id=self.settings.device_id,
                    identity=self.settings.identity,
                )
                await self.link.wait_connected()
                ready()
        finally:
            self.panel.close()

    def _follow_settings(self, _: ConfigurableSettings, now: ConfigurableSettings) -> None:
        self.device.call_waiting = now.behaviour.call_waiting
        self.device.use_sound(self._sound if now.audio.enabled else None)
        if self._card is not None:
            self._card.use(now.audio)

    def _is_idle(self) -> bool:
        """Whether nobody is rung, called or let in: the moment to rewire."""
        door = self.panel.door if hasattr(self, "panel") else None  # while it is being built: None
        return not self.device.calls and not (door is not None and door.is_open)

    def _call_now(self) -> CallNow:
        call = self.phone.call
        return "idle" if call is None else call.status.value

    def _sound_faults(self) -> Iterable[Fault]:
        fault = None if self._card is None else self._card.fault
        return () if fault is None else (Fault(part="audio", reason=fault[:512]),)

    def _tell_of_ring_tone(self, fault: str | None) -> None:
        self.fleet.report_fault("audio.ring_tone", fault)
        self.health.report_soon()

    def _ring(self, on: bool) -> bool:
        ringer = self.panel.ringer
        if ringer is None:
            return False
        ringer.start() if on else ringer.stop()
        return True

    async def _ice_servers(self) -> Sequence[IceServer]:
        return await told_and_configured(self.link, self.live.now.ice_servers)


def _now() -> datetime:
    return datetime.now(UTC)


async def run_agent(
    settings: AgentSettings,
    stop: asyncio.Event,
    *,
    pin_factory: Factory | None = None,
    card: SoundCard | None = None,
    allow_loopback: bool = False,
    ready: Callable[[], None] = lambda: None,
    state: Path | None = None,
    set_log_level: Callable[[str], None] = lambda _: None,
) -> None:
    """Runs one agent until `stop` is set; as `Agent`. `state` is the folder where it keeps the fleet's
    layers and wrong door codes, None for nowhere; `set_log_level` is called at the start and when the
    level changes."""
    last_good = wrong_codes = None
    if state is not None:
        last_good = await asyncio.to_thread(LastGood, state, settings.device_id)
        wrong_codes = await asyncio.to_thread(WrongCodes, state, settings.device_id)
    agent = Agent(
        settings,
        pin_factory=pin_factory,
        last_good=last_good,
        wrong_codes=wrong_codes,
        card=card,
        allow_loopback=allow_loopback,
    )
    set_log_level(agent.live.now.log_level)
    agent.live.watch(lambda _, now: set_log_level(now.log_level))
    collector = Collector()
    agent.phone.watch(lambda _: None if agent.device.calls else collector.look())

    def works() -> None:
        collector.start()
        ready()

    async with asyncio.TaskGroup() as tasks:
        working = tasks.create_task(agent.run(works))
        await stop.wait()
        working.cancel()
    log.info("agent stopped", device_id=settings.device_id)
