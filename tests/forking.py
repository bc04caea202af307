"""Processes that run the `bellwire` command, forked of one that has imported it: a relay is at work
after a sixth of the CPU time. Each is a process as any other, with its pid, environment and output.

What is read at import is read once for all of them. Where it is the start itself that is tested, the
command is run as people run it: `tests/cli/test_cli_relay.py`.

A test that waits for a time to pass may have one that is shorter: then it is as long for that process alone.
"""

import asyncio
import atexit
import contextlib
import functools
import gc
import json
import os
import resource
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from bellwire.cli.process.relay import Process, RelayProcess
from tests.migrated import lay_migrated

_IMPORTED = (
    "bellwire.agent.main",
    "bellwire.cli.main",
    "bellwire.cli.agent",
    "bellwire.cli.call",
    "bellwire.cli.demo.station",
    "bellwire.cli.devices",
    "bellwire.cli.doctor.command",
    "bellwire.cli.fleet.command",
    "bellwire.cli.keys",
    "bellwire.cli.push.command",
    "bellwire.cli.relay",
    "bellwire.cli.token",
    "bellwire.push.relay",
    "uvloop",
)
"""Nothing that starts a thread: a process that has any cannot be forked."""
_ENVIRONMENT = {"COLUMNS": "300", "NO_COLOR": "1", "OPENBLAS_NUM_THREADS": "1"}
"""What counts for all: a terminal that breaks no lines, and NumPy without threads."""

_MESSAGE_BYTES = 128 * 1024
_ROOT = Path(__file__).parents[1]


class ForkedProcess:
    """One of them, in the words of `asyncio.subprocess.Process`."""

    def __init__(
        self,
        pid: int,
        report: socket.socket,
        stdin: asyncio.StreamWriter | None = None,
        stdout: asyncio.StreamReader | None = None,
        stderr: asyncio.StreamReader | None = None,
    ) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        self._report = report
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(report, self._hear_end)

    async def wait(self) -> int:
        """Waits for its end; returns its exit code, or the negative number of the signal."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # its end is about to be heard of
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _hear_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._report)
        self.returncode = int(self._report.recv(64) or -signal.SIGKILL)
        self._report.close()
        self._ended.set()


async def forked(
    *arguments: object,
    environment: Mapping[str, str],
    times: Mapping[str, float] | None = None,
    stdin: int = DEVNULL,
    stdout: int = DEVNULL,
    stderr: int = DEVNULL,
) -> ForkedProcess:
    """Starts `bellwire` with these arguments, in a session of its own.

    Args:
        arguments: What stands after `bellwire`.
        environment: All its variables.
        times: Constants that are other seconds there, by `module:NAME`.
        stdin: `PIPE` or `DEVNULL`.
        stdout: `PIPE`, `DEVNULL` or a descriptor.
        stderr: The same.
    """
    wanted = {
        "arguments": [*map(str, arguments)],
        "environment": dict(environment),
        "times": dict(times or {}),
        "folder": str(Path.cwd()),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "cores": sorted(os.sched_getaffinity(0)),
    }
    report, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, ExitStack() as opened:
        typed, its_input = await _input(stdin, opened)
        printed, its_output = await _output(stdout, opened)
        said, its_errors = await _output(stderr, opened)
        descriptors = [its_input, its_output, its_errors, theirs.fileno()]
        socket.send_fds(_forker(), [json.dumps(wanted).encode()], descriptors)
    report.setblocking(False)
    told = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(report, 64))
    try:
        return ForkedProcess(int(await asyncio.shield(told)), report, typed, printed, said)
    except asyncio.CancelledError:
        unwanted = ForkedProcess(int(await told), report)
        unwanted.kill()
        await unwanted.wait()
        raise


async def _input(kind: int, opened: ExitStack) -> tuple[asyncio.StreamWriter | None, int]:
    """Our end of it, and the descriptor of the other, which is closed once it is handed on."""
    if kind == DEVNULL:
        return None, _nothing(opened)
    ours, theirs = socket.socketpair()
    opened.enter_context(theirs)
    _, writer = await asyncio.open_connection(sock=ours)
    return writer, theirs.fileno()


async def _output(kind: int, opened: ExitStack) -> tuple[asyncio.StreamReader | None, int]:
    """The same."""
    if kind == DEVNULL:
        return None, _nothing(opened)
    if kind != PIPE:
        return None, kind
    reading, writing = os.pipe()
    opened.callback(os.close, writing)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb", 0)
    )
    return reader, writing


def _nothing(opened: ExitStack) -> int:
    descriptor = os.open(os.devnull, os.O_RDWR)
    opened.callback(os.close, descriptor)
    return descriptor


class ForkedRelay(RelayProcess):
    """A relay that is started so.

    Args:
        times: See `forked`.
    """

    def __init__(
        self,
        data: Path,
        *,
        listen: str = "127.0.0.1:0",
        arguments: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        times: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(data, listen=listen, arguments=arguments, environment=environment)
        self._times = dict(times or {})

    async def start(self) -> None:
        """See `RelayProcess.start`. At the first its database has its tables already."""
        has_another = "BELLWIRE_DATABASE" in self._environment or "--database" in self._arguments
        if not has_another and not self.data.exists():
            self.data.mkdir(mode=0o700, parents=True)
            lay_migrated(self.data / "relay.db")
        await super().start()

    async def spawn(
        self, arguments: Sequence[str], environment: Mapping[str, str], log: BinaryIO
    ) -> Process:
        return await forked(
            *arguments,
            environment=environment,
            times=self._times,
            stdout=log.fileno(),
            stderr=log.fileno(),
        )


@functools.cache
def _forker() -> socket.socket:
    """The way to the one that is forked, started at the first need of a test process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "tests.forking", str(theirs.fileno())],
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={**os.environ, **_ENVIRONMENT},
            start_new_session=True,
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _serve(control: socket.socket) -> dict[str, Any] | None:
    """Forks whenever it is told to. Returns in each process that it forks what that is to do, and in
    itself nothing, once nobody can tell it any more."""
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    forked_ones: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for key, _ in selector.select():
            if key.fd != control.fileno():
                selector.unregister(key.fd)
                pid, report = forked_ones.pop(key.fd)
                os.close(key.fd)
                _, status = os.waitpid(pid, 0)
                _tell(report, os.waitstatus_to_exitcode(status))
                report.close()
                continue
            message, descriptors, _, _ = socket.recv_fds(control, _MESSAGE_BYTES, 4)
            if not message:
                for pid, _ in forked_ones.values():
                    os.kill(pid, signal.SIGTERM)  # the tests were killed before they could do so
                return None
            *standard, reported = descriptors
            report = socket.socket(fileno=reported)
            pid = os.fork()
            if pid == 0:
                selector.close()
                control.close()
                report.close()
                for pidfd, (_, other) in forked_ones.items():
                    os.close(pidfd)
                    other.close()
                for number, descriptor in enumerate(standard):
                    os.dup2(descriptor, number)
                    os.close(descriptor)
                wanted: dict[str, Any] = json.loads(message)
                return wanted
            for descriptor in standard:
                os.close(descriptor)
            _tell(report, pid)
            pidfd = os.pidfd_open(pid)
            forked_ones[pidfd] = pid, report
            selector.register(pidfd, selectors.EVENT_READ)


def _tell(report: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # whoever asked for it may have ended
        report.send(str(number).encode())


def _become(wanted: Mapping[str, Any]) -> None:
    os.setsid()
    os.chdir(wanted["folder"])
    os.environ.clear()
    os.environ.update(wanted["environment"])
    resource.setrlimit(resource.RLIMIT_NOFILE, tuple(wanted["open_files"]))
    os.sched_setaffinity(0, wanted["cores"])
    for place, seconds in wanted["times"].items():
        module, name = place.split(":")
        read_by = import_module(module)
        if not isinstance(getattr(read_by, name), float):
            raise TypeError(f"{place} is no time in seconds")
        setattr(read_by, name, seconds)
    sys.argv = ["bellwire", *wanted["arguments"]]
    code = 0
    try:
        runpy.run_module("bellwire", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if not isinstance(ended.code, int | None):
            raise
        code = ended.code or 0
    # As an interpreter ends, but for taking down each object of all that was imported, which takes
    # longer than a relay takes to start.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    for name in _IMPORTED:
        import_module(name)
    gc.collect()
    gc.freeze()
    wanted = _serve(socket.socket(fileno=int(sys.argv[1])))
    if wanted is not None:
        _become(wanted)


if __name__ == "__main__":
    main()
