"""A network between two parties that loses, delays and reorders: a network namespace for each, joined
by a wire whose faults are set while calls stand on it.

Where the kernel has netem the wire is a veth pair with netem at both ends; else it is a pair of TUN
devices and `bench.lab.tun_wire`, a process that forwards between them. Both take a loss of all packets and
a delay of `jitter_ms` +- `jitter_ms`, evenly spread, in each direction. Needs root.
"""

import asyncio
import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.lab.pulse_server import end

_CLONE_NEWNET = 0x40000000
_START_TIMEOUT_S = 20.0
_PROBES_PER_S = 500


@dataclass(frozen=True, slots=True)
class Faults:
    """What is wrong with the wire; loss in percent."""

    loss: float = 0.0
    jitter_ms: float = 0.0

    @property
    def key(self) -> str:
        """Its name in results."""
        return f"{self.jitter_ms:g}_ms_jitter" if self.jitter_ms else f"{self.loss:g}_percent_loss"

    def __str__(self) -> str:
        return f"{self.loss:g} % loss" + (f", {self.jitter_ms:g} ms jitter" * bool(self.jitter_ms))


@dataclass(frozen=True, slots=True)
class Probed:
    """What the wire did to datagrams that were counted: how many were lost and came after a later one,
    in percent, and their mean delay."""

    lost: float
    reordered: float
    delay_ms: float


class LossyNetwork:
    """The namespaces and their wire, from `async with` to its end. Parties are 10.77.0.1, 10.77.0.2."""

    def __init__(self, parties: tuple[str, ...] = ("a", "b")) -> None:
        self._parties = parties[:2]
        self._forwarder: Process | None = None
        self.kind = "TUN"

    async def __aenter__(self) -> Self:
        if os.geteuid() != 0:
            raise PermissionError("network namespaces need root: run bench/audio as root")
        self._remove()
        try:
            for party in self._parties:
                _run("ip", "netns", "add", namespace(party))
                _inside(party, "ip", "link", "set", "lo", "up")
            if _has_netem(self._parties[0]):
                self.kind = "netem"
                self._join_by_veth()
            else:
                await self._join_by_tun()
            for number, party in enumerate(self._parties, start=1):
                _inside(party, "ip", "address", "add", f"10.77.0.{number}/24", "dev", "eth0")
                _inside(party, "ip", "link", "set", "eth0", "up")
                _inside(party, "ip", "route", "add", "default", "dev", "eth0")
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._close()

    async def set(self, faults: Faults) -> None:
        """From now on the wire has these faults."""
        if self._forwarder is None:
            delay = f"{faults.jitter_ms}ms"
            for party in self._parties:
                netem = ["tc", "qdisc", "replace", "dev", "eth0", "root", "netem", "limit", "10000"]
                netem += ["loss", f"{faults.loss}%"] if faults.loss else []
                netem += ["delay", delay, delay] if faults.jitter_ms else []
                _inside(party, *netem)
            return
        pipe_in, pipe_out = self._forwarder.stdin, self._forwarder.stdout
        if pipe_in is None or pipe_out is None:
            raise ValueError("the forwarder has no pipes")
        pipe_in.write(json.dumps([faults.loss / 100, faults.jitter_ms / 1000]).encode() + b"\n")
        if not await pipe_out.readline():
            raise SystemExit("the forwarder of the lossy network died")

    async def probe(self, seconds: float) -> Probed:
        """Counts datagrams from the first party to the second: the wire's faults, measured."""
        near, far = (datagram_socket(party) for party in self._parties)
        with near, far:
            far.bind(("10.77.0.2", 7))
            far.settimeout(1)
            return await asyncio.to_thread(_probe, near, far, int(seconds * _PROBES_PER_S))

    def _join_by_veth(self) -> None:
        near, far = (f"bw{os.getpid()}{party}" for party in self._parties)
        _run("ip", "link", "add", near, "type", "veth", "peer", "name", far)
        for device, party in zip((near, far), self._parties, strict=True):
            _run("ip", "link", "set", device, "netns", namespace(party), "name", "eth0")

    async def _join_by_tun(self) -> None:
        self._forwarder = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.lab.tun_wire", *map(namespace, self._parties),
            stdin=PIPE, stdout=PIPE,
        )  # fmt: skip
        async with asyncio.timeout(_START_TIMEOUT_S):
            if self._forwarder.stdout is None or not await self._forwarder.stdout.readline():
                raise SystemExit("the lossy network did not start: is there a /dev/net/tun?")

    async def _close(self) -> None:
        if self._forwarder is not None:
            await end(self._forwarder)
        self._remove()

    def _remove(self) -> None:
        for party in self._parties:
            if Path("/run/netns", namespace(party)).exists():
                with suppress(subprocess.CalledProcessError):
                    _run("ip", "netns", "delete", namespace(party))


def datagram_socket(party: str) -> socket.socket:
    """A UDP socket inside a party's namespace, for use from here."""
    return _in_namespace(party, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))


def listening_socket(party: str, port: int) -> socket.socket:
    """A TCP socket that listens on the loopback inside a party's namespace, for use from here: so a
    party reaches the relay and its broker without a way around the lossy wire."""
    return _in_namespace(party, lambda: socket.create_server(("127.0.0.1", port)))


def _in_namespace(party: str, make: Callable[[], socket.socket]) -> socket.socket:
    """A socket belongs to the namespace of the thread that made it (network_namespaces(7)), and a
    thread of its own can change into another."""
    made: list[socket.socket | OSError] = []

    def work() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            with Path("/run/netns", namespace(party)).open("rb") as file:
                if libc.setns(file.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"setns {namespace(party)}")
            made.append(make())
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


def _probe(near: socket.socket, far: socket.socket, count: int) -> Probed:
    arrived: list[tuple[int, float]] = []

    def listen() -> None:
        with suppress(TimeoutError):
            while len(arrived) < count:
                number, sent = json.loads(far.recv(200))
                arrived.append((number, time.monotonic() - sent))

    listener = threading.Thread(target=listen)
    listener.start()
    started = time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, started + number / _PROBES_PER_S - time.monotonic()))
        near.sendto(json.dumps([number, time.monotonic()]).encode(), ("10.77.0.2", 7))
    listener.join()
    if not arrived:
        return Probed(100.0, 0.0, 0.0)
    return Probed(
        100 * (1 - len(arrived) / count),
        100 * _late(number for number, _ in arrived) / len(arrived),
        1000 * sum(delay for _, delay in arrived) / len(arrived),
    )


def _late(numbers: Iterable[int]) -> int:
    late, newest = 0, -1
    for number in numbers:
        late += number < newest
        newest = max(newest, number)
    return late


def _has_netem(party: str) -> bool:
    try:
        _inside(party, "tc", "qdisc", "add", "dev", "lo", "root", "netem", "limit", "10")
        _inside(party, "tc", "qdisc", "delete", "dev", "lo", "root")
    except subprocess.CalledProcessError:
        return False
    return True


def _inside(party: str, *command: str) -> None:
    _run("ip", "netns", "exec", namespace(party), *command)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=_START_TIMEOUT_S)  # noqa: S603


def namespace(party: str) -> str:
    """The name of a party's network namespace; of this process only, so that two runs do not meet."""
    return f"bellwire-{os.getpid()}-{party}"


def namespace_command(party: str, *, inside: bool) -> tuple[str, ...]:
    """What a party's command begins with, so that it runs in its network namespace."""
    return ("ip", "netns", "exec", namespace(party)) if inside else ()
