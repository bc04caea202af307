"""What the tests fork is what people run: see `tests.forking`."""

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path

import pytest

from tests.cli.command import bellwire, environment
from tests.forking import ForkedRelay


@pytest.mark.parametrize(
    "arguments", [("--help",), ("call", "--nonsense"), ("devices", "list", "--data", "/none")]
)
async def test_a_forked_command_prints_says_and_returns_what_one_does_that_is_run(
    arguments: tuple[str, ...],
) -> None:
    run = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bellwire", *arguments),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        env=environment(),
    )
    printed, said = await run.communicate()
    ended = await bellwire(*arguments)
    assert (ended.code, ended.out, ended.err) == (run.returncode, printed.decode(), said.decode())


async def test_a_forked_relay_can_be_killed_and_started_again(tmp_path: Path) -> None:
    relay = ForkedRelay(tmp_path / "relay")
    await relay.start()
    first = relay.pid
    await relay.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    await relay.start()
    assert relay.pid not in (0, first)
    await relay.stop()
