"""What one device can make the broker hold: one session, a few megabytes, its own few retained
documents. Played against the relay's own mosquitto."""

import asyncio
import json
import resource
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from bellwire.broker.accounts.credentials import DynamicSecurity
from bellwire.broker.accounts.dynamic_security import CONTROL_TOPIC, device_acls, device_role_name
from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.session import Session
from bellwire.signaling.identifiers import DeviceId, mqtt_client_id
from bellwire.signaling.topics import config_topic, gathered_topic
from tests.broker.flooding import (
    connected,
    number,
    publish_at_qos_0,
    publish_at_qos_1,
    rss_mb,
    subscribe_at_qos_1,
)
from tests.broker.running import (
    Inbox,
    RunningBroker,
    held,
    is_let_in,
    own_client_id,
    raw_client,
    soon,
)
from tests.conftest import PATIENCE_S

pytestmark = pytest.mark.asyncio

EVE, DESK = DeviceId("eve"), DeviceId("desk")
LARGE = b"x" * 80_000
PERSISTENT = b"\x11\xff\xff\xff\xff\x21\xff\xff"
"""Properties of CONNECT: a session that never ends, and 65,535 messages on their way."""


class Accounts:
    """A broker, the relay's session with it, and devices."""

    def __init__(self, broker: RunningBroker, relay: Session) -> None:
        self.broker = broker
        self.relay = relay
        self.provisioner = DynamicSecurity(relay)

    async def add(self, device: DeviceId) -> BrokerAddress:
        password = await self.provisioner.grant(device)
        return replace(self.broker.address, username=device, password=password)

    async def add_as_before(self, device: DeviceId, password: str) -> BrokerAddress:
        """An account as the version before made it: it may have any client id."""
        role = device_role_name(device)
        commands = [
            {"command": "createRole", "rolename": role, "acls": device_acls(device)},
            {
                "command": "createClient",
                "username": device,
                "password": password,
                "roles": [{"rolename": role}],
            },
        ]
        await self.relay.publish(CONTROL_TOPIC, json.dumps({"commands": commands}).encode())
        return replace(self.broker.address, username=device, password=password)


@pytest_asyncio.fixture
async def accounts(broker: RunningBroker) -> AsyncIterator[Accounts]:
    relay = Session(broker.address, "relay", sleep=soon)
    here = Accounts(broker, relay)
    async with held(relay):
        yield here


def persistent_connect(address: BrokerAddress, client_id: str) -> bytes:
    """CONNECT to a session that outlives its connection for ever, and takes all at once."""
    texts = (client_id, address.username or "", address.password or "")
    fields = b"".join(len(text).to_bytes(2) + text.encode() for text in texts)
    body = b"\0\4MQTT\5\xc0\0\x3c" + number(len(PERSISTENT)) + PERSISTENT + fields
    return b"\x10" + number(len(body)) + body


async def test_a_device_has_one_session_however_many_it_asks_for(accounts: Accounts) -> None:
    eve = await accounts.add(EVE)
    before = rss_mb(accounts.broker.pid)
    let_in = 0
    for n in range(1000):
        try:
            packet = persistent_connect(eve, f"eve-{n}")
            async with connected(eve, f"eve-{n}", packet=packet) as (_, writer):
                let_in += 1
                writer.write(subscribe_at_qos_1(gathered_topic(EVE)))
                writer.write(publish_at_qos_1(gathered_topic(EVE), LARGE) * 20)
                await writer.drain()
        except ConnectionRefusedError:
            continue
    assert let_in == 0
    assert rss_mb(accounts.broker.pid) - before < 10
    assert await is_let_in(eve)
    async with asyncio.timeout(PATIENCE_S):
        while len(accounts.broker.refused) < 1000:
            await is_let_in(eve)  # what the broker says comes by the by
    assert set(accounts.broker.refused) == {"broker-login"}


@pytest.mark.parametrize("qos", [0, 1])
async def test_a_device_that_never_reads_what_it_says_to_itself_fills_a_few_megabytes(
    accounts: Accounts, qos: int
) -> None:
    eve, desk = await accounts.add(EVE), await accounts.add(DESK)
    before = rss_mb(accounts.broker.pid)
    mine = gathered_topic(EVE)
    said = publish_at_qos_1(mine, LARGE) if qos else publish_at_qos_0(mine, LARGE)
    connect = persistent_connect(eve, own_client_id(eve))
    async with connected(eve, EVE, packet=connect) as (_, writer), asyncio.timeout(PATIENCE_S):
        writer.write(subscribe_at_qos_1(mine))
        for _ in range(3000):  # 240 MB
            writer.write(said)
            await writer.drain()
        heard = Inbox()
        neighbour = Session(desk, own_client_id(desk), sleep=soon)
        neighbour.subscribe(config_topic(DESK), heard.take)
        async with held(neighbour):
            await accounts.relay.publish(config_topic(DESK), b"{}", retain=True)
            await heard.until(b"{}")
        grown = rss_mb(accounts.broker.pid) - before
    assert grown < (40 if qos else 120), f"the broker has grown by {grown:.0f} MB"


async def test_a_device_of_the_version_before_may_have_any_client_id_until_its_next_password(
    accounts: Accounts,
) -> None:
    eve = await accounts.add_as_before(EVE, "from before")
    for client_id in ("eve", "eve-agent", mqtt_client_id(EVE, "from before")):
        async with raw_client(eve, client_id=client_id):
            pass
    eve = await accounts.add(EVE)
    async with raw_client(eve, client_id=own_client_id(eve)):
        pass
    with pytest.raises(ConnectionRefusedError):
        async with connected(eve, "eve"):
            pass


async def test_a_broker_that_has_no_memory_left_keeps_what_is_retained_and_serves_others(
    accounts: Accounts,
) -> None:
    eve, desk = await accounts.add_as_before(EVE, "from before"), await accounts.add(DESK)
    await accounts.relay.publish(config_topic(DESK), b"kept", retain=True)
    pid = accounts.broker.pid
    assert pid is not None
    limit = int((rss_mb(pid) + 64) * 1024**2)
    resource.prlimit(pid, resource.RLIMIT_DATA, (limit, limit))
    mine = gathered_topic(EVE)
    said = publish_at_qos_1(mine, LARGE)
    cut_off = 0
    async with asyncio.timeout(PATIENCE_S):
        for n in range(60):  # 8 MB each
            packet = persistent_connect(eve, f"eve-{n}")
            try:
                async with connected(eve, f"eve-{n}", packet=packet) as (_, writer):
                    writer.write(subscribe_at_qos_1(mine))
                    for _ in range(200):
                        writer.write(said)
                        await writer.drain()
            except OSError:
                cut_off += 1
        assert cut_off, "the limit was not reached"
        heard = Inbox()
        neighbour = Session(desk, own_client_id(desk), sleep=soon)
        neighbour.subscribe(config_topic(DESK), heard.take)
        async with held(neighbour):
            assert (await heard.next()).payload == b"kept"
    assert accounts.broker.pid == pid
