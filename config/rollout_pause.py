"""When a rollout pauses itself, and what it goes back to (spec §6). Pure: who counts the errors is
whoever hears the devices: a relay, `bellwire fleet watch --guard`, or `bellwire fleet apply --wait`."""

from collections.abc import Mapping

from config.fleet_layer import Layer, LayerProblem
from config.fleet_merge import in_rollout
from config.fleet_writing import Draft
from signaling.fleet_topics import LayerName, known_as
from signaling.identifiers import DeviceId

Errors = Mapping[DeviceId, tuple[LayerProblem, ...]]
"""What each device says is wrong with its layers."""

COMMENT_LIMIT = 512
_REASON_LIMIT = 200


def can_pause(layer: Layer) -> bool:
    """Whether a layer is in a rollout that errors would take back."""
    rollout = layer.rollout
    return rollout.pause_at_errors is not None and rollout.percent > rollout.back_to


def refusing(name: LayerName, layer: Layer, errors: Errors) -> dict[DeviceId, LayerProblem]:
    """The devices of a rollout's share that refuse this revision of the layer, each with its first
    reason."""
    found: dict[DeviceId, LayerProblem] = {}
    for device_id, problems in errors.items():
        there = known_as(name, device_id)
        if not in_rollout(device_id, there, layer.rollout.percent):
            continue
        for problem in problems:
            if problem.layer == there and problem.revision == layer.revision:
                found[device_id] = problem
                break
    return found


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


def due_pause(name: LayerName, layer: Layer, errors: Errors) -> Draft | None:
    """What to write now, where more devices refuse the layer than it allows."""
    limit = layer.rollout.pause_at_errors
    if limit is None or not can_pause(layer):
        return None
    refused = refusing(name, layer, errors)
    return pause(layer, refused) if len(refused) > limit else None
