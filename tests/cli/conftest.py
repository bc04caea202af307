"""One relay for all tests of a module, since the commands only talk to it; a fleet for each."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.cli.fleet_stage import FleetStage, fleet_stage
from tests.forking import ForkedRelay


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_relay(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ForkedRelay]:
    folder: Path = tmp_path_factory.mktemp("shared")
    async with ForkedRelay(folder / "relay") as running:
        yield running


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[FleetStage]:
    async with fleet_stage(tmp_path) as here:
        yield here
