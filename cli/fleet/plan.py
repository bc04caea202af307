"""What an operator wants of the layers against what they are: the drafts to write, what each device would
make of them, and what is refused since devices would skip it: wiring, and rights (to open a door, to be
answered by a device itself) that their own files do not open, by the agents' own rules
(:mod:`config.agent.layer_reach`). `apply` answers for all that its files say (`whole`); the other commands
for what they change, so that a layer from before these rules can be mended bit by bit."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from bellwire.cli.fleet.files import Settings
from bellwire.cli.fleet.session import RetainedFleet
from bellwire.cli.fleet.standing import Standings, differences
from bellwire.config.agent.layer_reach import (
    NOT_THERE,
    ONLY_THE_FILE,
    LayerReach,
    never_heeded,
    rights_in,
    said_anew,
)
from bellwire.config.fleet.layer import LayerProblem, Rollout
from bellwire.config.fleet.merge import groups_said
from bellwire.config.fleet.rollout_pause import is_for
from bellwire.config.fleet.writing import NOTHING, Draft, Held, document_of, held, layer_after
from bellwire.signaling.errors import InvalidInput
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import LayerName, known_as

Difference = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class LayerChange:
    """A layer to be written on top of what was seen; `settings` are those it had."""

    name: LayerName
    on: Held
    draft: Draft

    @property
    def differences(self) -> list[Difference]:
        """What it changes: dotted path, old and new value; the share of a rollout too."""
        old = self.on.layer
        found = list(differences(old.settings if old else {}, self.draft.settings))
        before = _share(old.rollout if old else Rollout())
        if (after := _share(self.draft.rollout)) != before:
            found.append(("(rollout)", before, after))
        return found


def _share(rollout: Rollout) -> str:
    errors = rollout.pause_at_errors
    return f"{rollout.percent} %" + (f", at most {errors} errors" if errors is not None else "")


@dataclass(frozen=True, slots=True)
class Effect:
    """What a change of the layers would do to one device."""

    device_id: DeviceId
    differences: list[Difference]
    errors: tuple[LayerProblem, ...]
    skipped: tuple[LayerProblem, ...] = ()
    """What the changed layers say to no effect there."""


def plan(
    held_layers: Mapping[LayerName, Held],
    wanted: Mapping[LayerName, Settings],
    *,
    percent: int | None = None,
    pause_at_errors: int | None = None,
    comment: str = "",
) -> list[LayerChange]:
    """The changes that make the layers say what is wanted. A layer that says it already is left alone,
    with a rollout that is under way, unless another share or number of errors is wanted."""
    changes = []
    for name, settings in wanted.items():
        on = held_layers.get(name, NOTHING)
        layer = on.layer
        if layer is not None and layer.settings == settings:
            rollout = _rollout_after(on, layer.rollout, percent, pause_at_errors)
            if rollout == layer.rollout:
                continue
        else:
            rollout = rollout_on(on, 100 if percent is None else percent, pause_at_errors)
        changes.append(LayerChange(name, on, Draft(settings, rollout, comment)))
    return changes


def _rollout_after(
    on: Held, old: Rollout, percent: int | None, pause_at_errors: int | None
) -> Rollout:
    """The rollout of the same settings to another share, or with another number of errors. All devices
    run those of one that is over: it goes back to nothing else."""
    share = old.percent if percent is None else percent
    is_over = old.percent == 100 and old.pause_at_errors is None
    if (percent is None and pause_at_errors is None) or (is_over and share == 100):
        return old
    if is_over:
        return rollout_on(on, share, pause_at_errors)
    if share == 100 and pause_at_errors is None:
        return Rollout()
    if share == old.percent:
        return old.model_copy(update={"pause_at_errors": pause_at_errors})
    return Rollout(
        percent=share,
        pause_at_errors=pause_at_errors,
        back_to=old.percent if old.percent < share else 0,
        before=old.before,
    )


def rollout_on(on: Held, percent: int, pause_at_errors: int | None = None) -> Rollout:
    """A rollout to a share of the devices. The others run what all ran before: under a rollout that is
    not finished what its others run, else the layer itself. One to all devices needs that only where
    errors may take it back."""
    if percent == 100 and pause_at_errors is None:
        return Rollout()
    before: Settings = {}
    if on.layer is not None:
        unfinished = on.layer.rollout.percent < 100
        before = on.layer.rollout.before if unfinished else on.layer.settings
    return Rollout(percent=percent, pause_at_errors=pause_at_errors, before=before)


def effects(fleet: RetainedFleet, changes: list[LayerChange], author: str) -> Iterator[Effect]:
    """What the changes would do to each device that has reported, where they do anything."""
    changed = {change.name for change in changes}
    now = Standings(fleet.register.layers())
    then = Standings(layers_after(fleet, changes, author))
    for device_id, device in sorted(fleet.devices.items()):
        if device.reported is None:
            continue
        old, new = now.verdict(device.reported), then.verdict(device.reported)
        if old is None or new is None:
            continue
        found = list(differences(old.effective, new.effective))
        errors = tuple(error for error in new.errors if error not in old.errors)
        named = {known_as(name, device_id) for name in changed}
        skipped = tuple(problem for problem in new.skipped if problem.layer in named)
        if found or errors or skipped:
            yield Effect(device_id, found, errors, skipped)


def layers_after(
    fleet: RetainedFleet, changes: list[LayerChange], author: str
) -> dict[LayerName, Held]:
    """All layers, as they will be once the changes are written."""
    at = datetime.now(UTC)
    written = {
        change.name: held(
            document_of(layer_after(change.on, change.draft, author=author, at=at, known=0))
        )
        for change in changes
    }
    return {**fleet.register.layers(), **written}


def refuse_wiring(changes: list[LayerChange]) -> None:
    """Refuses what only a device's own file says, whatever it opens.

    Raises:
        InvalidInput: a change says such a thing.
    """
    for change in changes:
        for path, why in never_heeded(change.draft.settings).items():
            if why != ONLY_THE_FILE:
                raise InvalidInput(
                    f"layer {change.name}: {path}: {why}. Devices would skip it; mend the layer's file, then"
                    " apply again; nothing was written"
                )
            raise InvalidInput(
                f"layer {change.name} says {path}, which only a device's own file says: devices would"
                " skip it. Put it there, take it out of the layer's file, then apply again; nothing was"
                " written"
            )


def refuse_rollout_of_rights(changes: list[LayerChange], *, whole: bool) -> None:
    """Refuses a rollout that gives or takes rights: it would leave them to whom they are taken from, and
    devices that refuse it would decide whether they stay.

    Raises:
        InvalidInput: a change is such a rollout.
    """
    for change in changes:
        rollout = change.draft.rollout
        if rollout.percent == 100 and rollout.pause_at_errors is None:
            continue
        said = _rights(change, whole=whole)
        said += rights_in(rollout.before) if whole else []
        for path in said[:1]:
            raise InvalidInput(
                f"layer {change.name} says {path}, and who may do what takes no rollout: write it for"
                " all devices, without --percent and --pause-at-errors; one that is under way ends with"
                " `bellwire fleet apply --percent 100`. Nothing was written"
            )


def refuse_shut_rights(fleet: RetainedFleet, changes: list[LayerChange], *, whole: bool) -> None:
    """Refuses rights where a known device that has the door, and that the layer is for, does not open them
    to layers, or where no known device heeds them at all.

    Raises:
        InvalidInput: it names the first such device, path and reason.
    """
    for change in changes:
        rights = _rights(change, whole=whole)
        if not rights:
            continue
        unheeded = set(rights)
        for device_id, reach in _reached(fleet, changes, change.name):
            skipped = dict(reach.heed(change.draft.settings).skipped)
            unheeded &= skipped.keys()
            for path in rights:
                if skipped.get(path, NOT_THERE) != NOT_THERE:
                    raise InvalidInput(
                        f"device {device_id} would skip {path}: {skipped[path]}. Nothing was written;"
                        " write it for those that do with --force"
                    )
        for path in sorted(unheeded)[:1]:
            raise InvalidInput(
                f"no known device that layer {change.name} is for heeds {path}: its own file has to"
                f' have the door, and remote = ["{path}"]. Nothing was written; write it all the same'
                " with --force"
            )


def _rights(change: LayerChange, *, whole: bool) -> list[str]:
    said = rights_in(change.draft.settings)
    if whole or change.on.layer is None:
        return said
    old = change.on.layer
    anew = said_anew(change.draft.settings, old.settings, old.rollout.before)
    return [path for path in said if path in anew]


def _reached(
    fleet: RetainedFleet, changes: list[LayerChange], name: LayerName
) -> Iterator[tuple[str, LayerReach]]:
    """The known devices that a layer is for once the changes are written."""
    held = layers_after(fleet, changes, "dry-run").items()
    layers = {other: now.layer for other, now in held if now.layer is not None}
    for device_id, device in sorted(fleet.devices.items()):
        reported = device.reported
        if reported is not None and is_for(name, device_id, groups_said(reported.local), layers):
            yield device_id, LayerReach(reported.local, reported.remote)
