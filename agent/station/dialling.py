"""The calls that call buttons make: whom they call, again when nobody answers, and whom then."""

import asyncio
from dataclasses import dataclass

import structlog

from bellwire.agent.calls.call import Call, CallStatus
from bellwire.agent.calls.device import Device, To
from bellwire.agent.fleet.live_settings import LiveSettings
from bellwire.config.agent.behaviour import BehaviourSettings
from bellwire.config.agent.panel import CallButtonSettings
from bellwire.config.waiting import Sleep
from bellwire.signaling.wire.operations import GroupReference

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Press:
    """What a press of a call button has come to. `forwarded`: its people have not answered, and it
    calls whom it forwards to."""

    button: str
    calls_made: int = 0
    forwarded: bool = False


class Dialling:
    """One device's call buttons. One press is at work at a time.

    Args:
        live: Whom they call, how long, and how often.
        device: Makes the calls.
        sleep: Waits.
    """

    def __init__(
        self,
        live: LiveSettings,
        device: Device,
        *,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._live = live
        self._device = device
        self._sleep = sleep
        self._call: Call | None = None
        self._press: _Press | None = None
        self._pause: asyncio.Task[None] | None = None
        self._tasks: asyncio.TaskGroup | None = None
        device.on_change(self._follow)

    async def run(self) -> None:
        """Calls again, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                await asyncio.Event().wait()
            finally:
                self._tasks = None

    def dial(self, button: str) -> None:
        """Calls whom a call button names. Without effect in a call."""
        if self._device.calls:
            log.info("call button ignored: this device is in a call", button=button)
            return
        self.give_up()
        self._call_people(_Press(button))

    def give_up(self) -> None:
        """Does not call again, where that was about to be done."""
        pause, self._pause = self._pause, None
        if pause is not None:
            pause.cancel()
            log.info("not called again: given up")

    def _call_people(self, press: _Press) -> None:
        settings = self._live.now
        target = settings.panel.call_buttons.get(press.button)
        to = None if target is None else _people(target, press)
        if target is None or to is None:
            return  # the settings have changed since
        self._press = _Press(press.button, press.calls_made + 1, press.forwarded)
        self._call = self._device.connect(
            to,
            target.custom_parameters,
            timeout_s=settings.call_timeout_s,
            early_media=target.early_media,
        )

    def _follow(self, call: Call) -> None:
        if call is not self._call:
            self.give_up()  # somebody calls here: whoever pressed is no longer alone
        elif call.status() is CallStatus.CLOSED and self._press is not None:
            self._call = None
            if call.signalling.unanswered:
                self._go_on(self._press)

    def _go_on(self, press: _Press) -> None:
        """What follows a call that nobody has answered."""
        settings = self._live.now
        button = settings.panel.call_buttons.get(press.button)
        pause_s = None
        if not press.forwarded:
            pause_s = redial_in_s(settings.behaviour, press.calls_made, unanswered=True)
        if pause_s is None and button is not None and not press.forwarded:
            press = _Press(press.button, press.calls_made, forwarded=True)
            pause_s = None if _people(button, press) is None else 0.0
        if pause_s is None:
            return
        log.info("nobody answered", button=press.button, calls_again_in_s=pause_s)
        if self._tasks is not None:
            self._pause = self._tasks.create_task(self._call_again(press, pause_s))

    async def _call_again(self, press: _Press, pause_s: float) -> None:
        await self._sleep(pause_s)
        self._pause = None
        if not self._device.calls:
            self._call_people(press)


def redial_in_s(settings: BehaviourSettings, calls_made: int, *, unanswered: bool) -> float | None:
    """In how many seconds a call button calls its people again; None: not again.

    Args:
        settings: How this device behaves.
        calls_made: How often this press has called them.
        unanswered: Whether the last call ended because nobody answered in time. One that was
            rejected, cancelled or failed is not repeated.
    """
    if not unanswered or calls_made > settings.redial.times:
        return None
    return settings.redial.pause_s


def _people(button: CallButtonSettings, press: _Press) -> To | None:
    """Whom a press calls now; None for nobody."""
    to, group = (
        (button.forward_to, button.forward_group) if press.forwarded else (button.to, button.group)
    )
    if group is not None:
        return GroupReference(group=group)
    return to or None
