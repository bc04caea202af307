"""The door always returns to locked."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bellwire.config.agent.panel import DoorSettings
from bellwire.hardware.panel.door_lock import DoorLock, DoorUnattendedError
from bellwire.hardware.panel.simulated_pins import SimulatedPins
from tests.hardware.conftest import ThreadTime

DOOR = DoorSettings(pin=27, open_s=5)


@pytest.fixture
def door(pins: SimulatedPins, thread_time: ThreadTime) -> Iterator[DoorLock]:
    door = DoorLock(DOOR, pin_factory=pins, wait=thread_time.wait, clock=thread_time.clock)
    yield door
    door.close()


@pytest.fixture
async def running(door: DoorLock) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(door.run())
    await asyncio.sleep(0)
    yield task
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.usefixtures("running")
async def test_the_door_is_open_before_release_returns(door: DoorLock, pins: SimulatedPins) -> None:
    door.release()
    assert pins.is_active(DOOR)
    assert door.is_open


@pytest.mark.usefixtures("running")
async def test_the_door_locks_when_its_time_is_over(
    door: DoorLock, pins: SimulatedPins, thread_time: ThreadTime
) -> None:
    door.release()
    thread_time.advance(4.9)
    assert pins.is_active(DOOR)
    thread_time.advance(0.1)
    assert not pins.is_active(DOOR)
    assert not door.is_open


@pytest.mark.usefixtures("running")
async def test_a_second_release_extends_the_time(door: DoorLock, thread_time: ThreadTime) -> None:
    door.release()
    thread_time.advance(4)
    door.release()
    thread_time.advance(4.9)
    assert door.is_open
    thread_time.advance(0.1)
    assert not door.is_open


@pytest.mark.usefixtures("running")
async def test_a_shorter_release_does_not_shorten_the_time(
    door: DoorLock, thread_time: ThreadTime
) -> None:
    door.release(30)
    thread_time.advance(1)
    door.release(0.1)
    thread_time.advance(28.9)
    assert door.is_open
    thread_time.advance(0.1)
    assert not door.is_open


@pytest.mark.usefixtures("running")
async def test_locking_ends_the_release_and_leaves_nothing_of_it(
    door: DoorLock, thread_time: ThreadTime
) -> None:
    door.release(60)
    thread_time.advance(1)
    door.lock()
    assert not door.is_open
    door.release(2)
    thread_time.advance(2)
    assert not door.is_open


async def test_the_door_locks_when_its_task_is_cancelled(
    door: DoorLock, running: asyncio.Task[None], pins: SimulatedPins, thread_time: ThreadTime
) -> None:
    door.release()
    thread_time.advance(1)
    running.cancel()
    await asyncio.wait([running])
    assert not pins.is_active(DOOR)


async def test_the_door_locks_when_another_task_of_the_agent_crashes(
    door: DoorLock, pins: SimulatedPins
) -> None:
    async def crash() -> None:
        await asyncio.sleep(0)
        door.release()
        raise OSError("the agent crashed")

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(door.run())
            group.create_task(crash())
    assert not pins.is_active(DOOR)


async def test_the_door_locks_when_its_own_waiting_fails(pins: SimulatedPins) -> None:
    def fail(condition: threading.Condition, seconds: float | None) -> None:
        if seconds is not None:
            raise OSError("the clock is broken")
        condition.wait()

    door = DoorLock(DOOR, pin_factory=pins, wait=fail)
    running = asyncio.create_task(door.run())
    await asyncio.sleep(0)
    door.release()
    await asyncio.wait([running])
    assert isinstance(running.exception(), ExceptionGroup)
    assert not pins.is_active(DOOR)
    with pytest.raises(DoorUnattendedError):
        door.release()
    door.close()


def test_the_door_locks_when_the_event_loop_dies(pins: SimulatedPins) -> None:
    levels = []
    pins.watch(DOOR.pin, lambda high, _at: levels.append(high))

    async def die() -> None:
        door = DoorLock(DOOR, pin_factory=pins)
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
    door = DoorLock(DOOR, pin_factory=pins)
    assert not pins.is_active(DOOR)
    assert not pin.state
    door.close()


@pytest.mark.usefixtures("running")
async def test_closing_locks_the_door_before_the_pin_is_given_back(
    door: DoorLock, pins: SimulatedPins
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
    door: DoorLock, pins: SimulatedPins
) -> None:
    with pytest.raises(DoorUnattendedError, match="start the panel's run"):
        door.release()
    assert not pins.is_active(DOOR)


async def test_the_door_does_not_open_after_its_task_has_ended(
    door: DoorLock, running: asyncio.Task[None]
) -> None:
    running.cancel()
    await asyncio.wait([running])
    with pytest.raises(DoorUnattendedError):
        door.release()


@pytest.mark.parametrize("duration_s", [0, 0.09, 60.1, -1, float("nan"), float("inf")])
@pytest.mark.usefixtures("running")
async def test_a_time_out_of_range_is_refused_and_the_door_stays_locked(
    door: DoorLock, duration_s: float
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
@settings(max_examples=60, deadline=None)
async def test_the_door_is_open_exactly_as_long_as_its_releases_say(
    steps: list[tuple[str, float]],
) -> None:
    virtual = ThreadTime()
    with SimulatedPins() as pins:
        door = DoorLock(DOOR, pin_factory=pins, wait=virtual.wait, clock=virtual.clock)
        running = asyncio.create_task(door.run())
        await asyncio.sleep(0)
        open_until = 0.0
        for step, seconds in steps:
            if step == "release":
                door.release(seconds)
                open_until = max(open_until, virtual.now + seconds)
            elif step == "lock":
                door.lock()
                open_until = virtual.now
            else:
                virtual.advance(seconds)
            if abs(open_until - virtual.now) > 1e-6:
                assert door.is_open == (virtual.now < open_until)
        virtual.advance(61)
        assert not door.is_open
        running.cancel()
        await asyncio.wait([running])
        door.close()


# Each way to die: for how long it leaves the door open


QUICK = DoorSettings(pin=27, open_s=0.5)


async def open_for_s(pins: SimulatedPins, stall: Callable[[threading.Event], object]) -> float:
    """For how long a door of 0.5 s is open where its event loop does this as soon as it has opened."""
    edges: list[float] = []
    locked = threading.Event()

    def note(high: bool, at: float) -> None:
        edges.append(at)
        if not high:
            locked.set()

    pins.watch(QUICK.pin, note)
    door = DoorLock(QUICK, pin_factory=pins)
    running = asyncio.create_task(door.run())
    await asyncio.sleep(0)
    door.release()
    stall(locked)  # on the loop, which does nothing else meanwhile
    assert locked.is_set()
    running.cancel()
    await asyncio.wait([running])
    door.close()
    return edges[1] - edges[0]


def wait_on_the_loop(locked: threading.Event) -> None:
    locked.wait(10)


def calculate_on_the_loop(locked: threading.Event) -> None:
    end = time.monotonic() + 10
    while not locked.is_set() and time.monotonic() < end:
        pass


@pytest.mark.parametrize("stall", [wait_on_the_loop, calculate_on_the_loop])
async def test_a_door_of_half_a_second_locks_in_time_while_a_callback_holds_the_event_loop(
    pins: SimulatedPins, stall: Callable[[threading.Event], object]
) -> None:
    assert 0.5 <= await open_for_s(pins, stall) < 1.0


OPENS = """
import asyncio, sys, time
from bellwire.config.agent.panel import DoorSettings
from bellwire.hardware.panel.door_lock import DoorLock
from bellwire.hardware.panel.simulated_pins import SimulatedPins

async def open_door() -> None:
    pins = SimulatedPins()
    pins.watch(27, lambda high, at: print("open" if high else "locked", time.monotonic(), flush=True))
    door = DoorLock(DoorSettings(pin=27, open_s=float(sys.argv[1])), pin_factory=pins)
    running = asyncio.create_task(door.run())
    await asyncio.sleep(0)
    door.release()
    await running

asyncio.run(open_door())
"""


def process_with_an_open_door(open_s: float) -> "subprocess.Popen[str]":
    """A process of its own whose door is open; it prints each edge and its monotonic time."""
    process = subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-c", OPENS, str(open_s)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("open ")
    return process


def test_a_process_that_was_stopped_locks_as_soon_as_it_goes_on_where_its_time_is_over() -> None:
    with process_with_an_open_door(0.3) as process:
        assert process.stdout is not None
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        time.sleep(0.5)  # its door's time passes: nothing but the clock can tell
        goes_on = time.monotonic()
        process.send_signal(signal.SIGCONT)
        edge, at = process.stdout.readline().split()
        assert edge == "locked"
        assert float(at) - goes_on < 0.5
        process.kill()


def test_what_systemd_sends_to_a_process_that_hangs_ends_one_that_was_stopped_too() -> None:
    with process_with_an_open_door(60) as process:
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        for sent in (signal.SIGABRT, signal.SIGCONT):  # systemd's unit_kill_context
            process.send_signal(sent)
        assert process.wait(10) == -signal.SIGABRT


def test_a_killed_process_gives_its_descriptors_and_so_its_pins_back_at_once() -> None:
    # A line is held by a descriptor, as the pipe is; mock pins have none.
    with process_with_an_open_door(60) as process:
        assert process.stdout is not None
        killed = time.monotonic()
        process.kill()
        assert process.stdout.read() == ""  # its end: the kernel has closed what the process held
        assert time.monotonic() - killed < 1.0
