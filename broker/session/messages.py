"""What an MQTT 5 message carries beside its topic and payload, as paho-mqtt has it and as we do."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from aiomqtt import Message
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message that arrived. `expires_in_s` is what the broker says is left of its life, if it has one."""

    topic: str
    payload: bytes
    retained: bool
    response_topic: str | None
    correlation: bytes | None
    expires_in_s: int | None


class Outgoing(NamedTuple):
    """A message to be published."""

    topic: str
    payload: bytes
    retain: bool
    expiry_s: int | None
    response_topic: str | None
    correlation: bytes | None


def incoming_of(message: Message) -> Incoming:
    """A message as aiomqtt hands it over."""
    properties = message.properties
    return Incoming(
        topic=message.topic.value,
        payload=message.payload,
        retained=message.retain,
        response_topic=getattr(properties, "ResponseTopic", None),
        correlation=getattr(properties, "CorrelationData", None),
        expires_in_s=getattr(properties, "MessageExpiryInterval", None),
    )


def publish_properties(
    expiry_s: int | None, response_topic: str | None, correlation: bytes | None
) -> Properties:
    """The properties of a PUBLISH; those without correlation data are made once and shared."""
    # Correlation data is new each time: kept, such properties would fill the cache with megabytes.
    make = _kept if correlation is None else _made
    return make(expiry_s, response_topic, correlation)


def _made(
    expiry_s: int | None, response_topic: str | None, correlation: bytes | None
) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    if expiry_s is not None:
        properties.MessageExpiryInterval = expiry_s
    if response_topic is not None:
        properties.ResponseTopic = response_topic
    if correlation is not None:
        properties.CorrelationData = correlation
    return properties


_kept = lru_cache(maxsize=1024)(_made)
