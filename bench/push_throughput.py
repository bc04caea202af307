"""VoIP pushes per second through the whole relay: an invite over HTTP, durable, pushed, acknowledged
by APNs. For single invites and for invites to nine, at 1, 50 and 200 in flight, beside bare aioapns
against the same server, alternating in one run; and with one and two relays on one PostgreSQL, with
the CPU that the relays take for a push. Of two cores the load, APNs, PostgreSQL and the broker take
too much for a second relay to add what it could: so one and two are also measured with the same share
of a core for each, which leaves enough to all others.

APNs is played by `bench.lab.apns_server`, in the process that also posts the invites.
"""

import argparse
import asyncio
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop
from rich.console import Console

from bellwire.cli.process.relay import RelayProcess
from bellwire.cli.relay_client import RelayClient
from bellwire.signaling.errors import Unavailable
from bellwire.signaling.wire.requests import ChannelRequest, DeviceRequest
from bench.lab.apns_server import ApnsServer
from bench.lab.command_line import at_least_one, duration_s, stoppable
from bench.lab.core_share import core_share
from bench.lab.http_connection import HttpConnection
from bench.lab.measures import Measured, cpu_seconds, percentile, print_result
from bench.lab.postgres_cluster import postgres_cluster
from tests.push.apns_server import Authority, write_team_key
from tests.system.mosquitto import running_mosquitto

_BUNDLE = "com.example.bench"
_GROUP = 9
_PHONES = 90
_IN_FLIGHT = (1, 50, 200)
_LANES = 50
"""In flight where relays are compared."""
_SHARE = 0.4
"""Of a core, for each relay."""
_RING_S = 600
"""Longer than the bench: no invite ends meanwhile."""


class PushBench:
    """What is measured against what."""

    def __init__(self, folder: Path, server: ApnsServer, authority: Authority) -> None:
        self.folder = folder
        self.server = server
        self.ca_file = authority.file
        self.key_file = folder / "AuthKey.p8"
        write_team_key(self.key_file)

    def environment(self) -> dict[str, str]:
        """Settings of a relay that pushes to the bench's server, without limits."""
        app = {
            "key_file": str(self.key_file),
            "key_id": "KEY4567890",
            "team_id": "TEAM567890",
            "server": f"127.0.0.1:{self.server.port}",
            "ca_file": str(self.ca_file),
        }
        return {
            "BELLWIRE_APNS": json.dumps({_BUNDLE: app}),
            "BELLWIRE_APP_INVITES_PER_S": "1e9",
            "BELLWIRE_DEVICE_INVITES_PER_S": "1e9",
            "BELLWIRE_LOG_LEVEL": "warning",
        }

    async def bare(self, seconds: float, lanes: int, measured: Measured) -> None:
        """aioapns alone."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "bench.peers.bare_aioapns", str(self.server.port)),
            *(str(self.ca_file), str(self.key_file), str(seconds), str(lanes)),
            stdout=asyncio.subprocess.PIPE,
        )
        printed, _ = await process.communicate()
        took_ms: list[float] = json.loads(printed)
        measured.took_ms += took_ms
        measured.per_s.append(len(took_ms) / seconds)

    async def relays(
        self,
        relays: Sequence[RelayProcess],
        seconds: float,
        lanes: int,
        group: int,
        measured: Measured,
    ) -> None:
        """Invites to `group` phones each, one after the other in each lane."""
        until = time.perf_counter() + seconds
        done, cpu_s = 0, _cpu_seconds(relays)

        async def lane(number: int) -> None:
            nonlocal done
            access = relays[number % len(relays)].access
            http = HttpConnection(access.url, access.api_key)
            for turn in itertools.count(number):
                started = time.perf_counter()
                if started >= until:
                    break
                first = turn * group % _PHONES
                to = [f"phone-{(first + n) % _PHONES}" for n in range(group)]
                body = json.dumps({"to": to, "timeout": _RING_S}).encode()
                status, answer = await http.post("/v1/calls", body)
                if status != 201:
                    raise SystemExit(f"POST /v1/calls was answered {status}: {answer.decode()}")
                await self.server.until(json.loads(answer)["call_sid"], group)
                measured.took_ms.append((time.perf_counter() - started) * 1000)
                done += group
            http.close()

        async with asyncio.TaskGroup() as tasks:
            for number in range(lanes):
                tasks.create_task(lane(number))
        measured.per_s.append(done / seconds)
        measured.cpu_ms.append((_cpu_seconds(relays) - cpu_s) * 1000 / done)


def _cpu_seconds(relays: Sequence[RelayProcess]) -> float:
    return sum(cpu_seconds(relay.pid) for relay in relays)


def register_phones(relay: RelayProcess) -> None:
    """Gives each phone an identity of its own."""
    with RelayClient(relay.access) as client:
        for number in range(_PHONES):
            token = f"{number:064x}"
            channel = ChannelRequest(kind="apns", app=_BUNDLE, token=token)
            name = f"phone-{number}"
            client.put_device(name, DeviceRequest(identity=name, channels=[channel]))


async def measure_one(bench: PushBench, arguments: argparse.Namespace) -> dict[str, Measured]:
    """One relay on its own SQLite, beside bare aioapns."""
    kinds = ("bare", "single", "group")
    results = {f"{kind} {lanes}": Measured() for lanes in _IN_FLIGHT for kind in kinds}
    relay = RelayProcess(bench.folder / "one", environment=bench.environment())
    async with relay:
        register_phones(relay)
        for _ in range(arguments.rounds):
            for lanes in _IN_FLIGHT:
                seconds = arguments.seconds
                await bench.bare(seconds, lanes, results[f"bare {lanes}"])
                await bench.relays([relay], seconds, lanes, 1, results[f"single {lanes}"])
                await bench.relays([relay], seconds, lanes, _GROUP, results[f"group {lanes}"])
    return results


async def measure_two(
    bench: PushBench, arguments: argparse.Namespace, postgres: str
) -> dict[str, Measured]:
    """One relay and two, alternating, on one PostgreSQL and one broker, single invites: free, and
    where this machine can do that, with the same share of a core for each."""
    seconds, rounds = arguments.seconds, arguments.rounds
    free = {"1 relay": Measured(), "2 relays": Measured()}
    shared = {"1 with a share": Measured(), "2 with a share": Measured()}
    async with AsyncExitStack() as stack:
        mosquitto = await stack.enter_async_context(running_mosquitto(bench.folder))
        environment = {**mosquitto.environment, **bench.environment()}
        flags = (*mosquitto.arguments, "--database", postgres)
        relays = [
            await stack.enter_async_context(
                RelayProcess(bench.folder / name, arguments=flags, environment=environment)
            )
            for name in ("first", "second")
        ]
        register_phones(relays[0])
        for _ in range(rounds):
            await bench.relays(relays[:1], seconds, _LANES, 1, free["1 relay"])
            await bench.relays(relays, seconds, _LANES, 1, free["2 relays"])
        try:
            for relay in relays:
                stack.enter_context(core_share(relay.pid, _SHARE))
        except Unavailable as error:
            Console(stderr=True).print(f"Not measured with a share of a core each: {error}")
            return free
        for _ in range(rounds):
            await bench.relays(relays[:1], seconds, _LANES, 1, shared["1 with a share"])
            await bench.relays(relays, seconds, 2 * _LANES, 1, shared["2 with a share"])
    return free | shared


async def measure(arguments: argparse.Namespace, folder: Path, postgres: str) -> None:
    """Measures and prints."""
    say = Console(stderr=True).print
    authority = Authority(folder)
    server = ApnsServer()
    async with await server.serve(authority.certificate("apns")):
        bench = PushBench(folder, server, authority)
        say("One relay, beside bare aioapns ...")
        results = await measure_one(bench, arguments)
        say("One relay and two on one PostgreSQL ...")
        results |= await measure_two(bench, arguments, postgres)
    for name, measured in results.items():
        say(f"{name:>12}: {measured.rate:8.1f} pushes/s")
    rate = {name: measured.rate for name, measured in results.items()}
    print_result(
        "Invite posted to push acknowledged (bare: push to acknowledged), by how many in flight",
        {name: measured.took_ms for name, measured in results.items()},
        {
            "per_s": rate["single 50"],
            "ratio_bare_single": rate["single 50"] / rate["bare 50"],
            "ratio_bare": rate["group 50"] / rate["bare 50"],
            "p99_ms": results["single 50"].p99_ms,
            "scale_2_processes": rate["2 relays"] / rate["1 relay"],
            **_scale_with_share(rate),
            "cores": os.cpu_count() or 0,
            **{
                f"relay_cpu_ms_per_push_{count}": percentile(results[name].cpu_ms, 0.5)
                for count, name in ((1, "1 relay"), (2, "2 relays"))
            },
            **{
                f"{kind}_per_s_{lanes}": rate[f"{kind} {lanes}"]
                for kind in ("bare", "single", "group")
                for lanes in _IN_FLIGHT
            },
            **{
                f"{kind}_p99_ms_{lanes}": results[f"{kind} {lanes}"].p99_ms
                for kind in ("bare", "single", "group")
                for lanes in _IN_FLIGHT
            },
        },
    )


def _scale_with_share(rate: Mapping[str, float]) -> dict[str, float]:
    one, two = rate.get("1 with a share"), rate.get("2 with a share")
    if one is None or two is None:
        return {}
    return {"scale_2_processes_with_share": two / one, "share_of_core": _SHARE}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="bench/push", description=__doc__)
    parser.add_argument("--seconds", type=duration_s, default=4, help="of each turn (4)")
    parser.add_argument("--rounds", type=at_least_one, default=3, help="turns of each (3)")
    arguments = parser.parse_args()
    with (
        stoppable(),
        tempfile.TemporaryDirectory(prefix="bellwire-bench-") as folder,
        postgres_cluster() as postgres,
    ):
        uvloop.run(measure(arguments, Path(folder), postgres))


if __name__ == "__main__":
    main()
