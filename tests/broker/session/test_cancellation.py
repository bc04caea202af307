"""A session that is told to stop stops, whatever the broker says in that moment."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
import uvloop

from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.client import Client, client_of
from bellwire.broker.session.connection import let_in
from bellwire.broker.session.receiving import ReceivingConnection
from bellwire.broker.session.session import Session
from tests.broker.running import RunningBroker, held, soon


@pytest.fixture
def task() -> list[asyncio.Task[Any]]:
    return []


async def test_a_cancellation_that_meets_the_brokers_answer_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: list[asyncio.Task[Any]]
) -> None:
    take_answer = Client._on_subscribe

    def take_answer_and_be_cancelled(*arguments: Any) -> None:  # noqa: ANN401
        take_answer(*arguments)
        task[0].cancel()

    monkeypatch.setattr(Client, "_on_subscribe", take_answer_and_be_cancelled)
    async with RunningBroker(tmp_path) as broker, client_of(broker.address, "hurried") as client:
        task.append(asyncio.create_task(client.subscribe("a/b", qos=1)))
        await asyncio.wait(task)
        assert task[0].cancelled()


async def test_a_session_that_asks_for_what_is_retained_can_be_stopped_at_any_moment(
    tmp_path: Path,
) -> None:
    async with RunningBroker(tmp_path) as broker:
        session = Session(broker.address, "asks", sleep=soon)
        session.subscribe("a/b", lambda _: None)
        async with held(session):
            for turns in range(12):
                asking = asyncio.create_task(ask_for_ever(session))
                for _ in range(turns * 7):
                    await asyncio.sleep(0)
                asking.cancel()
                await asyncio.wait([asking], timeout=45)
                assert asking.cancelled()


async def ask_for_ever(session: Session) -> None:
    while True:
        await session.ask_retained_again("a/b")


def test_relay_that_is_stopped_while_it_connects_to_its_broker_stops_in_order() -> None:
    """On uvloop, which relays run on, it ended with a traceback and exit code 1."""

    async def connect_and_be_cancelled(address: BrokerAddress) -> None:
        for turns in range(96):
            connecting = asyncio.create_task(enter(address))
            for _ in range(turns % 12):
                await asyncio.sleep(0)
            connecting.cancel()
            await asyncio.wait([connecting])
            assert connecting.cancelled()

    with (
        socket.create_server(("127.0.0.1", 0), backlog=128) as silent,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        host, port = silent.getsockname()
        runner.run(connect_and_be_cancelled(BrokerAddress(host=host, port=port)))


async def enter(address: BrokerAddress) -> None:
    async with let_in(ReceivingConnection(address, "stopped", ())):
        raise AssertionError("nobody lets it in")
