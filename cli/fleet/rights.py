"""What operators do not write, since devices would skip it: wiring, and rights (to open a door, to be
answered by a device itself) that the devices' own files do not open. The rules are
:mod:`config.agent.layer_reach`'s, which the agents have too.

`apply` answers for all that its files say (`whole`); the other commands for what they change, so that a
layer from before these rules can be mended bit by bit.
"""

from collections.abc import Iterator

from bellwire.cli.fleet.plan import Change, layers_after
from bellwire.cli.fleet.session import Fleet
from bellwire.config.agent.layer_reach import (
    NOT_THERE,
    ONLY_THE_FILE,
    LayerReach,
    never_heeded,
    rights_in,
    said_anew,
)
from bellwire.config.fleet.merge import groups_said
from bellwire.config.fleet.rollout_pause import is_for
from bellwire.signaling.errors import InvalidInput
from bellwire.signaling.topics import LayerName


def refuse_wiring(changes: list[Change]) -> None:
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


def refuse_rollout_of_rights(changes: list[Change], *, whole: bool) -> None:
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


def refuse_shut_rights(fleet: Fleet, changes: list[Change], *, whole: bool) -> None:
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


def _rights(change: Change, *, whole: bool) -> list[str]:
    said = rights_in(change.draft.settings)
    if whole or change.on.layer is None:
        return said
    old = change.on.layer
    anew = said_anew(change.draft.settings, old.settings, old.rollout.before)
    return [path for path in said if path in anew]


def _reached(
    fleet: Fleet, changes: list[Change], name: LayerName
) -> Iterator[tuple[str, LayerReach]]:
    """The known devices that a layer is for once the changes are written."""
    held = layers_after(fleet, changes, "dry-run").items()
    layers = {other: now.layer for other, now in held if now.layer is not None}
    for device_id, device in sorted(fleet.devices.items()):
        reported = device.reported
        if reported is not None and is_for(name, device_id, groups_said(reported.local), layers):
            yield device_id, LayerReach(reported.local, reported.remote)
