"""A panel without hardware: gpiozero's own mock pins, behind the very same code.

Fingers (:meth:`SimulatedPins.press`) and eyes (:meth:`SimulatedPins.watch`) for tests, benchmarks
and ``bellwire agent --simulate``.
"""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Callable

from gpiozero.pins.mock import MockFactory, MockPin

from bellwire.config.agent.panel import (
    ButtonSettings,
    KeypadSettings,
    OutputSettings,
    PanelSettings,
)
from bellwire.hardware.panel.keypad import KEYS

RASPBERRY_PI_4B = "c03111"
_STATES_KEPT = 100

Watcher = Callable[[bool, float], None]
"""Called with the pin's new level (True: high) and the :func:`time.perf_counter` of the change."""


class SimulatedPin(MockPin):  # type: ignore[misc]  # gpiozero ships no types
    """A mock pin that tells its factory of each change."""

    factory: "SimulatedPins"

    def _change_state(self, value: bool) -> bool:
        changed = bool(super()._change_state(value))
        if changed:
            del self.states[:-_STATES_KEPT]  # the mock would keep all that ever were
            self.factory.tell_watchers(self._number, bool(value), time.perf_counter())
        self.factory.connect_keys()
        return changed

    def _set_function(self, value: str) -> None:
        super()._set_function(value)
        self.factory.connect_keys()

    def _set_pull(self, value: str) -> None:
        super()._set_pull(value)
        self.factory.outweigh_pull(self._number)


class SimulatedPins(MockFactory):  # type: ignore[misc]  # gpiozero ships no types
    """Represents the header of a Raspberry Pi 4B that nothing real is connected to.

    Pass it as ``pin_factory``; each one is a header of its own, however many there are in one
    process. It starts no threads: watchers are called on the thread that changes the pin.

    :param panel: the wiring whose buttons start released and whose handset starts on its hook
        (default None: each pin starts where its pull takes it, which is as good where every
        button is pulled up or down and normally open)

    The following example presses a button::

        import asyncio

        from bellwire.config.agent.panel import PanelSettings
        from bellwire.hardware.panel.panel import Panel
        from bellwire.hardware.panel.simulated_pins import SimulatedPins

        async def press_answer():
            settings = PanelSettings.model_validate({"answer": {"pin": 4}})
            pins = SimulatedPins(settings)
            panel = Panel(settings, pin_factory=pins)
            running = asyncio.create_task(panel.run())
            await panel.ready()
            await pins.tap(settings.answer)
            print(await anext(panel.events()))  # AnswerPressed(held=False)
            running.cancel()
            panel.close()
    """

    def __init__(self, panel: PanelSettings | None = None) -> None:
        self._watchers: defaultdict[int, list[Watcher]] = defaultdict(list)
        self._connected: dict[int, bool] = {}  # the level that something outside gives a pin
        self._keys_down: set[tuple[int, int]] = set()
        self._columns: set[int] = set()
        super().__init__(revision=RASPBERRY_PI_4B, pin_class=SimulatedPin)
        for _, button in panel.buttons() if panel is not None else ():
            self.release(button)

    def close(self) -> None:
        """Disconnect fingers and eyes, then reset all pins. Closing twice is the same as once."""
        self._watchers.clear()
        self._connected.clear()
        self._keys_down.clear()
        self._columns.clear()
        super().close()

    def press(self, button: ButtonSettings) -> None:
        """Press a button and stay on it (or lift the handset off its hook)."""
        self._drive(button.pin, high=not button.active_low)

    def release(self, button: ButtonSettings) -> None:
        """Let a button go (or put the handset back)."""
        self._drive(button.pin, high=button.active_low)

    async def tap(self, button: ButtonSettings) -> None:
        """Press a button briefly: longer than its debounce time, which alone would be a bounce."""
        self.press(button)
        await asyncio.sleep(
            min(2 * button.debounce_s, (button.debounce_s + button.long_press_s) / 2)
        )
        self.release(button)

    async def hold(self, button: ButtonSettings) -> None:
        """Press a button for somewhat longer than its long press time."""
        self.press(button)
        await asyncio.sleep(button.long_press_s + 2 * button.debounce_s)
        self.release(button)

    def press_key(self, keypad: KeypadSettings, key: str) -> None:
        """Press a key of a keypad and stay on it."""
        self._columns.update(keypad.columns)
        self._keys_down.add(_key_contact(keypad, key))
        self.connect_keys()

    def release_key(self, keypad: KeypadSettings, key: str) -> None:
        """Let a key of a keypad go."""
        self._keys_down.discard(_key_contact(keypad, key))
        self.connect_keys()

    def is_active(self, output: OutputSettings) -> bool:
        """True while `output` is driven to its active level."""
        pin = self.pin(output.pin)
        return pin.function == "output" and bool(pin.state) != output.active_low

    def watch(self, pin: int, watcher: Watcher) -> Callable[[], None]:
        """Call `watcher` at each change of `pin` (BCM), and return what ends that."""
        self._watchers[pin].append(watcher)

        def unwatch() -> None:
            with contextlib.suppress(ValueError):
                self._watchers[pin].remove(watcher)

        return unwatch

    async def wait_for(self, output: OutputSettings, *, active: bool) -> float:
        """Wait until `output` is driven so; return the :func:`time.perf_counter` of that edge.

        If it is so already, that is now.
        """
        loop = asyncio.get_running_loop()
        reached: asyncio.Future[float] = loop.create_future()

        def settle(at: float) -> None:
            if not reached.done():
                reached.set_result(at)

        def compare(high: bool, at: float) -> None:
            if (high != output.active_low) == active:
                loop.call_soon_threadsafe(settle, at)

        unwatch = self.watch(output.pin, compare)
        try:
            if self.is_active(output) == active:
                return time.perf_counter()
            return await reached
        finally:
            unwatch()

    def tell_watchers(self, pin: int, high: bool, at: float) -> None:
        """Pass on a change of `pin`; only the pins themselves call this."""
        for watcher in tuple(self._watchers[pin]):
            watcher(high, at)

    def connect_keys(self) -> None:
        """Pull low each column that a key connects to a low row; only the pins call this."""
        low = {column for row, column in self._keys_down if self._is_driven_low(row)}
        for column in self._columns:
            self._drive(column, high=column not in low)

    def outweigh_pull(self, pin: int) -> None:
        """Give a pin the level of what is connected to it; only the pins call this."""
        if pin in self._connected:
            self._drive(pin, high=self._connected[pin])

    def _is_driven_low(self, pin: int) -> bool:
        row = self.pin(pin)
        return row.function == "output" and not row.state

    def _drive(self, pin: int, *, high: bool) -> None:
        self._connected[pin] = high
        line = self.pin(pin)
        if line.function == "input" and bool(line.state) != high:
            line.drive_high() if high else line.drive_low()


def _key_contact(keypad: KeypadSettings, key: str) -> tuple[int, int]:
    for row, keys in zip(keypad.rows, KEYS, strict=True):
        if len(key) == 1 and key in keys:
            return row, keypad.columns[keys.index(key)]
    raise ValueError(f"no key {key!r} on a telephone keypad: one of {' '.join(''.join(KEYS))}")
