"""A mosquitto for one test, and one for a whole module whose tests keep apart by device names."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.broker.running import RunningBroker


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[RunningBroker]:
    async with RunningBroker(tmp_path) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningBroker]:
    async with RunningBroker(tmp_path_factory.mktemp("shared")) as running:
        yield running
