"""Devices that the broker says have gone, when a relay comes back to it: at a real mosquitto, with a
clock that the test moves."""

import asyncio
from functools import partial
from pathlib import Path

from aiomqtt import Client

from bellwire.broker.session.receiving import ReceivingSession
from bellwire.broker.session.session import BACKOFF_LONGEST_S
from bellwire.push.access.tokens import Actor
from bellwire.push.calls.invites import Invite
from bellwire.push.devices.rate_limits import DeviceRateLimits
from bellwire.push.devices.requests import DeviceRequests
from bellwire.push.metrics import Metrics
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.connections import find_connection
from bellwire.push.store.rows.devices import ChannelRow, DeviceRow, put_device
from bellwire.signaling.calls.calls import Call, CallState
from bellwire.signaling.calls.commands import NewCall
from bellwire.signaling.identifiers import DeviceId, Identity
from bellwire.signaling.topics import presence_topic
from bellwire.signaling.wire.station import Presence, presence_document
from tests.broker.running import RunningBroker, held, raw_client, soon
from tests.conftest import PATIENCE_S
from tests.push.clock import Clock
from tests.push.parts import Parts, parts_on

BACK, LOST = DeviceId("back"), DeviceId("lost")


async def say(mqtt: Client, device: DeviceId, *, online: bool) -> None:
    document = presence_document(Presence(online=online))
    await mqtt.publish(presence_topic(device), document, qos=1, retain=True)


async def call_by(relay: Parts, clock: Clock, device: DeviceId) -> Call:
    """A ringing call that a device has made, which is there."""
    caller, callee = Identity(device), Identity(f"{device}-callee")
    for name, identity in ((device, caller), (DeviceId(f"{device}-desk"), callee)):
        row = DeviceRow(name, identity, (ChannelRow("mqtt"),))
        await relay.database.write(partial(put_device, device=row, at_ms=0))
    await relay.connections.session_came(device)
    new = NewCall(relay.calls.new_sid(), caller, (), clock.now(), 600, device=device)
    return (await relay.calls.create(Invite(new, (callee,), {}, Actor(caller, device)))).call


async def state(relay: Parts, call: Call) -> CallState:
    return (await relay.calls.show(call.call_sid, Actor())).state


async def seen_at_ms(relay: Parts, device: DeviceId) -> int:
    row = await relay.database.read(lambda c: find_connection(c, device, "mqtt"))
    assert row is not None
    return row.seen_at_ms


async def test_a_caller_who_begins_its_longest_wait_as_relay_and_broker_come_back_keeps_its_call(
    tmp_path: Path, database: Database, clock: Clock
) -> None:
    relay = parts_on(database, clock)
    calls = {device: await call_by(relay, clock, device) for device in (BACK, LOST)}
    async with (
        RunningBroker(tmp_path) as broker,
        raw_client(broker.address) as mqtt,
        asyncio.timeout(PATIENCE_S),
        asyncio.TaskGroup() as tasks,
    ):
        for device in calls:
            await say(mqtt, device, online=False)
        session = ReceivingSession(broker.address, "relay", sleep=soon)
        requests = DeviceRequests(
            session,
            relay.operations,
            relay.devices,
            relay.connections,
            DeviceRateLimits(1e6, Metrics()),
            now=clock.now,
            sleep=clock.sleep,
        )
        serving = tasks.create_task(requests.run())
        async with held(session):
            await clock.until_asleep(len(calls))
            clock.advance(BACKOFF_LONGEST_S)
            before = await seen_at_ms(relay, BACK)
            await say(mqtt, BACK, online=True)
            while await seen_at_ms(relay, BACK) == before:
                pass
            clock.advance(BACKOFF_LONGEST_S)
            while await state(relay, calls[LOST]) is not CallState.ENDED:
                pass
        serving.cancel()
    assert await state(relay, calls[BACK]) is CallState.RINGING
