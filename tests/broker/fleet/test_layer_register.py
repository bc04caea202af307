"""Compare-and-set over a broker that knows nothing of it: real mosquitto, writers at the same time."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime

import pytest

from bellwire.broker.fleet.layer_register import LayerConflict, LayerRegister
from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.session import Session
from bellwire.config.fleet.layer import Layer, hash_of
from bellwire.config.fleet.writing import NOTHING, Draft, Held, document_of, held
from bellwire.signaling.errors import InvalidInput, Unavailable
from bellwire.signaling.topics import LayerName, claim_topic, layer_topic
from tests.broker.running import RunningBroker, Wire, raw_client, soon
from tests.broker.running import held as held_session
from tests.conftest import PATIENCE_S

pytestmark = pytest.mark.asyncio(loop_scope="module")

AT = datetime(2026, 11, 21, tzinfo=UTC)


@asynccontextmanager
async def writer(
    address: BrokerAddress, author: str, layer: LayerName
) -> AsyncIterator[LayerRegister]:
    session = Session(address, f"{author}-{layer}", sleep=soon)
    register = LayerRegister(session, author, histories=[layer], now=lambda: AT)
    async with held_session(session):
        await register.read()
        yield register


def volume(value: int, **more: str) -> Draft:
    return Draft({"audio": {"ring_volume": value / 10}, **more})


async def retained(address: BrokerAddress, layer: LayerName) -> Held:
    async with raw_client(address) as client, asyncio.timeout(PATIENCE_S):
        await client.subscribe(layer_topic(layer), qos=1)
        return held((await anext(aiter(client.messages))).payload)


async def retain(address: BrokerAddress, topic: str, payload: bytes) -> None:
    async with raw_client(address) as client:
        await client.publish(topic, payload, qos=1, retain=True)


def by_somebody(revision: int, parent: str = "") -> Layer:
    return Layer(revision=revision, author="somebody", at=AT, settings={}, parent=parent)


async def test_layer_is_written_on_the_one_before_and_names_its_hash(
    shared_broker: RunningBroker,
) -> None:
    layer = LayerName("group/plain")
    async with writer(shared_broker.address, "ann", layer) as ann:
        assert ann.held(layer) == NOTHING
        first = await ann.write(layer, volume(1), on=NOTHING)
        on = ann.held(layer)
        second = await ann.write(layer, volume(2), on=on)
    assert (first.revision, first.parent, first.author) == (1, "", "ann")
    assert (second.revision, second.parent) == (2, hash_of(json.loads(on.payload)))
    assert (await retained(shared_broker.address, layer)).layer == second


async def test_write_on_what_is_no_longer_there_names_the_other_revision_and_its_author(
    shared_broker: RunningBroker,
) -> None:
    layer = LayerName("group/stale")
    async with (
        writer(shared_broker.address, "ann", layer) as ann,
        writer(shared_broker.address, "bob", layer) as bob,
    ):
        await ann.write(layer, volume(1), on=NOTHING)
        await bob.read()
        with pytest.raises(LayerConflict, match="revision 1 by ann") as refused:
            await bob.write(layer, volume(2), on=NOTHING)
    assert (await retained(shared_broker.address, layer)).layer == refused.value.winner


@pytest.mark.parametrize("writers", [2, 3, 12])
async def test_of_writers_at_the_same_time_one_writes_and_each_other_is_told_who_did(
    shared_broker: RunningBroker, writers: int
) -> None:
    layer = LayerName(f"group/race-{writers}")
    async with AsyncExitStack() as stack:
        all_of_them = [
            await stack.enter_async_context(
                writer(shared_broker.address, f"operator-{number}", layer)
            )
            for number in range(writers)
        ]
        for round_number in range(1, 4):
            on = all_of_them[0].held(layer)
            outcomes = await asyncio.gather(
                *(one.write(layer, volume(round_number), on=on) for one in all_of_them),
                return_exceptions=True,
            )
            (won,) = (outcome for outcome in outcomes if isinstance(outcome, Layer))
            lost = [outcome for outcome in outcomes if isinstance(outcome, LayerConflict)]
            assert len(lost) == writers - 1, outcomes
            assert all(refused.winner == won for refused in lost)
            assert won.revision == round_number
            assert (await retained(shared_broker.address, layer)).layer == won
            for one in all_of_them:
                await one.read()


async def test_no_increment_is_lost_by_writers_that_try_again_when_they_are_refused(
    shared_broker: RunningBroker,
) -> None:
    layer = LayerName("group/counter")

    async def count(register: LayerRegister, times: int) -> None:
        while times:
            on = register.held(layer)
            done = on.layer.settings["count"] if on.layer else 0
            assert isinstance(done, int)
            try:
                await register.write(layer, Draft({"count": done + 1}), on=on)
            except LayerConflict:
                continue
            times -= 1

    async with AsyncExitStack() as stack:
        registers = [
            await stack.enter_async_context(writer(shared_broker.address, name, layer))
            for name in ("ann", "bob", "eve")
        ]
        async with asyncio.timeout(4 * PATIENCE_S), asyncio.TaskGroup() as tasks:
            for register in registers:
                tasks.create_task(count(register, 8))
        last = (await retained(shared_broker.address, layer)).layer
        assert last is not None
        assert (last.settings, last.revision) == ({"count": 24}, 24)
        await registers[0].read()
        history = registers[0].history(layer)
    assert [revision.revision for revision in history] == list(range(24, 4, -1))
    for newer, older in itertools.pairwise(history):
        assert newer.parent == held(document_of(older)).fingerprint


async def test_layer_of_a_writer_without_a_claim_is_put_back_and_the_write_refused(
    shared_broker: RunningBroker,
) -> None:
    """The network keeps one writer's last message back while somebody with another client writes."""
    layer = LayerName("group/late")
    theirs = by_somebody(1)

    class Late(Session):
        async def publish(self, topic: str, payload: bytes, **more: object) -> None:  # type: ignore[override]
            if topic == layer_topic(layer) and b"ann" in payload:
                await retain(shared_broker.address, topic, document_of(theirs))
            await super().publish(topic, payload, **more)  # type: ignore[arg-type]

    session = Late(shared_broker.address, "late", sleep=soon)
    register = LayerRegister(session, "ann", histories=[layer], now=lambda: AT)
    async with held_session(session):
        await register.read()
        with pytest.raises(LayerConflict, match="revision 1 by somebody") as refused:
            await register.write(layer, volume(1), on=NOTHING)
    assert refused.value.winner == theirs
    assert (await retained(shared_broker.address, layer)).layer == theirs


async def test_who_comes_while_another_is_about_to_write_waits_for_what_it_writes(
    shared_broker: RunningBroker,
) -> None:
    layer = LayerName("group/patient")
    claim = {"nonce": "0123456789abcdef", "author": "eve", "parent": ""}
    await retain(shared_broker.address, claim_topic(layer), json.dumps(claim).encode())
    async with writer(shared_broker.address, "ann", layer) as ann:
        writing = asyncio.create_task(ann.write(layer, volume(1), on=NOTHING))
        await ann.read()
        assert not writing.done()
        theirs = by_somebody(1)
        await retain(shared_broker.address, layer_topic(layer), document_of(theirs))
        with pytest.raises(LayerConflict, match="somebody"):
            await writing
    await retain(shared_broker.address, claim_topic(layer), b"")


@pytest.mark.full
async def test_claim_of_a_writer_that_died_is_forgotten_after_seconds(
    shared_broker: RunningBroker,
) -> None:
    layer = LayerName("group/dead")
    async with (
        writer(shared_broker.address, "eve", layer) as eve,
        writer(shared_broker.address, "ann", layer) as ann,
    ):
        await eve._claim(layer, NOTHING)
        with pytest.raises(Unavailable, match="eve began to write it and did not finish"):
            await ann.write(layer, volume(1), on=NOTHING)
        assert (await ann.write(layer, volume(1), on=NOTHING)).revision == 1


async def test_lost_connection_says_that_it_is_open_whether_the_write_stands(
    shared_broker: RunningBroker,
) -> None:
    layer = LayerName("group/cut")
    async with Wire(shared_broker.address) as wire:

        class Cut(Session):
            async def publish(self, topic: str, payload: bytes, **more: object) -> None:  # type: ignore[override]
                if topic == layer_topic(layer):
                    wire.cut()
                await super().publish(topic, payload, **more)  # type: ignore[arg-type]

        session = Cut(wire.address, "cut", sleep=soon)
        register = LayerRegister(session, "ann", histories=[layer], now=lambda: AT)
        async with held_session(session):
            await register.read()
            with pytest.raises(Unavailable, match="whether the last write stands is open"):
                await register.write(layer, volume(1), on=NOTHING)


async def test_revision_counts_on_where_a_layer_was_removed_or_made_unreadable(
    shared_broker: RunningBroker,
) -> None:
    layer = LayerName("device/counted")
    async with writer(shared_broker.address, "ann", layer) as ann:
        await ann.write(layer, volume(1), on=NOTHING)
        await ann.write(layer, volume(2), on=ann.held(layer))
    for spoiled in (b"", b"not JSON \xff"):
        await retain(shared_broker.address, layer_topic(layer), spoiled)
        async with writer(shared_broker.address, "ann", layer) as ann:
            assert ann.held(layer) == Held(spoiled)
            revision = max(layer.revision for layer in ann.history(layer))
            written = await ann.write(layer, volume(3), on=ann.held(layer))
            assert written.revision == revision + 1


async def test_too_large_a_layer_is_refused_before_anything_is_published(
    shared_broker: RunningBroker,
) -> None:
    layer = LayerName("group/large")
    async with writer(shared_broker.address, "ann", layer) as ann:
        with pytest.raises(InvalidInput, match="at most 65536 bytes"):
            await ann.write(layer, volume(1, text="x" * 65_536), on=NOTHING)
        await ann.read()
        assert ann.held(layer) == NOTHING
