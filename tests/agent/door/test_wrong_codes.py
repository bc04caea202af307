"""Wrong door codes outlive the agent: what is on disk, when, and what a disk that fails comes to."""

import asyncio
import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from bellwire.agent.door.wrong_codes import WrongCodes


async def kept(counts: WrongCodes, wrong_codes: dict[str, int]) -> None:
    """Returns once these are durable."""
    done = asyncio.Event()
    counts.keep(wrong_codes, done.set)
    await done.wait()


async def test_what_is_kept_is_there_at_the_next_start_and_for_this_device_alone(
    tmp_path: Path,
) -> None:
    counts = WrongCodes(tmp_path / "state", "gate")
    assert counts.found == {}
    await kept(counts, {"alice": 2, "": 1})
    assert WrongCodes(tmp_path / "state", "gate").found == {"alice": 2, "": 1}
    (file,) = (tmp_path / "state").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.rename(file.with_name("door-back.json"))  # a card that was copied
    assert WrongCodes(tmp_path / "state", "back").found == {}


async def test_who_is_told_is_told_once_it_is_durable(tmp_path: Path) -> None:
    counts = WrongCodes(tmp_path, "gate")
    seen: list[dict[str, int]] = []
    told = asyncio.Event()

    def tell() -> None:
        seen.append(WrongCodes(tmp_path, "gate").found)
        if len(seen) == 3:
            told.set()

    for wrong in ({"alice": 1}, {"alice": 2}, {"alice": 2}):
        counts.keep(wrong, tell)
    await told.wait()
    assert [found["alice"] for found in seen] >= [1, 2, 2]
    assert seen[-1] == {"alice": 2}


async def test_nothing_is_written_where_nothing_has_changed(tmp_path: Path) -> None:
    counts = WrongCodes(tmp_path, "gate")
    await kept(counts, {})
    assert not await asyncio.to_thread((tmp_path / "door-gate.json").exists)


def cut(file: Path) -> None:
    file.write_text(file.read_text()[:20])


def scramble(file: Path) -> None:
    file.write_bytes(b"\x00\xff" * 100)


def forge(file: Path) -> None:
    file.write_text(json.dumps({"device_id": "gate", "wrong_codes": {"alice": -4}}))


@pytest.mark.parametrize("damage", [cut, scramble, forge])
async def test_a_damaged_file_is_said_and_replaced_by_the_next(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    await kept(WrongCodes(tmp_path, "gate"), {"alice": 2})
    damage(tmp_path / "door-gate.json")
    counts = WrongCodes(tmp_path, "gate")
    assert counts.is_damaged
    assert counts.found == {}
    await kept(counts, {})
    assert not WrongCodes(tmp_path, "gate").is_damaged


async def test_a_disk_that_takes_nothing_is_a_fault_with_what_to_do_and_holds_nobody_up(
    tmp_path: Path,
) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    counts = WrongCodes(tmp_path / "state", "gate")
    await kept(counts, {"alice": 1})
    assert "make room" in (counts.fault or "")
    (tmp_path / "state").unlink()
    await kept(counts, {"alice": 1})  # the same: there is room, and nobody has typed since
    assert counts.fault is None
    assert WrongCodes(tmp_path / "state", "gate").found == {"alice": 1}


async def test_without_a_folder_nothing_is_kept() -> None:
    await kept(WrongCodes(None, "gate"), {"alice": 1})


async def test_once_closed_nothing_more_is_written_and_nobody_is_held_up(tmp_path: Path) -> None:
    counts = WrongCodes(tmp_path, "gate")
    counts.keep({"alice": 1})
    await asyncio.to_thread(counts.close)
    await kept(counts, {"alice": 2})
    assert WrongCodes(tmp_path, "gate").found == {"alice": 1}
