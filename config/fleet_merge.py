"""What a device runs: its own file and the fleet's layers, merged, checked, and each error blamed.

All of it is a pure function of the file, the layers and, where one of these is bad, the last good
ones: in which order they came makes no difference. The rules:

- Layers merge as RFC 7396 says: objects merge, lists and values replace, null removes. Order: the
  file, `default`, the device's groups as its `groups` lists them, `device`.
- `groups` is what the file, `default` and `device` say, merged. A group's layer may not say it: who
  is in a group would then depend on who is in a group.
- No layer touches what the file locks, who a device is, or its secrets (LOCAL_ONLY). One that does is
  refused.
- A layer is refused whole; its errors are the same on every device. In its place stays the last good
  one, or nothing. Where an error belongs to several layers together (two that use one pin), the one
  that merges later is refused.
- A rollout of N percent takes the devices whose SHA-256 of layer and id is in the lowest N percent:
  always the same ones, whatever the revision, and all of 10 percent are among those of 20.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue, TypeAdapter, ValidationError

from config.agent import (
    LOCAL_ONLY_PLACES,
    AgentSettings,
    ConfigurableSettings,
    settings_given,
)
from config.fleet_layer import LAYER_LIMIT_BYTES, Layer, LayerProblem, hash_of
from config.local_only import local_only_in
from signaling.identifiers import GroupNameField

LOCAL_ONLY = ("device_id", "identity", "broker", "locked")
"""What only a device's own file says, beside LOCAL_ONLY_PLACES: who it is, and its secrets."""

_ONLY_THE_FILE = "only the device's own file may say this"
_PROBLEMS_KEPT = 32
_PATH_LENGTH = 256
_REASON_LENGTH = 512
_GROUPS: TypeAdapter[tuple[str, ...]] = TypeAdapter(tuple[GroupNameField, ...])

Settings = dict[str, JsonValue]
Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LocalFile:
    """What a device's own file adds: who it is, what it configures, and what it locks."""

    device_id: str
    settings: Settings
    locked: tuple[str, ...] = ()


def local_file(settings: AgentSettings) -> LocalFile:
    """The part of an agent's file that merging needs. It holds no secret."""
    return LocalFile(settings.device_id, settings_given(settings), settings.locked)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a device is to run. `layers` are those in force, `errors` why others are not."""

    settings: ConfigurableSettings
    effective: Settings
    hash: str
    sources: dict[str, str]
    layers: dict[str, Layer]
    errors: tuple[LayerProblem, ...]

    @property
    def revisions(self) -> dict[str, int]:
        """The revision of each layer in force."""
        return {name: layer.revision for name, layer in self.layers.items()}


def judge(
    local: LocalFile,
    layers: Mapping[str, Layer | LayerProblem],
    last_good: Mapping[str, Layer] | None = None,
) -> Verdict:
    """What a device runs, given the layers as they stand, by name; one that could not even be read
    stands there as its problem. `last_good` matters only where a layer is refused.

    Raises:
        ValueError: the file is wrong by itself; `load_agent_settings` lets none such through.
    """
    accepted, errors = _refuse_bad(local, layers)
    if last_good and errors:
        refused = {error.layer for error in errors}
        kept = {name: layer for name, layer in last_good.items() if name in refused}
        for candidate in ({**accepted, **kept}, dict(last_good)):
            if not _refuse_bad(local, candidate)[1]:
                return _verdict(local, candidate, errors)
    return _verdict(local, accepted, errors)


def parse_layer(name: str, payload: bytes) -> Layer | LayerProblem:
    """The layer in a retained message, or what is wrong with it."""
    if len(payload) > LAYER_LIMIT_BYTES:
        reason = f"a layer has at most {LAYER_LIMIT_BYTES} bytes, this one has {len(payload)}"
        return LayerProblem(layer=name, revision=None, path="", reason=reason)
    try:
        return Layer.model_validate_json(payload)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        path = ".".join(map(str, first["loc"]))[:_PATH_LENGTH]
        return LayerProblem(
            layer=name, revision=None, path=path, reason=first["msg"][:_REASON_LENGTH]
        )


def merge_patch(target: JsonValue, patch: JsonValue) -> JsonValue:
    """A document with a merge patch applied (RFC 7396, section 2). Neither is changed."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def only_the_file_says(patch: Settings) -> list[str]:
    """The dotted paths that a layer says and no layer may: secrets, and who a device is. No value is
    repeated."""
    own = [name for name in LOCAL_ONLY if name in patch]
    return [*local_only_in(patch, LOCAL_ONLY_PLACES), *own]


def in_rollout(device_id: str, layer: str, percent: int) -> bool:
    """Whether a device is among the `percent` that a layer is for."""
    digest = hashlib.sha256(f"{layer}\n{device_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") * 100 < percent << 64


def patch_for(device_id: str, name: str, layer: Layer) -> Settings:
    """What a layer says to one device."""
    taken = in_rollout(device_id, name, layer.rollout.percent)
    return layer.settings if taken else layer.rollout.before


def names_for(
    local: LocalFile, layers: Iterable[str], patches: Mapping[str, Settings]
) -> list[str]:
    """Of the names of `layers` those that count for a device, in the order in which they merge."""
    settings: JsonValue = local.settings
    for name in ("default", "device"):
        settings = merge_patch(settings, patches.get(name, {}))
    try:
        groups = _GROUPS.validate_python(settings.get("groups", ()))  # type: ignore[union-attr]
    except ValidationError:
        groups = ()
    names = dict.fromkeys(["default", *(f"group/{group}" for group in groups), "device"])
    present = set(layers)
    return [name for name in names if name in present]


def _refuse_bad(
    local: LocalFile, layers: Mapping[str, Layer | LayerProblem]
) -> tuple[dict[str, Layer], tuple[LayerProblem, ...]]:
    """The layers that count and can be in force together, and the problems of those that cannot."""
    left = dict(layers)
    problems: list[LayerProblem] = []
    while True:
        readable = {name: layer for name, layer in left.items() if isinstance(layer, Layer)}
        patches = {n: patch_for(local.device_id, n, layer) for n, layer in readable.items()}
        names = names_for(local, left, patches)
        found = [problem for name in names for problem in _alone(local, name, left[name])]
        chain = [(name, patches[name]) for name in names if name in patches]
        found = found or _together(local.settings, chain, readable)
        if not found:
            counting = {name: readable[name] for name in names}
            return counting, tuple(sorted(problems, key=lambda p: (p.layer, p.path, p.reason)))
        for problem in found:
            left.pop(problem.layer, None)
        problems += found[: max(0, _PROBLEMS_KEPT - len(problems))]


def _alone(local: LocalFile, name: str, layer: Layer | LayerProblem) -> Iterator[LayerProblem]:
    """What is wrong with a layer whatever the others say."""
    if isinstance(layer, LayerProblem):
        yield layer
        return
    patch = patch_for(local.device_id, name, layer)
    for secret in local_only_in(patch, LOCAL_ONLY_PLACES):
        yield _problem(name, layer, secret, _ONLY_THE_FILE)
    for path, value in _changes(patch):
        dotted = ".".join(path)
        lock = next((lock for lock in local.locked if _touches(dotted, value, lock)), None)
        if path[0] in LOCAL_ONLY:
            yield _problem(name, layer, dotted, _ONLY_THE_FILE)
        elif name.startswith("group/") and path[0] == "groups":
            reason = (
                "a group's layer cannot say who is in which group: the default or device layer can"
            )
            yield _problem(name, layer, dotted, reason)
        elif lock is not None:
            yield _problem(name, layer, dotted, f"the device's own file locks {lock}")


def _together(
    base: Settings, chain: list[tuple[str, Settings]], layers: Mapping[str, Layer]
) -> list[LayerProblem]:
    """What is wrong with the sum: each error under the layer from which on the sum has it."""
    sums: list[JsonValue] = [base]
    for _, patch in chain:
        sums.append(merge_patch(sums[-1], patch))
    errors = _errors_of(sums[-1])
    if not errors:
        return []
    culprits = dict.fromkeys(errors, len(chain))
    for place in range(len(chain) - 1, -1, -1):
        before = _errors_of(sums[place])
        for error in errors:
            if error in before and culprits[error] == place + 1:
                culprits[error] = place
    if 0 in culprits.values():
        raise ValueError("the device's own file is wrong by itself")
    problems = []
    for (path, reason), place in culprits.items():
        name = chain[place - 1][0]
        problems.append(_problem(name, layers[name], path, reason))
    return problems


def _errors_of(document: JsonValue) -> list[tuple[str, str]]:
    """Path and reason of each thing that is wrong with the settings in a document."""
    try:
        ConfigurableSettings.model_validate(document)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        errors = dict.fromkeys((_path_in(document, e["loc"]), _reason(e)) for e in found)
        # A list whose items are wrong is also said to be too short.
        return [
            (path, why)
            for path, why in errors
            if not any(p.startswith(f"{path}.") for p, _ in errors)
        ]
    return []


def _path_in(document: JsonValue, loc: tuple[int | str, ...]) -> str:
    """Where an error is, without the steps that only pydantic knows (the branches of a union)."""
    steps: list[str] = []
    here: Any = document
    for number, step in enumerate(loc):
        inside = (isinstance(here, dict) and step in here) or (
            isinstance(here, list) and isinstance(step, int) and step < len(here)
        )
        if inside:
            here = here[step]
            steps.append(str(step))
        elif isinstance(here, dict) and number == len(loc) - 1 and isinstance(step, str):
            steps.append(step)  # what is missing
    return ".".join(steps)


def _reason(error: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    if error["type"] == "extra_forbidden":
        return "this version has no such setting"
    given = error["input"]
    shown = f"; this is {given!r}" if isinstance(given, (bool, int, float, str)) else ""
    return f"{error['msg'].removeprefix('Value error, ')}{shown[:128]}"


def _problem(name: str, layer: Layer, path: str, reason: str) -> LayerProblem:
    return LayerProblem(
        layer=name,
        revision=layer.revision,
        path=path[:_PATH_LENGTH],
        reason=reason[:_REASON_LENGTH],
    )


def _changes(patch: Settings, above: Path = ()) -> Iterator[tuple[Path, JsonValue]]:
    """Each place that a patch says something about: its leaves, an empty object among them."""
    for name, value in patch.items():
        if isinstance(value, dict) and value:
            yield from _changes(value, (*above, name))
        else:
            yield (*above, name), value


def _touches(path: str, value: JsonValue, lock: str) -> bool:
    """Whether a change lies within what is locked, or replaces an object that holds it."""
    replaces = not isinstance(value, dict) and lock.startswith(f"{path}.")
    return path == lock or path.startswith(f"{lock}.") or replaces


def _verdict(
    local: LocalFile, layers: Mapping[str, Layer], errors: tuple[LayerProblem, ...]
) -> Verdict:
    patches = {name: patch_for(local.device_id, name, layer) for name, layer in layers.items()}
    names = names_for(local, layers, patches)
    document: JsonValue = {}
    origins: dict[Path, str] = {}
    for source, patch in [("file", local.settings), *((name, patches[name]) for name in names)]:
        document = merge_patch(document, patch)
        origins.update({path: source for path, _ in _changes(patch)})
    settings = ConfigurableSettings.model_validate(document)
    effective = settings.model_dump(mode="json", exclude_none=True)
    return Verdict(
        settings=settings,
        effective=effective,
        hash=hash_of(effective),
        sources={".".join(p): _origin(p, document, origins) for p, _ in _changes(effective)},
        layers={name: layers[name] for name in names},
        errors=errors,
    )


def _origin(path: Path, document: JsonValue, origins: Mapping[Path, str]) -> str:
    """Which layer brought a value: the last that said it. A value that no layer says is built in."""
    here: Any = document
    for step in path:
        if not isinstance(here, dict):
            break  # a short form, such as one identity for a list of one
        if step not in here:
            return "built-in"
        here = here[step]
    return next(
        (origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origins), "built-in"
    )
