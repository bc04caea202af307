"""Deadlines fire when the clock reaches them, in order, once, and again if that failed."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from bellwire.push.calls.deadlines import Deadlines
from bellwire.push.store.tables import to_ms
from bellwire.signaling.errors import Unavailable
from bellwire.signaling.identifiers import CallSid
from tests.conftest import PATIENCE_S
from tests.push.clock import START, Clock

A, B, C = (CallSid(letter) for letter in "abc")


class Fired:
    """What has been fired; `fail_next` has the next one fail."""

    def __init__(self) -> None:
        self.calls: asyncio.Queue[CallSid] = asyncio.Queue()
        self.fail_next = False

    async def __call__(self, call_sid: CallSid) -> None:
        self.calls.put_nowait(call_sid)
        if self.fail_next:
            self.fail_next = False
            raise Unavailable("the disk is full")

    async def next(self) -> CallSid:
        async with asyncio.timeout(PATIENCE_S):
            call_sid = await self.calls.get()
        await settled()
        return call_sid


@pytest.fixture
def fired() -> Fired:
    return Fired()


@pytest.fixture
async def deadlines(clock: Clock, fired: Fired) -> AsyncIterator[Deadlines]:
    made = Deadlines(fired, now=clock.now, sleep=clock.sleep)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(made.run())
        yield made
        running.cancel()


async def settled() -> None:
    """Lets all that can run without the clock run: no part of it waits for anything but the loop."""
    for _ in range(50):
        await asyncio.sleep(0)


def after(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


async def test_a_deadline_fires_when_it_has_come_and_not_before(
    deadlines: Deadlines, clock: Clock, fired: Fired
) -> None:
    deadlines.set(A, START + after(10))
    assert len(deadlines) == 1
    clock.advance(9.999)
    await settled()
    assert fired.calls.empty()
    clock.advance(0.001)
    assert await fired.next() == A
    assert len(deadlines) == 0


async def test_deadlines_fire_in_the_order_of_their_times(
    deadlines: Deadlines, clock: Clock, fired: Fired
) -> None:
    for call_sid, seconds in ((B, 20), (C, 30), (A, 10)):
        deadlines.set(call_sid, START + after(seconds))
    order = []
    for _ in range(3):
        clock.advance(10)
        order.append(await fired.next())
    assert order == [A, B, C]


async def test_an_earlier_deadline_wakes_a_waiter_for_a_later_one(
    deadlines: Deadlines, clock: Clock, fired: Fired
) -> None:
    deadlines.set(B, START + after(600))
    await settled()
    deadlines.set(A, START + after(1))
    await settled()
    clock.advance(1)
    assert await fired.next() == A


async def test_a_call_that_has_no_more_deadline_fires_none(
    deadlines: Deadlines, clock: Clock, fired: Fired
) -> None:
    deadlines.set(A, START + after(10))
    deadlines.set(B, START + after(20))
    deadlines.set(A, None)
    deadlines.set(C, None)
    assert len(deadlines) == 1
    clock.advance(60)
    assert await fired.next() == B
    await settled()
    assert fired.calls.empty()


@pytest.mark.parametrize("moved_to_s", [5, 20])
async def test_a_deadline_that_moved_fires_once_and_at_its_new_time(
    deadlines: Deadlines, clock: Clock, fired: Fired, moved_to_s: int
) -> None:
    deadlines.set(A, START + after(10))
    await settled()
    deadlines.set(A, START + after(moved_to_s))
    await settled()
    clock.advance(moved_to_s - 0.001)
    await settled()
    assert fired.calls.empty()
    clock.advance(0.001)
    assert await fired.next() == A
    clock.advance(60)
    await settled()
    assert fired.calls.empty()


async def test_the_rows_of_an_earlier_process_fire_those_past_due_at_once(
    deadlines: Deadlines, clock: Clock, fired: Fired
) -> None:
    deadlines.refill([(B, to_ms(START + after(5))), (A, to_ms(START - after(3600)))])
    assert len(deadlines) == 2
    assert await fired.next() == A
    await settled()
    assert fired.calls.empty()
    clock.advance(5)
    assert await fired.next() == B


async def test_a_deadline_that_could_not_be_carried_out_is_tried_again(
    deadlines: Deadlines, clock: Clock, fired: Fired
) -> None:
    fired.fail_next = True
    deadlines.set(A, START + after(10))
    deadlines.set(B, START + after(10.5))
    clock.advance(10)
    assert await fired.next() == A
    await settled()
    assert fired.calls.empty()
    clock.advance(0.5)
    assert await fired.next() == B  # a failure holds nobody else up
    clock.advance(0.5)
    assert await fired.next() == A
    clock.advance(60)
    await settled()
    assert fired.calls.empty()
