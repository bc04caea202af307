"""A process keeps its threads on one core, lets them go for a moment to find a better one, and leaves
them as they were."""

import asyncio
import os
import threading
from collections.abc import Iterator

import pytest

from bellwire.cli.process.one_core import keep_to_one_core
from tests.push.clock import Clock

CORES = os.sched_getaffinity(0)
LONG_S = 10.0
"""Longer than it stays, or lets go."""
pytestmark = pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")


@pytest.fixture
def another_thread() -> Iterator[int]:
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    assert thread.native_id is not None
    yield thread.native_id
    over.set()
    thread.join()


async def test_threads_stay_on_one_core_and_are_let_go_to_choose(another_thread: int) -> None:
    clock = Clock()
    keeping = asyncio.create_task(keep_to_one_core(clock.sleep))
    for _ in range(2):
        await clock.until_asleep()
        assert os.sched_getaffinity(0) == os.sched_getaffinity(another_thread) == CORES
        clock.advance(LONG_S)
        await clock.until_asleep()
        assert len(os.sched_getaffinity(0)) == 1
        assert os.sched_getaffinity(0) == os.sched_getaffinity(another_thread)
        clock.advance(LONG_S)
    await clock.until_asleep()
    await cancelled(keeping)


async def test_threads_are_let_go_when_it_ends(another_thread: int) -> None:
    clock = Clock()
    keeping = asyncio.create_task(keep_to_one_core(clock.sleep))
    await clock.until_asleep()
    clock.advance(LONG_S)
    await clock.until_asleep()
    assert len(os.sched_getaffinity(0)) == 1
    await cancelled(keeping)
    assert os.sched_getaffinity(0) == os.sched_getaffinity(another_thread) == CORES


async def test_the_cores_that_an_operator_gave_are_not_left() -> None:
    given = {max(CORES)}
    try:
        os.sched_setaffinity(0, given)
        await keep_to_one_core(Clock().sleep)
        assert os.sched_getaffinity(0) == given
    finally:
        os.sched_setaffinity(0, CORES)


async def cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
