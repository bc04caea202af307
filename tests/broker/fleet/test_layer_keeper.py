"""A relay keeps the layers in its database: a broker that loses them gets them back, and nothing else."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import aiomqtt
import pytest

from bellwire.broker.accounts.credentials import DynamicSecurity
from bellwire.broker.accounts.dynamic_security import OPERATOR_ROLE, operator_acls
from bellwire.broker.fleet.layer_keeper import LayerKeeper, Revisions
from bellwire.broker.session.receiving import ReceivingSession
from bellwire.broker.session.session import PublishRefused, Session
from bellwire.config.fleet.writing import Held
from bellwire.push.fleet import StoredLayers
from bellwire.push.store.engine.database import open_database
from bellwire.signaling.errors import Unavailable
from bellwire.signaling.topics import (
    KEEPER_ANSWERS,
    KEEPERS,
    LAYERS,
    OPERATORS_ECHO,
    LayerName,
    history_topic,
    layer_topic,
    read_by_operators,
    stored_topic,
)
from tests.broker.running import RunningBroker, raw_client, soon
from tests.broker.running import held as held_session
from tests.cli.fleet_stage import keeping
from tests.config.fleet_parts import document
from tests.conftest import PATIENCE_S

NORTH = LayerName("group/north")


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[RunningBroker]:
    async with RunningBroker(tmp_path) as running:
        yield running


def volume(revision: int, value: float = 0.5) -> bytes:
    return document({"audio": {"ring_volume": value}}, revision)


async def retain(broker: RunningBroker, topic: str, *payloads: bytes) -> None:
    async with raw_client(broker.address) as client:
        for payload in payloads:
            await client.publish(topic, payload, qos=1, retain=True)


async def until(broker: RunningBroker, topic: str, wanted: bytes) -> None:
    """Waits until this stands on a topic."""
    async with raw_client(broker.address) as client, asyncio.timeout(PATIENCE_S):
        await client.subscribe(topic, qos=1)
        async for message in client.messages:
            if message.payload == wanted:
                return


async def until_stored(broker: RunningBroker, revision: int) -> None:
    async with raw_client(broker.address) as client, asyncio.timeout(PATIENCE_S):
        await client.subscribe(stored_topic(NORTH), qos=1)
        async for message in client.messages:
            if json.loads(bytes(message.payload))["revision"] == revision:  # type: ignore[arg-type]
                return


async def lose_disk(broker: RunningBroker, folder: Path) -> None:
    await broker.kill()
    (folder / "broker/mosquitto.db").unlink(missing_ok=True)
    await broker.start()


async def test_layers_written_by_hand_and_their_history_come_back_to_a_broker_that_lost_its_disk(
    broker: RunningBroker, tmp_path: Path
) -> None:
    await retain(broker, history_topic(NORTH, 1), volume(1))
    await retain(broker, layer_topic(NORTH), volume(2))
    async with keeping(broker, tmp_path / "relay"):
        await until_stored(broker, 2)
        await retain(broker, layer_topic(NORTH), volume(3), volume(4))
        await until_stored(broker, 4)
        await lose_disk(broker, tmp_path)
        await until(broker, layer_topic(NORTH), volume(4))
        for revision in (1, 2, 3, 4):
            await until(broker, history_topic(NORTH, revision), volume(revision))
        await until_stored(broker, 4)


@pytest.mark.parametrize("less", [b"", volume(1, 0.9), volume(3, 0.9)])
async def test_what_is_overwritten_by_less_is_put_back(
    broker: RunningBroker, tmp_path: Path, less: bytes
) -> None:
    async with keeping(broker, tmp_path / "relay"):
        await retain(broker, layer_topic(NORTH), volume(2))
        await until_stored(broker, 2)
        await retain(broker, layer_topic(NORTH), volume(3))
        await until_stored(broker, 3)
        await retain(broker, layer_topic(NORTH), less)
        await until(broker, layer_topic(NORTH), volume(3))
        await retain(broker, history_topic(NORTH, 2), volume(2, 0.9))
        await until(broker, history_topic(NORTH, 2), volume(2))


async def test_more_that_is_written_on_a_loss_than_was_lost_leaves_the_history_as_it_stands(
    broker: RunningBroker, tmp_path: Path
) -> None:
    """Writers that knew of no relay counted on from what the broker had, past what was stored."""
    async with keeping(broker, tmp_path / "relay"):
        for revision in (1, 2, 3):
            await retain(broker, layer_topic(NORTH), volume(revision))
            await until_stored(broker, revision)
    for revision in (2, 3, 4):
        await retain(broker, history_topic(NORTH, revision), volume(revision, 0.9))
        await retain(broker, layer_topic(NORTH), volume(revision, 0.9))
    async with keeping(broker, tmp_path / "relay"):
        await until_stored(broker, 4)
        for revision in (2, 3):
            await until(broker, history_topic(NORTH, revision), volume(revision))
        await until(broker, history_topic(NORTH, 4), volume(4, 0.9))


async def test_database_from_a_backup_takes_the_higher_revision_and_its_history_from_the_broker(
    broker: RunningBroker, tmp_path: Path
) -> None:
    async with keeping(broker, tmp_path / "relay"):
        await retain(broker, layer_topic(NORTH), volume(1))
        await until_stored(broker, 1)
        await retain(broker, layer_topic(NORTH), volume(2))
        await until_stored(broker, 2)
    await retain(broker, layer_topic(NORTH), volume(4))
    await retain(broker, history_topic(NORTH, 3), volume(3))
    async with keeping(broker, tmp_path / "relay"):
        await until_stored(broker, 4)
        await until(broker, layer_topic(NORTH), volume(4))
    database = await asyncio.to_thread(open_database, None, tmp_path / "relay")
    history = await StoredLayers(database, now=lambda: pytest.fail("nothing is written")).history(
        NORTH
    )
    await database.close()
    assert [one.layer.revision for one in history if one.layer] == [1, 2, 3, 4]


async def test_relays_on_one_and_on_different_databases_come_to_rest(
    broker: RunningBroker, tmp_path: Path
) -> None:
    for folder, value in (("here", 0.1), ("elsewhere", 0.2)):
        async with keeping(broker, tmp_path / folder):
            await retain(broker, layer_topic(NORTH), volume(7, value))
            await until_stored(broker, 7)
        await lose_disk(broker, tmp_path)
    heard: list[bytes] = []
    async with (
        raw_client(broker.address) as client,
        keeping(broker, tmp_path / "here"),
        keeping(broker, tmp_path / "here"),
        keeping(broker, tmp_path / "elsewhere"),
    ):
        await client.subscribe(LAYERS, qos=1)
        await until_at_rest(client, heard)
        assert len(heard) <= 9
        assert set(heard) == {volume(7, 0.1), volume(7, 0.2)}
        await retain(broker, layer_topic(NORTH), volume(8))
        await until_stored(broker, 8)
        await until_at_rest(client, heard)
    assert heard[-1] == volume(8)


async def until_at_rest(client: aiomqtt.Client, heard: list[bytes]) -> None:
    """Until nothing more is said for a second, which nobody who goes round in a circle leaves."""
    messages = aiter(client.messages)
    while True:
        try:
            async with asyncio.timeout(1 if heard else PATIENCE_S):
                message = await anext(messages)
        except TimeoutError:
            return
        heard.append(bytes(message.payload))  # type: ignore[arg-type]


@pytest.mark.parametrize("later", [b'{"of": "a later version"}', b"[" * 60_000, b"\xff"])
async def test_what_is_no_layer_is_left_alone(
    broker: RunningBroker, tmp_path: Path, later: bytes
) -> None:
    async with keeping(broker, tmp_path / "relay"):
        await retain(broker, layer_topic(NORTH), volume(1))
        await until_stored(broker, 1)
        await retain(broker, layer_topic(NORTH), later)
        async with raw_client(broker.address) as client, asyncio.timeout(PATIENCE_S):
            await client.subscribe(KEEPER_ANSWERS, qos=1)
            await client.publish(KEEPERS, b"asked", qos=1)
            await anext(aiter(client.messages))
        await until(broker, layer_topic(NORTH), later)
        await retain(broker, layer_topic(NORTH), volume(2))
        await until_stored(broker, 2)


async def test_operators_of_an_older_version_get_the_rights_of_this_one(
    broker: RunningBroker, tmp_path: Path
) -> None:
    session = Session(broker.address, "admin", sleep=soon)
    accounts = DynamicSecurity(session)
    async with held_session(session):
        await accounts.grant_operator("operator:ann")
        of_before = [acl for acl in operator_acls() if "config-stored" not in acl["topic"]]
        role = {"rolename": OPERATOR_ROLE, "acls": of_before}
        await accounts._run({"command": "modifyRole", **role})
        async with keeping(broker, tmp_path / "relay"), asyncio.timeout(PATIENCE_S):
            while await accounts.extend_operators():  # noqa: ASYNC110 - the relay does the same
                await asyncio.sleep(0.1)
            get = {"command": "getRole", "rolename": OPERATOR_ROLE}
            (answer,) = await accounts._run(get)
    topics = {acl["topic"] for acl in answer["data"]["role"]["acls"]}
    assert set(read_by_operators()) <= topics


async def test_what_was_written_while_the_database_was_away_is_stored_once_it_is_back(
    broker: RunningBroker, tmp_path: Path
) -> None:
    database = await asyncio.to_thread(open_database, None, tmp_path)

    class Away(StoredLayers):
        is_away = False
        asked = asyncio.Event()

        async def keep(self, revisions: Revisions) -> Sequence[Held]:
            if self.is_away:
                self.asked.set()
                raise Unavailable("the database is away")
            return await super().keep(revisions)

    store = Away(database, now=lambda: datetime.now(UTC))
    session = ReceivingSession(broker.address, "keeper", echo_topic=OPERATORS_ECHO, sleep=soon)
    keeper = LayerKeeper(session, store, sleep=soon)
    running = asyncio.create_task(keeper.run())
    async with held_session(session):
        await retain(broker, layer_topic(NORTH), volume(1))
        await until_stored(broker, 1)
        store.is_away = True
        await retain(broker, layer_topic(NORTH), volume(2), volume(3))
        async with asyncio.timeout(PATIENCE_S):
            await store.asked.wait()
        store.is_away = False
        await until_stored(broker, 3)
    running.cancel()
    history = await store.history(NORTH)
    await database.close()
    assert [one.layer.revision for one in history if one.layer] == [1, 2, 3]


class _Refusing:
    """A session at a broker that takes nothing, such as one without memory."""

    connected = True

    def receive(self, *_: object, **__: object) -> None: ...

    def on_disconnected(self, _: object) -> None: ...

    def on_connected(self, hook: Callable[[], Awaitable[None]]) -> None:
        self.connect = hook


async def test_a_broker_that_refuses_is_not_asked_for_all_layers_again_and_again() -> None:
    waited: list[float] = []
    looked = asyncio.Event()

    class Store:
        async def newest(self) -> dict[LayerName, object]:
            raise PublishRefused("quota exceeded")

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        looked.set()
        await asyncio.Event().wait()

    session = _Refusing()
    keeper = LayerKeeper(session, Store(), sleep=sleep)  # type: ignore[arg-type]
    await session.connect()
    running = asyncio.create_task(keeper.run())
    async with asyncio.timeout(PATIENCE_S):
        await looked.wait()
    running.cancel()
    assert waited == [5.0]
