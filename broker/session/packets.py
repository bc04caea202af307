"""The packets of a connection that publishes at QoS 1, and of one that hears (MQTT 5, section 3): no I/O."""

from collections.abc import Iterable, Iterator
from functools import lru_cache

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

CONNECT, CONNACK, PUBLISH, PUBACK, PINGRESP, DISCONNECT = 0x10, 0x20, 0x32, 0x40, 0xD0, 0xE0
SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK = 0x82, 0x90, 0xA2, 0xB0

PING, LEAVE = bytes((0xC0, 0)), bytes((DISCONNECT, 0))
"""PINGREQ; DISCONNECT, whose reason is then 0, normal."""

NO_MATCHING_SUBSCRIBERS, FAILURE = 0x10, 0x80
"""Reason codes (2.4): from `FAILURE` on they are failures."""

_PUBLISH = bytes((PUBLISH,))
_CLEAN_START, _HAS_PASSWORD, _HAS_USERNAME = 0x02, 0x40, 0x80
_MESSAGE_EXPIRY, _CORRELATION_DATA = 0x02, 0x09
_RECEIVE_MAXIMUM = 0x21
_AT_LEAST_ONCE, _NO_RETAINED = 0x01, 0x20
"""Subscription options (3.8.3.1): QoS 1, and retain handling 2."""
_LONGEST = 65_536


def connect_packet(
    client_id: str,
    username: str | None,
    password: str | None,
    keepalive_s: int,
    *,
    receive_maximum: int | None = None,
) -> bytes:
    """CONNECT, to a session that ends with the connection."""
    flags, login = _CLEAN_START, b""
    if username is not None:
        flags, login = flags | _HAS_USERNAME, _string(username.encode())
    if password is not None:
        flags, login = flags | _HAS_PASSWORD, login + _string(password.encode())
    properties = b""
    if receive_maximum is not None:
        properties = bytes((_RECEIVE_MAXIMUM,)) + receive_maximum.to_bytes(2)
    begin = _string(b"MQTT") + bytes((5, flags)) + keepalive_s.to_bytes(2)
    login = _string(client_id.encode()) + login
    return _packet(CONNECT, begin, _number(len(properties)), properties, login)


def subscribe_packet(packet_id: int, topic_filters: Iterable[str], *, retained: bool) -> bytes:
    """SUBSCRIBE at QoS 1, with what is retained or without."""
    options = bytes((_AT_LEAST_ONCE if retained else _AT_LEAST_ONCE | _NO_RETAINED,))
    asked = (_string(topic_filter.encode()) + options for topic_filter in topic_filters)
    return _packet(SUBSCRIBE, packet_id.to_bytes(2), b"\0", *asked)


def unsubscribe_packet(packet_id: int, topic_filters: Iterable[str]) -> bytes:
    """UNSUBSCRIBE."""
    named = (_string(topic_filter.encode()) for topic_filter in topic_filters)
    return _packet(UNSUBSCRIBE, packet_id.to_bytes(2), b"\0", *named)


def reason_codes(body: bytes) -> bytes:
    """The reason codes of a SUBACK or UNSUBACK, one for each filter.

    Raises:
        ValueError: its properties have no end.
    """
    length, begin = number_at(body, 2)
    return body[begin + length :]


def publish_packet(topic: bytes, packet_id: int, properties: bytes, payload: bytes) -> bytes:
    """PUBLISH at QoS 1."""
    length = _number(4 + len(topic) + len(properties) + len(payload))
    topic_length, its_id = len(topic).to_bytes(2), packet_id.to_bytes(2)
    return b"".join((_PUBLISH, length, topic_length, topic, its_id, properties, payload))


def publish_properties(expiry_s: int | None, correlation: bytes | None) -> bytes:
    """The properties of a PUBLISH: its life, and what it is an answer to."""
    if correlation is None:
        return _expiry_alone(expiry_s)
    written = _expiry(expiry_s) + bytes((_CORRELATION_DATA,)) + _string(correlation)
    return _number(len(written)) + written


def whole_packets(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The packets that have arrived whole: the type of each, where its body begins, and where it ends.

    Raises:
        ValueError: this is not MQTT, or not what a broker has to say to who only publishes.
    """
    at = 0
    while at + 2 <= len(data):
        length, begin = 0, at + 1
        for shift in (0, 7, 14, 21):
            if begin == len(data):
                return
            length |= (data[begin] & 0x7F) << shift
            begin += 1
            if data[begin - 1] < 0x80:
                break
        else:
            raise ValueError("a packet whose length has no end")
        if length > _LONGEST:
            raise ValueError(f"a packet of {length} bytes")
        if begin + length > len(data):
            return
        yield data[at] & 0xF0, begin, begin + length
        at = begin + length


def number_at(data: bytes, at: int) -> tuple[int, int]:
    """The variable byte integer (1.5.5) that stands there, and where it ends.

    Raises:
        ValueError: it has no end.
    """
    value = 0
    for shift in (0, 7, 14, 21):
        if at == len(data):
            break
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError("a number that has no end")


def connack_properties(body: bytes) -> Properties:
    """What the broker asks for when it lets a client in.

    Raises:
        paho.mqtt.MQTTException, ValueError, LookupError: this is not MQTT.
    """
    properties = Properties(PacketTypes.CONNACK)  # type: ignore[no-untyped-call]
    properties.unpack(body[2:])  # type: ignore[no-untyped-call]
    return properties


def reason(kind: int, code: int) -> str:
    """What a reason code of a packet of this type means."""
    try:
        return str(ReasonCode(kind >> 4, identifier=code))
    except (KeyError, AssertionError):
        return f"reason code {code}"


@lru_cache(maxsize=1024)
def _expiry_alone(expiry_s: int | None) -> bytes:
    written = _expiry(expiry_s)
    return _number(len(written)) + written


def _expiry(expiry_s: int | None) -> bytes:
    return b"" if expiry_s is None else bytes((_MESSAGE_EXPIRY,)) + expiry_s.to_bytes(4)


def _packet(kind: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return bytes((kind,)) + _number(len(body)) + body


def _string(text: bytes) -> bytes:
    return len(text).to_bytes(2) + text


@lru_cache(maxsize=4096)
def _number(value: int) -> bytes:
    """A variable byte integer (1.5.5)."""
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)
