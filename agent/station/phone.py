"""What a station does with its device: rings when it is called; answers, rejects, calls and hangs up
when pressed. One call is at hand at a time.

The panel follows at once; what the relay is told, and how often, is the device's business. The panel is
wired anew when the settings in force say so (`panel_of`).
"""

from collections.abc import Callable
from pathlib import Path

import structlog
from gpiozero import Factory

from bellwire.agent.calls.call import Call, CallRecord, CallStatus
from bellwire.agent.calls.device import Device
from bellwire.agent.fleet.live_settings import LiveSettings, wiring_of
from bellwire.agent.media.sound import Tone, Voice
from bellwire.agent.station.dialling import Dialling
from bellwire.agent.station.incoming import IncomingCalls
from bellwire.config.agent.panel import PanelSettings
from bellwire.config.agent.settings import ConfigurableSettings
from bellwire.hardware.panel.panel import (
    AnswerPressed,
    CallPressed,
    HangUpPressed,
    HookLifted,
    HookReplaced,
    KeyPressed,
    MutePressed,
    Panel,
    PanelError,
    PanelEvent,
)
from bellwire.hardware.panel.status_light import Pattern

log = structlog.get_logger(__name__)

Watcher = Callable[[CallRecord], None]


class Phone:
    """One station.

    Args:
        device: Its calls.
        panel: Its buttons, ringer and light.
        incoming: Says how loud a call rings.
        dialling: Its call buttons.
        voice: Plays its ring tone; None where it has no sound.
    """

    def __init__(
        self,
        device: Device,
        panel: Panel,
        incoming: IncomingCalls,
        dialling: Dialling,
        voice: Voice | None = None,
    ) -> None:
        self._device = device
        self._panel = panel
        self._incoming = incoming
        self._dialling = dialling
        self._voice = voice
        self._watchers: list[Watcher] = []
        self._tone: tuple[Tone, float] | None = None
        device.on_change(self._follow)
        incoming.on_loudness(self._sound_out)
        device.on_connection(lambda _: self.show_status())

    @property
    def call(self) -> CallRecord | None:
        """The call at hand as it stands now, None while idle."""
        call = self._at_hand
        return None if call is None else call.record

    def watch(self, watcher: Watcher) -> None:
        """Has `watcher` called with each call as it stands at each change of its status."""
        self._watchers.append(watcher)

    async def run(self) -> None:
        """Follows the panel until cancelled; then the ringer is silent."""
        self.show_status()
        try:
            async for event in self._panel.events():
                self._take_press(event)
        finally:
            self._ring(bell=False)

    # What people do

    @property
    def _at_hand(self) -> Call | None:
        """The call that buttons mean: one that rings before one that is on."""
        calls = self._device.calls
        ringing = (call for call in calls if call.status() is CallStatus.PENDING)
        return next(ringing, calls[-1] if calls else None)

    def _take_press(self, event: PanelEvent) -> None:
        call = self._at_hand
        self._dialling.give_up()
        match event:
            case AnswerPressed() | HookLifted() if call is not None:
                call.accept()
            case HangUpPressed() | HookReplaced() if call is not None:
                call.disconnect()
            case MutePressed() if call is not None:
                call.mute(not call.is_muted)
                self.show_status()
            case KeyPressed(key=key) if call is not None:
                call.send_digits(key)
            case CallPressed(name=name):
                self._dialling.dial(name)
            case _:
                log.info("nothing to do for this press", pressed=type(event).__name__)

    # What is heard and seen

    def _follow(self, call: Call) -> None:
        self._sound_out()
        self.show_status()
        record = call.record
        for watcher in self._watchers:
            watcher(record)

    def _sound_out(self) -> None:
        """The bell and the tone that go with how the calls stand, as loud as they may be now."""
        calls = self._device.calls
        pending = [call for call in calls if call.status() is CallStatus.PENDING]
        volume = max(map(self._incoming.ring_volume, pending), default=0.0)
        if volume > 0 and len(pending) == len(calls):
            self._ring(bell=True, tone=Tone.RING, volume=volume)
        elif volume > 0:
            self._ring(bell=False, tone=Tone.CALL_WAITING)
        elif any(call.status() is CallStatus.RINGING for call in calls):
            self._ring(bell=False, tone=Tone.RINGBACK)
        else:
            self._ring(bell=False)

    def _ring(self, *, bell: bool, tone: Tone | None = None, volume: float = 1.0) -> None:
        ringer = self._panel.ringer
        if ringer is not None and ringer.is_ringing != bell:
            ringer.start() if bell else ringer.stop()
        sounds = None if tone is None else (tone, volume)
        if self._voice is None or sounds == self._tone:
            return
        self._tone = sounds
        self._voice.stop_tone()
        if tone is not None:
            self._voice.start_tone(tone, volume)

    def show_status(self) -> None:
        """Has the light show how the station stands."""
        if self._panel.status_light is None:
            return
        call = self._at_hand
        if call is None:
            pattern = Pattern.IDLE if self._device.connected else Pattern.OFFLINE
        elif call.status() is CallStatus.PENDING:
            pattern = Pattern.RINGING
        elif call.is_muted:
            pattern = Pattern.MUTED
        else:
            pattern = Pattern.IN_CALL
        self._panel.status_light.show(pattern)


ReportFault = Callable[[str, str | None], None]


def panel_of(
    live: LiveSettings,
    fallback: PanelSettings,
    report_fault: ReportFault,
    *,
    pin_factory: Factory | None = None,
    root: Path | None = None,
) -> Panel:
    """A panel that is wired as the settings in force say, now and whenever they change. Where a pin of
    theirs cannot be had it stays as it was, at the start as the device's own file says (`fallback`),
    and the fault is reported: a device must not be lost to a layer.

    Raises:
        PanelError: a pin of the device's own file cannot be had.
    """
    try:
        panel = Panel(live.now.panel, pin_factory=pin_factory, root=root)
    except PanelError as error:
        if wiring_of(live.now.panel) == wiring_of(fallback):
            raise
        log.error("panel wired as the device's own file says", error=str(error))
        report_fault("panel", str(error))
        panel = Panel(fallback, pin_factory=pin_factory, root=root)

    def follow(before: ConfigurableSettings, now: ConfigurableSettings) -> None:
        if wiring_of(before.panel) == wiring_of(now.panel):
            return
        try:
            panel.rewire(now.panel)
        except PanelError as error:
            log.error("panel not rewired", error=str(error))
            report_fault("panel", str(error))
        else:
            report_fault("panel", None)

    live.watch(follow)
    return panel
