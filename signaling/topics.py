"""The MQTT topics, and who may say and hear what on them (architecture.md, "Topics").

The topics of the fleet's operators: layers, their history, the claims of who is about to write, what
relays have stored of them, and what a device is told to do. Devices may read layers and their own
commands, and write none.
"""

import re
from typing import NewType

from bellwire.signaling.errors import InvalidInput
from bellwire.signaling.identifiers import DeviceId, parse_device_id

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
    Retained is who uses the device's file (:mod:`agent.fleet.device_copies`)."""
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


LayerName = NewType("LayerName", str)
"""`default`, `group/NAME` or `device/ID`: the end of the layer's topic."""

DEFAULT_LAYER = LayerName("default")

_CONFIG = CONFIG_DEFAULT.removesuffix("/default")
_HISTORY = f"{_CONFIG}-history"
_CLAIM = f"{_CONFIG}-claim"
_STORED = f"{_CONFIG}-stored"
_GROUP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

LAYERS = f"{_CONFIG}/#"
CLAIMS = f"{_CLAIM}/#"
HISTORIES = f"{_HISTORY}/#"
STORED = f"{_STORED}/#"
"""Where a relay says which revision of each layer its database has; only relays write there."""
KEEPER_ANSWERS = _STORED
"""Where a relay answers who asks on `KEEPERS`; of `STORED` too (MQTT 5, 4.7.1.2)."""
KEEPERS = f"{_CONFIG}-keepers"
"""Where an operator asks, with a word of theirs, for a relay that has put back what the broker had lost."""
OPERATORS_ECHO = f"{_CONFIG}-echo"
"""Where an operator says something to hear it: what was on its way before has then arrived."""
REPORTED_OF_ALL = PRESENCE_OF_ALL.replace("/presence", "/config/reported")
INSIGHTS_OF_ALL = PRESENCE_OF_ALL.replace("/presence", "/insights")
TELEMETRY_OF_ALL = PRESENCE_OF_ALL.replace("/presence", "/telemetry")
COMMANDS_OF_ALL = PRESENCE_OF_ALL.replace("/presence", "/command")
RESULTS_OF_ALL = f"{COMMANDS_OF_ALL}/result"


def group_layer(name: str) -> LayerName:
    """The layer of a group of devices.

    Raises:
        InvalidInput: a group's name is 1 to 64 of `A-Z a-z 0-9 . _ -`, starting with a letter or digit.
    """
    if not _GROUP_NAME.fullmatch(name):
        raise InvalidInput(
            f"group {name[:40]!r} must be 1 to 64 of A-Z a-z 0-9 . _ -, starting with a letter or digit"
        )
    return LayerName(f"group/{name}")


def device_layer(device: str) -> LayerName:
    """The layer of one device.

    Raises:
        InvalidInput: it is no device id.
    """
    return LayerName(f"device/{parse_device_id(device)}")


def known_as(layer: LayerName, device: DeviceId) -> str:
    """What a device calls a layer in what it reports: its own one is just `device`."""
    return "device" if layer == f"device/{device}" else str(layer)


def parse_layer_name(text: str) -> LayerName:
    """The layer that `default`, `group/NAME` or `device/ID` names.

    Raises:
        InvalidInput: it is none of them.
    """
    kind, slash, name = text.partition("/")
    if text == DEFAULT_LAYER:
        return DEFAULT_LAYER
    if slash and kind == "group":
        return group_layer(name)
    if slash and kind == "device":
        return device_layer(name)
    raise InvalidInput(f"{text[:80]!r} is no layer: write default, group/NAME or device/ID")


def layer_topic(layer: LayerName) -> str:
    """Where a layer is retained."""
    return f"{_CONFIG}/{layer}"


def claim_topic(layer: LayerName) -> str:
    """Where an operator says, retained for seconds, that they are about to write a layer."""
    return f"{_CLAIM}/{layer}"


def history_topic(layer: LayerName, slot: int) -> str:
    """Where a revision that a layer had is retained, in one of few slots."""
    return f"{_HISTORY}/{layer}/{slot}"


def stored_topic(layer: LayerName) -> str:
    """Where the revision of a layer that a relay has stored is retained."""
    return f"{_STORED}/{layer}"


def history_of(layer: LayerName) -> str:
    """The filter of all slots of a layer's history."""
    return f"{_HISTORY}/{layer}/+"


def layer_of(topic: str) -> LayerName:
    """The layer that a layer's, a claim's, a stored revision's or a history's topic is about.

    Raises:
        InvalidInput: it is no such topic.
    """
    for root in (_CONFIG, _CLAIM, _STORED):
        if topic.startswith(f"{root}/"):
            return parse_layer_name(topic.removeprefix(f"{root}/"))
    return parse_layer_name(topic.removeprefix(f"{_HISTORY}/").rpartition("/")[0])


def written_by_operators() -> tuple[str, ...]:
    """The topic filters that an operator may publish to. None of them is a device's to write."""
    return (
        CONFIG_DEFAULT,
        f"{_CONFIG}/group/+",
        f"{_CONFIG}/device/+",
        CLAIMS,
        HISTORIES,
        OPERATORS_ECHO,
        KEEPERS,
        COMMANDS_OF_ALL,
    )


def read_by_operators() -> tuple[str, ...]:
    """The topic filters that an operator may subscribe to: no calls, no requests, no `$CONTROL`."""
    return (
        LAYERS,
        CLAIMS,
        HISTORIES,
        OPERATORS_ECHO,
        STORED,
        PRESENCE_OF_ALL,
        REPORTED_OF_ALL,
        TELEMETRY_OF_ALL,
        RESULTS_OF_ALL,
    )
