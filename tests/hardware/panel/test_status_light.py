"""The status light on gpiozero's mock pins."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from bellwire.config.agent.panel import StatusLightSettings
from bellwire.hardware.panel.simulated_pins import SimulatedPins
from bellwire.hardware.panel.status_light import CADENCES, Pattern, StatusLight
from tests.hardware.conftest import VirtualTime

LIGHT = StatusLightSettings(pin=22)


@pytest.fixture
async def light(pins: SimulatedPins, virtual_time: VirtualTime) -> AsyncIterator[StatusLight]:
    light = StatusLight(LIGHT, pin_factory=pins, sleep=virtual_time.sleep)
    running = asyncio.create_task(light.run())
    yield light
    running.cancel()
    await asyncio.wait([running])
    light.close()


def test_every_pattern_has_a_rhythm_of_its_own() -> None:
    assert set(CADENCES) == set(Pattern)
    assert len(set(CADENCES.values())) == len(Pattern)


@pytest.mark.parametrize("pattern", Pattern)
def test_no_pattern_flashes_more_than_three_times_in_any_second(pattern: Pattern) -> None:
    steps = CADENCES[pattern].steps_s
    starts = [sum((steps * 20)[:i]) for i in range(0, 20 * len(steps), 2)]
    assert all(later - start >= 1 for start, later in zip(starts, starts[3:], strict=False))


@pytest.mark.parametrize("pattern", Pattern)
async def test_a_pattern_is_lit_at_once(
    light: StatusLight, pins: SimulatedPins, pattern: Pattern
) -> None:
    light.show(pattern)
    assert pins.is_active(LIGHT)
    assert light.pattern is pattern


async def test_in_a_call_the_light_is_steady(
    light: StatusLight, pins: SimulatedPins, virtual_time: VirtualTime
) -> None:
    light.show(Pattern.IN_CALL)
    changes = []
    pins.watch(LIGHT.pin, lambda high, _at: changes.append(high))
    await virtual_time.advance(60)
    assert changes == []
    assert pins.is_active(LIGHT)


async def test_a_fault_shows_three_flashes_and_a_pause(
    light: StatusLight, pins: SimulatedPins, virtual_time: VirtualTime
) -> None:
    changes = []
    pins.watch(LIGHT.pin, lambda high, _at: changes.append((round(virtual_time.now, 1), high)))
    light.show(Pattern.FAULT)
    await virtual_time.advance(2.2)
    assert [at for at, high in changes if high] == [0, 0.4, 0.8, 2.2]


async def test_a_new_pattern_takes_over_in_the_middle_of_the_old_one(
    light: StatusLight, pins: SimulatedPins, virtual_time: VirtualTime
) -> None:
    light.show(Pattern.OFFLINE)
    await virtual_time.advance(1.5)
    assert not pins.is_active(LIGHT)
    light.show(Pattern.MUTED)
    assert pins.is_active(LIGHT)
    await virtual_time.advance(1.7)
    assert pins.is_active(LIGHT)
    await virtual_time.advance(0.1)
    assert not pins.is_active(LIGHT)


async def test_showing_the_same_pattern_again_does_not_disturb_its_rhythm(
    light: StatusLight, pins: SimulatedPins, virtual_time: VirtualTime
) -> None:
    light.show(Pattern.OFFLINE)
    await virtual_time.advance(1.5)
    light.show(Pattern.OFFLINE)
    assert not pins.is_active(LIGHT)


def test_the_light_is_dark_until_it_is_told_what_to_show(pins: SimulatedPins) -> None:
    light = StatusLight(LIGHT, pin_factory=pins)
    assert light.pattern is None
    assert not pins.is_active(LIGHT)
    light.close()
    light.close()
