"""Names that nobody has said so far: a group that no device is in and no layer is of, a device that is not
known. Mostly a slip of the pen, so the nearest known name is told; a first use is one too, so it is no
error."""

from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches

from bellwire.cli.fleet.files import Settings
from bellwire.cli.fleet.session import RetainedFleet
from bellwire.config.fleet.merge import groups_said
from bellwire.signaling.topics import LayerName


def unknown_names(fleet: RetainedFleet, wanted: Mapping[LayerName, Settings]) -> list[str]:
    """A line for each name in layers that are to be written that nobody has said before."""
    layers = {name: held.layer for name, held in fleet.register.layers().items()}
    groups = set(_ends("group/", layers))
    devices = {str(device) for device in fleet.devices} | set(_ends("device/", layers))
    for layer in layers.values():
        groups |= set(groups_said(layer.settings)) if layer else set()
    for device in fleet.devices.values():
        if device.reported is not None:
            groups |= {*groups_said(device.reported.effective), *groups_said(device.reported.local)}
    said = {group for settings in wanted.values() for group in groups_said(settings)}
    new = set(_ends("group/", wanted))
    return [
        *(_line("group", group, groups) for group in sorted((new ^ said) - groups)),
        *(_line("device", one, devices) for one in sorted(set(_ends("device/", wanted)) - devices)),
    ]


def did_you_mean(name: str, known: Collection[str]) -> str:
    """The question that ends a line of an unknown name; empty where nothing known is like it."""
    near = get_close_matches(name, sorted(known), n=1)
    return f": did you mean {near[0]}?" if near else ""


def _line(kind: str, name: str, known: Collection[str]) -> str:
    return f"nobody has named {kind} {name} so far{did_you_mean(name, known)}"


def _ends(prefix: str, names: Collection[LayerName]) -> Iterator[str]:
    return (name.removeprefix(prefix) for name in names if name.startswith(prefix))
