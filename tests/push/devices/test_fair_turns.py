"""Whoever brings much work waits for themselves alone, and no more of it is kept than is said."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bellwire.push.devices.rate_limits import DeviceRateLimits, FairTurns
from bellwire.push.metrics import Metrics
from bellwire.signaling.errors import TooManyRequests
from tests.conftest import PATIENCE_S

Piece = tuple[str, int]


class Desk:
    """Does one piece after another, each when it is told to; `done` holds them in their order."""

    def __init__(self, **limits: int) -> None:
        self.done: list[Piece] = []
        self.may_go = asyncio.Semaphore(0)
        self._all = asyncio.Event()
        self._wanted = 0
        self.turns: FairTurns[Piece] = FairTurns(self._do, **limits)

    async def _do(self, piece: Piece) -> None:
        await self.may_go.acquire()
        self.done.append(piece)
        if len(self.done) >= self._wanted:
            self._all.set()

    async def finish(self, count: int) -> list[Piece]:
        """Lets pieces be done until there are so many."""
        self._wanted = count
        for _ in range(count):
            self.may_go.release()
        async with asyncio.timeout(PATIENCE_S):
            await self._all.wait()
        return self.done


@asynccontextmanager
async def desk(
    *, at_once: int = 1, of_one: int = 1, waiting_of_one: int = 100, waiting_in_all: int = 1000
) -> AsyncIterator[Desk]:
    here = Desk(
        at_once=at_once,
        of_one=of_one,
        waiting_of_one=waiting_of_one,
        waiting_in_all=waiting_in_all,
    )
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(here.turns.run())
        await asyncio.sleep(0)
        yield here
        running.cancel()


async def test_neighbours_take_turns_with_whoever_has_brought_much_before_them() -> None:
    async with desk() as here:
        for number in range(50):
            assert here.turns.bring("eve", ("eve", number))
        for name in ("ann", "bob"):
            for number in range(2):
                assert here.turns.bring(name, (name, number))
        done = await here.finish(54)
    assert [name for name, _ in done[:7]] == ["eve", "ann", "bob", "eve", "ann", "bob", "eve"]
    assert [number for name, number in done if name == "eve"] == list(range(50))


async def test_no_more_than_its_share_of_one_is_under_way_while_others_may_begin() -> None:
    async with desk(at_once=4, of_one=2) as here:
        for number in range(4):
            here.turns.bring("eve", ("eve", number))
        here.turns.bring("ann", ("ann", 0))
        done = await here.finish(5)
    assert ("ann", 0) in done[:3]


async def test_what_waits_is_bounded_for_one_and_for_all_and_who_has_nothing_waiting_may_bring_one() -> (
    None
):
    async with desk(waiting_of_one=3, waiting_in_all=5) as here:
        assert [here.turns.bring("eve", ("eve", n)) for n in range(6)] == [True] * 4 + [False] * 2
        assert [here.turns.bring("mal", ("mal", n)) for n in range(4)] == [True] * 2 + [False] * 2
        assert [here.turns.bring("ann", ("ann", n)) for n in range(2)] == [True, False]
        assert len(here.turns) == 6
        await here.finish(7)
        assert len(here.turns) == 0


class Seconds:
    """A clock that a test moves."""

    now = 1e6

    def __call__(self) -> float:
        return self.now


def counted(metrics: Metrics, reason: str) -> float:
    return metrics.registry.get_sample_value("bellwire_refused_total", {"reason": reason}) or 0


def test_a_device_asks_five_seconds_worth_at_once_and_then_its_rate() -> None:
    clock, metrics = Seconds(), Metrics()
    limits = DeviceRateLimits(10, metrics, clock)
    assert [limits.wait_s("eve") for _ in range(50)] == [0.0] * 50
    assert 0.09 < limits.wait_s("eve") < 0.11
    assert limits.wait_s("ann") == 0.0
    clock.now += 0.2
    assert [limits.wait_s("eve") == 0.0 for _ in range(3)] == [True, True, False]


def test_a_flood_is_told_some_times_and_then_thrown_away_unread_and_all_of_it_is_counted() -> None:
    clock, metrics = Seconds(), Metrics()
    limits = DeviceRateLimits(10, metrics, clock)
    told = 0
    for _ in range(1000):
        if limits.is_heard("eve") and (wait_s := limits.wait_s("eve")):
            refusal = limits.refuse("eve", wait_s=wait_s)
            assert refusal is not None
            assert "at most 10 requests per second" in refusal.detail
            told += 1
    assert told == 16
    assert counted(metrics, "device-requests") == 16
    assert counted(metrics, "device-requests-unread") == 1000 - 50 - 16
    clock.now += 10
    assert limits.is_heard("eve")
    assert limits.wait_s("eve") == 0.0


def test_whoever_floods_over_http_is_known_to_before_a_turn_is_taken_and_looking_takes_none() -> (
    None
):
    clock, metrics = Seconds(), Metrics()
    limits = DeviceRateLimits(10, metrics, clock)
    for identity, device in (("eve", None), ("eve", "phone")):
        for _ in range(50):
            assert limits.refusal(identity, device) is None
            limits.admit(identity, device)
        refusal = limits.refusal(identity, device)
        assert refusal is not None
        assert "at most 10 requests per second" in refusal.detail
        clock.now += 0.1
        assert limits.refusal(identity, device) is None
        limits.admit(identity, device)
        with pytest.raises(TooManyRequests):
            limits.admit(identity, device)
    assert counted(metrics, "device-requests") == 4


async def test_a_message_that_has_to_wait_for_its_turn_is_counted_once() -> None:
    clock, metrics = Seconds(), Metrics()
    limits = DeviceRateLimits(10, metrics, clock)

    async def sleep(seconds: float) -> None:
        clock.now += seconds / 2 + 0.001

    for _ in range(55):
        await limits.take_turn("eve", sleep)
    assert 0.4 < clock.now - Seconds().now < 0.7
    assert counted(metrics, "stream-messages-slowed") == 5


def test_devices_that_are_quiet_again_are_forgotten() -> None:
    clock = Seconds()
    limits = DeviceRateLimits(10, Metrics(), clock)
    for number in range(20_000):
        clock.now += 1
        limits.wait_s(f"device-{number}")
    assert len(limits) < 3000
