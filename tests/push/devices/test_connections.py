"""Streams that nobody holds any more are lost, and with them what their devices were calling. On
real databases, with a clock that the test moves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import pytest

from bellwire.push.access.tokens import Actor
from bellwire.push.calls.invites import Invite
from bellwire.push.devices.connections import STREAM_GRACE
from bellwire.push.store.engine.database import Database
from bellwire.push.store.engine.unit_of_work import CallWork, Work
from bellwire.push.store.rows.devices import ChannelRow, DeviceRow, put_device
from bellwire.signaling.calls.calls import Call, CallState
from bellwire.signaling.calls.commands import Accept, NewCall
from bellwire.signaling.errors import Unavailable
from bellwire.signaling.identifiers import DeviceId, Identity
from tests.push.clock import Clock
from tests.push.parts import Parts, parts_on
from tests.push.support import fresh, on_both_stores

pytestmark = on_both_stores

T = TypeVar("T")
GRACE_S = STREAM_GRACE.total_seconds()


class Interrupted:
    """A database that can be away."""

    def __init__(self, inner: Database) -> None:
        self._inner = inner
        self.away = False

    @property
    def shared(self) -> bool:
        return self._inner.shared

    async def write(self, work: Work[T]) -> T:
        self._check()
        return await self._inner.write(work)

    async def write_calls(self, work: CallWork[T]) -> T:
        self._check()
        return await self._inner.write_calls(work)

    async def read(self, work: Work[T]) -> T:
        self._check()
        return await self._inner.read(work)

    async def close(self) -> None:
        await self._inner.close()

    def _check(self) -> None:
        if self.away:
            raise Unavailable("the database is away")


class Scene:
    """Alice, with a phone and a tablet, who calls bob; and the relays that hold her streams."""

    def __init__(self, database: Interrupted, clock: Clock) -> None:
        self.database = database
        self.clock = clock
        self.relay = parts_on(database, clock)
        self.alice, self.bob = Identity(fresh("alice")), Identity(fresh("bob"))
        self.phone, self.tablet = DeviceId(fresh("phone")), DeviceId(fresh("tablet"))

    async def register(self) -> None:
        for device, identity in (
            (self.phone, self.alice),
            (self.tablet, self.alice),
            (DeviceId(fresh("desk")), self.bob),
        ):
            row = DeviceRow(device, identity, (ChannelRow("websocket"),))
            await self.database.write(partial(put_device, device=row, at_ms=0))

    async def call(self, device: DeviceId | None) -> Call:
        new = NewCall(
            self.relay.calls.new_sid(), self.alice, (), self.clock.now(), 600, device=device
        )
        invite = Invite(new, (self.bob,), {}, Actor(self.alice, device))
        return (await self.relay.calls.create(invite)).call

    async def state(self, call: Call) -> CallState:
        return (await self.relay.calls.show(call.call_sid, Actor())).state

    @asynccontextmanager
    async def running(self, *relays: Parts) -> AsyncIterator[None]:
        """Relays at work, whose start is longer ago than the grace they give."""
        async with asyncio.TaskGroup() as tasks:
            watching = [tasks.create_task(relay.connections.run()) for relay in relays]
            await self.clock.until_asleep()
            await self.passes(GRACE_S + 2)
            yield
            for task in watching:
                task.cancel()

    async def passes(self, seconds: float) -> None:
        """Lets time pass, in steps in which every relay comes to look."""
        for _ in range(round(seconds)):
            self.clock.advance(1)
            await self.clock.all_asleep()


@pytest.fixture
async def scene(shared_or_own: Database, clock: Clock) -> Scene:
    made = Scene(Interrupted(shared_or_own), clock)
    await made.register()
    return made


async def test_a_stream_that_broke_and_is_not_opened_again_takes_its_ringing_call(
    scene: Scene,
) -> None:
    connections = scene.relay.connections
    async with scene.running(scene.relay):
        stream = await connections.open_stream(scene.phone, None)
        call, answered = await scene.call(scene.phone), await scene.call(scene.phone)
        await scene.relay.calls.carry_out(
            answered.call_sid, Accept(scene.bob, None, scene.clock.now())
        )
        await connections.close_stream(stream)
        await scene.passes(GRACE_S - 1)
        assert await scene.state(call) is CallState.RINGING
        await scene.passes(4)
        assert await scene.state(call) is CallState.ENDED
        assert await scene.state(answered) is CallState.OPEN


async def test_a_stream_that_is_opened_again_in_time_keeps_its_call(scene: Scene) -> None:
    connections = scene.relay.connections
    async with scene.running(scene.relay):
        stream = await connections.open_stream(scene.phone, None)
        call = await scene.call(scene.phone)
        await connections.close_stream(stream)
        await scene.passes(GRACE_S - 2)
        again = await connections.open_stream(scene.phone, stream.cursor)
        # The relay comes to know of the old one's end only now: it is not the new one's.
        await connections.close_stream(stream)
        await scene.passes(60)
        assert await scene.state(call) is CallState.RINGING
        await connections.close_stream(again)
        await scene.passes(GRACE_S + 4)
        assert await scene.state(call) is CallState.ENDED


async def test_a_call_stays_with_the_device_that_made_it(scene: Scene) -> None:
    connections = scene.relay.connections
    async with scene.running(scene.relay):
        phone = await connections.open_stream(scene.phone, None)
        tablet = await connections.open_stream(scene.tablet, None)
        by_phone, by_tablet = await scene.call(scene.phone), await scene.call(scene.tablet)
        by_server = await scene.call(None)
        await connections.close_stream(tablet)
        await scene.passes(GRACE_S + 4)
        assert await scene.state(by_tablet) is CallState.ENDED
        assert await scene.state(by_phone) is CallState.RINGING
        assert await scene.state(by_server) is CallState.RINGING
        await connections.close_stream(phone)
        await scene.passes(GRACE_S + 4)
        assert await scene.state(by_phone) is CallState.ENDED
        assert await scene.state(by_server) is CallState.ENDED


async def test_a_device_that_is_there_over_mqtt_too_has_not_gone_with_its_stream(
    scene: Scene,
) -> None:
    connections = scene.relay.connections
    async with scene.running(scene.relay):
        await connections.session_came(scene.phone)
        stream = await connections.open_stream(scene.phone, None)
        call = await scene.call(scene.phone)
        await connections.close_stream(stream)
        await scene.passes(GRACE_S + 4)
        assert await scene.state(call) is CallState.RINGING
        again = await connections.open_stream(scene.phone, None)
        await connections.session_went(scene.phone)
        assert await scene.state(call) is CallState.RINGING
        await connections.close_stream(again)
        await scene.passes(GRACE_S + 4)
        assert await scene.state(call) is CallState.ENDED


async def test_the_streams_of_a_relay_that_died_are_lost_and_those_of_a_living_one_are_not(
    scene: Scene,
) -> None:
    other = parts_on(scene.database, scene.clock)
    dying = parts_on(scene.database, scene.clock)
    async with scene.running(scene.relay, other):
        await other.connections.open_stream(scene.phone, None)
        await dying.connections.open_stream(scene.tablet, None)  # and it never holds it
        by_phone, by_tablet = await scene.call(scene.phone), await scene.call(scene.tablet)
        await scene.passes(GRACE_S + 4)
        assert await scene.state(by_tablet) is CallState.ENDED
        assert await scene.state(by_phone) is CallState.RINGING


async def test_a_relay_that_starts_again_waits_for_the_devices_to_come_back(scene: Scene) -> None:
    await scene.relay.connections.open_stream(scene.phone, None)
    await scene.relay.connections.open_stream(scene.tablet, None)
    by_phone, by_tablet = await scene.call(scene.phone), await scene.call(scene.tablet)
    scene.clock.advance(30)  # the machine starts
    started = parts_on(scene.database, scene.clock)
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(started.connections.run())
        await scene.clock.all_asleep()
        await scene.passes(GRACE_S - 2)
        await started.connections.open_stream(scene.phone, None)
        assert await scene.state(by_tablet) is CallState.RINGING
        await scene.passes(6)
        assert await scene.state(by_tablet) is CallState.ENDED
        assert await scene.state(by_phone) is CallState.RINGING
        watching.cancel()


async def test_streams_are_not_lost_because_the_database_was(scene: Scene) -> None:
    other = parts_on(scene.database, scene.clock)
    async with scene.running(scene.relay, other):
        await scene.relay.connections.open_stream(scene.phone, None)
        await other.connections.open_stream(scene.tablet, None)
        made = [await scene.call(device) for device in (scene.phone, scene.tablet)]
        scene.database.away = True
        await scene.passes(60)
        scene.database.away = False
        await scene.passes(60)
        for call in made:
            assert await scene.state(call) is CallState.RINGING
