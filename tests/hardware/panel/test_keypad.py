"""The keypad's matrix on gpiozero's mock pins."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from bellwire.config.agent.panel import KeypadSettings
from bellwire.hardware.panel.keypad import KEYS, Keypad
from bellwire.hardware.panel.pins import PanelError
from bellwire.hardware.panel.simulated_pins import SimulatedPins
from tests.hardware.conftest import VirtualTime

KEYPAD = KeypadSettings(rows=(5, 6, 13, 19), columns=(12, 16, 20))


@pytest.fixture
async def keys(pins: SimulatedPins, virtual_time: VirtualTime) -> AsyncIterator[list[str]]:
    """The list that each reported key is added to, while the keypad runs."""
    keys = []
    keypad = Keypad(KEYPAD, keys.append, pin_factory=pins, sleep=virtual_time.sleep)
    running = asyncio.create_task(keypad.run())
    await virtual_time.settle()
    yield keys
    running.cancel()
    await asyncio.wait([running])
    keypad.close()
    keypad.close()


@pytest.mark.parametrize("key", "".join(KEYS))
async def test_each_key_is_reported_as_what_is_printed_on_it(
    keys: list[str], pins: SimulatedPins, virtual_time: VirtualTime, key: str
) -> None:
    pins.press_key(KEYPAD, key)
    await virtual_time.advance(1)
    assert keys == [key]


async def test_a_key_counts_only_when_two_scans_in_a_row_see_it(
    keys: list[str], pins: SimulatedPins, virtual_time: VirtualTime
) -> None:
    pins.press_key(KEYPAD, "5")
    await virtual_time.advance(0.02)
    pins.release_key(KEYPAD, "5")
    await virtual_time.advance(0.02)
    assert keys == []
    pins.press_key(KEYPAD, "5")
    await virtual_time.advance(0.04)
    assert keys == ["5"]


async def test_a_number_is_dialled_in_order_with_its_double_digits(
    keys: list[str], pins: SimulatedPins, virtual_time: VirtualTime
) -> None:
    for key in "0774*#":
        pins.press_key(KEYPAD, key)
        await virtual_time.advance(0.04)
        pins.release_key(KEYPAD, key)
        await virtual_time.advance(0.04)
    assert "".join(keys) == "0774*#"


async def test_the_next_key_may_be_pressed_before_the_last_is_let_go(
    keys: list[str], pins: SimulatedPins, virtual_time: VirtualTime
) -> None:
    pins.press_key(KEYPAD, "1")
    await virtual_time.advance(0.04)
    pins.press_key(KEYPAD, "4")
    await virtual_time.advance(0.04)
    assert keys == ["1", "4"]


async def test_three_keys_at_once_are_not_guessed_at(
    keys: list[str], pins: SimulatedPins, virtual_time: VirtualTime
) -> None:
    for key in "124":
        pins.press_key(KEYPAD, key)
    await virtual_time.advance(1)
    assert keys == []
    for key in "14":
        pins.release_key(KEYPAD, key)
    await virtual_time.advance(0.04)
    assert keys == ["2"]


@pytest.mark.usefixtures("keys")
async def test_at_most_one_row_is_driven_so_two_keys_never_join_two_outputs(
    pins: SimulatedPins, virtual_time: VirtualTime
) -> None:
    driven = []

    def count_driven(_high: bool, _at: float) -> None:
        driven.append(sum(pins.pin(row).function == "output" for row in KEYPAD.rows))

    for column in KEYPAD.columns:
        pins.watch(column, count_driven)
    for key in "17":
        pins.press_key(KEYPAD, key)
    await virtual_time.advance(0.1)
    assert driven
    assert max(driven) == 1
    assert all(pins.pin(row).function == "input" for row in KEYPAD.rows)


async def test_a_key_that_is_jammed_at_the_start_is_not_dialled(
    pins: SimulatedPins, virtual_time: VirtualTime
) -> None:
    keys = []
    keypad = Keypad(KEYPAD, keys.append, pin_factory=pins, sleep=virtual_time.sleep)
    pins.press_key(KEYPAD, "9")
    running = asyncio.create_task(keypad.run())
    await virtual_time.advance(1)
    assert keys == []
    running.cancel()
    await asyncio.wait([running])
    keypad.close()


def test_a_line_that_is_taken_gives_back_the_lines_claimed_before(pins: SimulatedPins) -> None:
    pins.reserve_pins(pins, 20)
    with pytest.raises(PanelError, match=r"keypad.columns\[2\] cannot have GPIO20"):
        Keypad(KEYPAD, print, pin_factory=pins)
    pins.release_pins(pins, 20)
    Keypad(KEYPAD, print, pin_factory=pins).close()


def test_a_key_that_no_keypad_has_is_refused(pins: SimulatedPins) -> None:
    with pytest.raises(ValueError, match="no key 'A'"):
        pins.press_key(KEYPAD, "A")
