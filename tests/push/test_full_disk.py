"""A relay whose disk is full: it says so where supervisors look, and goes on when there is room again."""

import asyncio
from pathlib import Path

import httpx

from bellwire.cli.doctor.diagnosis import Condition
from bellwire.cli.doctor.relay import examine_relay
from bellwire.push.data_disk import DataDisk, look_at_disk
from tests.cli.command import bellwire
from tests.conftest import PATIENCE_S
from tests.forking import ForkedRelay
from tests.push.support import Running, assert_problem, serving
from tests.small_disk import small_disk

FULL = "takes nothing more: it is full"


async def test_a_relay_that_starts_on_a_full_disk_says_so_in_one_line(tmp_path: Path) -> None:
    """It was a traceback of a hundred lines."""
    with small_disk(tmp_path / "disk", 8) as disk:
        disk.fill()
        data = disk.folder / "data"
        ended = await bellwire("relay", "--listen", "127.0.0.1:0", "--data", data)
        ended.must_say_in_one_line(f"the disk of {data} {FULL}", "Free at least 64 MB")


async def test_a_relay_whose_disk_has_filled_is_not_ready_until_there_is_room(
    tmp_path: Path,
) -> None:
    """`/readyz` and doctor said that all was well, and every call was refused."""
    with small_disk(tmp_path / "disk", 16) as disk:
        relay = ForkedRelay(
            disk.folder / "data", times={"bellwire.push.data_disk:_LOOK_EVERY_S": 0.5}
        )
        relay.log_path = tmp_path / "relay.log"  # not on that disk
        async with relay, serving(relay) as running:
            assert await running.register("desk")
            disk.fill()
            problem = assert_problem(await readiness(running, ready=False), 503, "unavailable")
            assert (problem["database"], problem["broker"], problem["disk"]) == (True, True, False)
            assert f"the disk of {relay.data} {FULL}" in problem["detail"]
            assert (await running.http.get("/healthz")).status_code == 200
            metrics = (await running.http.get("/metrics")).text
            assert "bellwire_data_disk_free_bytes 0.0" in metrics
            found = await asyncio.to_thread(lambda: list(examine_relay(None, relay.data, None)))
            wrong = [each.what for each in found if each.condition is Condition.BAD]
            assert [FULL in what for what in wrong] == [True, True], (
                "the folder, and the relay's word"
            )
            # What the file has room for already may still be written: ask until it has none.
            async with asyncio.timeout(PATIENCE_S):
                while (refused := await calling(running)).status_code == 201:
                    pass
            assert "disk is full" in assert_problem(refused, 503, "unavailable")["detail"]

            disk.free()
            await readiness(running, ready=True)
            assert (await calling(running)).status_code == 201


def test_a_folder_that_is_not_there_or_not_writable_is_a_problem_in_words(
    tmp_path: Path,
) -> None:
    assert "cannot be used: No such file" in str(look_at_disk(tmp_path / "gone").problem)
    assert look_at_disk(tmp_path).problem is None
    assert list(tmp_path.iterdir()) == [], "the block that was written is gone"


async def test_the_disk_is_looked_at_once_for_all_who_ask_within_seconds(tmp_path: Path) -> None:
    now = 0.0
    folder = tmp_path / "data"
    folder.mkdir()
    disk = DataDisk(folder, clock=lambda: now)
    states = await asyncio.gather(*(disk.state() for _ in range(50)))
    assert len({id(state) for state in states}) == 1
    folder.rmdir()
    now = 4.9
    assert (await disk.state()).problem is None
    now = 5.0
    assert "cannot be used" in str((await disk.state()).problem)


async def readiness(running: Running, *, ready: bool) -> httpx.Response:
    """Asks as a load balancer does, until the answer is so."""
    async with asyncio.timeout(PATIENCE_S):
        while (answer := await running.http.get("/readyz")).is_success is not ready:
            pass
    return answer


async def calling(running: Running) -> httpx.Response:
    return await running.http.post("/v1/calls", json={"to": ["desk"], "extended_data": "x" * 4000})
