"""What an operator of the fleet may do at the broker: configure devices, and nothing of calls or accounts."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest
import pytest_asyncio

from bellwire.broker.accounts.credentials import DynamicSecurity
from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.session import Session
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import (
    claim_topic,
    device_layer,
    group_layer,
    history_topic,
    layer_topic,
    read_by_operators,
    readable_by,
    writable_by,
    written_by_operators,
)
from tests.broker.accounts.test_provision import published, subscribed
from tests.broker.running import Inbox, RunningBroker, held, is_let_in, raw_client, soon

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = "bellwire/v1"
CONTROL = "$CONTROL/dynamic-security/v1"
DESK = DeviceId("desk")
LAYER_NAMES = ("default", "group/north", "device/desk", "device/lobby")
OF_LAYERS = [
    topic
    for name in map(str, LAYER_NAMES)
    for topic in (
        f"{ROOT}/config/{name}",
        f"{ROOT}/config-history/{name}/3",
        f"{ROOT}/config-claim/{name}",
    )
]


@dataclass
class Accounts:
    provisioner: DynamicSecurity
    heard: Inbox
    operator: BrokerAddress
    device: BrokerAddress


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def accounts(shared_broker: RunningBroker) -> AsyncIterator[Accounts]:
    relay = Session(shared_broker.address, "relay", sleep=soon)
    heard = Inbox()
    relay.subscribe(f"{ROOT}/#", heard.take)
    provisioner = DynamicSecurity(relay)
    async with held(relay):
        ann = await provisioner.grant_operator("operator:ann")
        desk = await provisioner.grant(DESK)
        yield Accounts(
            provisioner,
            heard,
            replace(shared_broker.address, username="operator:ann", password=ann),
            replace(shared_broker.address, username="desk", password=desk),
        )


async def test_operator_writes_layers_history_claims_and_commands(accounts: Accounts) -> None:
    north = group_layer("north")
    assert {layer_topic(north), claim_topic(north), history_topic(north, 3)} <= set(OF_LAYERS)
    async with raw_client(accounts.operator) as ann:
        for topic in (*OF_LAYERS, f"{ROOT}/device/desk/command"):
            assert not (await published(ann, topic, topic.encode())).is_failure, topic
            await accounts.heard.until(topic.encode())


async def test_operator_reads_what_the_fleet_reports(accounts: Accounts) -> None:
    async with raw_client(accounts.operator) as ann:
        for topic in read_by_operators():
            assert await subscribed(ann, topic), topic


@pytest.mark.parametrize(
    "topic",
    [
        *(
            t
            for t in (*readable_by(DESK), *writable_by(DESK))
            if "/config/" not in t and not t.endswith("command") and "+" not in t
        ),
        f"{ROOT}/device/desk/config/reported",
        f"{ROOT}/config/other",
        f"{ROOT}/config/group/a/b",
        CONTROL,
        f"{CONTROL}/response",
        "anything",
    ],
)
async def test_operator_may_not_publish_to(accounts: Accounts, topic: str) -> None:
    async with raw_client(accounts.operator) as ann:
        assert (await published(ann, topic, b"forged")).value == 135


@pytest.mark.parametrize(
    "topic",
    [
        "#",
        f"{ROOT}/#",
        f"{ROOT}/device/#",
        f"{ROOT}/device/+/call",
        f"{ROOT}/device/desk/request",
        f"{ROOT}/device/desk/response",
        f"{CONTROL}/response",
        "$CONTROL/#",
        "$SYS/#",
        f"$share/bellwire-relays/{ROOT}/device/+/request",
    ],
)
async def test_operator_may_not_subscribe_to(accounts: Accounts, topic: str) -> None:
    async with raw_client(accounts.operator) as ann:
        assert not await subscribed(ann, topic)


@pytest.mark.parametrize(
    "topic", [*OF_LAYERS, f"{ROOT}/config-echo", f"{ROOT}/device/desk/command"]
)
async def test_device_may_not_write_what_operators_write(accounts: Accounts, topic: str) -> None:
    async with raw_client(accounts.device) as desk:
        assert (await published(desk, topic, b"forged")).value == 135


async def test_no_topic_of_an_operator_is_a_devices_to_write() -> None:
    assert not set(written_by_operators()) & set(writable_by(DeviceId("+")))
    assert device_layer("desk") == "device/desk"


async def test_operator_that_is_removed_or_given_a_new_password_is_cut_off(
    accounts: Accounts, shared_broker: RunningBroker
) -> None:
    first = await accounts.provisioner.grant_operator("operator:bob")
    second = await accounts.provisioner.grant_operator("operator:bob")
    bob = replace(shared_broker.address, username="operator:bob", password=second)
    assert not await is_let_in(replace(bob, password=first))
    assert await is_let_in(bob)
    assert await accounts.provisioner.has_operator("operator:bob")
    assert await accounts.provisioner.revoke_operator("operator:bob")
    assert not await is_let_in(bob)
    assert not await accounts.provisioner.has_operator("operator:bob")
    assert not await accounts.provisioner.revoke_operator("operator:bob")
    assert await is_let_in(accounts.operator)
