"""One relay for all tests of a module: they keep apart by the names of their identities. And for
the parts of a relay alone: a real database, and a clock that the test moves."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from bellwire.push.store.engine.database import Database, open_database
from bellwire.push.store.engine.sqlite import SqliteDatabase
from tests.forking import ForkedRelay
from tests.migrated import lay_migrated
from tests.push.clock import Clock
from tests.push.support import Running, serving
from tests.push.webhook_receiver import Backend, backend
from tests.push.webhook_scene import Scene, webhook_scene


@pytest.fixture(scope="module")
def store(request: pytest.FixtureRequest) -> str | None:
    """The URL of a fresh PostgreSQL database, or None: SQLite. See `support.on_both_stores`."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return None
    make: Callable[[], str] = request.getfixturevalue("new_postgres_database")
    return make()


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    """`BELLWIRE_*` variables of a module's relay; a module that needs some has its own fixture."""
    return {}


@pytest.fixture(scope="module")
def times() -> dict[str, float]:
    """What its relay takes less time for than others, likewise: see `tests.forking.forked`."""
    return {}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(
    tmp_path_factory: pytest.TempPathFactory,
    store: str | None,
    settings: dict[str, str],
    times: dict[str, float],
) -> AsyncIterator[Running]:
    """A real relay with a real mosquitto, for a module whose tests run on the module's loop."""
    data = tmp_path_factory.mktemp("relay") / "data"
    environment = settings if store is None else {**settings, "BELLWIRE_DATABASE": store}
    async with (
        ForkedRelay(data, environment=environment, times=times) as relay,
        serving(relay, store) as here,
    ):
        yield here


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    """A relay's database in a file of its own, `relay.db` in the test's folder."""
    lay_migrated(tmp_path / "relay.db")
    opened = await asyncio.to_thread(SqliteDatabase, tmp_path / "relay.db")
    yield opened
    await opened.close()


@pytest.fixture
async def shared_or_own(store: str | None, tmp_path: Path) -> AsyncIterator[Database]:
    """A database of either kind. The PostgreSQL one is the module's: its rows stay."""
    if store is None:
        lay_migrated(tmp_path / "relay.db")
    opened = await asyncio.to_thread(open_database, store, tmp_path)
    yield opened
    await opened.close()


@pytest.fixture(params=["sqlite", "postgres"])
async def each_database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """An empty database of each kind, of the test's own."""
    url = None
    if request.param == "postgres":
        make: Callable[[], str] = request.getfixturevalue("new_postgres_database")
        url = make()
    else:
        lay_migrated(tmp_path / "relay.db")
    opened = await asyncio.to_thread(open_database, url, tmp_path)
    yield opened
    await opened.close()


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still until it is moved."""
    return Clock()


@pytest.fixture
async def receiver() -> AsyncIterator[Backend]:
    async with backend() as here:
        yield here


@pytest.fixture
def webhook_scene_of(database: Database, clock: Clock, tmp_path: Path) -> Callable[..., Scene]:
    """A scene whose webhooks are given by name, as a backend or as settings."""
    return partial(webhook_scene, database, clock, tmp_path)


@pytest.fixture
def webhook_scene_on_each(
    each_database: Database, clock: Clock, tmp_path: Path
) -> Callable[..., Scene]:
    """The same, on each kind of store."""
    return partial(webhook_scene, each_database, clock, tmp_path)
