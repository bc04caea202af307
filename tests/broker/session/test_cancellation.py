"""A session that is told to stop stops, whatever the broker says in that moment."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bellwire.broker.session.client import Client, client_of
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
