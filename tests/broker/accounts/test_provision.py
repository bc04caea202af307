"""What a device may do at the broker: its own literal topics, and nothing else."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import aiomqtt
import pytest
import pytest_asyncio
from paho.mqtt.reasoncodes import ReasonCode

from bellwire.broker.accounts.credentials import DynamicSecurity
from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.session import Session
from bellwire.signaling.errors import Unavailable
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import gathered_topic, readable_by, telemetry_topic, writable_by
from tests.broker.running import (
    Inbox,
    RunningBroker,
    Wire,
    held,
    is_let_in,
    own_client_id,
    raw_client,
    soon,
)
from tests.conftest import AT_ONCE_S, PATIENCE_S

pytestmark = pytest.mark.asyncio(loop_scope="module")

DESK, LOBBY = DeviceId("desk"), DeviceId("lobby")
ROOT = "bellwire/v1"
CONTROL = "$CONTROL/dynamic-security/v1"

FOREIGN = [
    *(f"{ROOT}/device/lobby/{part}" for part in ("call", "request", "response", "presence")),
    *(f"{ROOT}/device/lobby/{part}" for part in ("telemetry", "insights", "config/reported")),
    f"{ROOT}/device/lobby/config/gathered",
    f"{ROOT}/config/device/lobby",
    *(
        f"{ROOT}/config/{part}"
        for part in ("device", "device/desk/more", "default/more", "group/a/b")
    ),
    f"{ROOT}/device/desk",
    f"{ROOT}/device/desk/call/more",
    f"{ROOT}/device/desktop/call",
    f"{ROOT}/device/DESK/call",
    f"/{ROOT}/device/desk/call",
    "anything",
    CONTROL,
    f"{CONTROL}/response",
    "$SYS/broker/uptime",
]
WILDCARDS = [
    *("#", "+", "+/#", "+/+/device/desk/call", "$SYS/#", "$CONTROL/#", "$share/all/#"),
    *(f"{ROOT}/#", f"{ROOT}/device/#", f"{ROOT}/device/+/call", f"{ROOT}/device/desk/#"),
    *(f"{ROOT}/device/desk/+", f"{ROOT}/config/#", f"{ROOT}/config/device/+"),
    *(f"{ROOT}/config/group/#", f"{ROOT}/config/+", f"{ROOT}/device/desk/config/#"),
    f"$share/bellwire-relays/{ROOT}/device/+/request",
    f"$share/bellwire-relays/{ROOT}/device/+/presence",
    f"$share/others/{ROOT}/device/lobby/call",
]
TO_ITSELF = (gathered_topic(DESK), telemetry_topic(DESK))
OWN_BUT_ONE_WAY = {
    "heard": [t for t in readable_by(DESK) if "+" not in t and t not in TO_ITSELF]
    + [f"{ROOT}/config/group/front"],
    "said": [topic for topic in writable_by(DESK) if topic not in TO_ITSELF],
}


class Fleet:
    """A broker, the relay's session with it, two devices, and what the relay hears of all."""

    def __init__(self, broker: RunningBroker, relay: Session, heard: Inbox) -> None:
        self.relay = relay
        self.heard = heard
        self.provisioner = DynamicSecurity(relay)
        self._broker = broker
        self._passwords: dict[str, str] = {}

    async def add(self, device: DeviceId) -> BrokerAddress:
        self._passwords[device] = await self.provisioner.grant(device)
        return self.address(device)

    def address(self, device: DeviceId) -> BrokerAddress:
        return replace(self._broker.address, username=device, password=self._passwords[device])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(shared_broker: RunningBroker) -> AsyncIterator[Fleet]:
    relay = Session(shared_broker.address, "relay", sleep=soon)
    heard = Inbox()
    relay.subscribe(f"{ROOT}/#", heard.take)
    here = Fleet(shared_broker, relay, heard)
    async with held(relay):
        await here.add(DESK)
        await here.add(LOBBY)
        yield here


async def published(client: aiomqtt.Client, topic: str, payload: bytes = b"x") -> ReasonCode:
    """What the broker answers to a publication (aiomqtt itself drops it)."""
    answer: asyncio.Future[ReasonCode] = asyncio.get_running_loop().create_future()
    plain = client._client
    kept = plain.on_publish

    def take(*arguments: object) -> None:
        code = arguments[3]
        assert isinstance(code, ReasonCode)
        answer.set_result(code)

    plain.on_publish = take
    try:
        plain.publish(topic, payload, qos=1)
        return await asyncio.wait_for(answer, PATIENCE_S)
    finally:
        plain.on_publish = kept


async def subscribed(client: aiomqtt.Client, topic: str) -> bool:
    [code] = await client.subscribe(topic, qos=1)
    assert isinstance(code, ReasonCode)
    assert code.value in (1, 135), code
    return code.value == 1


async def test_a_device_hears_its_own_topics_and_the_configuration(fleet: Fleet) -> None:
    async with raw_client(fleet.address(DESK)) as desk, asyncio.timeout(PATIENCE_S):
        messages = aiter(desk.messages)
        for topic in readable_by(DESK):
            assert await subscribed(desk, topic), topic
            await fleet.relay.publish(topic.replace("+", "front"), topic.encode())
            assert (await anext(messages)).payload == topic.encode()


async def test_a_device_is_heard_on_its_own_topics(fleet: Fleet) -> None:
    async with raw_client(fleet.address(DESK)) as desk:
        for topic in writable_by(DESK):
            assert not (await published(desk, topic, topic.encode())).is_failure
            await fleet.heard.until(topic.encode())


@pytest.mark.parametrize("topic", FOREIGN + OWN_BUT_ONE_WAY["heard"])
async def test_a_device_may_not_publish_to(fleet: Fleet, topic: str) -> None:
    async with raw_client(fleet.address(DESK)) as desk:
        code = await published(desk, topic, b"forged")
        await published(desk, f"{ROOT}/device/desk/telemetry", topic.encode())
    # One connection's messages keep their order: had the forged one been let through, it came first.
    assert b"forged" not in await fleet.heard.until(topic.encode())
    assert code.value == 135, code


@pytest.mark.parametrize("topic", FOREIGN + WILDCARDS + OWN_BUT_ONE_WAY["said"])
async def test_a_device_may_not_subscribe_to(fleet: Fleet, topic: str) -> None:
    async with raw_client(fleet.address(DESK)) as desk:
        assert not await subscribed(desk, topic)


async def test_a_device_that_tried_to_listen_in_hears_nothing(fleet: Fleet) -> None:
    async with raw_client(fleet.address(DESK)) as desk, asyncio.timeout(PATIENCE_S):
        for topic in (f"{ROOT}/device/lobby/call", f"{ROOT}/#", "#"):
            await desk.subscribe(topic, qos=1)
        await desk.subscribe(f"{ROOT}/device/desk/call", qos=1)
        await fleet.relay.publish(f"{ROOT}/device/lobby/call", b"secret")
        await fleet.relay.publish(f"{ROOT}/device/desk/call", b"own")
        assert (await anext(aiter(desk.messages))).payload == b"own"


async def test_only_a_last_will_on_its_own_topic_is_published(fleet: Fleet) -> None:
    await break_off(fleet.address(DESK), f"{ROOT}/device/lobby/presence", b"forged will")
    await break_off(fleet.address(DESK), f"{ROOT}/device/desk/presence", b"own will")
    assert b"forged will" not in await fleet.heard.until(b"own will")


async def break_off(address: BrokerAddress, will_topic: str, will: bytes) -> None:
    """Connects with a last will, and loses the connection."""
    last = aiomqtt.Will(will_topic, will, qos=1)
    async with Wire(address) as wire, raw_client(wire.address, will=last) as client:
        wire.cut()
        with pytest.raises(aiomqtt.MqttError):
            await asyncio.wait_for(anext(aiter(client.messages)), PATIENCE_S)


async def test_a_device_cannot_give_itself_rights(fleet: Fleet) -> None:
    async with raw_client(fleet.address(DESK)) as desk:
        command = b'{"commands":[{"command":"addClientRole","username":"desk","rolename":"bellwire-relay"}]}'
        assert (await published(desk, CONTROL, command)).value == 135
        assert not await subscribed(desk, f"{ROOT}/#")


async def test_nobody_gets_in_under_a_devices_name_without_its_password(fleet: Fleet) -> None:
    right = fleet.address(DESK)
    assert await is_let_in(right)
    for wrong in (
        replace(right, password="guess"),
        replace(right, password=""),
        replace(right, password=fleet.address(LOBBY).password),
        replace(right, username="nobody"),
        replace(right, username=None, password=None),
    ):
        assert not await is_let_in(wrong), wrong


async def test_removal_cuts_a_connected_device_off_at_once_and_for_good(fleet: Fleet) -> None:
    address = await fleet.add(DeviceId("removed"))
    lost = asyncio.Event()
    device = Session(address, own_client_id(address), sleep=soon)
    device.on_disconnected(lost.set)
    async with held(device):
        await fleet.provisioner.revoke(DeviceId("removed"))
        async with asyncio.timeout(AT_ONCE_S):
            await lost.wait()
        assert not await is_let_in(address)
        assert not device.connected
    assert await is_let_in(fleet.address(DESK))


async def test_removing_what_is_not_there_is_no_error(fleet: Fleet) -> None:
    await fleet.provisioner.revoke(DeviceId("never-there"))


async def test_a_new_password_ends_the_old_one_and_its_connection(fleet: Fleet) -> None:
    old = await fleet.add(DeviceId("rotated"))
    lost = asyncio.Event()
    device = Session(old, own_client_id(old), sleep=soon)
    device.on_disconnected(lost.set)
    async with held(device):
        new = await fleet.add(DeviceId("rotated"))
        async with asyncio.timeout(AT_ONCE_S):
            await lost.wait()
        assert not await is_let_in(old)
        assert await is_let_in(new)


async def test_devices_granted_at_the_same_time_each_get_in(fleet: Fleet) -> None:
    names = [DeviceId(f"burst-{number}") for number in range(10)]
    addresses = await asyncio.gather(*(fleet.add(name) for name in names))
    assert len({address.password for address in addresses}) == len(names)
    assert all(await asyncio.gather(*(is_let_in(address) for address in addresses)))


async def test_device_names_that_contain_one_another_stay_apart(fleet: Fleet) -> None:
    await fleet.add(DeviceId("a"))
    longer = await fleet.add(DeviceId("a.b"))
    await fleet.provisioner.revoke(DeviceId("a"))
    async with raw_client(longer) as device:
        assert await subscribed(device, f"{ROOT}/device/a.b/call")
        assert not await subscribed(device, f"{ROOT}/device/a/call")


async def test_granting_without_a_broker_says_so(broker: RunningBroker) -> None:
    relay = Session(broker.address, "relay", sleep=soon)
    with pytest.raises(Unavailable, match="did not take the device's credentials"):
        await DynamicSecurity(relay).grant(DESK)
