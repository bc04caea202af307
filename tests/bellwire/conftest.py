"""One relay for all tests of a module, since the commands only talk to it; a fleet for each."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from bellwire.relay_process import RelayProcess
from tests.bellwire.fleet_stage import FleetStage, fleet_stage


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_relay(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RelayProcess]:
    folder: Path = tmp_path_factory.mktemp("shared")
    async with RelayProcess(folder / "relay") as running:
        yield running


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[FleetStage]:
    async with fleet_stage(tmp_path) as here:
        yield here
