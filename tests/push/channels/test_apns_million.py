"""A million pushes over the same connections: what one took is given back after it."""

import asyncio
import gc
import logging
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from bellwire.config.relay import ApnsApp
from bellwire.push.channels.apns.channel import ApnsChannel
from bellwire.push.channels.payload import PushPayload
from bellwire.push.metrics import Metrics
from bench.lab.apns_server import ApnsServer
from tests.push.apns_scene import BUNDLE, KEY_ID, TEAM_ID, at_work, delivery, utc_now
from tests.push.apns_server import Authority, write_team_key

log = logging.getLogger(__name__)

_LANES = 64


def _play_apns(certificate: Path, port: Connection) -> None:
    async def play() -> None:
        server = ApnsServer()
        async with await server.serve(certificate) as listening:
            port.send(server.port)
            await listening.serve_forever()

    asyncio.run(play())


@contextmanager
def apns_in_a_process_of_its_own(certificate: Path) -> Iterator[int]:
    here, there = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=_play_apns, args=(certificate, there), daemon=True)
    process.start()
    try:
        yield here.recv()
    finally:
        process.terminate()
        process.join()


def _rss_mb() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def push(channel: ApnsChannel, begin: int, count: int) -> None:
    """Sends so many pushes, each with an event id of its own, and has each of them acknowledged."""
    numbers = iter(range(begin, begin + count))

    async def lane() -> None:
        for number in numbers:
            assert await channel.send(delivery(f"event-{number}"), 60)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(_LANES):
            tasks.create_task(lane())


async def grown_mb(folder: Path, rounds: int, pushes: int) -> float:
    """By how much this process grew after the first of so many rounds of pushes."""
    authority = Authority(folder)
    key_file = folder / "AuthKey.p8"
    write_team_key(key_file)
    with apns_in_a_process_of_its_own(authority.certificate("apns")) as port:
        app = ApnsApp(
            key_file=key_file,
            key_id=KEY_ID,
            team_id=TEAM_ID,
            server=f"127.0.0.1:{port}",
            ca_file=authority.file,
            connections=4,
        )
        payload = PushPayload("AC" + "0" * 32, lambda *_: "connect-token")
        channel = ApnsChannel({BUNDLE: app}, payload, Metrics(), now=utc_now)
        found = []
        async with at_work(channel):
            for number in range(rounds):
                await push(channel, number * pushes, pushes)
                found.append(_rss_mb())
                log.warning("pushes=%d: %.1f MB", (number + 1) * pushes, found[-1])
    return found[-1] - found[0]


@pytest.mark.full
@pytest.mark.timeout(3600)
async def test_a_million_pushes_leave_nothing_behind(tmp_path: Path) -> None:
    assert await grown_mb(tmp_path, rounds=10, pushes=100_000) < 4


async def test_ten_thousand_pushes_leave_nothing_behind(tmp_path: Path) -> None:
    # The id of a push alone, if it were kept, would take 1.5 MB.
    assert await grown_mb(tmp_path, rounds=6, pushes=2_000) < 1
