"""One relay for all tests of a module: they keep apart by the names of their identities. And for
the parts of a relay alone: a real database, and a clock that the test moves."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from bellwire.relay_process import RelayProcess
from push.store.sqlite import SqliteDatabase
from tests.push.clock import Clock
from tests.push.support import Running, serving


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """A real relay with a real mosquitto, for a module whose tests run on the module's loop."""
    data = tmp_path_factory.mktemp("relay") / "data"
    async with RelayProcess(data) as relay, serving(relay) as here:
        yield here


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    """A relay's database in a file of its own, `relay.db` in the test's folder."""
    opened = await asyncio.to_thread(SqliteDatabase, tmp_path / "relay.db")
    yield opened
    await opened.close()


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still until it is moved."""
    return Clock()
