"""One broker for the tests of a module; each test's desk is a device of its own."""

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from bellwire.broker.accounts.credentials import DynamicSecurity
from bellwire.broker.session.session import Session
from tests.agent.desk import Desk, Exchange, desk_at
from tests.agent.talking import DESK, FRONT, Talker, talker
from tests.broker.running import RunningBroker, held, soon
from tests.conftest import PATIENCE_S
from tests.forking import ForkedRelay


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def exchange(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Exchange]:
    async with RunningBroker(tmp_path_factory.mktemp("exchange")) as broker:
        session = Session(broker.address, "provisioner", sleep=soon)
        provisioner = DynamicSecurity(session)
        async with held(session):
            yield Exchange(broker, session, provisioner)


@pytest_asyncio.fixture(loop_scope="module")
async def desk(exchange: Exchange) -> AsyncIterator[Desk]:
    async with desk_at(exchange) as at_work:
        yield at_work


@pytest_asyncio.fixture(loop_scope="module")
async def far_desk(exchange: Exchange) -> AsyncIterator[Desk]:
    """A desk that can be cut off from the broker while all others are not."""
    async with desk_at(exchange, over_wire=True) as at_work:
        yield at_work


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def talk_http(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    async with ForkedRelay(tmp_path_factory.mktemp("talking") / "relay") as relay:
        headers = {"Authorization": f"Bearer {relay.access.api_key}"}
        async with httpx.AsyncClient(
            base_url=relay.access.url, headers=headers, timeout=PATIENCE_S
        ) as plain:
            yield plain


@pytest_asyncio.fixture(loop_scope="module")
async def front(talk_http: httpx.AsyncClient) -> AsyncIterator[Talker]:
    async with talker(talk_http, "front", FRONT) as at_work:
        yield at_work


@pytest_asyncio.fixture(loop_scope="module")
async def inside(talk_http: httpx.AsyncClient) -> AsyncIterator[Talker]:
    async with talker(talk_http, "desk", DESK) as at_work:
        yield at_work
