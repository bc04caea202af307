"""The door always returns to locked."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config.panel import DoorSettings
from hardware.door import DoorRelease, DoorUnattendedError
from hardware.simulated import SimulatedPins
from tests.hardware.conftest import VirtualTime

DOOR = DoorSettings(pin=27, open_s=5)


@pytest.fixture
def door(pins: SimulatedPins, virtual_time: VirtualTime) -> Iterator[DoorRelease]:
    door = DoorRelease(DOOR, pin_factory=pins, sleep=virtual_time.sleep, clock=virtual_time.clock)
    yield door
    door.close()


@pytest.fixture
async def running(
    door: DoorRelease, virtual_time: VirtualTime
) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(door.run())
    await virtual_time.settle()
    yield task
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.usefixtures("running")
async def test_the_door_is_open_before_release_returns(
    door: DoorRelease, pins: SimulatedPins
) -> None:
    door.release()
    assert pins.is_active(DOOR)
    assert door.is_open


@pytest.mark.usefixtures("running")
async def test_the_door_locks_when_its_time_is_over(
    door: DoorRelease, pins: SimulatedPins, virtual_time: VirtualTime
) -> None:
    door.release()
    await virtual_time.advance(4.9)
    assert pins.is_active(DOOR)
    await virtual_time.advance(0.1)
    assert not pins.is_active(DOOR)
    assert not door.is_open


@pytest.mark.usefixtures("running")
async def test_a_second_release_extends_the_time(
    door: DoorRelease, virtual_time: VirtualTime
) -> None:
    door.release()
    await virtual_time.advance(4)
    door.release()
    await virtual_time.advance(4.9)
    assert door.is_open
    await virtual_time.advance(0.1)
    assert not door.is_open


@pytest.mark.usefixtures("running")
async def test_a_shorter_release_does_not_shorten_the_time(
    door: DoorRelease, virtual_time: VirtualTime
) -> None:
    door.release(30)
    await virtual_time.advance(1)
    door.release(0.1)
    await virtual_time.advance(28.9)
    assert door.is_open
    await virtual_time.advance(0.1)
    assert not door.is_open


@pytest.mark.usefixtures("running")
async def test_locking_ends_the_release_and_leaves_nothing_of_it(
    door: DoorRelease, virtual_time: VirtualTime
) -> None:
    door.release(60)
    await virtual_time.advance(1)
    door.lock()
    assert not door.is_open
    door.release(2)
    await virtual_time.advance(2)
    assert not door.is_open


async def test_the_door_locks_when_its_task_is_cancelled(
    door: DoorRelease, running: asyncio.Task[None], pins: SimulatedPins, virtual_time: VirtualTime
) -> None:
    door.release()
    await virtual_time.advance(1)
    running.cancel()
    await asyncio.wait([running])
    assert not pins.is_active(DOOR)


async def test_the_door_locks_when_another_task_of_the_agent_crashes(
    door: DoorRelease, pins: SimulatedPins, virtual_time: VirtualTime
) -> None:
    async def crash() -> None:
        await virtual_time.settle()
        door.release()
        raise OSError("the agent crashed")

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(door.run())
            group.create_task(crash())
    assert not pins.is_active(DOOR)


async def test_the_door_locks_when_its_own_waiting_fails(pins: SimulatedPins) -> None:
    async def fail(_seconds: float) -> None:
        raise OSError("the clock is broken")

    door = DoorRelease(DOOR, pin_factory=pins, sleep=fail)
    running = asyncio.create_task(door.run())
    await asyncio.sleep(0)
    door.release()
    await asyncio.wait([running])
    assert isinstance(running.exception(), ExceptionGroup)
    assert not pins.is_active(DOOR)
    door.close()


def test_the_door_locks_when_the_event_loop_dies(pins: SimulatedPins) -> None:
    levels = []
    pins.watch(DOOR.pin, lambda high, _at: levels.append(high))

    async def die() -> None:
        door = DoorRelease(DOOR, pin_factory=pins)
        running = asyncio.create_task(door.run())
        await asyncio.sleep(0)
        door.release()
        raise SystemExit(f"killed in {running}")

    with pytest.raises(SystemExit):
        asyncio.run(die())
    assert levels == [True, False]


def test_constructing_locks_a_door_that_a_crashed_process_left_open(pins: SimulatedPins) -> None:
    pin = pins.pin(DOOR.pin)
    pin.function = "output"
    pin.state = True
    door = DoorRelease(DOOR, pin_factory=pins)
    assert not pins.is_active(DOOR)
    assert not pin.state
    door.close()


@pytest.mark.usefixtures("running")
async def test_closing_locks_the_door_before_the_pin_is_given_back(
    door: DoorRelease, pins: SimulatedPins
) -> None:
    levels = []
    pins.watch(DOOR.pin, lambda high, _at: levels.append(high))
    door.release()
    door.close()
    door.close()
    assert levels == [True, False]
    assert pins.pin(DOOR.pin).function == "input"
    assert not door.is_open


def test_the_door_does_not_open_while_nobody_would_lock_it(
    door: DoorRelease, pins: SimulatedPins
) -> None:
    with pytest.raises(DoorUnattendedError, match="start the panel's run"):
        door.release()
    assert not pins.is_active(DOOR)


async def test_the_door_does_not_open_after_its_task_has_ended(
    door: DoorRelease, running: asyncio.Task[None]
) -> None:
    running.cancel()
    await asyncio.wait([running])
    with pytest.raises(DoorUnattendedError):
        door.release()


@pytest.mark.parametrize("duration_s", [0, 0.09, 60.1, -1, float("nan"), float("inf")])
@pytest.mark.usefixtures("running")
async def test_a_time_out_of_range_is_refused_and_the_door_stays_locked(
    door: DoorRelease, duration_s: float
) -> None:
    with pytest.raises(ValueError, match="opens for"):
        door.release(duration_s)
    assert not door.is_open


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("release"), st.sampled_from([0.1, 1.0, 2.5, 60.0])),
            st.tuples(st.just("wait"), st.sampled_from([0.05, 0.1, 1.0, 30.0])),
            st.tuples(st.just("lock"), st.just(0.0)),
        ),
        max_size=12,
    )
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_the_door_is_open_exactly_as_long_as_its_releases_say(
    steps: list[tuple[str, float]], virtual_time: VirtualTime
) -> None:
    time = type(virtual_time)()
    with SimulatedPins() as pins:
        door = DoorRelease(DOOR, pin_factory=pins, sleep=time.sleep, clock=time.clock)
        running = asyncio.create_task(door.run())
        await time.settle()
        open_until = 0.0
        for step, seconds in steps:
            if step == "release":
                door.release(seconds)
                open_until = max(open_until, time.now + seconds)
            elif step == "lock":
                door.lock()
                open_until = time.now
            else:
                await time.advance(seconds)
            if abs(open_until - time.now) > 1e-6:
                assert door.is_open == (time.now < open_until)
        await time.advance(61)
        assert not door.is_open
        running.cancel()
        await asyncio.wait([running])
        door.close()
