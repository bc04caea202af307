"""The topics of the fleet's operators: layers, their history, the claims of who is about to write, and
what a device is told to do. Devices may read layers and their own commands, and write none."""

import re
from typing import NewType

from signaling.errors import InvalidInput
from signaling.identifiers import DeviceId, parse_device_id
from signaling.topics import CONFIG_DEFAULT, PRESENCE_OF_ALL

LayerName = NewType("LayerName", str)
"""`default`, `group/NAME` or `device/ID`: the end of the layer's topic."""

DEFAULT_LAYER = LayerName("default")

_CONFIG = CONFIG_DEFAULT.removesuffix("/default")
_HISTORY = f"{_CONFIG}-history"
_CLAIM = f"{_CONFIG}-claim"
_GROUP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

LAYERS = f"{_CONFIG}/#"
CLAIMS = f"{_CLAIM}/#"
HISTORIES = f"{_HISTORY}/#"
OPERATORS_ECHO = f"{_CONFIG}-echo"
"""Where an operator says something to hear it: what was on its way before has then arrived."""
REPORTED_OF_ALL = PRESENCE_OF_ALL.replace("/presence", "/config/reported")
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


def history_of(layer: LayerName) -> str:
    """The filter of all slots of a layer's history."""
    return f"{_HISTORY}/{layer}/+"


def layer_of(topic: str) -> LayerName:
    """The layer that a layer's, a claim's or a history's topic is about.

    Raises:
        InvalidInput: it is no such topic.
    """
    for root in (_CONFIG, _CLAIM):
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
        COMMANDS_OF_ALL,
    )


def read_by_operators() -> tuple[str, ...]:
    """The topic filters that an operator may subscribe to: no calls, no requests, no `$CONTROL`."""
    return (
        LAYERS,
        CLAIMS,
        HISTORIES,
        OPERATORS_ECHO,
        PRESENCE_OF_ALL,
        REPORTED_OF_ALL,
        TELEMETRY_OF_ALL,
        RESULTS_OF_ALL,
    )
