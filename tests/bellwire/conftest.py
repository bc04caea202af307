"""One relay for all tests of a module: the commands only talk to it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from bellwire.relay_process import RelayProcess


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_relay(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RelayProcess]:
    folder: Path = tmp_path_factory.mktemp("shared")
    async with RelayProcess(folder / "relay") as running:
        yield running
