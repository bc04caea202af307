"""Two PostgreSQL that Patroni keeps, with etcd: one takes writes, the other is a synchronous standby and
takes its place. Patroni is Debian's, or is installed by pip into a folder of its own the first time."""

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psycopg
import pytest
import yaml

from bellwire.broker.embedded import free_port
from bench.lab.postgres_cluster import find_program

_ETCD = shutil.which("etcd")
_INSTALLED = Path(os.environ.get("XDG_CACHE_HOME", "/var/tmp")) / "bellwire-tests-patroni"  # noqa: S108
_STARTS_WITHIN_S = 90.0

needs_etcd = pytest.mark.skipif(
    _ETCD is None, reason="etcd is not installed (Debian package etcd-server)"
)


class Member:
    """One PostgreSQL, and the Patroni that keeps it."""

    def __init__(self, name: str, folder: Path, etcd_port: int, peers: tuple[int, int]) -> None:
        self.name = name
        self.port, self.api_port = peers
        self.log_path = folder / f"{name}.log"
        self.settings = folder / f"{name}.yml"
        self._folder = folder
        self._process: Process | None = None
        document = _settings(name, folder, etcd_port, self.port, self.api_port)
        self.settings.write_text(yaml.safe_dump(document))

    async def start(self, patroni: Path) -> None:
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *_as_postgres(self._folder),
                str(patroni),
                str(self.settings),
                cwd="/",
                stdin=DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def kill(self) -> None:
        """kill -9 of all of it, as a power cut does."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid_file = self._folder / self.name / "postmaster.pid"
            postmaster = int(pid_file.read_text().split()[0])
            _kill_with_children(postmaster)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


class PatroniCluster:
    """Both of them."""

    def __init__(self, patroni: Path, members: list[Member]) -> None:
        self.members = members
        self._patroni = patroni
        self._http = httpx.AsyncClient(timeout=5)

    @property
    def url(self) -> str:
        """What a relay is given as its database."""
        hosts = "&".join(f"host=127.0.0.1:{member.port}" for member in self.members)
        return f"postgresql://bellwire@/bellwire?{hosts}"

    async def until_leads(self, *, other_than: Member | None = None) -> Member:
        """Waits until one takes writes and the other follows, or, where one is dead, until the other does."""
        async with asyncio.timeout(_STARTS_WITHIN_S):
            while True:
                for member in self.members:
                    if member is not other_than and await self._is(member, "primary"):
                        return member
                await asyncio.sleep(0.2)

    async def until_followed(self) -> None:
        """Waits until the leader waits for its standby at each commit."""
        async with asyncio.timeout(_STARTS_WITHIN_S):
            while not any([await self._is(member, "synchronous") for member in self.members]):  # noqa: ASYNC110
                await asyncio.sleep(0.2)

    async def switch_over(self) -> None:
        """Has the standby take the place of the leader, in order."""
        leader = await self.until_leads()
        (other,) = (member for member in self.members if member is not leader)
        answer = await self._http.post(
            f"http://127.0.0.1:{leader.api_port}/switchover",
            json={"leader": leader.name, "candidate": other.name},
            timeout=_STARTS_WITHIN_S,
        )
        assert answer.is_success, answer.text
        assert await self.until_leads(other_than=leader) is other

    async def start(self, member: Member) -> None:
        await member.start(self._patroni)

    async def _is(self, member: Member, role: str) -> bool:
        with contextlib.suppress(httpx.TransportError):
            answer = await self._http.get(f"http://127.0.0.1:{member.api_port}/{role}")
            return answer.status_code == 200
        return False


@asynccontextmanager
async def patroni_cluster() -> AsyncIterator[PatroniCluster]:
    """A cluster with an empty database `bellwire`, for one test."""
    patroni = await _installed_patroni()
    async with AsyncExitStack() as opened:
        folder = Path(opened.enter_context(TemporaryDirectory(prefix="bellwire-patroni-")))
        user = _as_postgres(folder)
        if user:
            owner = pwd.getpwnam("postgres")
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        etcd_port = await _running_etcd(opened, folder)
        members = [
            Member(name, folder, etcd_port, (free_port(), free_port())) for name in ("one", "two")
        ]
        for member in members:
            opened.push_async_callback(member.kill)
        cluster = PatroniCluster(patroni, members)
        opened.push_async_callback(cluster._http.aclose)
        for member in members:
            await cluster.start(member)
        try:
            leader = await cluster.until_leads()
            await cluster.until_followed()
        except TimeoutError:
            logs = "\n".join(member.log_path.read_text()[-2000:] for member in members)
            raise AssertionError(f"Patroni has not begun: {logs}") from None
        server = f"postgresql://bellwire@127.0.0.1:{leader.port}/postgres"
        async with await psycopg.AsyncConnection.connect(server, autocommit=True) as admin:
            await admin.execute("CREATE DATABASE bellwire")
        yield cluster


async def _running_etcd(opened: AsyncExitStack, folder: Path) -> int:
    port, peer_port = free_port(), free_port()
    etcd = await asyncio.create_subprocess_exec(
        str(_ETCD),
        *("--data-dir", str(folder / "etcd"), "--name", "e"),
        *("--listen-client-urls", f"http://127.0.0.1:{port}"),
        *("--advertise-client-urls", f"http://127.0.0.1:{port}"),
        *("--listen-peer-urls", f"http://127.0.0.1:{peer_port}"),
        *("--initial-advertise-peer-urls", f"http://127.0.0.1:{peer_port}"),
        *("--initial-cluster", f"e=http://127.0.0.1:{peer_port}"),
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=DEVNULL,
    )

    async def end() -> None:
        etcd.kill()
        await etcd.wait()

    opened.push_async_callback(end)
    return port


async def _installed_patroni() -> Path:
    if (found := shutil.which("patroni")) is not None:
        return Path(found)
    command = _INSTALLED / "bin" / "patroni"
    if not command.exists():
        python = shutil.which("python3", path="/usr/bin") or sys.executable
        for words in (
            (python, "-m", "venv", str(_INSTALLED)),
            (str(_INSTALLED / "bin" / "pip"), "-q", "install", "patroni[etcd3]>=4,<5"),
            (str(_INSTALLED / "bin" / "pip"), "-q", "install", "psycopg[binary]>=3.2,<4"),
        ):
            done = await asyncio.create_subprocess_exec(*words, stdin=DEVNULL, stderr=DEVNULL)
            if await done.wait() != 0:
                pytest.skip(f"patroni is not installed, and pip does not install it: {words}")
    return command


def _as_postgres(folder: Path) -> list[str]:
    """PostgreSQL refuses to run as root."""
    del folder
    if os.geteuid() != 0:
        return []
    user = pwd.getpwnam("postgres")
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


def _kill_with_children(pid: int) -> None:
    """Ends a postmaster and its backends at once; stopped first, so that it makes no new ones."""
    os.kill(pid, signal.SIGSTOP)
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for each in (*map(int, children), pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def _settings(name: str, folder: Path, etcd_port: int, port: int, api_port: int) -> dict[str, Any]:
    trust = ["local all all trust", "host all all 127.0.0.1/32 trust"]
    return {
        "scope": "bellwire",
        "name": name,
        "restapi": {
            "listen": f"127.0.0.1:{api_port}",
            "connect_address": f"127.0.0.1:{api_port}",
        },
        "etcd3": {"hosts": [f"127.0.0.1:{etcd_port}"]},
        "bootstrap": {
            "dcs": {
                "ttl": 20,
                "loop_wait": 1,
                "retry_timeout": 3,
                "maximum_lag_on_failover": 1048576,
                # What is acknowledged is on both.
                "synchronous_mode": True,
                "postgresql": {"use_pg_rewind": True},
            },
            "initdb": [{"encoding": "UTF8"}, "no-sync"],
        },
        "postgresql": {
            "listen": f"127.0.0.1:{port}",
            "connect_address": f"127.0.0.1:{port}",
            "data_dir": str(folder / name),
            "bin_dir": str(find_program("postgres").parent),
            "pgpass": str(folder / f"{name}.pgpass"),
            "authentication": {
                "superuser": {"username": "bellwire"},
                "replication": {"username": "replicator"},
                "rewind": {"username": "bellwire"},
            },
            "parameters": {
                "unix_socket_directories": "",
                "max_connections": 100,
                "fsync": "off",
            },
            "pg_hba": [*trust, "host replication all 127.0.0.1/32 trust"],
        },
    }
