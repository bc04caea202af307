"""A day at a busy door, told in calls: what one call took is given back after it."""

import asyncio
import gc
import logging
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bellwire.agent.calls.call import Call
from bellwire.agent.calls.invite import CallInvite
from bellwire.agent.memory import share_arenas
from bellwire.cli.demo.stage import Stage, Station, demo_stage
from bellwire.hardware.audio.block import Block
from tests.conftest import PATIENCE_S

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Footprint:
    """What this process, with both agents in it, holds."""

    rss_mb: float
    threads: int
    files: int

    def __str__(self) -> str:
        return f"{self.rss_mb:.1f} MB, {self.threads} threads, {self.files} files"


def _pooled() -> int:
    """Threads of asyncio's own pool, which takes as many as it may in its own time."""
    return sum(thread.name.startswith("asyncio_") for thread in threading.enumerate())


def footprint() -> Footprint:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Footprint(
        pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        len(list(Path("/proc/self/task").iterdir())) - _pooled(),
        len(list(Path("/proc/self/fd").iterdir())),
    )


class Told:
    """What one call told, to be waited for."""

    def __init__(self, call: Call) -> None:
        self.audio, self.over = asyncio.Event(), asyncio.Event()
        self.errors: list[object] = []
        call.on("audio", lambda _: self.audio.set())
        call.on("disconnect", lambda _: self.over.set())
        call.on("error", self.errors.append)


@asynccontextmanager
async def answering(desk: Station) -> AsyncIterator[asyncio.Queue[Told]]:
    """The desk answers whoever calls."""
    told: asyncio.Queue[Told] = asyncio.Queue()

    def answer(invite: CallInvite) -> None:
        told.put_nowait(Told(invite.accept()))

    stop = desk.agent.device.on("incoming", answer)
    yield told
    stop()


async def sound_at(station: Station) -> None:
    """Waits until the speaker of a station has been given a block."""
    loop, given = asyncio.get_running_loop(), asyncio.Event()

    def take(_: Block) -> None:
        loop.call_soon_threadsafe(given.set)

    stop = station.card.listen(take)
    await given.wait()
    stop()


async def one_call(stage: Stage, answered: "asyncio.Queue[Told]") -> None:
    call = stage.lobby.agent.device.connect("desk")
    here = Told(call)
    try:
        await _go_through(stage, call, here, answered)
    except TimeoutError:
        raise AssertionError(f"{call.record}, told {here.errors}") from None


async def _go_through(
    stage: Stage, call: Call, here: Told, answered: "asyncio.Queue[Told]"
) -> None:
    async with asyncio.timeout(PATIENCE_S):
        there = await answered.get()
        for end in (here, there):
            await end.audio.wait()
        for station in (stage.lobby, stage.desk):
            await sound_at(station)
        call.disconnect()
        for end in (here, there):
            await end.over.wait()
    assert not here.errors + there.errors


async def play_day(calls: int, every: int) -> list[Footprint]:
    """So many calls, one after the other; what is held after every so many of them."""
    found = []
    share_arenas()
    async with demo_stage() as stage, answering(stage.desk) as answered:
        for number in range(1, calls + 1):
            await one_call(stage, answered)
            if number % every == 0:
                await settled()
                found.append(footprint())
                log.warning("calls=%d: %s", number, found[-1])
    return found


async def settled() -> None:
    """Waits until the threads of the last call's sound have ended."""
    async with asyncio.timeout(PATIENCE_S):
        for thread in threading.enumerate():
            if thread.name == "simulated sound":
                await asyncio.to_thread(thread.join)


@pytest.fixture(autouse=True)
def nobody_is_called_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A day has to pass in less than one."""
    monkeypatch.setenv("BELLWIRE_DEVICE_INVITES_PER_S", "1000")
    monkeypatch.setenv("BELLWIRE_DEVICE_REQUESTS_PER_S", "1000")


@pytest.mark.full
@pytest.mark.timeout(7200)
async def test_two_thousand_calls_leave_no_more_behind_than_the_first_hundred() -> None:
    """24 hours of a busy door."""
    found = await play_day(2000, 100)
    no_thread_and_no_file_is_left(found)
    assert found[-1].rss_mb - found[1].rss_mb < 8


async def test_ten_calls_leave_no_thread_and_no_file_behind() -> None:
    no_thread_and_no_file_is_left(await play_day(10, 1))


def no_thread_and_no_file_is_left(found: list[Footprint]) -> None:
    """What calls leave behind is there after each later one, and more of it. libwebrtc's own threads
    end a while after a call, or are taken over by the next: one look may find them, another may not.
    And at first every thread pool and every cache of the libraries comes to its size."""
    half = len(found) // 2
    first, last = found[:half], found[half:]
    assert min(one.threads for one in last) <= max(one.threads for one in first)
    assert min(one.files for one in last) <= max(one.files for one in first)
