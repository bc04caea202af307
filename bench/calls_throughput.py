"""Whole calls per second, from invite to hang-up, while 100,000 others ring: on SQLite and on
PostgreSQL, beside what the bare databases and bare FastAPI do. All alternate in one run.

A life is four requests over HTTP (invite, received, accept, hang up), each durable when it is
answered, whose events are published to both devices over MQTT; a subscriber hears them all.

Each server is loaded with few calls at once and with many, and its rate is that of the load under
which it does best, FastAPI's as the relay's; both rates, and their latencies, are shown.
"""

import argparse
import asyncio
import contextlib
import json
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console
from sqlalchemy import Connection, make_url

from bellwire.cli.process.relay import RelayProcess
from bellwire.cli.relay_client import RelayClient
from bellwire.push.store.engine.database import Database, open_database
from bellwire.push.store.rows.calls import insert_calls, insert_users
from bellwire.push.store.tables import to_ms
from bellwire.signaling.calls.commands import Invitee, NewCall
from bellwire.signaling.calls.rules import create_call
from bellwire.signaling.identifiers import DeviceId, Identity, new_call_sid
from bellwire.signaling.topics import call_topic
from bellwire.signaling.wire.requests import ChannelRequest, DeviceRequest
from bench.lab.command_line import at_least_one, duration_s, stoppable
from bench.lab.http_connection import HttpConnection
from bench.lab.measures import Measured, percentile, print_result
from bench.lab.mqtt_listener import listening
from bench.lab.postgres_cluster import postgres_cluster
from bench.peers.bare_database import postgres_calls_per_s, sqlite_calls_per_s

_LANES = (32, 128)
"""Calls at once."""

_PAIRS = 50
_BATCH = 2_000


async def fill(url: str | None, folder: Path, ringing: int) -> None:
    """Puts calls that ring into a relay's database, with the relay's own code and rules."""
    database = await asyncio.to_thread(open_database, url, folder)
    try:
        for _ in range(ringing // _BATCH):
            await _insert(database, _BATCH)
    finally:
        await database.close()


async def _insert(database: Database, count: int) -> None:
    now = datetime.now(UTC)
    calls = [
        create_call(
            NewCall(
                new_call_sid(to_ms(now), secrets.token_bytes(10)),
                Identity(f"idle-{number}"),
                (Invitee(Identity(f"idle-{number}-callee"), ("mqtt",)),),
                now,
                600,
            )
        ).call
        for number in range(count)
    ]
    # They are to ring for as long as the bench runs.
    far = now + timedelta(days=1)
    calls = [
        replace(call, users=tuple(replace(user, expires_at=far) for user in call.users))
        for call in calls
    ]

    def work(connection: Connection) -> None:
        insert_calls(connection, calls)
        insert_users(connection, [(c.call_sid, user.identity) for c in calls for user in c.users])

    await database.write(work)


async def whole_call(http: HttpConnection, pair: int, request_ms: list[float]) -> None:
    """One life."""
    caller, callee = f"caller-{pair}", f"callee-{pair}"
    body = json.dumps({"from": caller, "to": [callee]}).encode()
    answer = await _timed(http, "/v1/calls", body, request_ms)
    sid = json.loads(answer)["call_sid"]
    body = json.dumps({"identity": callee, "device_id": callee}).encode()
    for operation in ("received", "accept", "quit"):
        await _timed(http, f"/v1/calls/{sid}/{operation}", body, request_ms)


async def _timed(http: HttpConnection, path: str, body: bytes, request_ms: list[float]) -> bytes:
    started = time.perf_counter()
    status, answer = await http.post(path, body)
    request_ms.append((time.perf_counter() - started) * 1000)
    if status not in (200, 201):
        raise SystemExit(f"{path} was answered {status}: {answer.decode()}")
    return answer


async def load(url: str, key: str, seconds: float, lanes: int, measured: Measured) -> None:
    """Whole calls, one after the other in each lane."""
    done = 0
    until = time.perf_counter() + seconds

    async def lane(number: int) -> None:
        nonlocal done
        http = HttpConnection(url, key)
        while time.perf_counter() < until:
            await whole_call(http, number % _PAIRS, measured.took_ms)
            done += 1
        http.close()

    async with asyncio.TaskGroup() as tasks:
        for number in range(lanes):
            tasks.create_task(lane(number))
    measured.per_s.append(done / seconds)


@asynccontextmanager
async def loaded_relay(folder: Path, database: str | None) -> AsyncIterator[RelayProcess]:
    """A relay whose devices have a listener each, so that what it sends arrives."""
    arguments = () if database is None else ("--database", database)
    async with RelayProcess(
        folder,
        arguments=(*arguments, "--log-level", "warning"),
        environment={
            "BELLWIRE_DEVICE_INVITES_PER_S": "1000000",
            "BELLWIRE_DEVICE_REQUESTS_PER_S": "1000000",
        },
    ) as relay:
        with RelayClient(relay.access) as client:
            for number in range(_PAIRS):
                for name in (f"caller-{number}", f"callee-{number}"):
                    channel = ChannelRequest(kind="mqtt")
                    client.put_device(name, DeviceRequest(identity=name, channels=[channel]))
        login = json.loads((folder / "broker/login.json").read_text())
        topics = call_topic(DeviceId("+"))
        async with listening(login["port"], login["username"], login["password"], topics):
            yield relay


@contextlib.contextmanager
def bare_fastapi() -> Iterator[str]:
    """Bare FastAPI in a process of its own; gives its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        process = subprocess.Popen(  # noqa: S603 - this very Python
            [sys.executable, "-m", "bench.peers.bare_fastapi", str(listener.fileno())],
            pass_fds=[listener.fileno()],
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def resident_bytes(pid: int) -> int:
    """The memory of a process."""
    fields = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in fields if line.startswith("VmRSS"))


async def bytes_per_ringing_call(folder: Path, ringing: int) -> float:
    """What a ringing call costs a relay's memory: one that starts on many, beside one on none."""
    sizes = []
    for name, count in (("none", 0), ("many", ringing)):
        (folder / name).mkdir()
        await fill(None, folder / name, count)
        async with RelayProcess(folder / name) as relay:
            sizes.append(resident_bytes(relay.pid))
    return (sizes[1] - sizes[0]) / ringing


async def measure(arguments: argparse.Namespace, folder: Path, postgres: str) -> None:
    """Measures and prints."""
    say = Console(stderr=True).print
    say(f"Weighing {arguments.ringing:,} ringing calls ...")
    weight = await bytes_per_ringing_call(folder, arguments.ringing)
    bare = make_url(postgres)
    for name, url in (("sqlite", None), ("postgres", postgres)):
        say(f"Letting {arguments.ringing:,} calls ring on {name} ...")
        (folder / name).mkdir()
        await fill(url, folder / name, arguments.ringing)
    servers = ("sqlite", "postgres", "fastapi")
    loads = {(name, lanes): Measured() for name in servers for lanes in _LANES}
    databases = {"bare sqlite": Measured(), "bare postgres": Measured()}
    seconds = arguments.seconds
    async with (
        loaded_relay(folder / "sqlite", None) as on_sqlite,
        loaded_relay(folder / "postgres", postgres) as on_postgres,
    ):
        with bare_fastapi() as fastapi:
            places = {
                "sqlite": (on_sqlite.access.url, on_sqlite.access.api_key),
                "postgres": (on_postgres.access.url, on_postgres.access.api_key),
                "fastapi": (fastapi, ""),
            }
            blocking: dict[str, Callable[[], float]] = {
                "bare sqlite": lambda: sqlite_calls_per_s(folder, seconds),
                "bare postgres": lambda: postgres_calls_per_s(
                    bare.render_as_string(hide_password=False), seconds, 8
                ),
            }
            for number in range(arguments.rounds):
                say(f"Round {number + 1} of {arguments.rounds} ...")
                for (name, lanes), measured in loads.items():
                    await load(*places[name], seconds, lanes, measured)
                for name, run in blocking.items():
                    databases[name].per_s.append(await asyncio.to_thread(run))
    for (name, lanes), measured in loads.items():
        say(f"{name:>14}, {lanes:>3} at once: {measured.rate:8.1f} calls/s")
    for name, measured in databases.items():
        say(f"{name:>14}: {measured.rate:21.1f} calls/s")
    rate = {name: max(loads[name, lanes].rate for lanes in _LANES) for name in servers}
    slower = {
        name: min(databases[f"bare {name}"].rate, rate["fastapi"])
        for name in ("sqlite", "postgres")
    }
    print_result(
        f"Each request of a whole call, {arguments.ringing:,} ringing, by how many calls at once",
        {f"{name} {lanes}": measured.took_ms for (name, lanes), measured in loads.items()},
        {
            "sqlite_per_s": rate["sqlite"],
            "postgres_per_s": rate["postgres"],
            "ratio_sqlite": rate["sqlite"] / slower["sqlite"],
            "ratio_postgres": rate["postgres"] / slower["postgres"],
            "bytes_per_ringing_call": weight,
            "fastapi_per_s": rate["fastapi"],
            "bare_sqlite_per_s": databases["bare sqlite"].rate,
            "bare_postgres_per_s": databases["bare postgres"].rate,
            **{f"{name}_per_s_{lanes}": m.rate for (name, lanes), m in loads.items()},
            **{
                f"{name}_p{percent}_ms_{lanes}": percentile(m.took_ms, percent / 100)
                for (name, lanes), m in loads.items()
                for percent in (50, 99)
            },
        },
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="bench/calls", description=__doc__)
    parser.add_argument(
        "--ringing", type=at_least_one, default=100_000, help="calls that ring (100000)"
    )
    parser.add_argument("--seconds", type=duration_s, default=6, help="of each turn (6)")
    parser.add_argument("--rounds", type=at_least_one, default=3, help="turns of each (3)")
    arguments = parser.parse_args()
    with (
        stoppable(),
        tempfile.TemporaryDirectory(prefix="bellwire-bench-") as folder,
        postgres_cluster() as postgres,
    ):
        asyncio.run(measure(arguments, Path(folder), postgres))


if __name__ == "__main__":
    main()
