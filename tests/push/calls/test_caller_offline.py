"""A caller whose device goes before anybody has accepted takes the call with it: MQTT last wills at
a real broker. Lost streams, which take longer, are in test_connections."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import aiomqtt
import pytest

from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import call_topic, presence_topic, response_topic
from bellwire.signaling.wire.station import Presence, presence_document
from tests.push.support import (
    Device,
    Running,
    broker_client,
    fresh,
    listening,
    on_both_stores_in_full,
    states,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), on_both_stores_in_full]


@pytest.fixture(scope="module")
def times() -> dict[str, float]:
    """Whoever is lost here does not come back."""
    return {"bellwire.push.devices.requests:_GRACE_S": 0.3}


@asynccontextmanager
async def caller(running: Running, name: str, identity: str) -> AsyncIterator[Device]:
    """A device that is online, and leaves a last will."""
    topic = presence_topic(DeviceId(name))
    gone = presence_document(Presence(online=False))
    will = aiomqtt.Will(topic, gone, qos=1, retain=True)
    access = await running.register(name, identity)
    with suppress(aiomqtt.MqttError):  # a device that was lost cannot say goodbye
        async with broker_client(access, name, will=will) as client:
            await client.subscribe(call_topic(DeviceId(name)), qos=1)
            await client.subscribe(response_topic(DeviceId(name)), qos=1)
            there = presence_document(Presence(online=True))
            await client.publish(topic, there, qos=1, retain=True)
            yield Device(name, client)


def lose(device: Device) -> None:
    """Breaks the device's connection, as a power cut does."""
    connection = device.mqtt._client.socket()
    assert isinstance(connection, socket.socket)
    connection.shutdown(socket.SHUT_RDWR)


async def calls(device: Device, *to: str, **body: object) -> str:
    answer = await device.ask({"operation": "invite", "to": list(to), "timeout": 600, **body})
    assert answer["status"] == 201, answer
    sid: str = answer["call"]["call_sid"]
    return sid


async def test_a_ringing_call_ends_with_the_device_that_made_it_and_an_answered_one_does_not(
    running: Running,
) -> None:
    alice, bob, carol = fresh("alice"), fresh("bob"), fresh("carol")
    async with listening(running, bob) as at_bob, listening(running, carol):
        async with caller(running, alice, alice) as at_alice:
            answered, advanced = [
                await calls(at_alice, bob, carol, mode=mode) for mode in ("common", "advanced")
            ]
            for sid in (answered, advanced):
                await at_bob.ask({"operation": "accept", "call_sid": sid})
            ringing = [
                await calls(at_alice, bob, carol, mode=mode) for mode in ("common", "advanced")
            ]
            await at_bob.ask({"operation": "received", "call_sid": ringing[0]})
            lose(at_alice)
            for sid in ringing:
                assert (await at_bob.until("call.cancelled", sid))["reason"] == "cancelled"
        # One change has seen to all of her calls: what it has not touched by now it never will.
        for sid in (answered, advanced):
            assert (await running.call(sid))["state"] == "open"
        for sid in ringing:
            call = await running.call(sid)
            assert call["state"] == "ended"
            assert (states(call)[bob], states(call)[carol]) == ("Canceled", "Canceled")


async def test_a_call_goes_on_while_the_device_that_made_it_is_there(running: Running) -> None:
    alice, desk, mobile, bob = map(fresh, ("alice", "desk", "mobile", "bob"))
    async with listening(running, bob) as at_bob, caller(running, desk, alice) as at_desk:
        async with caller(running, mobile, alice) as at_mobile:
            by_desk, by_mobile = await calls(at_desk, bob), await calls(at_mobile, bob)
            by_server = await running.called(bob, **{"from": alice})
            lose(at_mobile)
            await at_bob.until("call.cancelled", by_mobile)
        for sid in (by_desk, by_server):
            assert (await running.call(sid))["state"] == "ringing"
        # With her last device goes also what was made in her name on none.
        lose(at_desk)
        for sid in (by_desk, by_server):
            await at_bob.until("call.cancelled", sid)


async def test_a_device_that_says_itself_that_it_goes_is_gone(running: Running) -> None:
    alice, bob = fresh("alice"), fresh("bob")
    async with listening(running, bob) as at_bob, caller(running, alice, alice) as at_alice:
        sid = await calls(at_alice, bob)
        gone = presence_document(Presence(online=False))
        await at_alice.mqtt.publish(presence_topic(DeviceId(alice)), gone, qos=1, retain=True)
        await at_bob.until("call.cancelled", sid)


async def test_an_invitee_whose_device_is_lost_is_still_called(running: Running) -> None:
    alice, bob, carol = fresh("alice"), fresh("bob"), fresh("carol")
    await running.register(carol)
    async with caller(running, alice, alice) as at_alice:
        async with caller(running, bob, bob) as at_bob:
            to_bob = await calls(at_alice, bob)
            await at_bob.until("call.received", to_bob)
            by_bob = await calls(at_bob, carol)
            lose(at_bob)
        while (await running.call(by_bob))["state"] != "ended":
            pass
        call = await running.call(to_bob)
        assert (call["state"], states(call)[bob]) == ("ringing", "Inviting")
