"""A station of parts on simulated pins, whose conduct and dialling have a clock of the test's own; its
relay is scripted."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from bellwire.agent.calls.call import Call, CallerInfo, CallStatus
from bellwire.agent.calls.device import Device
from bellwire.agent.door.doors import Doors
from bellwire.agent.door.reports import DoorReporter
from bellwire.agent.door.wrong_codes import WrongCodes
from bellwire.agent.fleet.live_settings import LiveSettings
from bellwire.agent.link import Link
from bellwire.agent.media.sound import Tone
from bellwire.agent.station.dialling import Dialling
from bellwire.agent.station.incoming import IncomingCalls
from bellwire.agent.station.phone import Phone
from bellwire.config.agent.settings import ConfigurableSettings
from bellwire.hardware.panel.panel import Panel
from bellwire.hardware.panel.simulated_pins import SimulatedPins
from bellwire.signaling.calls.events import CallReceived, CallTimeout
from bellwire.signaling.identifiers import DeviceId, Identity
from tests.agent.desk import PANEL, Exchange
from tests.agent.scripted_relay import ScriptedRelay, about, fresh_sid, invite, scripted_relay
from tests.agent.talking import ArrayVoice
from tests.conftest import PATIENCE_S
from tests.hardware.conftest import VirtualTime
from tests.system.scene import Record

WIRED: dict[str, Any] = {**PANEL.model_dump(exclude_unset=True), "door": {"pin": 25, "open_s": 60}}


class Speaker(ArrayVoice):
    """Notes what tones are to be played, and how loud; None for silence."""

    def __init__(self) -> None:
        super().__init__(np.zeros(480, np.int16))
        self.sounds = Record()

    def start_tone(self, tone: Tone, volume: float = 1.0) -> None:
        self.sounds.note((tone, volume))

    def stop_tone(self) -> None:
        self.sounds.note(None)


def settings_of(**more: Any) -> ConfigurableSettings:  # noqa: ANN401 - as a configuration file says it
    return ConfigurableSettings.model_validate({"panel": WIRED, **more})


@dataclass
class Post:
    """The station, its relay, and what it did."""

    live: LiveSettings
    device: Device
    panel: Panel
    pins: SimulatedPins
    conduct: IncomingCalls
    phone: Phone
    doors: Doors
    relay: ScriptedRelay
    time: VirtualTime
    speaker: Speaker
    known: dict[str, "asyncio.Future[CallerInfo | None]"]
    """What is learnt of a caller, by the call's SID."""
    statuses: Record = field(default_factory=Record)
    edges: list[bool] = field(default_factory=list)
    """Each change of the bell's pin."""
    given_up: Record = field(default_factory=Record)
    """Each pause before a call button calls again that was broken off, in seconds."""
    _heard: Record = field(default_factory=Record)

    def behave(self, **behaviour: Any) -> None:  # noqa: ANN401
        """Has the settings say so from now on."""
        self.live.take(settings_of(behaviour=behaviour))

    async def call_in(self, **more: Any) -> str:  # noqa: ANN401
        """An invite that rings; returns its SID."""
        sid = fresh_sid()
        await self.relay.say(invite(sid, **more))
        await self.until(sid, CallStatus.PENDING)
        await self.relay.asked("received", sid)
        return sid

    async def until(self, sid: str, status: CallStatus) -> None:
        await self.statuses.until(lambda noted: noted == (sid, status), f"{sid} {status}")

    async def has_taken_all(self) -> None:
        """Waits until it is through with all that was said to it so far."""
        marker = CallTimeout(**about(fresh_sid()))
        await self.relay.say(marker)
        await self._heard.until(lambda one: one == marker.id, "the marker")
        await self.time.settle()

    def hears(self, event_id: str) -> None:
        self._heard.note(event_id)

    async def press(self, name: str) -> None:
        buttons = dict(self.live.now.panel.buttons())
        await self.pins.tap(buttons[name])

    def call(self, sid: str) -> Call:
        return next(call for call in self.device.calls if call.sid == sid)


began = datetime.now(UTC)


@asynccontextmanager
async def post_at(
    exchange: Exchange,
    *,
    kept: WrongCodes | None = None,
    **behaviour: Any,  # noqa: ANN401
) -> AsyncIterator[Post]:
    address = await exchange.admit()
    name = DeviceId(str(address.username))
    live = LiveSettings(settings_of(behaviour=behaviour))
    time, speaker = VirtualTime(), Speaker()
    known: dict[str, asyncio.Future[CallerInfo | None]] = {}

    def verify(invite: CallReceived, _: timedelta) -> Awaitable[CallerInfo | None]:
        return known.setdefault(invite.call_sid, asyncio.get_running_loop().create_future())

    def now() -> datetime:
        return began + timedelta(seconds=time.now)

    async def pause(seconds: float) -> None:
        try:
            await time.sleep(seconds)
        except asyncio.CancelledError:
            post.given_up.note(seconds)
            raise

    async with AsyncExitStack() as stack:
        pins = stack.enter_context(SimulatedPins(live.now.panel))
        relay = await stack.enter_async_context(scripted_relay(exchange.broker.address, name))
        link = Link(address, name)
        device = Device(Identity("desk"), name, link, now=now, verify_caller=verify)
        panel = Panel(live.now.panel, pin_factory=pins)
        stack.callback(panel.close)
        conduct = IncomingCalls(live, device, now=now, sleep=time.sleep)
        dialling = Dialling(live, device, sleep=pause)
        phone = Phone(device, panel, conduct, dialling, speaker)
        door_reports = DoorReporter(link)
        doors = Doors(
            live,
            device,
            panel,
            wrong_codes=kept,
            clock=time.clock,
            on_lock_out=door_reports.add_lock_out,
            on_not_verified=door_reports.add_not_verified,
            sleep=time.sleep,
        )
        post = Post(live, device, panel, pins, conduct, phone, doors, relay, time, speaker, known)
        device.on_change(lambda call: post.statuses.note((call.sid, call.status())))
        link.listen(lambda event, _: post.hears(event.id))
        pins.watch(18, lambda high, _: post.edges.append(high))
        live.watch(lambda _, now: setattr(device, "call_waiting", now.behaviour.call_waiting))
        async with asyncio.TaskGroup() as tasks:
            parts: tuple[Callable[[], Any], ...] = (
                *(panel.run, device.run, conduct.run, dialling.run),
                *(phone.run, link.run, doors.run, door_reports.run),
            )
            working = [tasks.create_task(run()) for run in parts]
            async with asyncio.timeout(PATIENCE_S):
                await panel.ready()
                await link.wait_connected()
            yield post
            for task in working:
                task.cancel()
