"""From a change of a layer to the last device's report, for 500, 1,000 and 2,000 agents, beside a bare
MQTT fan-out and reply of the same size on the same broker; and how a fleet comes back after its
broker was restarted.

Each agent is an MQTT session of its own with the agent's own code for layers: merge, validation, report.
The bare clients are aiomqtt's as :mod:`broker.session.client` mends it, answer a message with one of a
report's size, and do nothing else. Rounds alternate. All agents share this machine's cores: what 2,000
devices do at once on 2,000 processors is done here one after the other, so that the times are upper
bounds.
"""

import argparse
import asyncio
import itertools
import json
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from paho.mqtt.subscribeoptions import SubscribeOptions
from rich.console import Console
from rich.table import Table

from bellwire.broker.fleet.layer_register import LayerRegister
from bellwire.broker.session.client import Client, client_of
from bellwire.broker.session.session import Session
from bellwire.cli.fleet.session import running
from bellwire.cli.process.logs import configure_logs
from bellwire.config.fleet.writing import Draft
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import DEFAULT_LAYER, REPORTED_OF_ALL
from bench.lab.command_line import at_least_one, stoppable
from bench.lab.fleet_broker import BARE_CHANGE, BARE_REPLIES, FleetBroker
from bench.lab.measures import percentile
from bench.lab.simulated_agent import SimulatedAgent

_PROCESSES = 2
_ROUND_TIMEOUT_S = 120.0
_STORM_TIMEOUT_S = 180.0
_CONNECT_TIMEOUT_S = 300.0


@dataclass
class Figures:
    """What one size of fleet gave."""

    agents: int
    last_s: list[float] = field(default_factory=list)
    each_s: list[float] = field(default_factory=list)
    bare_last_s: list[float] = field(default_factory=list)
    broker_ms: list[float] = field(default_factory=list)
    broker_rss_mb: float = 0.0
    back_s: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The product's median round over the bare one's."""
        return percentile(self.last_s, 0.5) / percentile(self.bare_last_s, 0.5)


class Replies:
    """Waits until each device has said something with a mark in it."""

    def __init__(self, client: Client, count: int) -> None:
        self._messages = aiter(client.messages)
        self._count = count

    async def all_with(self, mark: bytes) -> list[float]:
        """The moment at which each device's reply came."""
        came: dict[str, float] = {}
        async with asyncio.timeout(_ROUND_TIMEOUT_S):
            while len(came) < self._count:
                message = await anext(self._messages)
                if mark in message.payload:
                    came.setdefault(message.topic.value, time.perf_counter())
        return list(came.values())


class Workers:
    """The processes that hold the devices."""

    def __init__(self, processes: list[Process]) -> None:
        self._processes = processes

    async def answers(self) -> list[float]:
        """The next line of each, joined."""
        lines = await asyncio.gather(*(_line(process) for process in self._processes))
        return [moment for line in lines for moment in json.loads(line)]

    async def tell(self, word: str) -> list[float]:
        """Says something to each; their answers."""
        for process in self._processes:
            assert process.stdin is not None  # noqa: S101 - PIPE was asked for
            process.stdin.write(f"{word}\n".encode())
        return await self.answers()


async def _line(process: Process) -> bytes:
    assert process.stdout is not None  # noqa: S101 - PIPE was asked for
    line = await process.stdout.readline()
    if not line:
        raise SystemExit("a process of devices has died: its error stands above")
    return line


@asynccontextmanager
async def workers(broker: FleetBroker, agents: int, reply_size: int) -> AsyncIterator[Workers]:
    """Processes full of devices, all connected."""
    processes = min(_PROCESSES, agents)
    ends = [agents * number // processes for number in range(processes + 1)]
    started = [
        await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL"),  # they end with this process, however it ends
            *(sys.executable, "-m", "bench.lab.fleet_worker", "--port", str(broker.address.port)),
            *("--reply-size", str(reply_size), "--first", str(first), "--count", str(end - first)),
            stdin=PIPE,
            stdout=PIPE,
            limit=2**22,
        )
        for first, end in itertools.pairwise(ends)
    ]
    try:
        here = Workers(started)
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            await here.answers()
            _progress(f"{agents} agents: connected; as many bare clients: connecting")
            await here.answers()
        yield here
    finally:
        for process in started:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def measure(agents: int, rounds: int, folder: Path) -> Figures:
    """One size of fleet."""
    names = [DeviceId(f"device-{number}") for number in range(agents)]
    figures = Figures(agents)
    async with FleetBroker(folder, names) as broker:
        sample = SimulatedAgent(names[0], broker.address, {"groups": ["north"]}).fleet.reported()
        _progress(f"{agents} agents: connecting")
        async with workers(broker, agents, len(sample.model_dump_json())) as here:
            await _measure_rounds(broker, figures, rounds)
            figures.broker_rss_mb = broker.cost().rss_mb
            _progress(f"{agents} agents: the broker is restarted")
            await here.tell("bare")
            await here.tell("storm")
            await broker.stop()
            await broker.start()
            restarted = time.perf_counter()
            async with asyncio.timeout(_STORM_TIMEOUT_S):
                figures.back_s = [moment - restarted for moment in await here.answers()]
    return figures


async def _measure_rounds(broker: FleetBroker, figures: Figures, rounds: int) -> None:
    session = Session(broker.address, "bench-operator")
    register = LayerRegister(
        session, "bench", histories=[DEFAULT_LAYER], now=lambda: datetime.now(UTC)
    )
    async with AsyncExitStack() as stack:
        observers = [
            await stack.enter_async_context(client_of(broker.address, f"bench-{number}"))
            for number in (1, 2)
        ]
        await stack.enter_async_context(running(session))
        await register.read()
        await observers[0].subscribe(
            REPORTED_OF_ALL,
            options=SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND),
        )
        await observers[1].subscribe(f"{BARE_REPLIES}/+", qos=1)
        reports, replies = (Replies(client, figures.agents) for client in observers)
        for number in range(rounds + 1):
            before = broker.cost()
            started = time.perf_counter()
            draft = Draft({"audio": {"ring_volume": 0.1 + number % 8 / 10}})
            layer = await register.write(DEFAULT_LAYER, draft, on=register.held(DEFAULT_LAYER))
            came = await reports.all_with(b'"default":%d' % layer.revision)
            spent_s = broker.cost().cpu_s - before.cpu_s

            bare_started = time.perf_counter()
            mark = b"%016d" % number
            change = mark + b"x" * 300
            await observers[1].publish_confirmed(BARE_CHANGE, change, retain=False, properties=None)
            bare = await replies.all_with(mark)
            _progress(f"{figures.agents} agents: round {number} of {rounds}")
            if number:  # The first round warms up.
                figures.last_s.append(max(came) - started)
                figures.each_s += [moment - started for moment in came]
                figures.bare_last_s.append(max(bare) - bare_started)
                figures.broker_ms.append(spent_s * 1000 / figures.agents)


def _progress(what: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {what}\n")
    sys.stderr.flush()


def print_figures(found: list[Figures]) -> None:
    """The tables for people, and the line for programs."""
    console = Console(width=120)
    table = Table(
        *("agents", "last report p50 s", "p95 s", "each p50 s", "bare p50 s", "ratio"),
        *("broker ms/device", "broker RSS MB"),
        title="A layer is changed: until the last device has reported",
    )
    for one in found:
        table.add_row(
            *(f"{one.agents}", f"{percentile(one.last_s, 0.5):.2f}"),
            *(f"{percentile(one.last_s, 0.95):.2f}", f"{percentile(one.each_s, 0.5):.2f}"),
            *(f"{percentile(one.bare_last_s, 0.5):.2f}", f"{one.ratio:.2f}"),
            *(f"{percentile(one.broker_ms, 0.5):.2f}", f"{one.broker_rss_mb:.0f}"),
        )
    console.print(table)
    storm = Table(
        *("agents", "p50 s", "p95 s", "all back s", "most in 100 ms"),
        title="The broker is restarted: until the agents are back",
    )
    for one in found:
        storm.add_row(
            *(f"{one.agents}", f"{percentile(one.back_s, 0.5):.2f}"),
            *(f"{percentile(one.back_s, 0.95):.2f}", f"{max(one.back_s):.2f}"),
            f"{_most_in(one.back_s, 0.1)}",
        )
    console.print(storm)
    result = {f"p95_s_{one.agents}": percentile(one.last_s, 0.95) for one in found}
    result |= {f"p50_s_{one.agents}": percentile(one.last_s, 0.5) for one in found}
    result |= {f"back_s_{one.agents}": max(one.back_s) for one in found}
    result |= {
        f"broker_ms_per_device_{one.agents}": percentile(one.broker_ms, 0.5) for one in found
    }
    result["ratio_bare"] = max(one.ratio for one in found)
    console.out(json.dumps({k: round(v, 3) for k, v in result.items()}), highlight=False)


def _most_in(moments: list[float], window_s: float) -> int:
    counts: dict[int, int] = {}
    for moment in moments:
        counts[int(moment / window_s)] = counts.get(int(moment / window_s), 0) + 1
    return max(counts.values())


async def measure_all(sizes: list[int], rounds: int) -> None:
    """Measures and prints. What was found before one fails or it is told to stop is printed all the same."""
    found = []
    try:
        for agents in sizes:
            with tempfile.TemporaryDirectory(prefix="bellwire-bench-") as folder:
                found.append(await measure(agents, rounds, Path(folder)))
            _progress(f"{agents} agents: {_in_words(found[-1])}")
    finally:
        if found:
            print_figures(found)


def _in_words(one: Figures) -> str:
    return (
        f"p50 {percentile(one.last_s, 0.5):.2f} s, p95 {percentile(one.last_s, 0.95):.2f} s,"
        f" {one.ratio:.2f} times the bare fan-out, all back after {max(one.back_s):.1f} s"
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="bench/fleet", description=__doc__)
    parser.add_argument("--rounds", type=at_least_one, default=4, help="changes to measure (4)")
    parser.add_argument(
        "--agents",
        type=at_least_one,
        nargs="+",
        default=[500, 1000, 2000],
        help="sizes of the fleet",
    )
    given = parser.parse_args()
    configure_logs("error")
    with stoppable():
        try:
            asyncio.run(measure_all(given.agents, given.rounds))
        except TimeoutError as error:
            raise SystemExit("stopped: too slow") from error


if __name__ == "__main__":
    main()
