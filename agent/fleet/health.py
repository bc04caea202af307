"""How this device is: retained on its telemetry topic at the pace that is configured, and told whenever a
call has ended.

How the machine is (`Machine`) is read from Linux's /proc and /sys; what it does not have, or does not let
us read, is None. No library: psutil would bring a compiled dependency to every Pi for eight numbers, and
does not know the Wi-Fi's signal.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import structlog

from bellwire.agent.calls.record import CallRecord, CallStatus
from bellwire.agent.fleet.follower import FleetFollower
from bellwire.agent.fleet.live_settings import LiveSettings
from bellwire.agent.link import SOFTWARE
from bellwire.broker.session.session import NotConnected, Session
from bellwire.config.agent.settings import ConfigurableSettings
from bellwire.config.agent.telemetry import CallNow, DoorNow, Fault, LastCall, Telemetry
from bellwire.config.waiting import Sleep
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import telemetry_topic


@dataclass(frozen=True, slots=True)
class Readings:
    """One look at the machine; the fields are those of :class:`config.agent.telemetry.Telemetry`."""

    boot_s: float | None
    cpu_percent: float | None
    load_1m: float | None
    temperature_c: float | None
    memory_percent: float | None
    agent_rss_mb: float | None
    disk_percent: float | None
    wifi_signal_dbm: float | None


class Machine:
    """This machine. Its method blocks for as long as a few small reads take.

    Args:
        root: Where /proc and /sys are; a test has its own.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._ticks = (0, 0)

    def look(self) -> Readings:
        """How it is now; the processor's share is since the look before."""
        return Readings(
            boot_s=_tried(lambda: float(self._words("proc/uptime")[0])),
            cpu_percent=_tried(self._cpu_percent),
            load_1m=_tried(lambda: float(self._words("proc/loadavg")[0])),
            temperature_c=_tried(self._temperature_c),
            memory_percent=_tried(self._memory_percent),
            agent_rss_mb=_tried(self._agent_rss_mb),
            disk_percent=_tried(self._disk_percent),
            wifi_signal_dbm=_tried(self._wifi_signal_dbm),
        )

    def _words(self, file: str) -> list[str]:
        return (self._root / file).read_text().split()

    def _cpu_percent(self) -> float:
        """proc(5), /proc/stat: user nice system idle iowait irq softirq steal, in ticks."""
        ticks = [int(word) for word in self._words("proc/stat")[1:9]]
        busy, total = sum(ticks) - ticks[3] - ticks[4], sum(ticks)
        busy_before, total_before = self._ticks
        self._ticks = (busy, total)
        share = (busy - busy_before) / max(1, total - total_before)
        return round(100 * min(1.0, max(0.0, share)), 1)

    def _temperature_c(self) -> float:
        zones = sorted((self._root / "sys/class/thermal").glob("thermal_zone*/temp"))
        return max(int(zone.read_text()) for zone in zones) / 1000

    def _memory_percent(self) -> float:
        words = self._words("proc/meminfo")
        total, free = (int(words[words.index(n) + 1]) for n in ("MemTotal:", "MemAvailable:"))
        return round(100 * (total - free) / total, 1)

    def _agent_rss_mb(self) -> float:
        return round(int(self._words("proc/self/statm")[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)

    def _disk_percent(self) -> float:
        disk = os.statvfs(self._root)
        return round(100 * (1 - disk.f_bavail / disk.f_blocks), 1)

    def _wifi_signal_dbm(self) -> float:
        """wireless extensions, /proc/net/wireless: two lines of header, then interface, status, link
        quality, signal level in dBm, ..."""
        lines = (self._root / "proc/net/wireless").read_text().splitlines()[2:]
        return max(float(line.split()[3]) for line in lines)


def _tried(read: Callable[[], float]) -> float | None:
    try:
        return read()
    except (OSError, ValueError, IndexError, ZeroDivisionError):
        return None


log = structlog.get_logger(__name__)

_TIMES_HEARD = 16
_REASON_LENGTH = 512


class HealthReports:
    """A device's health reports. The first follows the first connection.

    Args:
        device_id: Which device.
        session: Its MQTT session.
        live: The pace.
        now: Tells the time, with its zone.
        call: Where its call stands.
        fleet: What it runs, and what of that is faulty.
        machine: The machine it is.
        sleep: Waits.
    """

    def __init__(
        self,
        device_id: str,
        session: Session,
        live: LiveSettings,
        *,
        now: Callable[[], datetime],
        call: Callable[[], CallNow],
        fleet: FleetFollower,
        machine: Machine | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._device_id = device_id
        self._topic = telemetry_topic(DeviceId(device_id))
        self._session = session
        self._live = live
        self._now = now
        self._call = call
        self._fleet = fleet
        self._machine = machine or Machine()
        self._sleep = sleep
        self._began = time.monotonic()
        self._ahead_s: deque[float] = deque(maxlen=_TIMES_HEARD)
        self._sources: list[Callable[[], Iterable[Fault]]] = []
        self._door: Callable[[], DoorNow | None] = lambda: None
        self._last_call: LastCall | None = None
        self._told: tuple[Fault, ...] = ()
        self._due = asyncio.Event()
        self._is_up = asyncio.Event()
        session.on_connected(self._begin)
        session.on_disconnected(self._is_up.clear)
        live.watch(self._follow_pace)

    def add_faults(self, source: Callable[[], Iterable[Fault]]) -> None:
        """Has each report tell the faults that `source` names then."""
        self._sources.append(source)

    def add_door(self, source: Callable[[], DoorNow | None]) -> None:
        """Has each report tell how `source` says the door's codes stand then."""
        self._door = source

    def report_now(self) -> None:
        """Something has happened that is worth a report before the next one is due."""
        self._due.set()

    def hear_time(self, at: datetime) -> None:
        """Takes the relay's time of a message that has just come. A message takes its time, and may
        have waited in the broker, so that of the last few the smallest difference is the clocks'."""
        self._ahead_s.append((self._now() - at).total_seconds())

    def hear_call(self, call: CallRecord) -> None:
        """Takes a call as it stands now. One that has ended is reported at once."""
        if call.status is not CallStatus.CLOSED:
            return
        self._last_call = LastCall(
            call_sid=call.sid,
            direction=call.direction.value,
            ended_at=self._now(),
            ended_because=call.ended_because[:_REASON_LENGTH],
        )
        self._due.set()

    def report_soon(self) -> None:
        """Has what has just changed reported without waiting for the pace, once the broker is there."""
        self._due.set()

    async def run(self) -> None:
        """Reports until cancelled."""
        while True:
            await self._is_up.wait()
            self._due.clear()
            if self._live.now.telemetry.enabled:
                try:
                    await self._report()
                except NotConnected as error:
                    log.info("health not reported", error=str(error))
            await self._pause()

    async def telemetry(self) -> Telemetry:
        """How the device is now."""
        readings = await asyncio.to_thread(self._machine.look)
        return Telemetry(
            device_id=self._device_id,
            at=self._now(),
            software=SOFTWARE,
            uptime_s=round(time.monotonic() - self._began, 1),
            **asdict(readings),
            clock_skew_s=round(min(self._ahead_s), 3) if self._ahead_s else None,
            config_hash=self._fleet.verdict.hash,
            call=self._call(),
            last_call=self._last_call,
            door=self._door(),
            faults=self._faults(),
        )

    def _faults(self) -> tuple[Fault, ...]:
        return tuple(fault for source in (self._fleet.faults, *self._sources) for fault in source())

    async def _report(self) -> None:
        telemetry = await self.telemetry()
        document = telemetry.model_dump_json(exclude_none=True).encode()
        await self._session.publish(self._topic, document, retain=True)
        self._told = telemetry.faults

    async def _pause(self) -> None:
        """Waits until the next report is due, by a pace that may change meanwhile."""
        async with asyncio.TaskGroup() as tasks:
            ending = tasks.create_task(self._end_pause())
            await self._due.wait()
            ending.cancel()

    async def _end_pause(self) -> None:
        await self._sleep(self._live.now.telemetry.interval_s)
        self._due.set()

    async def _begin(self) -> None:
        self._is_up.set()
        if self._faults() != self._told:  # it may not be there long enough for the pace
            self._due.set()

    def _follow_pace(self, before: ConfigurableSettings, now: ConfigurableSettings) -> None:
        if before.telemetry != now.telemetry:
            self._due.set()
