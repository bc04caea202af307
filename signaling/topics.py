"""The MQTT topics, and who may say and hear what on them (architecture.md, "Topics")."""

from signaling.errors import InvalidInput
from signaling.identifiers import DeviceId, parse_device_id

_ROOT = "bellwire/v1"
_DEVICE = f"{_ROOT}/device"

REQUESTS_SHARED = f"$share/bellwire-relays/{_DEVICE}/+/request"
PRESENCE_OF_ALL = f"{_DEVICE}/+/presence"
PRESENCE_SHARED = f"$share/bellwire-relays/{PRESENCE_OF_ALL}"
STREAMS_GROWN = f"{_ROOT}/relay/streams"
_RELAY_ECHO = f"{_ROOT}/relay/echo"
CONFIG_DEFAULT = f"{_ROOT}/config/default"
CONFIG_GROUPS = f"{_ROOT}/config/group/+"


def call_topic(device: DeviceId) -> str:
    """Relay to device: the call's events."""
    return f"{_DEVICE}/{device}/call"


def request_topic(device: DeviceId) -> str:
    """Device to relay: operations."""
    return f"{_DEVICE}/{device}/request"


def response_topic(device: DeviceId) -> str:
    """Relay to device: the answers to its requests, as their MQTT 5 response topic."""
    return f"{_DEVICE}/{device}/response"


def presence_topic(device: DeviceId) -> str:
    """Device to all: retained, and its last will."""
    return f"{_DEVICE}/{device}/presence"


def config_topic(device: DeviceId) -> str:
    """Operator to device: the retained configuration layer of this one device."""
    return f"{_ROOT}/config/device/{device}"


def reported_topic(device: DeviceId) -> str:
    """Device to operator: retained, what it runs."""
    return f"{_DEVICE}/{device}/config/reported"


def gathered_topic(device: DeviceId) -> str:
    """Device to itself: what comes back on it comes after all layers that were retained before.
    Retained is who uses the device's file (:mod:`agent.device_copies`)."""
    return f"{_DEVICE}/{device}/config/gathered"


def telemetry_topic(device: DeviceId) -> str:
    """Device to operator: its health."""
    return f"{_DEVICE}/{device}/telemetry"


def insights_topic(device: DeviceId) -> str:
    """Device to operator: what it has learnt of its calls."""
    return f"{_DEVICE}/{device}/insights"


def command_topic(device: DeviceId) -> str:
    """Operator to device: what it is to do now, such as to ring for a moment."""
    return f"{_DEVICE}/{device}/command"


def command_result_topic(device: DeviceId) -> str:
    """Device to operator: what has become of a command."""
    return f"{_DEVICE}/{device}/command/result"


def relay_echo_topic(name: str) -> str:
    """A relay's session to itself: what comes back on it comes after all that was said before."""
    return f"{_RELAY_ECHO}/{name}"


def device_part(topic: str) -> str:
    """The level of a topic under `bellwire/v1/device/` that names the device, whatever stands there."""
    begin = len(_DEVICE) + 1
    return topic[begin : topic.find("/", begin)]


def device_of(topic: str) -> DeviceId:
    """The device that a topic under `bellwire/v1/device/` belongs to.

    Raises:
        InvalidInput: the topic is no device's.
    """
    device, slash, rest = topic.removeprefix(f"{_DEVICE}/").partition("/")
    if not (topic.startswith(f"{_DEVICE}/") and slash and rest):
        raise InvalidInput(f"{topic[:80]!r} is not a device's topic")
    return parse_device_id(device)


def readable_by(device: DeviceId) -> tuple[str, ...]:
    """The topics a device may subscribe to, as literal filters.

    All groups' layers are among them: which groups a device is in is itself configured, by any MQTT
    client, so the broker cannot know it; and a layer holds no secrets.
    """
    return (
        call_topic(device),
        response_topic(device),
        CONFIG_DEFAULT,
        CONFIG_GROUPS,
        config_topic(device),
        gathered_topic(device),
        command_topic(device),
        telemetry_topic(device),  # what its agent has reported last, for the doctor beside it
    )


def writable_by(device: DeviceId) -> tuple[str, ...]:
    """The topics a device may publish to."""
    return (
        request_topic(device),
        presence_topic(device),
        telemetry_topic(device),
        insights_topic(device),
        reported_topic(device),
        gathered_topic(device),
        command_result_topic(device),
    )


def retained_of(device: DeviceId) -> tuple[str, ...]:
    """The topics on which the broker keeps what a device has said last."""
    return (
        presence_topic(device),
        reported_topic(device),
        telemetry_topic(device),
        gathered_topic(device),
    )
