"""A share of a core: no more CPU time than it says, and no trace of it afterwards."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bellwire.signaling.errors import Unavailable
from bench.lab import core_share as core_share_module
from bench.lab.core_share import core_share

MOUNT = Path("/sys/fs/cgroup")
USED_S = 0.1
SHARE = 0.25
BURN = f"""
import time
input()
started, used = time.perf_counter(), time.process_time()
while time.process_time() - used < {USED_S}:
    pass
print(time.perf_counter() - started, flush=True)
input()
"""


def can_share_out() -> bool:
    """Whether this user may bound CPU time here, by what the system says."""
    enabled = MOUNT / "cgroup.subtree_control"
    if enabled.exists():
        return "cpu" in enabled.read_text().split() and os.access(MOUNT, os.W_OK)
    return os.access(MOUNT / "cpu", os.W_OK)


needs_control_groups = pytest.mark.skipif(
    not can_share_out(), reason="this user may not bound CPU time here"
)


@pytest.fixture
async def burner() -> AsyncIterator[Process]:
    """Uses CPU time once it is told to, and says how long that took."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", BURN, stdin=PIPE, stdout=PIPE
    )
    yield process
    if process.returncode is None:
        process.kill()
    await process.wait()


def groups_of(process: Process) -> list[Path]:
    return list(MOUNT.glob(f"**/bellwire-bench-{process.pid}"))


@needs_control_groups
async def test_a_process_gets_its_share_of_a_core_and_no_more(burner: Process) -> None:
    assert burner.stdin is not None
    assert burner.stdout is not None
    with core_share(burner.pid, SHARE):
        assert groups_of(burner)
        burner.stdin.write(b"\n")
        took_s = float(await burner.stdout.readline())
    assert took_s > 0.8 * USED_S / SHARE
    assert not groups_of(burner)


@needs_control_groups
async def test_the_process_may_end_first(burner: Process) -> None:
    with core_share(burner.pid, SHARE):
        burner.kill()
        await burner.wait()
    assert not groups_of(burner)


async def test_where_there_are_no_control_groups_it_says_what_it_takes(
    burner: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core_share_module, "_MOUNT", tmp_path)
    refused = pytest.raises(Unavailable, match=f"it takes root, and {tmp_path}")
    with refused, core_share(burner.pid, SHARE):
        pytest.fail("it ran without its share")
