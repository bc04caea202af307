"""A push button or the hook switch: debounces its contact, and tells a tap from a long press.

:class:`GestureReader` decides from stamped edges alone, so a busy event loop changes no verdict.
:class:`Contact` feeds it from a pin. gpiozero's ``Button`` is not used: it keeps a thread for each
button, and its bounce time loses edges (gpiozero #1039) or does nothing, by pin driver.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from enum import Enum, auto
from functools import partial

from gpiozero import DigitalInputDevice, Factory

from bellwire.config.agent.panel import ButtonSettings
from bellwire.hardware.panel.pins import claim


class Gesture(Enum):
    """What was done with a contact."""

    ACTIVATED = auto()  # it became active, and is past its bounces
    HELD = auto()  # it has been active for the long press time; once a press
    TAPPED = auto()  # it became inactive before that time
    DEACTIVATED = auto()  # it became inactive, after a tap or a hold


class GestureReader:
    """Turns edges into gestures. Times are seconds of any one clock.

    A level counts once it has held for `debounce_s`; a press is measured between the first edges
    of the two steady levels. A contact that is active at the start is taken as it is (a jammed
    button calls nobody), and its next press is the first.

    :param debounce_s: seconds a level must hold before it counts
    :param long_press_s: seconds from which a press is held
    :param active: the contact's level at the start
    """

    def __init__(self, *, debounce_s: float, long_press_s: float, active: bool) -> None:
        self._debounce_s = debounce_s
        self._long_press_s = long_press_s
        self._level = active
        self._level_since = 0.0
        self._is_active = active
        self._active_since = 0.0
        self._is_told = active  # whether this press needs no more telling

    @property
    def is_active(self) -> bool:
        """The contact's state, past its bounces."""
        return self._is_active

    @property
    def due(self) -> float | None:
        """When :meth:`wait_until` may find something, or None if only an edge can tell."""
        if self._level != self._is_active:
            return self._level_since + self._debounce_s
        if self._is_active and not self._is_told:
            return self._active_since + self._long_press_s
        return None

    def edge(self, at: float, active: bool) -> list[Gesture]:
        """Take in that the level became `active` at the time `at`; return what that completes."""
        gestures = self.wait_until(at)
        if active != self._level:
            self._level, self._level_since = active, at
        return gestures + self.wait_until(at)

    def wait_until(self, now: float) -> list[Gesture]:
        """Take in that there was no edge until `now`; return what that completes."""
        return [*self._settle(now), *self._count_hold(now)]

    def _settle(self, now: float) -> Iterator[Gesture]:
        if self._level == self._is_active or now < self._level_since + self._debounce_s:
            return
        self._is_active = self._level
        if self._is_active:
            self._active_since, self._is_told = self._level_since, False
            yield Gesture.ACTIVATED
        else:
            if not self._is_told:
                yield Gesture.TAPPED
            yield Gesture.DEACTIVATED

    def _count_hold(self, now: float) -> Iterator[Gesture]:
        is_pressed = self._is_active and self._level
        if is_pressed and not self._is_told and now >= self._active_since + self._long_press_s:
            self._is_told = True
            yield Gesture.HELD


class Contact:
    """Represents a push button or a switch on one pin.

    Connect one side to the GPIO pin and the other to ground (pull up) or to 3V3 (pull down). A
    long cable to a door wants a stronger resistor than the chip's own (4.7 kilohms to 3V3, then
    ``pull="floating", active_low=True``). A normally-closed contact has ``active_low`` opposite
    to its pull.

    The following example prints each short press::

        from bellwire.config.agent.panel import ButtonSettings
        from bellwire.hardware.panel.button import Contact, Gesture

        def tell(gesture):
            if gesture is Gesture.TAPPED:
                print("ding dong")

        async def watch():
            await Contact("front-door", ButtonSettings(pin=4), tell).run()

    :param part: the contact's name in errors
    :param settings: pin, pull, polarity, debounce and long press
    :param on_gesture: called on the event loop with each gesture
    :param pin_factory: gpiozero's way to the pins (default None: gpiozero's own default)
    :raises PanelError: the pin could not be claimed
    """

    def __init__(
        self,
        part: str,
        settings: ButtonSettings,
        on_gesture: Callable[[Gesture], None],
        *,
        pin_factory: Factory | None = None,
    ) -> None:
        floats = settings.pull == "floating"
        self._device = claim(
            part,
            settings.pin,
            lambda: DigitalInputDevice(
                settings.pin,
                pull_up=None if floats else settings.pull == "up",
                active_state=not settings.active_low if floats else None,
                pin_factory=pin_factory,
            ),
        )
        self._is_normally_closed = not floats and settings.active_low != (settings.pull == "up")
        self._settings = settings
        self._on_gesture = on_gesture
        self._reader: GestureReader | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_active(self) -> bool:
        """True while pressed or switched on: past its bounces while :meth:`run` runs."""
        return self._read_level() if self._reader is None else self._reader.is_active

    async def run(self) -> None:
        """Report gestures until cancelled."""
        loop = asyncio.get_running_loop()
        closed = self._is_normally_closed
        self._device.when_activated = partial(self._cross_over, loop, not closed)
        self._device.when_deactivated = partial(self._cross_over, loop, closed)
        self._reader = GestureReader(
            debounce_s=self._settings.debounce_s,
            long_press_s=self._settings.long_press_s,
            active=self._read_level(),
        )
        try:
            await loop.create_future()
        finally:
            self._stop_watching()

    def close(self) -> None:
        """Give the pin back. Closing twice is the same as once."""
        self._stop_watching()
        self._device.close()

    def _read_level(self) -> bool:
        return bool(self._device.is_active) != self._is_normally_closed

    def _cross_over(self, loop: asyncio.AbstractEventLoop, active: bool) -> None:
        # On gpiozero's thread: stamp the edge, and leave the rest to the event loop.
        at = time.monotonic()
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody is left to tell
            loop.call_soon_threadsafe(self._take_edge, at, active)

    def _take_edge(self, at: float, active: bool) -> None:
        if self._reader is not None:
            self._report(self._reader.edge(at, active))

    def _take_time(self) -> None:
        if self._reader is not None:
            self._report(self._reader.wait_until(time.monotonic()))

    def _report(self, gestures: list[Gesture]) -> None:
        self._set_timer()
        for gesture in gestures:
            self._on_gesture(gesture)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._reader is not None and self._reader.due is not None:
            wait_s = max(0.0, self._reader.due - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._take_time)

    def _stop_watching(self) -> None:
        if self._reader is None:
            return
        self._reader = None
        self._set_timer()
        if not self._device.closed:
            self._device.when_activated = None
            self._device.when_deactivated = None
