"""No device is there longer than its broker has confirmed: at a real mosquitto that is killed, with real
links, whose confirmations last a second or two instead of most of a minute."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from bellwire.agent.link import Link
from bellwire.broker.accounts.credentials import DynamicSecurity
from bellwire.broker.session.receiving import ReceivingSession
from bellwire.broker.session.session import Session
from bellwire.push.access.tokens import Actor
from bellwire.push.calls.invites import Invite
from bellwire.push.devices.presence_watch import PresenceWatch
from bellwire.push.devices.rate_limits import DeviceRateLimits
from bellwire.push.devices.requests import DeviceRequests
from bellwire.push.metrics import Metrics
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.connections import ConnectionRow, find_connection, put_connection
from bellwire.push.store.rows.devices import ChannelRow, DeviceRow, put_device
from bellwire.push.store.tables import to_ms
from bellwire.signaling.calls.calls import Call, CallState
from bellwire.signaling.calls.commands import NewCall
from bellwire.signaling.identifiers import DeviceId, Identity
from bellwire.signaling.topics import PRESENCE_OF_ALL, device_of, presence_topic
from bellwire.signaling.wire.station import (
    CONFIRM_EVERY_S,
    KEEP_ALIVE_S,
    PRESENCE_LIFE_S,
    Presence,
    is_online,
    parse_presence,
    presence_document,
)
from tests.broker.running import RunningBroker, held, raw_client, soon
from tests.conftest import PATIENCE_S
from tests.push.clock import Clock
from tests.push.parts import Parts, parts_on

LIFE_S = 3
CONFIRM_S = 1.0
BACK_S = 1.0
GATE, YARD = DeviceId("gate"), DeviceId("yard")


class PassingClock(Clock):
    """Time as it passes."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    async def sleep(self, wait_s: float) -> None:
        await asyncio.sleep(wait_s)


class Stage:
    """A relay as far as presence concerns it, and the broker."""

    def __init__(self, broker: RunningBroker, relay: Parts) -> None:
        self.broker = broker
        self.relay = relay

    async def admit(self, device: DeviceId) -> Link:
        """Registers a device; its link, which does not run yet."""
        row = DeviceRow(device, Identity(device), (ChannelRow("mqtt"),))
        await self.relay.database.write(partial(put_device, device=row, at_ms=0))
        session = Session(self.broker.address, "admits", sleep=soon)
        accounts = DynamicSecurity(session)
        async with held(session):
            password = await accounts.grant(device)
        address = replace(self.broker.address, username=device, password=password)
        return Link(address, device, sleep=soon, confirm_every_s=CONFIRM_S, presence_life_s=LIFE_S)

    async def call_by(self, device: DeviceId) -> Call:
        """A call that a device has made, and that rings."""
        callee = Identity(f"{device}-callee")
        row = DeviceRow(DeviceId(callee), callee, (ChannelRow("mqtt"),))
        await self.relay.database.write(partial(put_device, device=row, at_ms=0))
        calls, caller = self.relay.calls, Identity(device)
        new = NewCall(calls.new_sid(), caller, (), datetime.now(UTC), 600, device=device)
        return (await calls.create(Invite(new, (callee,), {}, Actor(caller, device)))).call

    async def state(self, call: Call) -> CallState:
        return (await self.relay.calls.show(call.call_sid, Actor())).state

    async def noted(self, device: DeviceId) -> ConnectionRow | None:
        return await self.relay.database.read(lambda c: find_connection(c, device, "mqtt"))

    async def until_noted(self, device: DeviceId, *, online: bool) -> ConnectionRow:
        async with asyncio.timeout(PATIENCE_S):
            while (  # noqa: ASYNC110 - a database tells no event
                row := await self.noted(device)
            ) is None or row.online is not online:
                await asyncio.sleep(0.02)
        return row

    async def retained(self) -> dict[DeviceId, Presence]:
        """What the broker retains now."""
        found: dict[DeviceId, Presence] = {}
        async with raw_client(self.broker.address) as client:
            await client.subscribe(PRESENCE_OF_ALL, qos=1)
            await client.subscribe("nothing", qos=1)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.3):
                    async for message in client.messages:
                        assert isinstance(message.payload, bytes)
                        found[device_of(str(message.topic))] = parse_presence(message.payload)
        return found

    async def say(self, device: DeviceId, presence: Presence) -> None:
        """In the place of a device."""
        async with raw_client(self.broker.address) as client:
            document = presence_document(presence)
            await client.publish(presence_topic(device), document, qos=1, retain=True)


@asynccontextmanager
async def stage_on(folder: Path, database: Database) -> AsyncIterator[Stage]:
    clock = PassingClock()
    relay = parts_on(database, clock)
    async with RunningBroker(folder) as broker, asyncio.TaskGroup() as tasks:
        session = ReceivingSession(broker.address, "relay", sleep=soon)
        requests = DeviceRequests(
            session,
            relay.operations,
            relay.devices,
            relay.connections,
            DeviceRateLimits(1e6, Metrics()),
            now=clock.now,
        )
        watch = PresenceWatch(
            broker.address,
            database,
            requests,
            now=clock.now,
            sleep=hurried,
            back_within_s=BACK_S,
        )
        running = [tasks.create_task(requests.run())]
        async with held(session):
            running.append(tasks.create_task(watch.run()))
            yield Stage(broker, relay)
            for task in running:
                task.cancel()


async def hurried(wait_s: float) -> None:
    await asyncio.sleep(wait_s / 10)


@pytest.fixture
async def stage(tmp_path: Path, database: Database) -> AsyncIterator[Stage]:
    async with stage_on(tmp_path, database) as opened:
        yield opened


@asynccontextmanager
async def running(link: Link) -> AsyncIterator[None]:
    task = asyncio.create_task(link.run())
    try:
        async with asyncio.timeout(PATIENCE_S):
            await link.wait_connected()
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_no_ghost_is_left_of_a_device_that_died_while_its_broker_was_dead(
    stage: Stage,
) -> None:
    gate, yard = await stage.admit(GATE), await stage.admit(YARD)
    async with running(yard):
        async with running(gate):
            calls = {}
            for device in (GATE, YARD):
                await stage.until_noted(device, online=True)
                calls[device] = await stage.call_by(device)
            await stage.broker.kill()
            died = time.monotonic()
        await stage.broker.start()
        gone = await stage.until_noted(GATE, online=False)
        assert time.monotonic() - died < 3 * LIFE_S + 5
        retained = await stage.retained()
        assert not retained[GATE].online
        since = retained[GATE].since
        assert since is None or to_ms(since) <= gone.seen_at_ms
        assert retained[YARD].online
        await stage.until_noted(YARD, online=True)
        # Nobody has answered a caller who is not there any more, and nobody need.
        async with asyncio.timeout(PATIENCE_S):
            while await stage.state(calls[GATE]) is not CallState.ENDED:
                pass
        assert await stage.state(calls[YARD]) is CallState.RINGING
        async with running(gate):  # it comes back as ever
            await stage.until_noted(GATE, online=True)


async def test_a_device_that_died_with_a_broker_that_had_kept_its_word_is_no_ghost_either(
    stage: Stage,
) -> None:
    """Mosquitto wrote `online` to its disk, and was killed with the last will unpublished."""
    gate = await stage.admit(GATE)
    async with running(gate):
        await stage.until_noted(GATE, online=True)
        # This has mosquitto write what it retains.
        stage.broker.send(signal.SIGUSR1)
        await asyncio.sleep(CONFIRM_S)
        await stage.broker.kill()
    await stage.broker.start()
    assert (await stage.retained())[GATE].online, "the broker has not kept it"
    await stage.until_noted(GATE, online=False)
    assert not (await stage.retained())[GATE].online


async def test_a_device_that_confirms_is_noted_once_and_says_since_when_it_is_there(
    stage: Stage,
) -> None:
    gate = await stage.admit(GATE)
    before = datetime.now(UTC)
    async with running(gate):
        came = await stage.until_noted(GATE, online=True)
        words: list[bytes] = []
        async with raw_client(stage.broker.address) as client, asyncio.timeout(PATIENCE_S):
            await client.subscribe(presence_topic(GATE), qos=1)
            async for message in client.messages:
                assert isinstance(message.payload, bytes)
                words.append(message.payload)
                if len(words) == 2 * LIFE_S:
                    break
        assert len(set(words)) == 1
        since = parse_presence(words[0]).since
        assert since is not None
        assert before <= since <= datetime.now(UTC)
        assert await stage.noted(GATE) == came, "a confirmation was written to the database"


async def test_a_device_that_was_wrongly_taken_for_gone_is_there_again_by_its_next_confirmation(
    stage: Stage,
) -> None:
    gate = await stage.admit(GATE)
    async with running(gate):
        await stage.until_noted(GATE, online=True)
        await stage.say(GATE, Presence(online=False))
        gone = ConnectionRow(GATE, "mqtt", "session", online=False)
        await stage.relay.database.write(lambda c: put_connection(c, gone, 0))
        await stage.until_noted(GATE, online=True)


async def test_what_a_relay_knew_that_died_before_it_noted_it_is_noted_by_another(
    stage: Stage,
) -> None:
    """It took from the broker that a device has gone; the database says that it is there."""
    await stage.admit(GATE)
    await stage.say(GATE, Presence(online=False))
    there = ConnectionRow(GATE, "mqtt", "session", online=True)
    await stage.relay.database.write(lambda c: put_connection(c, there, 0))
    await stage.until_noted(GATE, online=False)


async def test_a_device_of_an_older_version_is_what_the_broker_says_it_is(stage: Stage) -> None:
    """It confirms nothing, and is not taken for gone by that."""
    await stage.admit(GATE)
    await stage.say(GATE, Presence(online=True, software="0.0.9"))
    yard = await stage.admit(YARD)
    async with running(yard):
        came = await stage.until_noted(GATE, online=True)
        await stage.until_noted(YARD, online=True)
    await stage.until_noted(YARD, online=False)
    await asyncio.sleep(LIFE_S)
    assert await stage.noted(GATE) == came


def test_three_keep_alives_are_enough_to_notice_and_one_lost_confirmation_is_no_loss() -> None:
    assert PRESENCE_LIFE_S + 8 <= 3 * KEEP_ALIVE_S
    assert 2 * CONFIRM_EVERY_S < PRESENCE_LIFE_S


def test_who_has_said_so_last_and_not_too_long_ago_is_online() -> None:
    there, gone = Presence(online=True), Presence(online=False)
    assert is_online(there, None, 1e9)
    assert is_online(there, 10.0, 9.9)
    assert not is_online(there, 10.0, 10.0)
    assert not is_online(gone, None, 0.0)
    assert not is_online(None, None, 0.0)
