"""A plain MQTT client beside the product's own: it hears what travels, and says things twice."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from bellwire.broker.session.address import BrokerAddress
from tests.broker.running import own_client_id
from tests.system.scene import Record


@dataclass(frozen=True)
class Heard:
    topic: str
    document: dict[str, Any]
    retained: bool


class Ear:
    """What was heard on the topics it listens to."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self.record = Record()
        self._client = client

    async def until(self, wanted: Callable[[Heard], bool], what: str) -> Heard:
        found: Heard = await self.record.until(wanted, what)
        return found

    async def say(
        self, topic: str, document: bytes, *, answer_to: str | None = None, tag: bytes = b""
    ) -> None:
        """Publishes at QoS 1 and waits until the broker has it."""
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if answer_to is not None:
            properties.ResponseTopic = answer_to
            properties.CorrelationData = tag
        await self._client.publish(topic, document, qos=1, properties=properties)

    async def listen(self) -> None:
        async for message in self._client.messages:
            assert isinstance(message.payload, bytes)
            self.record.note(
                Heard(message.topic.value, json.loads(message.payload), message.retain)
            )


def address_of_own_broker(data: Path) -> BrokerAddress:
    """The broker of a relay's data directory, with the relay's own credentials."""
    login = json.loads((data / "broker" / "login.json").read_text())
    return BrokerAddress(
        "127.0.0.1", login["port"], username=login["username"], password=login["password"]
    )


@asynccontextmanager
async def ear(address: BrokerAddress, *topics: str) -> AsyncIterator[Ear]:
    """A client that listens to topics."""
    client = aiomqtt.Client(
        address.host,
        address.port,
        username=address.username,
        password=address.password,
        identifier=own_client_id(address),
        protocol=aiomqtt.ProtocolVersion.V5,
    )
    async with client, asyncio.TaskGroup() as tasks:
        listening = Ear(client)
        task = tasks.create_task(listening.listen())
        for topic in topics:
            await client.subscribe(topic, qos=1)
        yield listening
        task.cancel()
