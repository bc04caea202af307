"""What a device runs: its own file and the fleet's layers, merged, checked, and each error blamed.

All of it is a pure function of the file, the layers and, where one of these is bad, the last good
ones: in which order they came makes no difference. The rules:

- Layers merge as RFC 7396 says: objects merge, lists and values replace, null removes. Order: the
  file, `default`, the device's groups as its `groups` lists them, `device`.
- `groups` is what the file, `default` and `device` say, merged. A group's layer may not say it: who
  is in a group would then depend on who is in a group.
- What only the device's own file says (who it is, secrets, wiring, rights that it does not open: see
  :mod:`config.agent.layer_reach`) is skipped in a layer, and said; the rest of the layer counts.
- No layer touches what the file locks: that is skipped too, and the rest of the layer counts.
- A layer is refused whole; its errors are the same on every device. In its place stays the last good
  one, or nothing. Where an error belongs to several layers together (two that use one pin), the one
  that merges later is refused.
- A rollout of N percent takes the devices whose SHA-256 of layer and id is in the lowest N percent:
  always the same ones, whatever the revision, and all of 10 percent are among those of 20.
- Whoever writes layers must not keep a device busy with them: what is judged is bounded, for a layer
  (:func:`config.fleet.layer.too_much_in`) and in all, and so are errors. It still takes a second where
  all is as bad as can be; a device judges beside its event loop.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue, TypeAdapter, ValidationError

from bellwire.config.agent.layer_reach import Heeded, LayerReach, Path, Settings, places_in
from bellwire.config.agent.settings import AgentSettings, ConfigurableSettings, settings_given
from bellwire.config.fleet.layer import (
    LAYER_LIMIT_BYTES,
    Layer,
    LayerProblem,
    hash_of,
    too_much_in,
    values_in,
)
from bellwire.signaling.identifiers import GroupNameField

_PROBLEMS_KEPT = 32
_SKIPPED_KEPT = 64
_VALUES_IN_ALL = 8192
_ERRORS_TOLD_APART = 128
"""Of a sum with more than these the layer that brings them is refused without a list of them."""
_GROUPS_AT_MOST = 16
_PATH_LENGTH = 256
_REASON_LENGTH = 512
_GROUPS: TypeAdapter[tuple[str, ...]] = TypeAdapter(tuple[GroupNameField, ...])


@dataclass(frozen=True, slots=True)
class LocalFile:
    """What a device's own file adds: who it is, what it configures, and what it locks."""

    device_id: str
    settings: Settings
    locked: tuple[str, ...] = ()
    remote: tuple[str, ...] = ()


def local_file(settings: AgentSettings) -> LocalFile:
    """The part of an agent's file that merging needs. It holds no secret."""
    return LocalFile(settings.device_id, settings_given(settings), settings.locked, settings.remote)


@dataclass(frozen=True, slots=True)
class LayerVerdict:
    """What a device is to run. `layers` are those in force, `errors` why others are not, `skipped`
    what those in force say to no effect here."""

    settings: ConfigurableSettings
    effective: Settings
    hash: str
    sources: dict[str, str]
    layers: dict[str, Layer]
    errors: tuple[LayerProblem, ...]
    skipped: tuple[LayerProblem, ...] = ()

    @property
    def revisions(self) -> dict[str, int]:
        """The revision of each layer in force."""
        return {name: layer.revision for name, layer in self.layers.items()}


def judge(
    local: LocalFile,
    layers: Mapping[str, Layer | LayerProblem],
    last_good: Mapping[str, Layer] | None = None,
) -> LayerVerdict:
    """What a device runs, given the layers as they stand, by name; one that could not even be read
    stands there as its problem. `last_good` matters only where a layer is refused.

    Raises:
        ValueError: the file is wrong by itself; `load_agent_settings` lets none such through.
    """
    case = _Case(local)
    accepted, errors = case.refuse_bad(layers)
    if last_good and errors:
        refused = {error.layer for error in errors}
        kept = {name: layer for name, layer in last_good.items() if name in refused}
        for candidate in ({**accepted, **kept}, dict(last_good)):
            if not case.refuse_bad(candidate)[1]:
                return case.verdict(candidate, errors)
    return case.verdict(accepted, errors)


def parse_layer(name: str, payload: bytes) -> Layer | LayerProblem:
    """The layer in a retained message, or what is wrong with it."""
    if len(payload) > LAYER_LIMIT_BYTES:
        reason = f"a layer has at most {LAYER_LIMIT_BYTES} bytes, this one has more"
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


def in_rollout(device_id: str, layer: str, percent: int) -> bool:
    """Whether a device is among the `percent` that a layer is for."""
    digest = hashlib.sha256(f"{layer}\n{device_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") * 100 < percent << 64


def patch_for(device_id: str, name: str, layer: Layer) -> Settings:
    """What a layer says to one device."""
    taken = in_rollout(device_id, name, layer.rollout.percent)
    return layer.settings if taken else layer.rollout.before


def groups_said(patch: JsonValue) -> tuple[str, ...]:
    """The groups that settings say the device is in; none where what they say makes no sense."""
    try:
        said = patch.get("groups", ()) if isinstance(patch, dict) else ()
        return _GROUPS.validate_python(said)[:_GROUPS_AT_MOST]
    except ValidationError:
        return ()


def names_for(
    local: LocalFile, layers: Iterable[str], patches: Mapping[str, Settings]
) -> list[str]:
    """Of the names of `layers` those that count for a device, in the order in which they merge."""
    settings: JsonValue = local.settings
    for name in ("default", "device"):
        settings = merge_patch(settings, patches.get(name, {}))
    groups = (f"group/{group}" for group in groups_said(settings))
    names = dict.fromkeys(["default", *groups, "device"])
    present = set(layers)
    return [name for name in names if name in present]


class _Case:
    """One device's file and whatever layers are tried on it; what was found once is remembered."""

    def __init__(self, local: LocalFile) -> None:
        self._local = local
        self._reach = LayerReach(local.settings, local.remote)
        self._heeded: dict[tuple[str, int], Heeded] = {}
        self._alone: dict[tuple[str, int], list[LayerProblem]] = {}
        self._errors: dict[tuple[tuple[str, int], ...], dict[tuple[str, str], None] | int] = {}

    def refuse_bad(
        self, layers: Mapping[str, Layer | LayerProblem]
    ) -> tuple[dict[str, Layer], tuple[LayerProblem, ...]]:
        """The layers that count and can be in force together, and the problems of those that cannot."""
        left = dict(layers)
        problems: list[LayerProblem] = []
        while True:
            readable = {name: layer for name, layer in left.items() if isinstance(layer, Layer)}
            names = self._names(left, readable)
            found = [problem for name in names for problem in self._problems_of(name, left[name])]
            found = found or self._together([(name, readable[name]) for name in names])
            if not found:
                counting = {name: readable[name] for name in names}
                return counting, _bounded(problems, _PROBLEMS_KEPT)
            for problem in found:
                left.pop(problem.layer, None)
            problems += found

    def verdict(
        self, layers: Mapping[str, Layer], errors: tuple[LayerProblem, ...]
    ) -> LayerVerdict:
        """What the device is to run of layers that can be in force together."""
        names = self._names(layers, layers)
        document: JsonValue = {}
        origins: dict[Path, str] = {}
        patches = [(name, self._heed(name, layers[name]).patch) for name in names]
        for source, patch in [("file", self._local.settings), *patches]:
            document = merge_patch(document, patch)
            origins.update({path: source for path, _ in places_in(patch)})
        settings = ConfigurableSettings.model_validate(document)
        effective = settings.model_dump(mode="json", exclude_none=True)
        skipped = [
            _problem(name, layers[name], path, reason)
            for name in names
            for path, reason in sorted(self._heed(name, layers[name]).skipped)[:_SKIPPED_KEPT]
        ]
        return LayerVerdict(
            settings=settings,
            effective=effective,
            hash=hash_of(effective),
            sources={".".join(p): _origin(p, document, origins) for p, _ in places_in(effective)},
            layers={name: layers[name] for name in names},
            errors=errors,
            skipped=_bounded(skipped, _SKIPPED_KEPT),
        )

    def _names(self, present: Iterable[str], layers: Mapping[str, Layer]) -> list[str]:
        heeded = {
            name: self._heed(name, layers[name]).patch
            for name in ("default", "device")
            if name in layers
        }
        return names_for(self._local, present, heeded)

    def _heed(self, name: str, layer: Layer) -> Heeded:
        """What counts of a layer here; nothing of one that is too much to look at."""
        key = (name, id(layer))
        if key not in self._heeded:
            patch = patch_for(self._local.device_id, name, layer)
            heeded = Heeded({}) if too_much_in(patch) else self._reach.heed(patch)
            self._heeded[key] = _unlocked(heeded, self._local.locked)
        return self._heeded[key]

    def _problems_of(self, name: str, layer: Layer | LayerProblem) -> list[LayerProblem]:
        """What is wrong with a layer whatever the others say."""
        key = (name, id(layer))
        if key not in self._alone:
            self._alone[key] = list(self._find_problems(name, layer))
        return self._alone[key]

    def _find_problems(self, name: str, layer: Layer | LayerProblem) -> Iterator[LayerProblem]:
        if isinstance(layer, LayerProblem):
            yield layer
            return
        too_much = too_much_in(patch_for(self._local.device_id, name, layer))
        if too_much is not None:
            yield _problem(name, layer, "", too_much)
            return
        for path, _ in places_in(self._heed(name, layer).patch):
            if name.startswith("group/") and path[0] == "groups":
                reason = (
                    "a group's layer cannot say who is in which group: the default or device layer"
                    " can"
                )
                yield _problem(name, layer, ".".join(path), reason)

    def _together(self, chain: list[tuple[str, Layer]]) -> list[LayerProblem]:
        """What is wrong with the sum: each error under the layer from which on the sum has it."""
        values = 0
        for name, layer in chain:
            values += values_in(self._heed(name, layer).patch)
            if values > _VALUES_IN_ALL:
                reason = f"with this layer the device would have more than {_VALUES_IN_ALL} values to merge"
                return [_problem(name, layer, "", reason)]
        errors = self._errors_after(chain)
        if not errors:
            return []
        if isinstance(errors, int):
            return [self._flood_in(chain)]
        culprits: dict[tuple[str, str], int] = dict.fromkeys(errors, len(chain))
        for place in range(len(chain) - 1, -1, -1):
            before = self._errors_after(chain[:place])
            if isinstance(before, int):
                return [self._flood_in(chain[:place])]
            for error in errors:
                if error in before and culprits[error] == place + 1:
                    culprits[error] = place
        if 0 in culprits.values():
            raise ValueError("the device's own file is wrong by itself")
        return [
            _problem(*chain[place - 1], path, reason) for (path, reason), place in culprits.items()
        ]

    def _flood_in(self, chain: list[tuple[str, Layer]]) -> LayerProblem:
        """The first layer with which the sum has more errors than are told apart."""
        for place in range(len(chain) + 1):
            count = self._errors_after(chain[:place])
            if isinstance(count, int):
                if place == 0:
                    raise ValueError("the device's own file is wrong by itself")
                reason = f"with this layer {count} settings are wrong: see `bellwire fleet schema`"
                return _problem(*chain[place - 1], "", reason)
        raise ValueError("no layer brings these errors")

    def _errors_after(self, chain: list[tuple[str, Layer]]) -> dict[tuple[str, str], None] | int:
        """Path and reason of each thing that is wrong with a sum; their number where they are many."""
        key = tuple((name, id(layer)) for name, layer in chain)
        if key not in self._errors:
            document: JsonValue = self._local.settings
            for name, layer in chain:
                document = merge_patch(document, self._heed(name, layer).patch)
            self._errors[key] = _errors_of(document)
        return self._errors[key]


def _bounded(problems: Iterable[LayerProblem], limit: int) -> tuple[LayerProblem, ...]:
    """At most so many problems, sorted, but the first of each layer."""
    ordered = sorted(problems, key=lambda p: (p.layer, p.path, p.reason))
    firsts: dict[str, LayerProblem] = {}
    for problem in ordered:
        firsts.setdefault(problem.layer, problem)
    left = limit - len(firsts)
    kept = []
    for problem in ordered:
        if firsts[problem.layer] is problem:
            kept.append(problem)
        elif left > 0:
            kept.append(problem)
            left -= 1
    return tuple(kept)


def _errors_of(document: JsonValue) -> dict[tuple[str, str], None] | int:
    """Path and reason of each thing that is wrong with the settings in a document."""
    try:
        ConfigurableSettings.model_validate(document)
    except ValidationError as error:
        if error.error_count() > _ERRORS_TOLD_APART:
            return error.error_count()
        found = error.errors(include_url=False, include_context=False)
        errors = dict.fromkeys(
            (_path_in(document, e["loc"])[:_PATH_LENGTH], _reason(e)) for e in found
        )
        # A list whose items are wrong is also said to be too short.
        above = {path[:end] for path, _ in errors for end, char in enumerate(path) if char == "."}
        return {one: None for one in errors if one[0] not in above}
    return {}


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
    said = error["msg"].removeprefix("Value error, ")
    if error["type"] in ("model_type", "dict_type"):  # which pydantic says in words of Python
        said = "Input should be a table of settings"
    return f"{said}{shown[:128]}"


def _problem(name: str, layer: Layer, path: str, reason: str) -> LayerProblem:
    return LayerProblem(
        layer=name,
        revision=layer.revision,
        path=path[:_PATH_LENGTH],
        reason=reason[:_REASON_LENGTH],
    )


def _unlocked(heeded: Heeded, locked: Sequence[str]) -> Heeded:
    """What is left of a layer where the device's own file locks something."""
    if not locked:
        return heeded
    skipped = list(heeded.skipped)

    def take(patch: Settings, above: Path) -> Settings:
        taken: Settings = {}
        for name, value in patch.items():
            path = (*above, name)
            if isinstance(value, dict) and value:
                inner = take(value, path)
                if inner:
                    taken[name] = inner
                continue
            dotted = ".".join(path)
            lock = next((lock for lock in locked if _touches(dotted, value, lock)), None)
            if lock is None:
                taken[name] = value
            else:
                skipped.append((dotted[:_PATH_LENGTH], f"the device's own file locks {lock}"))
        return taken

    patch = take(heeded.patch, ())
    return Heeded(patch, tuple(skipped))


def _touches(path: str, value: JsonValue, lock: str) -> bool:
    """Whether a change lies within what is locked, or replaces an object that holds it."""
    replaces = not isinstance(value, dict) and lock.startswith(f"{path}.")
    return path == lock or path.startswith(f"{lock}.") or replaces


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
