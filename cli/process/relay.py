"""A relay as a child process: for the demo, the benchmarks and the tests.

It is ready when it says so in systemd's own words (READY=1 on its NOTIFY_SOCKET), so nobody polls.
"""

import asyncio
import os
import socket
import sys
import tempfile
from asyncio.subprocess import DEVNULL
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

from bellwire.cli.relay_client import RelayAccess, find_relay
from bellwire.signaling.errors import Unavailable

_START_TIMEOUT_S = 30.0


class Process(Protocol):
    """What is needed of a process that runs, as `asyncio.subprocess.Process` has it."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    async def wait(self) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class RelayProcess:
    """A relay on a data directory, as `bellwire relay` runs it. It can be killed and started again.

    Args:
        data: Its data directory.
        listen: HOST:PORT; port 0 takes a free one at each start.
        arguments: Further arguments of `bellwire relay`.
        environment: Variables beside those of this process.
    """

    def __init__(
        self,
        data: Path,
        *,
        listen: str = "127.0.0.1:0",
        arguments: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.data = data
        self.log_path = data.parent / f"{data.name}.log"
        self._arguments = ("relay", "--listen", listen, "--data", str(data), *arguments)
        self._environment = dict(environment or {})
        self._process: Process | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def access(self) -> RelayAccess:
        """Where it serves, and its API key."""
        return find_relay(None, self.data, self.data / "api-key")

    @property
    def pid(self) -> int:
        """Its process id; 0 while it does not run."""
        return 0 if self._process is None else self._process.pid

    async def start(self) -> None:
        """Starts it and waits until it serves.

        Raises:
            Unavailable: it did not; says what its log says.
        """
        with (
            tempfile.TemporaryDirectory(prefix="bellwire-ready-") as folder,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified,
        ):
            notified.setblocking(False)
            notified.bind(f"{folder}/notify")
            environment = {**os.environ, **self._environment, "NOTIFY_SOCKET": f"{folder}/notify"}
            with self.log_path.open("ab") as log:
                self._process = await self.spawn(self._arguments, environment, log)
            await self._wait_ready(self._process, notified)

    async def stop(self) -> None:
        """Asks it to stop, as systemd does, and waits until it has."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()
        self._process = None

    async def kill(self) -> None:
        """Kills it at once, as a power cut does."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        self._process = None

    async def spawn(
        self, arguments: Sequence[str], environment: Mapping[str, str], log: BinaryIO
    ) -> Process:
        """Starts `bellwire` with these arguments, which says all into this log. In a session of its own:
        Ctrl-C is for whoever started it, who stops it in order."""
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "bellwire",
            *arguments,
            stdin=DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )

    async def _wait_ready(self, process: Process, notified: socket.socket) -> None:
        ready = asyncio.ensure_future(_hear_ready(notified))
        gone = asyncio.ensure_future(process.wait())
        try:
            done, _ = await asyncio.wait(
                {ready, gone}, timeout=_START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            ready.cancel()
            gone.cancel()
        if ready not in done:
            await self.kill()
            raise Unavailable(f"the relay did not start; it says:\n{self.log_tail()}")

    def log_tail(self, characters: int = 2000) -> str:
        """The end of its log."""
        return self.log_path.read_text(errors="replace")[-characters:]


async def _hear_ready(notified: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while b"READY=1" not in (await loop.sock_recv(notified, 4096)).splitlines():
        pass
