"""Rollouts that take themselves back, on a real mosquitto, whoever of the guards is alive."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bellwire.broker.fleet.layer_register import LayerRegister
from bellwire.broker.fleet.rollout_guard import guard_rollouts
from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.receiving import ReceivingSession
from bellwire.broker.session.session import Session
from bellwire.config.fleet.layer import Layer, LayerProblem, Reported, Rollout
from bellwire.config.fleet.writing import NOTHING, Draft
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import (
    OPERATORS_ECHO,
    REPORTED_OF_ALL,
    LayerName,
    device_layer,
    group_layer,
    layer_topic,
    presence_topic,
)
from bellwire.signaling.wire.station import Presence, presence_document
from tests.broker.running import RunningBroker, held, raw_client, soon
from tests.conftest import PATIENCE_S

pytestmark = pytest.mark.asyncio(loop_scope="module")

AT = datetime(2026, 11, 21, tzinfo=UTC)
TOO_LOUD = {"audio": {"ring_volume": 6}}


@asynccontextmanager
async def operator(address: BrokerAddress, layer: LayerName) -> AsyncIterator[LayerRegister]:
    session = Session(address, f"ann-{layer}", sleep=soon)
    register = LayerRegister(session, "ann", histories=[layer], now=lambda: AT)
    async with held(session):
        await register.read()
        yield register


async def registered(devices: Collection[DeviceId]) -> Collection[DeviceId]:
    return [device for device in devices if not device.startswith("unregistered")]


@asynccontextmanager
async def guards(address: BrokerAddress, *names: str) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        sessions = [
            ReceivingSession(address, name, echo_topic=OPERATORS_ECHO, sleep=soon) for name in names
        ]
        running = [
            tasks.create_task(
                guard_rollouts(session, registered, author=session.client_id, now=lambda: AT)
            )
            for session in sessions
        ]
        async with asyncio.timeout(PATIENCE_S):
            for session in sessions:
                await session.wait_connected()
        yield
        for task in running:
            task.cancel()


async def say(address: BrokerAddress, device: str, name: str, revision: int, *bad: str) -> None:
    """A device reports; what is wrong with a layer of a group of its at each path."""
    said = Reported(
        device_id=device,
        software="0",
        at=AT,
        hash="",
        effective={},
        sources={},
        revisions={},
        local={"groups": [device.rpartition("-")[0]]},
        errors=tuple(
            LayerProblem(layer=name, revision=revision, path=path, reason="no") for path in bad
        ),
    )
    topic = REPORTED_OF_ALL.replace("+", device)
    async with raw_client(address) as client:
        here = presence_document(Presence(online=True))
        await client.publish(presence_topic(DeviceId(device)), here, qos=1, retain=True)
        await client.publish(topic, said.model_dump_json().encode(), qos=1, retain=True)


async def paused(register: LayerRegister, name: LayerName) -> Layer:
    """Waits until a layer has paused itself."""
    news = asyncio.Event()
    register.listen(lambda _: news.set())
    async with asyncio.timeout(PATIENCE_S):
        while (now := register.held(name).layer) is None or now.rollout.paused_at is None:
            news.clear()
            await news.wait()
    return now


def rollout(percent: int = 100, back_to: int = 0) -> Draft:
    return Draft(TOO_LOUD, Rollout(percent=percent, pause_at_errors=1, back_to=back_to))


async def test_of_several_guards_one_takes_the_rollout_back_once(
    shared_broker: RunningBroker,
) -> None:
    name, address = group_layer("several"), shared_broker.address
    async with (
        operator(address, name) as ann,
        guards(address, "guard-1", "guard-2", "guard-3"),
    ):
        written = await ann.write(name, rollout(back_to=10), on=NOTHING)
        for device in ("several-1", "several-2"):
            await say(address, device, name, written.revision, "audio.ring_volume")
        layer = await paused(ann, name)
        # Whatever a second guard had under way has arrived once all have heard of one more change.
        await ann.write(name, Draft({}), on=ann.held(name))
        revisions = [(old.revision, old.rollout.percent) for old in ann.history(name)]
    assert (layer.revision, layer.rollout.percent, layer.rollout.paused_at) == (2, 10, 100)
    assert layer.author.startswith("guard-")
    assert "2 refuse it, such as several-1: audio.ring_volume: no" in layer.comment
    assert revisions == [(3, 100), (2, 10), (1, 100)]


async def test_guard_that_starts_later_takes_back_what_was_refused_before(
    shared_broker: RunningBroker,
) -> None:
    name, address = group_layer("later"), shared_broker.address
    async with operator(address, name) as ann:
        written = await ann.write(name, rollout(), on=NOTHING)
        for device in ("later-1", "later-2"):
            await say(address, device, name, written.revision, "audio.ring_volume")
        assert ann.held(name).layer == written, "nobody counts"
        async with guards(address, "late-guard"):
            assert (await paused(ann, name)).rollout.percent == 0


async def test_one_error_fewer_and_errors_that_are_mended_pause_nothing(
    shared_broker: RunningBroker,
) -> None:
    name, address = group_layer("few"), shared_broker.address
    async with operator(address, name) as ann, guards(address, "few-guard"):
        first = await ann.write(name, rollout(50), on=NOTHING)
        await say(address, "few-1", name, first.revision, "audio.ring_volume", "log_level")
        await say(address, "few-1", name, first.revision)
        second = await ann.write(name, rollout(), on=ann.held(name))
        for device in ("few-1", "few-2"):
            await say(address, device, name, first.revision, "of.the.revision.before")
        await say(address, "few-1", name, second.revision, "log_level")
        await say(address, "few-2", name, second.revision, "audio.ring_volume")
        layer = await paused(ann, name)
    assert (layer.revision, layer.rollout.paused_at) == (3, 100)
    assert "2 refuse it, such as few-1: log_level" in layer.comment


async def test_guard_comes_back_with_its_broker_and_counts_anew(tmp_path: Path) -> None:
    name = group_layer("lost")
    async with RunningBroker(tmp_path) as broker, guards(broker.address, "guard"):
        async with operator(broker.address, name) as ann:
            written = await ann.write(name, rollout(), on=NOTHING)
            await say(broker.address, "lost-1", name, written.revision, "audio.ring_volume")
        await broker.restart()
        async with operator(broker.address, name) as ann:
            on = ann.held(name)
            if on.layer is None:  # Killed before it had stored the layer.
                written = await ann.write(name, rollout(), on=on)
            for device in ("lost-1", "lost-2"):
                await say(broker.address, device, name, written.revision, "audio.ring_volume")
            assert (await paused(ann, name)).rollout.percent == 0


async def test_layer_that_has_no_revision_left_stops_no_guard(shared_broker: RunningBroker) -> None:
    last, name, address = group_layer("last"), group_layer("next"), shared_broker.address
    layer = Layer(revision=2**53 - 1, author="ann", at=AT, settings={}, rollout=rollout().rollout)
    async with raw_client(address) as client:
        await client.publish(
            layer_topic(last), layer.model_dump_json().encode(), qos=1, retain=True
        )
    async with operator(address, name) as ann, guards(address, "last-guard"):
        for device in ("last-1", "last-2"):
            await say(address, device, last, layer.revision, "audio.ring_volume")
        written = await ann.write(name, rollout(), on=NOTHING)
        for device in ("next-1", "next-2"):
            await say(address, device, name, written.revision, "audio.ring_volume")
        assert (await paused(ann, name)).rollout.percent == 0
        assert ann.held(last).layer == layer


async def settled(address: BrokerAddress, name: str) -> None:
    """Returns once a guard has counted all that was said before: it pauses one more rollout."""
    layer = group_layer(name)
    async with operator(address, layer) as ann:
        written = await ann.write(layer, rollout(), on=NOTHING)
        for device in (f"{name}-1", f"{name}-2"):
            await say(address, device, layer, written.revision, "audio.ring_volume")
        await paused(ann, layer)


async def test_devices_outside_a_group_pause_nothing_of_its_rollout(
    shared_broker: RunningBroker,
) -> None:
    name, address = group_layer("vault"), shared_broker.address
    async with operator(address, name) as ann, guards(address, "vault-guard"):
        written = await ann.write(name, rollout(), on=NOTHING)
        for number in range(9):
            await say(address, f"rogue-{number}", name, written.revision, "audio.ring_volume")
        await settled(address, "vault-witness")
        assert ann.held(name).layer == written


async def test_device_that_a_layer_puts_elsewhere_cannot_say_that_it_is_in_the_group(
    shared_broker: RunningBroker,
) -> None:
    name, address = group_layer("safe"), shared_broker.address
    async with operator(address, name) as ann, guards(address, "safe-guard"):
        for device in ("safe-1", "safe-2"):
            other = Draft({"groups": ["yard"]})
            await ann.write(device_layer(device), other, on=ann.held(device_layer(device)))
        written = await ann.write(name, rollout(), on=NOTHING)
        for device in ("safe-1", "safe-2"):
            await say(address, device, name, written.revision, "audio.ring_volume")
        await settled(address, "safe-witness")
        assert ann.held(name).layer == written


async def test_devices_that_are_not_registered_pause_nothing(shared_broker: RunningBroker) -> None:
    name, address = group_layer("unregistered"), shared_broker.address
    async with operator(address, name) as ann, guards(address, "unregistered-guard"):
        written = await ann.write(name, rollout(), on=NOTHING)
        for number in range(9):
            device = f"unregistered-{number}"
            await say(address, device, name, written.revision, "audio.ring_volume")
        await settled(address, "known-witness")
        assert ann.held(name).layer == written


async def test_layer_that_takes_a_right_away_is_not_taken_back_whoever_refuses_it(
    shared_broker: RunningBroker,
) -> None:
    name, address = group_layer("fired"), shared_broker.address
    door = {"behaviour": {"doors": {"front": {"callers": ["ann", "eve"]}}}}
    revoked = {"behaviour": {"doors": {"front": {"callers": ["ann"]}}}}
    async with operator(address, name) as ann, guards(address, "fired-guard"):
        both_ways = [
            Draft(revoked, Rollout(percent=100, pause_at_errors=1, before=door)),
            Draft(door, Rollout(percent=100, pause_at_errors=1, before=revoked)),
        ]
        written = await ann.write(name, both_ways[0], on=NOTHING)
        for device in ("fired-1", "fired-2"):
            await say(address, device, name, written.revision, "audio.ring_volume")
        await settled(address, "fired-witness")
        assert ann.held(name).layer == written, "eve does not come back"
        written = await ann.write(name, both_ways[1], on=ann.held(name))
        for device in ("fired-1", "fired-2"):
            await say(address, device, name, written.revision, "audio.ring_volume")
        layer = await paused(ann, name)
        assert (layer.rollout.percent, layer.rollout.before) == (0, revoked), "what was given goes"
