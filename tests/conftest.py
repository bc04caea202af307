"""What every test may use: real relays with their brokers, real stations on simulated pins, and
`--full` for the long runs."""

import asyncio
import gc
import itertools
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg
import pytest
from pydantic import SecretStr

from bellwire.agent.calls.call import CallRecord, CallStatus
from bellwire.agent.main import Agent
from bellwire.agent.media.sound_card import SoundCard
from bellwire.cli.demo.station import SimulatedStation
from bellwire.cli.relay_client import RelayClient
from bellwire.config.agent.settings import AgentSettings, BrokerSettings, default_panel
from bellwire.config.fleet.last_good import LastGood
from bellwire.signaling.wire.requests import ChannelRequest, DeviceRequest
from bench.lab.postgres_cluster import postgres_cluster
from tests.forking import ForkedRelay

PATIENCE_S = 45.0
"""How long a test waits for an event before it fails: long enough for a busy machine, and for a
device whose next look for a lost broker is as far away as it can be."""


_LONG = (
    "tests/push/api/test_hostile_http.py",
    "tests/system/",
    "tests/model/",
    "tests/bench/",
    "tests/deploy/",
)
"""The files that take longest, where time-outs have to pass or much is started."""


AT_ONCE_S = 5.0
"""Within how long something is to happen at once, on a busy machine too."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the long tests too")


def pytest_configure() -> None:
    # A shell has what it starts in the background ignore SIGINT, and this is inherited; a handler is
    # not. So the run goes on ignoring it, while the commands under test hear it as in the foreground.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: None)
    # An HTTP client reads the certificates of all the world's authorities, which takes 25 ms, and no
    # test speaks with the world: it trusts one that nobody has the key of.
    os.environ["SSL_CERT_FILE"] = str(Path(__file__).with_name("nobody.pem"))
    # What is collected stays to the end: the garbage collector need not look at it again and again.
    gc.disable()


def pytest_collection_finish() -> None:
    gc.enable()
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Side by side, the longest files first: none is then begun when all others have ended.
    items.sort(key=lambda item: not item.nodeid.startswith(_LONG))
    if config.getoption("--full"):
        return
    skip = pytest.mark.skip(reason="a long run: script/test --full")
    for item in items:
        if item.get_closest_marker("full"):
            item.add_marker(skip)


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether this is a `script/test --full` run."""
    return bool(request.config.getoption("--full"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL of the tests' own, started once; gives the URL of a database to connect to."""
    with postgres_cluster(outlives_the_machine=False) as url:
        yield url


@pytest.fixture(scope="session")
def new_postgres_database(postgres: str) -> Callable[[], str]:
    """Makes an empty database of its own; gives its URL."""
    numbers = itertools.count(1)

    def make() -> str:
        name = f"bellwire_{next(numbers)}"
        with psycopg.connect(postgres, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return postgres.replace("/postgres?", f"/{name}?")

    return make


@pytest.fixture
async def relay(tmp_path: Path) -> AsyncIterator[ForkedRelay]:
    """A relay with a mosquitto of its own, on a port of its own, for one test."""
    async with ForkedRelay(tmp_path / "relay") as running:
        yield running


@pytest.fixture
def client(relay: ForkedRelay) -> Iterator[RelayClient]:
    """The operator's client of the relay. It blocks: in async tests use `asyncio.to_thread`."""
    with RelayClient(relay.access) as connected:
        yield connected


@pytest.fixture
async def http(relay: ForkedRelay) -> AsyncIterator[httpx.AsyncClient]:
    """Plain HTTP to the relay, with the operator's API key."""
    access = relay.access
    headers = {"Authorization": f"Bearer {access.api_key}"}
    async with httpx.AsyncClient(base_url=access.url, headers=headers, timeout=PATIENCE_S) as plain:
        yield plain


@dataclass
class Station:
    """A device: its agent, the fingers on its buttons, and what its phone has gone through."""

    agent: Agent
    fingers: SimulatedStation
    calls: asyncio.Queue[CallRecord]

    async def until(self, status: CallStatus) -> CallRecord:
        """Waits until its phone's call reaches a status; returns the call as it was then."""
        async with asyncio.timeout(PATIENCE_S):
            while (call := await self.calls.get()).status is not status:
                pass
            return call

    async def ringer(self, *, active: bool) -> float:
        """Waits until its ringer's pin is so; returns the `time.perf_counter` of the edge."""
        ringer = self.fingers.settings.panel.ringer
        assert ringer is not None
        async with asyncio.timeout(PATIENCE_S):
            return await self.fingers.pins.wait_for(ringer, active=active)


async def register_station(
    http: httpx.AsyncClient, name: str, *, identity: str | None = None, calls: tuple[str, ...] = ()
) -> AgentSettings:
    """Registers a device over HTTP; returns the settings of its agent."""
    request = DeviceRequest(
        identity=identity or name, channels=[ChannelRequest(kind="mqtt")], rotate_credentials=True
    )
    answer = await http.put(f"/v1/devices/{name}", json=request.model_dump(exclude_none=True))
    answer.raise_for_status()
    access = answer.json()["mqtt"]
    return AgentSettings(
        device_id=name,
        identity=identity or name,
        broker=BrokerSettings(
            url=access["url"], username=access["username"], password=SecretStr(access["password"])
        ),
        panel=default_panel(list(calls)),
    )


@asynccontextmanager
async def running_station(
    settings: AgentSettings, card: SoundCard | None = None, *, last_good: LastGood | None = None
) -> AsyncIterator[Station]:
    """An agent at work on simulated pins, connected to its relay."""
    fingers = SimulatedStation(settings)
    agent = Agent(settings, pin_factory=fingers.pins, card=card, last_good=last_good)
    station = Station(agent, fingers, asyncio.Queue())
    agent.phone.watch(station.calls.put_nowait)
    ready = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(agent.run(ready.set))
        async with asyncio.timeout(PATIENCE_S):
            await ready.wait()
        yield station
        running.cancel()
