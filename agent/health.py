"""How this device is, retained on its telemetry topic at the pace that is configured, and whenever a
call has ended."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import datetime

import structlog

from agent.call_record import CallRecord, CallStatus
from agent.fleet import Fleet, Transport
from agent.live_settings import LiveSettings
from agent.machine import Machine
from agent.software import SOFTWARE
from broker.session import NotConnected, Sleep
from config.agent import ConfigurableSettings
from config.telemetry import CallNow, DoorNow, Fault, LastCall, Telemetry
from signaling.identifiers import DeviceId
from signaling.topics import telemetry_topic

log = structlog.get_logger(__name__)

_TIMES_HEARD = 16
_REASON_LENGTH = 512


class HealthReports:
    """A device's health reports. The first follows the first connection.

    Args:
        device_id: Which device.
        transport: Its MQTT session.
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
        transport: Transport,
        live: LiveSettings,
        *,
        now: Callable[[], datetime],
        call: Callable[[], CallNow],
        fleet: Fleet,
        machine: Machine | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._device_id = device_id
        self._topic = telemetry_topic(DeviceId(device_id))
        self._transport = transport
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
        transport.on_connected(self._begin)
        transport.on_disconnected(self._is_up.clear)
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
        await self._transport.publish(self._topic, document, retain=True)
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
