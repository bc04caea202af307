"""A broker, an operator and devices, and the fleet commands run against them. Of a relay there is what keeps
the layers, or nothing."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from pydantic import SecretStr
from typer.testing import CliRunner

from bellwire.broker.accounts.credentials import DynamicSecurity
from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.session import Session
from bellwire.cli.fleet.session import RetainedFleet, open_fleet
from bellwire.cli.main import app
from bellwire.config.fleet.last_good import LastGood
from bellwire.config.fleet.operator import OperatorSettings, write_operator_file
from bellwire.push.fleet import keep_fleet
from bellwire.push.store.engine.database import open_database
from bellwire.signaling.identifiers import DeviceId
from bench.lab.simulated_agent import SimulatedAgent
from tests.broker.running import RunningBroker, held, soon
from tests.cli.command import Ended
from tests.conftest import PATIENCE_S

WIDE = 300
"""Columns of a terminal in which no table breaks a line."""


class FleetStage:
    """One fleet. Each test has its own, so that layers of one are not the other's."""

    def __init__(
        self,
        broker: RunningBroker,
        provisioner: DynamicSecurity,
        stack: AsyncExitStack,
        folder: Path,
    ) -> None:
        self.broker = broker
        self.folder = folder
        self._provisioner = provisioner
        self._stack = stack
        self.agents: dict[str, SimulatedAgent] = {}
        self._running: dict[str, asyncio.Task[None]] = {}

    async def operator(self, name: str = "ann") -> Path:
        """An operator's file."""
        path = self.folder / f"{name}.toml"
        if not path.exists():
            username = f"operator:{name}"
            password = await self._provisioner.grant_operator(username)
            settings = OperatorSettings(
                url=self.broker.address.url, username=username, password=SecretStr(password)
            )
            write_operator_file(path, settings)
        return path

    async def add(self, device: str, **settings: object) -> SimulatedAgent:
        """A device at work, once it has reported."""
        device_id = DeviceId(device)
        agent = SimulatedAgent(
            device_id,
            await self.grant(device_id),
            settings,
            last_good=LastGood(self.folder / "state", device_id),
        )
        self._running[device] = asyncio.create_task(agent.run())
        self._stack.push_async_callback(self.stop, device)
        self.agents[device] = agent
        await self.until(lambda fleet: _has_reported(fleet, device_id))
        return agent

    async def grant(self, device: DeviceId) -> BrokerAddress:
        """How a device logs in to the broker."""
        password = await self._provisioner.grant(device)
        return replace(self.broker.address, username=device, password=password)

    async def stop(self, device: str) -> None:
        """Ends a device's agent, in order."""
        self._running[device].cancel()
        await asyncio.gather(self._running[device], return_exceptions=True)

    async def run(self, *arguments: object, operator: str = "ann", columns: int = WIDE) -> Ended:
        """Runs `bellwire fleet ...` in a thread: a process would take a second more."""
        words = ["fleet", *map(str, arguments), "--operator", str(await self.operator(operator))]
        return await asyncio.to_thread(invoke, words, columns)

    async def json(self, *arguments: object) -> Any:  # noqa: ANN401 - JSON
        """What a command says with --json."""
        ended = await self.run(*arguments, "--json")
        assert ended.code in (0, 3), (ended.out, ended.err)
        return json.loads(ended.out)

    async def statuses(self) -> dict[str, dict[str, Any]]:
        """The rows of `bellwire fleet status`, by device."""
        return {row["device_id"]: row for row in (await self.json("status"))["devices"]}

    async def until(self, holds: Callable[[RetainedFleet], bool]) -> None:
        """Waits until something holds of the fleet as an operator sees it."""
        async with asyncio.timeout(PATIENCE_S), open_fleet(await self.operator()) as fleet:
            while not holds(fleet):
                await fleet.next_change()

    def write(self, name: str, text: str) -> Path:
        """A layer's file."""
        path = self.folder / "layers" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path


def _has_reported(fleet: RetainedFleet, device: DeviceId) -> bool:
    known = fleet.devices.get(device)
    return known is not None and known.online and known.reported is not None


def invoke(words: list[str], columns: int = WIDE) -> Ended:
    """Runs a command in this process; leaves its logs as they were."""
    handlers, level, logs = logging.root.handlers[:], logging.root.level, structlog.get_config()
    try:
        done = CliRunner().invoke(app, words, env={"COLUMNS": str(columns), "NO_COLOR": "1"})
    finally:
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
        structlog.configure(**logs)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Ended(done.exit_code, done.stdout, done.stderr)


@asynccontextmanager
async def keeping(broker: RunningBroker, folder: Path) -> AsyncIterator[None]:
    """What of a relay keeps the layers, at work, on the database in a folder."""
    await asyncio.to_thread(folder.mkdir, exist_ok=True)
    database = await asyncio.to_thread(open_database, None, folder)
    keeper = asyncio.create_task(
        keep_fleet(broker.address, database, now=lambda: datetime.now(UTC))
    )
    try:
        yield
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        await database.close()


@asynccontextmanager
async def fleet_stage(folder: Path, *, relay: bool = True) -> AsyncIterator[FleetStage]:
    """A stage for one test; with `relay` its layers are kept."""
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(RunningBroker(folder))
        session = Session(broker.address, "provisioner", sleep=soon)
        provisioner = DynamicSecurity(session)
        await stack.enter_async_context(held(session))
        if relay:
            await stack.enter_async_context(keeping(broker, folder / "relay"))
        yield FleetStage(broker, provisioner, stack, folder)


def runs(device: str, layer: str, revision: int) -> "Runs":
    return Runs(DeviceId(device), layer, revision)


class Runs:
    """Whether a device has reported that it runs a layer's revision."""

    def __init__(self, device: DeviceId, layer: str, revision: int) -> None:
        self._device, self._layer, self._revision = device, layer, revision

    def __call__(self, fleet: RetainedFleet) -> bool:
        known = fleet.devices.get(self._device)
        return (
            known is not None
            and known.reported is not None
            and known.reported.revisions.get(self._layer) == self._revision
        )


async def everybody(devices: Collection[DeviceId]) -> Collection[DeviceId]:
    """Which devices are registered, where all are."""
    return devices
