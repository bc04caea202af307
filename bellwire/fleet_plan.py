"""What an operator wants of the layers against what they are: the drafts to write, and what each
device would make of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from bellwire.fleet_files import Settings
from bellwire.fleet_session import Fleet
from bellwire.fleet_standing import Standings, differences
from config.fleet_layer import LayerProblem, Rollout
from config.fleet_writing import NOTHING, Draft, Held, document_of, held, layer_after
from signaling.fleet_topics import LayerName
from signaling.identifiers import DeviceId

Difference = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Change:
    """A layer to be written on top of what was seen; `settings` are those it had."""

    name: LayerName
    on: Held
    draft: Draft

    @property
    def differences(self) -> list[Difference]:
        """What it changes: dotted path, old and new value; the share of a rollout too."""
        old = self.on.layer
        found = list(differences(old.settings if old else {}, self.draft.settings))
        percent = old.rollout.percent if old else None
        if percent != self.draft.rollout.percent and (old or self.draft.rollout.percent != 100):
            found.append(("(rollout)", f"{percent} %", f"{self.draft.rollout.percent} %"))
        return found


@dataclass(frozen=True, slots=True)
class Effect:
    """What a change of the layers would do to one device."""

    device_id: DeviceId
    differences: list[Difference]
    errors: tuple[LayerProblem, ...]


def plan(
    held_layers: Mapping[LayerName, Held],
    wanted: Mapping[LayerName, Settings],
    *,
    percent: int | None = None,
    pause_at_errors: int | None = None,
    comment: str = "",
) -> list[Change]:
    """The changes that make the layers say what is wanted. A layer that says it already, for as many
    devices as wanted, is left alone, whatever the share of a rollout that is under way."""
    changes = []
    for name, settings in wanted.items():
        on = held_layers.get(name, NOTHING)
        layer = on.layer
        same = layer is not None and layer.settings == settings
        if same and layer is not None and percent in (None, layer.rollout.percent):
            continue
        rollout = rollout_on(on, 100 if percent is None else percent, pause_at_errors)
        changes.append(Change(name, on, Draft(settings, rollout, comment)))
    return changes


def rollout_on(on: Held, percent: int, pause_at_errors: int | None = None) -> Rollout:
    """A rollout to a share of the devices. The others run what all ran before: under a rollout that is
    not finished what its others run, else the layer itself."""
    if percent == 100:
        return Rollout(pause_at_errors=pause_at_errors)
    before: Settings = {}
    if on.layer is not None:
        unfinished = on.layer.rollout.percent < 100
        before = on.layer.rollout.before if unfinished else on.layer.settings
    return Rollout(percent=percent, pause_at_errors=pause_at_errors, before=before)


def effects(fleet: Fleet, changes: list[Change], author: str) -> Iterator[Effect]:
    """What the changes would do to each device that has reported, where they do anything."""
    layers = fleet.register.layers()
    at = datetime.now(UTC)
    written = {
        change.name: held(
            document_of(layer_after(change.on, change.draft, author=author, at=at, known=0))
        )
        for change in changes
    }
    now, then = Standings(layers), Standings({**layers, **written})
    for device_id, device in sorted(fleet.devices.items()):
        if device.reported is None:
            continue
        old, new = now.verdict(device.reported), then.verdict(device.reported)
        found = list(differences(old.effective, new.effective))
        errors = tuple(error for error in new.errors if error not in old.errors)
        if found or errors:
            yield Effect(device_id, found, errors)
