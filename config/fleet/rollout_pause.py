"""When a rollout pauses itself, and what it goes back to (spec §6). Pure: who counts the errors is
whoever hears the devices: a relay, `bellwire fleet watch --guard`, or `bellwire fleet apply --wait`.

A device counts for a layer that is for it, once. A layer that takes a right away never goes back: who
makes enough devices refuse it would have the right again.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from bellwire.config.agent.layer_reach import places_in
from bellwire.config.fleet.layer import Layer, LayerProblem, Reported
from bellwire.config.fleet.merge import groups_said, in_rollout, patch_for
from bellwire.config.fleet.writing import Draft
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import DEFAULT_LAYER, LayerName, device_layer, known_as


@dataclass(frozen=True, slots=True)
class Said:
    """What a device says is wrong with its layers, and which groups its own file says."""

    problems: tuple[LayerProblem, ...]
    groups: tuple[str, ...] = ()


def said_in(reported: Reported) -> Said:
    """What counts of a report."""
    return Said(reported.errors[:_PROBLEMS_COUNTED], groups_said(reported.local))


Errors = Mapping[DeviceId, Said]
"""What each device says."""

_PROBLEMS_COUNTED = 64
_MISSING = object()
COMMENT_LIMIT = 512
_REASON_LIMIT = 200


def can_pause(layer: Layer) -> bool:
    """Whether a layer is in a rollout that errors would take back."""
    rollout = layer.rollout
    return rollout.pause_at_errors is not None and rollout.percent > rollout.back_to


def refusing(
    name: LayerName, layer: Layer, errors: Errors, layers: Mapping[LayerName, Layer] | None
) -> dict[DeviceId, LayerProblem]:
    """The devices of a rollout's share that refuse this revision of the layer, each with its first
    reason. `layers` are all that there are: they say who is in which group; None also takes those that
    the layer is not for."""
    found: dict[DeviceId, LayerProblem] = {}
    for device_id, said in errors.items():
        there = known_as(name, device_id)
        if not in_rollout(device_id, there, layer.rollout.percent):
            continue
        for problem in said.problems:
            if problem.layer == there and problem.revision == layer.revision:
                if layers is None or is_for(name, device_id, said.groups, layers):
                    found[device_id] = problem
                break
    return found


def is_for(
    name: LayerName,
    device_id: DeviceId,
    groups: tuple[str, ...],
    layers: Mapping[LayerName, Layer],
) -> bool:
    """Whether a layer is for a device. In which groups it is the default and the device's layer say; only
    where they do not, its own file (`groups`), which nobody but itself knows."""
    own = device_layer(device_id)
    if name in (DEFAULT_LAYER, own):
        return True
    said: JsonValue = list(groups)
    for where in (DEFAULT_LAYER, own):
        if (layer := layers.get(where)) is not None:
            said = patch_for(device_id, known_as(where, device_id), layer).get("groups", said)
    return name in (f"group/{group}" for group in groups_said({"groups": said}))


def takes_rights_away(layer: Layer) -> bool:
    """Whether somebody could have a right again if the layer went back to what was before it: to open a
    door, or to be answered by the device itself. Where that cannot be told, it could: a right that one
    of the two does not mention, and other `groups`, whose layers may say rights."""
    new, old = dict(places_in(layer.settings)), dict(places_in(layer.rollout.before))
    return any(
        _gives(path, new.get(path, _MISSING), old.get(path, _MISSING))
        for path in new.keys() | old.keys()
        if path == ("groups",) or path[:2] in _RIGHTS or path == ("behaviour",)
    )


_RIGHTS = (("behaviour", "doors"), ("behaviour", "auto_answer"))


def _gives(path: tuple[str, ...], new: object, old: object) -> bool:
    """Whether a place may give a right once it says again what it said."""
    if new == old or {} in (new, old):
        return False
    match path[-1], old:
        case "callers", list() if isinstance(new, list):
            return any(caller not in new for caller in old)
        case ("callers", []) | ("by_message", False) | ("verified_only", True) | ("after_s", _):
            return False
    return True


def pause(layer: Layer, refused: Mapping[DeviceId, LayerProblem]) -> Draft:
    """The layer as it is to be written next: for the share of before, saying who refused it and why;
    nobody has where it was written together with a layer that was refused."""
    rollout = layer.rollout
    comment = f"paused at {rollout.percent} %"
    for first, problem in sorted(refused.items())[:1]:
        reason = f"{problem.path}: {problem.reason}"[:_REASON_LIMIT]
        comment += f": {len(refused)} refuse it, such as {first}: {reason}"
    return Draft(
        layer.settings,
        rollout.model_copy(update={"percent": rollout.back_to, "paused_at": rollout.percent}),
        comment[:COMMENT_LIMIT],
    )


def too_many_refuse(
    name: LayerName, layer: Layer, errors: Errors, layers: Mapping[LayerName, Layer] | None
) -> dict[DeviceId, LayerProblem]:
    """Those that refuse the layer, where they are more than it allows; else nobody."""
    limit = layer.rollout.pause_at_errors
    if limit is None or not can_pause(layer):
        return {}
    refused = refusing(name, layer, errors, layers)
    return refused if len(refused) > limit else {}
