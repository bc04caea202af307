"""What a station does with its device: rings when it is called; answers, rejects, calls and hangs up
when pressed. One call is at hand at a time.

The panel follows at once; what the relay is told, and how often, is the device's business.
"""

from collections.abc import Callable

import structlog

from agent.call import Call, CallRecord, CallStatus
from agent.device import Device, To
from agent.live_settings import LiveSettings
from agent.voice import Tone, Voice
from hardware.panel import (
    AnswerPressed,
    CallPressed,
    HangUpPressed,
    HookLifted,
    HookReplaced,
    KeyPressed,
    MutePressed,
    Panel,
    PanelEvent,
)
from hardware.status_light import Pattern
from signaling.requests import GroupReference

log = structlog.get_logger(__name__)

Watcher = Callable[[CallRecord], None]


class Phone:
    """One station.

    Args:
        live: Whom its buttons call, and how long, as the fleet says now.
        device: Its calls.
        panel: Its buttons, ringer and light.
        voice: Plays its ring tone; None where it has no sound.
    """

    def __init__(
        self, live: LiveSettings, device: Device, panel: Panel, voice: Voice | None = None
    ) -> None:
        self._live = live
        self._device = device
        self._panel = panel
        self._voice = voice
        self._watchers: list[Watcher] = []
        self._tone: Tone | None = None
        device.on_change(self._follow)
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
            self._ring(bell=False, tone=None)

    # What people do

    @property
    def _at_hand(self) -> Call | None:
        """The call that buttons mean: one that rings before one that is on."""
        calls = self._device.calls
        ringing = (call for call in calls if call.status() is CallStatus.PENDING)
        return next(ringing, calls[-1] if calls else None)

    def _take_press(self, event: PanelEvent) -> None:
        call = self._at_hand
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
                self._dial(name)
            case _:
                log.info("nothing to do for this press", pressed=type(event).__name__)

    def _dial(self, button: str) -> None:
        if self._device.calls:
            log.info("call button ignored: this device is in a call", button=button)
            return
        settings = self._live.now
        target = settings.panel.call_buttons.get(button)
        if target is None:
            return  # pressed just before the panel was rewired
        to: To = target.to if target.group is None else GroupReference(group=target.group)
        self._device.connect(to, target.custom_parameters, timeout_s=settings.call_timeout_s)

    # What is heard and seen

    def _follow(self, call: Call) -> None:
        self._sound_out()
        self.show_status()
        record = call.record
        for watcher in self._watchers:
            watcher(record)

    def _sound_out(self) -> None:
        """The bell and the tone that go with how the calls stand."""
        statuses = [call.status() for call in self._device.calls]
        rings = CallStatus.PENDING in statuses
        waits = rings and any(status is not CallStatus.PENDING for status in statuses)
        if waits:
            self._ring(bell=False, tone=Tone.CALL_WAITING)
        elif rings:
            self._ring(bell=True, tone=Tone.RING)
        elif CallStatus.RINGING in statuses:
            self._ring(bell=False, tone=Tone.RINGBACK)
        else:
            self._ring(bell=False, tone=None)

    def _ring(self, *, bell: bool, tone: Tone | None) -> None:
        ringer = self._panel.ringer
        if ringer is not None and ringer.is_ringing != bell:
            ringer.start() if bell else ringer.stop()
        if self._voice is None or tone is self._tone:
            return
        self._tone = tone
        self._voice.stop_tone()
        if tone is not None:
            self._voice.start_tone(tone)

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
