"""The panel: every part that is wired to a station, and what people do to it as one event stream.

It knows pins and presses, not calls. gpiozero reports edges on threads of its own;
:mod:`hardware.panel.button` is the one place where they cross over to the event loop.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from gpiozero import Factory

from bellwire.config.agent.panel import ButtonSettings, PanelSettings
from bellwire.config.waiting import Sleep
from bellwire.hardware.panel.button import Contact, Gesture
from bellwire.hardware.panel.door_lock import DoorLock, why_no_door
from bellwire.hardware.panel.keypad import Keypad
from bellwire.hardware.panel.pins import PanelError
from bellwire.hardware.panel.ringer import Ringer
from bellwire.hardware.panel.status_light import StatusLight

__all__ = [
    "AnswerPressed",
    "CallPressed",
    "HangUpPressed",
    "HookLifted",
    "HookReplaced",
    "KeyPressed",
    "MutePressed",
    "Panel",
    "PanelError",
    "PanelEvent",
]

log = logging.getLogger(__name__)

EVENTS_KEPT = 64


@dataclass(frozen=True)
class CallPressed:
    """The call button `name` was pressed; `held` if for the long press time."""

    name: str
    held: bool


@dataclass(frozen=True)
class AnswerPressed:
    """The answer button was pressed; `held` if for the long press time."""

    held: bool


@dataclass(frozen=True)
class HangUpPressed:
    """The hang-up button was pressed; `held` if for the long press time."""

    held: bool


@dataclass(frozen=True)
class MutePressed:
    """The mute button was pressed; `held` if for the long press time."""

    held: bool


@dataclass(frozen=True)
class HookLifted:
    """The handset was lifted."""


@dataclass(frozen=True)
class HookReplaced:
    """The handset was put back."""


@dataclass(frozen=True)
class KeyPressed:
    """A key of the keypad was pressed: ``0`` to ``9``, ``*`` or ``#``."""

    key: str


PanelEvent = (
    CallPressed
    | AnswerPressed
    | HangUpPressed
    | MutePressed
    | HookLifted
    | HookReplaced
    | KeyPressed
)


class Panel:
    """Represents all that is wired to one station; each part's class says how to wire it.

    A short press is reported when the button is let go, a long one (``held=True``) once, as soon
    as its time is reached. What is pressed before :meth:`run` is not reported.

    The following example rings while the button on GPIO4 calls for it::

        import asyncio

        from bellwire.config.agent.panel import PanelSettings
        from bellwire.hardware.panel.panel import CallPressed, HangUpPressed, Panel

        async def main():
            panel = Panel(
                PanelSettings.model_validate(
                    {
                        "call_buttons": {"front-door": {"pin": 4, "to": "alice"}},
                        "hang_up": {"pin": 5},
                        "ringer": {"pin": 17},
                    }
                )
            )
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(panel.run())
                    async for event in panel.events():
                        match event:
                            case CallPressed(name="front-door"):
                                panel.ringer.start()
                            case HangUpPressed():
                                panel.ringer.stop()
            finally:
                panel.close()

    :param settings: the wiring
    :param pin_factory: gpiozero's way to the pins (default None: gpiozero's own default;
        :class:`hardware.panel.simulated_pins.SimulatedPins` needs no hardware)
    :param sleep: waits for so many seconds (default :func:`asyncio.sleep`)
    :param root: the folder with the kernel's word on whether it keeps a pin's level
        (:mod:`hardware.panel.pins`; default None: ``/``, or nowhere with a `pin_factory`, whose
        pins may not be the kernel's)
    :raises PanelError: a pin could not be claimed; those claimed before are given back

    .. attribute:: ringer, status_light, door

        The part, or None where it is not wired.

    .. attribute:: door_fault

        Why the door is not used though it is wired, and what to do; None where it is, or is not wired.
    """

    def __init__(
        self,
        settings: PanelSettings,
        *,
        pin_factory: Factory | None = None,
        sleep: Sleep = asyncio.sleep,
        root: Path | None = None,
    ) -> None:
        self._sleep = sleep
        self._root = Path("/") if root is None and pin_factory is None else root
        self._group: asyncio.TaskGroup | None = None
        self._at_work: list[asyncio.Task[None]] = []
        self._events: asyncio.Queue[PanelEvent] = asyncio.Queue(EVENTS_KEPT)
        self._events_dropped = 0
        self._working = asyncio.Event()
        self._pin_factory = pin_factory
        self._parts: list[_Part] = []
        self._hook: Contact | None = None
        self.ringer: Ringer | None = None
        self.status_light: StatusLight | None = None
        self.door: DoorLock | None = None
        self.door_fault: str | None = None
        self._built = ExitStack()
        self._settings = settings
        self._build(settings)

    @property
    def is_hook_lifted(self) -> bool:
        """True while the handset is off its hook; False where no hook switch is wired."""
        return self._hook is not None and self._hook.is_active

    @property
    def events_dropped(self) -> int:
        """How many events were dropped because nobody read them in time."""
        return self._events_dropped

    async def run(self) -> None:
        """Keep all parts working until cancelled; then every output is inactive, the door locked.

        :raises ExceptionGroup: a part failed, which stops all of them
        """
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                self._set_to_work()
                await asyncio.sleep(0)  # each part takes its first step
                self._working.set()
                await asyncio.get_running_loop().create_future()
            finally:
                self._group = None

    def rewire(self, settings: PanelSettings) -> None:
        """Give all pins back and build every part anew, at once, whether :meth:`run` runs or not.

        The status light goes on with its pattern. Call it while nothing rings and the door is
        locked: a part begins at rest. Where the new wiring cannot be had, the old one is back.

        :raises PanelError: a pin of the new wiring could not be claimed
        """
        pattern = None if self.status_light is None else self.status_light.pattern
        for task in self._at_work:
            task.cancel()
        self._built.close()
        try:
            self._build(settings)
            self._settings = settings
        except PanelError:
            self._build(self._settings)
            raise
        finally:
            if self.status_light is not None and pattern is not None:
                self.status_light.show(pattern)
            self._set_to_work()

    async def ready(self) -> None:
        """Wait until :meth:`run` has every part working: presses count, and the door may open."""
        await self._working.wait()

    async def events(self) -> AsyncIterator[PanelEvent]:
        """What people do, in order, until cancelled.

        Each event goes to one reader. While nobody reads, the latest 64 are kept.
        """
        while True:
            yield await self._events.get()

    def close(self) -> None:
        """Make every output inactive, lock the door and give all pins back.

        Closing twice is the same as once. End :meth:`run` first.
        """
        self._built.close()

    def _build(self, settings: PanelSettings) -> None:
        self._parts = []
        self._hook = self.ringer = self.status_light = self.door = self.door_fault = None
        with ExitStack() as built:
            self._built = built
            self._add_inputs(settings, self._sleep)
            self._add_outputs(settings, self._sleep)
            self._built = built.pop_all()

    def _set_to_work(self) -> None:
        if self._group is not None:
            self._at_work = [
                self._group.create_task(part.run(), name=f"panel {type(part).__name__}")
                for part in self._parts
            ]

    def _add_inputs(self, settings: PanelSettings, sleep: Sleep) -> None:
        for name, call_button in settings.call_buttons.items():
            pressed = CallPressed(name, held=False), CallPressed(name, held=True)
            self._add_button(f"call_buttons.{name}", call_button, *pressed)
        for part, button, event in (
            ("answer", settings.answer, AnswerPressed),
            ("hang_up", settings.hang_up, HangUpPressed),
            ("mute", settings.mute, MutePressed),
        ):
            if button is not None:
                self._add_button(part, button, event(held=False), event(held=True))
        if settings.hook is not None:
            self._hook = self._add_contact(
                "hook",
                settings.hook,
                {Gesture.ACTIVATED: HookLifted(), Gesture.DEACTIVATED: HookReplaced()},
            )
        if settings.keypad is not None:
            self._add(
                Keypad(
                    settings.keypad,
                    lambda key: self._publish(KeyPressed(key)),
                    pin_factory=self._pin_factory,
                    sleep=sleep,
                )
            )

    def _add_outputs(self, settings: PanelSettings, sleep: Sleep) -> None:
        pins = self._pin_factory
        if settings.status_light is not None:
            light = StatusLight(settings.status_light, pin_factory=pins, sleep=sleep)
            self.status_light = self._add(light)
        if settings.ringer is not None:
            self.ringer = self._add(Ringer(settings.ringer, pin_factory=pins, sleep=sleep))
        if settings.door is None:
            return
        self.door_fault = None if self._root is None else why_no_door(self._root)
        if self.door_fault is not None:
            log.error("door not used: %s", self.door_fault)
        else:  # the last to be built is the first to be closed
            self.door = self._add(DoorLock(settings.door, pin_factory=pins))

    def _add_button(
        self, part: str, settings: ButtonSettings, tapped: PanelEvent, held: PanelEvent
    ) -> None:
        self._add_contact(part, settings, {Gesture.TAPPED: tapped, Gesture.HELD: held})

    def _add_contact(
        self, part: str, settings: ButtonSettings, meanings: Mapping[Gesture, PanelEvent]
    ) -> Contact:
        def publish_meaning(gesture: Gesture) -> None:
            if gesture in meanings:
                self._publish(meanings[gesture])

        return self._add(Contact(part, settings, publish_meaning, pin_factory=self._pin_factory))

    def _add(self, part: "PartT") -> "PartT":
        self._built.callback(part.close)
        self._parts.append(part)
        return part

    def _publish(self, event: PanelEvent) -> None:
        if self._events.full():
            dropped = self._events.get_nowait()
            self._events_dropped += 1
            log.warning(
                "nobody reads the panel: dropped %s, %d so far", dropped, self._events_dropped
            )
        self._events.put_nowait(event)


class _Part(Protocol):
    async def run(self) -> None: ...

    def close(self) -> None: ...


PartT = TypeVar("PartT", bound=_Part)
