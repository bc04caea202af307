"""What a device may not do over MQTT: the broker keeps it to its own topics, and the relay refuses
what is no request. Nothing of it changes anything."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiomqtt
import pytest
import pytest_asyncio
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import request_topic, response_topic, writable_by
from tests.push.support import Device, Running, broker_client, fresh, listening

pytestmark = pytest.mark.asyncio(loop_scope="module")

NO_CALL = "CA" + "0" * 32


@dataclass
class Scene:
    """Bob, who is called, and eve, who has a device of her own and bad intentions."""

    running: Running
    bob: Device
    eve: Device
    sid: str


@pytest_asyncio.fixture(loop_scope="module")
async def scene(running: Running) -> AsyncIterator[Scene]:
    bob, eve = fresh("bob"), fresh("eve")
    async with listening(running, bob) as at_bob, listening(running, eve) as at_eve:
        sid = await running.called(bob)
        await at_bob.until("call.received", sid)
        yield Scene(running, at_bob, at_eve, sid)


async def test_a_request_on_another_devices_topic_is_refused_by_the_broker(scene: Scene) -> None:
    before = scene.running.tables()
    request = json.dumps({"operation": "accept", "call_sid": scene.sid}).encode()
    for topic in writable_by(DeviceId(scene.bob.name)):
        await scene.eve.mqtt.publish(topic, request, qos=1)
    # Eve's own request comes after those in one stream: once it is answered, they have been seen.
    answer = await scene.eve.ask({"operation": "show", "call_sid": scene.sid})
    assert answer["status"] == 403
    assert (await scene.running.call(scene.sid))["users"][0]["state"] == "Inviting"
    assert scene.running.tables() == before
    # The same request is carried out where it comes from whom it says.
    answer = await scene.bob.ask(request)
    assert (answer["status"], answer["call"]["state"]) == (200, "open")


async def test_a_subscription_to_anything_but_its_own_topics_is_refused_by_the_broker(
    scene: Scene,
) -> None:
    bob, eve = scene.bob.name, scene.eve.name
    for topic in (
        f"bellwire/v1/device/{bob}/call",
        f"bellwire/v1/device/{bob}/response",
        f"bellwire/v1/device/{bob}/request",
        f"bellwire/v1/device/{eve}/request",
        f"bellwire/v1/device/{eve}/#",
        "bellwire/v1/device/+/call",
        "bellwire/v1/config/device/+",
        "$share/bellwire-relays/bellwire/v1/device/+/request",
        "$CONTROL/dynamic-security/v1/response",
        "$SYS/#",
        "#",
        "+/+/+/+/+",
    ):
        assert all(code.is_failure for code in await subscribe(scene.eve.mqtt, topic)), topic
    for topic in (f"bellwire/v1/device/{eve}/call", "bellwire/v1/config/default"):
        assert not any(code.is_failure for code in await subscribe(scene.eve.mqtt, topic)), topic


async def subscribe(client: aiomqtt.Client, topic: str) -> tuple[ReasonCode, ...]:
    codes = await client.subscribe(topic, qos=1)
    assert all(isinstance(code, ReasonCode) for code in codes)
    return tuple(code for code in codes if isinstance(code, ReasonCode))


async def test_a_device_cannot_give_itself_rights(scene: Scene) -> None:
    command = {"command": "addClientRole", "username": scene.eve.name, "rolename": "bellwire-relay"}
    await scene.eve.mqtt.publish(
        "$CONTROL/dynamic-security/v1", json.dumps({"commands": [command]}), qos=1
    )
    topic = f"bellwire/v1/device/{scene.bob.name}/call"
    assert all(code.is_failure for code in await subscribe(scene.eve.mqtt, topic))


async def test_an_answer_goes_to_no_topic_but_the_asking_devices_own(scene: Scene) -> None:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.ResponseTopic = response_topic(DeviceId(scene.bob.name))
    show = {"operation": "show", "call_sid": scene.sid}
    topic = request_topic(DeviceId(scene.eve.name))
    await scene.eve.mqtt.publish(topic, json.dumps(show), qos=1, properties=properties)
    await scene.eve.ask(show)
    # Had an answer to eve's question gone to bob, it would be 403 and come first.
    assert (await scene.bob.ask(show))["status"] == 200


@pytest.mark.parametrize("login", ["wrong-password", "unknown-device", "nobody"])
async def test_the_broker_takes_no_client_without_a_devices_credentials(
    running: Running, login: str
) -> None:
    device = fresh("device")
    access = await running.register(device)
    bad = {
        "wrong-password": access | {"password": "guessed"},
        "unknown-device": access | {"username": fresh("unknown")},
        "nobody": access | {"username": "", "password": ""},
    }[login]
    with pytest.raises(aiomqtt.MqttError, match=r"(?i)not authori"):
        await broker_client(bad, device).__aenter__()
    async with broker_client(access, device):
        pass


@pytest.mark.parametrize(
    ("request_", "status", "slug"),
    [
        (b"", 422, "invalid-input"),
        (b"{", 422, "invalid-input"),
        (b"[" * 10_000, 422, "invalid-input"),
        (b"\xff\xfe", 422, "invalid-input"),
        (b"x" * 20_000, 413, "too-large"),
        ({}, 422, "invalid-input"),
        ({"operation": "explode", "call_sid": NO_CALL}, 422, "invalid-input"),
        ({"operation": "accept"}, 422, "invalid-input"),
        ({"operation": "accept", "call_sid": "CA1"}, 422, "invalid-input"),
        ({"operation": "accept", "call_sid": NO_CALL, "identity": "bob"}, 422, "invalid-input"),
        ({"operation": "accept", "call_sid": NO_CALL}, 404, "call-not-found"),
        ({"operation": "show", "call_sid": NO_CALL}, 404, "call-not-found"),
        ({"operation": "invite", "to": []}, 422, "invalid-input"),
        ({"operation": "invite", "to": ["bob"], "timeout": 0}, 422, "invalid-input"),
        ({"operation": "invite", "to": ["bob"], "from": "somebody"}, 403, "forbidden"),
        ({"operation": "invite", "to": ["not-there"]}, 404, "nobody-to-call"),
        ({"operation": "invite", "to": {"group": "none"}}, 404, "not-found"),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_a_bad_request_of_a_device_is_answered_with_its_problem(
    scene: Scene, request_: bytes | dict[str, Any], status: int, slug: str
) -> None:
    before = scene.running.tables()
    answer = await scene.eve.ask(request_)
    assert answer["status"] == answer["problem"]["status"] == status
    assert answer["problem"]["type"] == f"/problems/{slug}"
    assert answer["problem"]["detail"]
    assert answer["call"] is None
    assert scene.running.tables() == before


@pytest.mark.parametrize("operation", ["received", "accept", "reject", "cancel", "quit", "show"])
async def test_a_device_of_nobody_in_the_call_is_refused(scene: Scene, operation: str) -> None:
    before = scene.running.tables()
    answer = await scene.eve.ask({"operation": operation, "call_sid": scene.sid})
    assert (answer["status"], answer["problem"]["code"]) == (403, 31403)
    assert scene.running.tables() == before


async def test_an_operation_that_the_state_does_not_allow_names_both_to_the_device(
    scene: Scene,
) -> None:
    await scene.bob.ask({"operation": "reject", "call_sid": scene.sid, "status": "busy"})
    before = scene.running.tables()
    answer = await scene.bob.ask({"operation": "accept", "call_sid": scene.sid})
    assert answer["status"] == 409
    assert (answer["problem"]["operation"], answer["problem"]["state"]) == ("accept", "ended")
    assert scene.running.tables() == before
