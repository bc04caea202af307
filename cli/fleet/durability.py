"""Whether what was written is durable, and where: in a relay's database, or on the disk of a device that
runs it. A broker confirms before its disk has it, and nobody can ask it when it will."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rich.console import Console

from bellwire.broker.fleet.layer_register import LayerConflict
from bellwire.cli.fleet.session import FleetDevice, RetainedFleet
from bellwire.cli.fleet.standing import Standings
from bellwire.config.fleet.layer import Layer
from bellwire.config.fleet.writing import document_of, held
from bellwire.signaling.errors import Unavailable
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import LayerName, known_as

NOT_DURABLE = 4
"""The exit code that says: it is in force at the broker, and lost if that loses its disk now."""

_DURABLE_S = 15.0
_COALESCE_S = 0.05
_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Durability:
    """Who has a revision on disk; nobody where that is open."""

    relay: bool = False
    device: DeviceId | None = None

    @property
    def is_durable(self) -> bool:
        """Whether anybody has."""
        return self.relay or self.device is not None

    def __str__(self) -> str:
        if self.relay:
            return "stored by the relay"
        return "not yet durable" if self.device is None else f"on the disk of device {self.device}"

    def as_json(self) -> dict[str, str | None]:
        """As the commands print it with --json."""
        by = "relay" if self.relay else None if self.device is None else "device"
        return {"stored_by": by, "device_id": self.device}


async def until_durable(
    fleet: RetainedFleet, written: Mapping[LayerName, Layer]
) -> dict[LayerName, Durability]:
    """Waits until each of these revisions, just written, is on a disk, as long as somebody may say so; while
    more and more are, for as long as that goes on.

    Raises:
        LayerConflict: another revision has taken the place of one that no disk has.
        Unavailable: the broker has lost one before any disk had it.
    """
    found: dict[LayerName, Durability] = {}
    open_ones = written
    lost = fleet.register.connections_lost
    try:
        async with asyncio.timeout(_DURABLE_S) as deadline:
            while True:
                if lost != fleet.register.connections_lost:
                    lost = await _catch_up(fleet)
                    _refuse_lost(fleet, written)
                stored = [n for n, la in open_ones.items() if fleet.keepers.has_stored(n, la)]
                if stored:
                    found |= dict.fromkeys(stored, Durability(relay=True))
                    deadline.reschedule(asyncio.get_running_loop().time() + _DURABLE_S)
                open_ones = {name: la for name, la in written.items() if name not in found}
                _refuse_overwritten(fleet, open_ones)
                if not open_ones:
                    return found
                if not (fleet.keepers.present or fleet.keepers.silent):
                    found |= _on_devices(fleet, open_ones)
                    if not any(
                        _may_have(fleet, n, la) for n, la in written.items() if n not in found
                    ):
                        break
                await _next_change(fleet)
    except TimeoutError:
        found = _on_devices(fleet, written) | found
    return {name: found.get(name, Durability()) for name in written}


async def _next_change(fleet: RetainedFleet) -> None:
    try:
        async with asyncio.timeout(_LOOK_S):
            await fleet.next_change()
    except TimeoutError:
        return
    await asyncio.sleep(_COALESCE_S)


async def _catch_up(fleet: RetainedFleet) -> int:
    """The connection was lost: waits for the next, and for what the broker and relays then have."""
    while True:
        lost = fleet.register.connections_lost
        await fleet.session.wait_connected()
        try:
            await fleet.settle()
        except Unavailable:
            await asyncio.sleep(_COALESCE_S)
            continue
        if lost == fleet.register.connections_lost:
            return lost


def _refuse_lost(fleet: RetainedFleet, written: Mapping[LayerName, Layer]) -> None:
    for name, layer in written.items():
        here = fleet.register.held(name).layer
        is_lower = here is None or here.revision < layer.revision
        if is_lower and not fleet.keepers.has_stored(name, layer):
            raise Unavailable(
                f"layer {name}: the broker has lost revision {layer.revision} before a disk had it: write"
                " it again"
            )


def _refuse_overwritten(fleet: RetainedFleet, written: Mapping[LayerName, Layer]) -> None:
    """Refuses what another revision stands in place of, unless that was written on top of it."""
    for name, layer in written.items():
        here = fleet.register.held(name)
        if here.layer is None or here.layer == layer or here.layer.revision < layer.revision:
            continue
        is_before = here.layer.parent == held(document_of(layer)).fingerprint
        if not is_before and layer not in fleet.register.history(name):
            raise LayerConflict(name, here)


def _on_devices(
    fleet: RetainedFleet, written: Mapping[LayerName, Layer]
) -> dict[LayerName, Durability]:
    found: dict[LayerName, Durability] = {}
    for name, layer in written.items():
        for device in fleet.devices.values():
            if _has(device, name, layer):
                found[name] = Durability(device=device.device_id)
                break
    return found


def _has(device: FleetDevice, name: LayerName, layer: Layer) -> bool:
    """Whether a device says that it has this revision on its disk."""
    reported, telemetry = device.reported, device.telemetry
    there = known_as(name, device.device_id)
    if reported is None or reported.revisions.get(there) != layer.revision:
        return False
    # An agent of the version before says only by its health that its disk takes nothing.
    is_full = telemetry is not None and any(fault.part == "disk" for fault in telemetry.faults)
    is_another = any(one.layer == there for one in reported.outdated)
    return reported.on_disk and not is_full and not is_another


def _may_have(fleet: RetainedFleet, name: LayerName, layer: Layer) -> bool:
    """Whether a device that is online may still say that it has it."""
    standings = Standings(fleet.register.layers())
    for device in fleet.devices.values():
        there = known_as(name, device.device_id)
        reported = device.reported
        if not device.online or reported is None or not reported.on_disk:
            continue
        refused = (*reported.errors, *reported.outdated)
        if any(one.layer == there and one.revision == layer.revision for one in refused):
            continue
        if there in standings.of(device).expected:
            return True
    return False


def open_lines(fleet_has_relay: bool, durable: Mapping[LayerName, Durability]) -> Iterator[str]:
    """What is to be said of revisions that are on no disk, with the next step."""
    names = [name for name, one in durable.items() if not one.is_durable]
    if not names:
        return
    who = (
        "the relay on this broker has not said that it has stored it: see its log, its database may be away"
        if fleet_has_relay
        else "no relay of this version runs on this broker, and no device that is online has it on its disk"
    )
    yield (
        f"Not yet durable: {', '.join(names)}. It is in force, and lost if the broker dies before it has"
        f" saved it; {who}. Next: start a relay on this broker, or a device that the layer is for; then see"
        " `bellwire fleet log` whether it is still there"
    )


def say_open(
    console: Console, fleet_has_relay: bool, durable: Mapping[LayerName, Durability]
) -> None:
    """Prints `open_lines`."""
    for line in open_lines(fleet_has_relay, durable):
        console.print(line, style="bold yellow", markup=False, highlight=False, soft_wrap=True)
