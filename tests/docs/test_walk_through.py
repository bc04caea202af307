"""The commands of the getting-started page, run as they stand there, and what it says they print."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from tests.conftest import PATIENCE_S
from tests.docs.documents import ROOT, blocks

PAGE = ROOT / "docs/getting-started.md"
SHOWN = {
    command: output
    for block in blocks(PAGE)
    if block.kind == "console"
    for command, output in block.commands()
}
FIRST_TABLE, SECOND_TABLE = (block.text for block in blocks(PAGE) if block.kind == "text")


class Terminal:
    """A command of the page at work, in a shell of its own."""

    def __init__(self, process: Process, command: str) -> None:
        self._process = process
        self._command = command
        self.printed = ""

    async def says(self, what: str) -> None:
        """Reads on until it says so; the next wait begins after that line."""
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            while line := (await self._process.stdout.readline()).decode():
                self.printed += line
                if what in line:
                    return
        raise AssertionError(f"{self._command} ended without saying {what!r}:\n{self.printed}")

    async def type(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        await self._process.stdin.drain()

    async def ends_well(self) -> None:
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            self.printed += (await self._process.stdout.read()).decode()
            status = await self._process.wait()
        assert status == 0, f"{self._command}: {status}\n{self.printed}"

    def interrupt(self) -> None:
        """Ctrl-C."""
        os.killpg(self._process.pid, signal.SIGINT)

    def printed_all_of(self, shown: str) -> bool:
        printed = " ".join(self.printed.split())
        return all(" ".join(line.split()) in printed for line in shown.splitlines())


class Folder:
    """An empty folder with terminals in it."""

    def __init__(self, path: Path, environment: Mapping[str, str]) -> None:
        self._path = path
        self._environment = environment

    @asynccontextmanager
    async def opened(self, start: str) -> AsyncIterator[Terminal]:
        """The one command of the page that begins so, in a terminal. It is killed at the end."""
        (command,) = (command for command in SHOWN if command.startswith(start))
        process = await asyncio.create_subprocess_shell(
            f"exec {command}",
            cwd=self._path,
            env=self._environment,
            stdin=PIPE,
            stdout=PIPE,
            stderr=STDOUT,
            start_new_session=True,
        )
        try:
            yield Terminal(process, command)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()

    async def run(self, start: str) -> None:
        """A command that ends by itself, and prints all that the page shows."""
        async with self.opened(start) as terminal:
            await terminal.ends_well()
            (shown,) = (output for command, output in SHOWN.items() if command.startswith(start))
            assert terminal.printed_all_of(shown), terminal.printed


async def test_getting_started_works_as_it_is_written(tmp_path: Path) -> None:
    foreign = ("BELLWIRE_", "XDG_", "NOTIFY_SOCKET")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(foreign)} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "BELLWIRE_LISTEN": "127.0.0.1:0",  # 8080 may be taken where this test runs
    }
    folder = Folder(tmp_path, environment)
    async with folder.opened("bellwire relay") as relay:
        await relay.says("relay serves")
        await folder.run("bellwire devices add")
        async with folder.opened("bellwire agent") as agent:
            await folder.run("bellwire devices list")
            await agent.says("broker connected")
            first, second = (command for command in SHOWN if command.startswith("bellwire call"))
            async with asyncio.TaskGroup() as beside, folder.opened(first) as call:
                beside.create_task(folder.run("bellwire doctor"))
                await agent.says('"status": "pending"')
                await agent.type("a")
                await agent.says('"status": "open"')
                await agent.type("h")
                await agent.says('"status": "closed"')
                await call.ends_well()
                assert call.printed_all_of(FIRST_TABLE), call.printed
            async with folder.opened(second) as call:
                await agent.says('"status": "pending"')
                await agent.type("a")
                await agent.says('"status": "open"')
                for line in ("message hello", "join porter", "end"):
                    await call.type(line)
                await agent.says('"status": "closed"')
                await call.ends_well()
                assert call.printed_all_of(SECOND_TABLE), call.printed
            await agent.type("q")
            await agent.ends_well()
            shown = next(text for command, text in SHOWN.items() if "bellwire agent" in command)
            assert agent.printed_all_of(shown), agent.printed
        await folder.run("bellwire devices remove")
        relay.interrupt()
        await relay.ends_well()


def test_every_command_of_the_page_is_one_that_the_walk_through_runs() -> None:
    assert [" ".join(command.split()[:3]) for command in SHOWN] == [
        "script/setup",
        'export PATH="$PWD/.venv/bin:$PATH"',
        "bellwire relay --data",
        "bellwire devices add",
        "bellwire devices list",
        "bellwire agent --config",
        "bellwire call desk",
        "bellwire call desk",
        "bellwire doctor --data",
        "bellwire devices remove",
    ]
