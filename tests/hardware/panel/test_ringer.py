"""The ringer on gpiozero's mock pins."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from gpiozero import Buzzer

from bellwire.config.agent.panel import RingerSettings
from bellwire.hardware.panel.cadence import Cadence, CadencePlayer
from bellwire.hardware.panel.pins import PanelError
from bellwire.hardware.panel.ringer import Ringer
from bellwire.hardware.panel.simulated_pins import SimulatedPins
from tests.hardware.conftest import VirtualTime

RINGER = RingerSettings(pin=17)


@pytest.fixture
def ringer(pins: SimulatedPins, virtual_time: VirtualTime) -> Iterator[Ringer]:
    ringer = Ringer(RINGER, pin_factory=pins, sleep=virtual_time.sleep)
    yield ringer
    ringer.close()


@pytest.fixture
async def running(ringer: Ringer) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(ringer.run())
    yield task
    task.cancel()
    await asyncio.wait([task])


def levels_over_time(
    pins: SimulatedPins, virtual_time: VirtualTime, pin: int = RINGER.pin
) -> list[tuple[float, bool]]:
    """The list that (time, level) is added to at each change of the pin."""
    changes = []
    pins.watch(pin, lambda high, _at: changes.append((round(virtual_time.now, 3), high)))
    return changes


def test_the_bell_rings_before_start_returns(ringer: Ringer, pins: SimulatedPins) -> None:
    ringer.start()
    assert pins.is_active(RINGER)
    assert ringer.is_ringing


@pytest.mark.usefixtures("running")
async def test_the_bell_follows_the_uk_double_ring(
    ringer: Ringer, pins: SimulatedPins, virtual_time: VirtualTime
) -> None:
    changes = levels_over_time(pins, virtual_time)
    ringer.start()
    await virtual_time.advance(3.5)
    assert changes == [
        (0.0, True),
        (0.4, False),
        (0.6, True),
        (1.0, False),
        (3.0, True),
        (3.4, False),
    ]


@pytest.mark.usefixtures("running")
async def test_the_bell_is_silent_before_stop_returns(
    ringer: Ringer, pins: SimulatedPins, virtual_time: VirtualTime
) -> None:
    ringer.start()
    await virtual_time.advance(0.1)
    ringer.stop()
    assert not pins.is_active(RINGER)
    assert not ringer.is_ringing


@pytest.mark.usefixtures("running")
async def test_a_stopped_bell_stays_silent(
    ringer: Ringer, pins: SimulatedPins, virtual_time: VirtualTime
) -> None:
    ringer.start()
    await virtual_time.advance(0.5)
    ringer.stop()
    changes = levels_over_time(pins, virtual_time)
    await virtual_time.advance(10)
    assert changes == []


@pytest.mark.usefixtures("running")
async def test_starting_twice_does_not_start_the_cadence_again(
    ringer: Ringer, pins: SimulatedPins, virtual_time: VirtualTime
) -> None:
    ringer.start()
    await virtual_time.advance(0.5)
    ringer.start()
    assert not pins.is_active(RINGER)
    await virtual_time.advance(0.2)
    assert pins.is_active(RINGER)


@pytest.mark.usefixtures("running")
async def test_a_bell_that_is_stopped_and_started_begins_its_cadence_anew(
    ringer: Ringer, pins: SimulatedPins, virtual_time: VirtualTime
) -> None:
    ringer.start()
    await virtual_time.advance(0.3)
    ringer.stop()
    ringer.start()
    changes = levels_over_time(pins, virtual_time)
    await virtual_time.advance(0.5)
    assert changes == [(0.7, False)]


@pytest.mark.usefixtures("running")
async def test_the_old_cadence_drives_no_edge_that_was_due_in_the_instant_of_a_new_start(
    ringer: Ringer, pins: SimulatedPins, virtual_time: VirtualTime
) -> None:
    ringer.start()
    await virtual_time.settle()
    for _, _, waking in virtual_time._sleepers:
        waking.set_result(None)  # the first ring's end is due now, and its task will wake
    ringer.stop()
    ringer.start()
    await virtual_time.settle()
    assert pins.is_active(RINGER)


async def test_a_bell_started_before_run_follows_its_cadence_from_there(
    ringer: Ringer, pins: SimulatedPins, virtual_time: VirtualTime
) -> None:
    ringer.start()
    running = asyncio.create_task(ringer.run())
    await virtual_time.advance(0.4)
    assert not pins.is_active(RINGER)
    running.cancel()
    await asyncio.wait([running])


async def test_cancelling_run_silences_the_bell(
    ringer: Ringer, running: asyncio.Task[None], pins: SimulatedPins, virtual_time: VirtualTime
) -> None:
    ringer.start()
    await virtual_time.settle()
    running.cancel()
    await asyncio.wait([running])
    assert not pins.is_active(RINGER)
    assert not ringer.is_ringing
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.usefixtures("running")
async def test_run_is_refused_while_it_is_running(
    ringer: Ringer, virtual_time: VirtualTime
) -> None:
    await virtual_time.settle()
    with pytest.raises(RuntimeError, match="running already"):
        await ringer.run()


@pytest.mark.usefixtures("running")
async def test_closing_silences_the_bell_whatever_runs(
    ringer: Ringer, pins: SimulatedPins, virtual_time: VirtualTime
) -> None:
    ringer.start()
    await virtual_time.settle()
    levels = levels_over_time(pins, virtual_time)
    ringer.close()
    ringer.close()
    assert levels == [(0.0, False)]
    await virtual_time.advance(5)


def test_an_active_low_relay_board_is_idle_at_a_high_level(pins: SimulatedPins) -> None:
    settings = RingerSettings(pin=17, active_low=True)
    ringer = Ringer(settings, pin_factory=pins)
    assert pins.pin(17).state
    ringer.start()
    assert not pins.pin(17).state
    assert pins.is_active(settings)
    ringer.close()


def test_a_buzzer_is_gpiozeros_buzzer(pins: SimulatedPins) -> None:
    ringer = Ringer(RingerSettings(pin=17, kind="buzzer"), pin_factory=pins)
    assert isinstance(ringer._player._output, Buzzer)
    ringer.start()
    assert pins.is_active(RINGER)
    ringer.close()


@pytest.mark.usefixtures("ringer")
def test_a_pin_that_is_taken_is_refused_with_the_part_the_pin_and_the_remedy(
    pins: SimulatedPins,
) -> None:
    with pytest.raises(PanelError) as refused:
        Ringer(RINGER, pin_factory=pins)
    assert refused.value.part == "ringer"
    assert refused.value.pin == 17
    assert "give one of the two another pin" in str(refused.value)


async def test_a_failing_output_ends_run_with_the_pin_inactive(pins: SimulatedPins) -> None:
    async def fail(_seconds: float) -> None:
        raise OSError("the clock is broken")

    ringer = Ringer(RINGER, pin_factory=pins, sleep=fail)
    ringer.start()
    with pytest.raises(ExceptionGroup):
        await ringer.run()
    assert not pins.is_active(RINGER)
    ringer.close()


async def test_a_cadence_that_does_not_repeat_ends_off(
    pins: SimulatedPins, virtual_time: VirtualTime
) -> None:
    ringer = Ringer(RINGER, pin_factory=pins)
    player = CadencePlayer(ringer._player._output, sleep=virtual_time.sleep)
    running = asyncio.create_task(player.run())
    player.play(Cadence((1.0, 1.0, 1.0), repeats=False))
    await virtual_time.advance(2.5)
    assert player.is_active
    await virtual_time.advance(0.5)
    assert not player.is_active
    assert not player.is_playing
    running.cancel()
    await asyncio.wait([running])
    ringer.close()
