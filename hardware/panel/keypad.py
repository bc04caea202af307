"""The telephone keypad: a matrix of keys, of which one row after the other is driven and read."""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack

from gpiozero import Factory, GPIODevice, InputDevice

from bellwire.config.agent.panel import KeypadSettings
from bellwire.config.waiting import Sleep
from bellwire.hardware.panel.pins import claim

KEYS = ("123", "456", "789", "*0#")


class Keypad:
    """Represents a 4x3 matrix keypad.

    Connect its four row wires and three column wires to a GPIO pin each; no other part is
    needed. The columns are pulled up by the chip. A row is driven low only while it is read and
    is an input otherwise, so two keys in one column never join two driven pins. Not for GPIO2
    and GPIO3 as rows: the board pulls them up.

    A key is reported when two scans in a row see it, once until it is let go. One key may be
    pressed while another is still down; while three are down none is reported, for a matrix
    without diodes then shows a fourth.

    The following example prints each key::

        from bellwire.config.agent.panel import KeypadSettings
        from bellwire.hardware.panel.keypad import Keypad

        async def watch():
            await Keypad(KeypadSettings(rows=(5, 6, 13, 19), columns=(12, 16, 20)), print).run()

    :param settings: the pins, and the seconds between two scans
    :param on_key: called on the event loop with each key pressed (``0`` to ``9``, ``*``, ``#``)
    :param pin_factory: gpiozero's way to the pins (default None: gpiozero's own default)
    :param sleep: waits for so many seconds (default :func:`asyncio.sleep`)
    :raises PanelError: a pin could not be claimed
    """

    def __init__(
        self,
        settings: KeypadSettings,
        on_key: Callable[[str], None],
        *,
        pin_factory: Factory | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._on_key = on_key
        self._scan_s = settings.debounce_s
        self._sleep = sleep
        with ExitStack() as claimed:

            def claim_line(name: str, pin: int, device: type[GPIODevice], pull: bool) -> GPIODevice:
                kwargs = {"pull_up": True} if pull else {}
                line = claim(name, pin, lambda: device(pin, pin_factory=pin_factory, **kwargs))
                claimed.callback(line.close)
                return line

            self._rows = [
                claim_line(f"keypad.rows[{i}]", pin, GPIODevice, pull=False)
                for i, pin in enumerate(settings.rows)
            ]
            self._columns = [
                claim_line(f"keypad.columns[{i}]", pin, InputDevice, pull=True)
                for i, pin in enumerate(settings.columns)
            ]
            self._claimed = claimed.pop_all()

    async def run(self) -> None:
        """Scan and report keys until cancelled. A key that is down at the start is not reported."""
        before = reported = self._scan()
        while True:
            await self._sleep(self._scan_s)
            down = self._scan()
            if down == before and len(down) <= 2:
                for key in sorted(down - reported):
                    self._on_key(key)
                reported = down
            before = down

    def close(self) -> None:
        """Give the pins back. Closing twice is the same as once."""
        self._claimed.close()

    def _scan(self) -> frozenset[str]:
        return frozenset(
            key
            for row, keys in zip(self._rows, KEYS, strict=True)
            for key in self._read_row(row, keys)
        )

    def _read_row(self, row: GPIODevice, keys: str) -> list[str]:
        row.pin.output_with_state(False)
        down = [key for column, key in zip(self._columns, keys, strict=True) if column.is_active]
        row.pin.function = "input"
        return down
