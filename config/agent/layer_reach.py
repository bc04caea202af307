"""What a layer of the fleet may say to a device, and what only the device's own file says.

- Never in a layer: who a device is, wiring (which parts there are, their pins, polarity, pull and kind), a
  door's times, and the limits of guessing. Of a part that the file has, a layer may say what is listed
  in PART_FIELDS. Nor secrets, which never travel in a fleet's configuration (spec §6): a field says itself
  that it is one, `code: Annotated[SecretStr | None, LOCAL_ONLY] = None`.
- Only where the file opens it by name, in `remote`: whom a door obeys, and who is answered by the
  device itself (DOOR_FIELDS, ANSWER_FIELDS).
- All else, but for a ring tone that there is not, which the version before took.

What a layer says beyond that is skipped, and the rest of it is in force: a layer that says a pin beside
do-not-disturb must not take do-not-disturb away.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, Field, JsonValue

from bellwire.config.agent.audio import unknown_ring_tone

Settings = dict[str, JsonValue]
Path = tuple[str, ...]

WHO_FIELDS = ("device_id", "identity", "broker", "locked", "remote")
"""Who a device is, and what it lets layers do."""

BUTTON_FIELDS = frozenset({"debounce_s", "long_press_s"})
TARGET_FIELDS = frozenset(
    {"to", "group", "custom_parameters", "early_media", "forward_to", "forward_group"}
)
PART_FIELDS: Mapping[str, frozenset[str]] = {
    "answer": BUTTON_FIELDS,
    "hang_up": BUTTON_FIELDS,
    "hook": BUTTON_FIELDS,
    "mute": BUTTON_FIELDS,
    "keypad": frozenset({"debounce_s"}),
    "ringer": frozenset({"cadence_s"}),
    "status_light": frozenset(),
    "door": frozenset(),
}
"""What a layer may say of each part of the panel. A field that is not here is wiring."""
CALL_BUTTON_FIELDS = BUTTON_FIELDS | TARGET_FIELDS
DOOR_FIELDS = frozenset({"callers", "by_message", "verified_only"})
ANSWER_FIELDS = frozenset({"callers", "after_s", "verified_only"})
LIMIT_FIELDS = ("digit_timeout_s", "wrong_codes", "lockout_s")

SCHEMA_KEY = "x-local-only"
LOCAL_ONLY: Any = Field(json_schema_extra={SCHEMA_KEY: True})
"""A setting that only a device's own file may say; the published JSON Schema shows it."""

Places = frozenset[tuple[str, ...]]
"""Paths from a document's root; `*` stands for every key of a mapping."""

_PATH_LENGTH = 256
ONLY_THE_FILE = "only the device's own file may say this"
NOT_THERE = "the device's own file has no such part or door, and only the file can add one"
_ANSWER = "behaviour.auto_answer"


def _not_opened(path: str) -> str:
    return f'{ONLY_THE_FILE}, unless it opens it to layers with remote = ["{path}"]'


@dataclass(frozen=True, slots=True)
class _Branch:
    """An object in whose members a layer's say differs; `other` is for those without a name here.
    What would replace the object whole is shut, unless it `may_go`: then what it is replaced by is for
    the settings' own rules to judge."""

    inner: "Mapping[str, _Node]"
    other: "_Node" = ONLY_THE_FILE
    may_go: bool = False


@dataclass(frozen=True, slots=True)
class _Value:
    """A value that a layer may say unless it is wrong, and why."""

    wrong: Callable[[JsonValue], str | None]


_OPEN = None
_Node = _Branch | _Value | str | None
"""What a layer may say at a place: anything (None), nothing (and why), or it depends."""


@dataclass(frozen=True, slots=True)
class Heeded:
    """What a device takes of a layer, and each dotted path that it skips, with the reason."""

    patch: Settings
    skipped: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class _Walk:
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def take(self, value: JsonValue, node: _Node, path: Path) -> JsonValue:
        """The part of a value that the node lets through; an empty object is nothing."""
        if isinstance(node, str):
            self.skipped += [(_dotted(leaf), node) for leaf in _leaves(value, path)]
            return {}
        if isinstance(node, _Value):
            wrong = node.wrong(value)
            if wrong is None:
                return value
            self.skipped.append((_dotted(path), wrong))
            return {}
        if node is _OPEN or (node.may_go and not isinstance(value, dict)):
            return value
        if not isinstance(value, dict):
            self.skipped.append((_dotted(path), ONLY_THE_FILE))
            return {}
        taken = {
            name: self.take(inner, node.inner.get(name, node.other), (*path, name))
            for name, inner in value.items()
        }
        return {
            name: inner
            for name, inner in taken.items()
            if inner != {} or node.inner.get(name, node.other) is _OPEN
        }


class LayerReach:
    """How far layers reach into one device.

    Args:
        file: The configurable settings that its own file says.
        remote: What the file opens; entries that cannot be opened open nothing.
    """

    def __init__(self, file: Settings, remote: Collection[str]) -> None:
        self._root = _root(_members(file, "panel"), _members(file, "behaviour", "doors"), remote)

    def heed(self, patch: Settings) -> Heeded:
        """What the device takes of a layer."""
        return _heed(patch, self._root)


def cannot_be_opened(remote: Collection[str], doors: Collection[str]) -> list[str]:
    """The entries of a file's `remote` that open nothing: no door of the file, or no right."""
    rights = {_ANSWER, *(f"{_ANSWER}.{name}" for name in ANSWER_FIELDS)}
    for door in doors:
        place = f"behaviour.doors.{door}"
        rights |= {place, *(f"{place}.{name}" for name in DOOR_FIELDS)}
    return [entry for entry in remote if entry not in rights]


def never_heeded(patch: Settings) -> dict[str, str]:
    """The dotted paths that a layer says and that no device heeds, whatever its file opens, each with why."""
    return dict(_heed(patch, _WIDEST).skipped)


def rights_in(patch: Settings) -> list[str]:
    """The dotted paths of a layer that a device heeds only where its file opens them."""
    never = never_heeded(patch)
    return [path for path, _ in _heed(patch, _NOTHING_OPENED).skipped if path not in never]


def said_anew(patch: Settings, *before: Settings) -> set[str]:
    """The dotted paths of what a patch says and none of those before it said alike."""
    known = [dict(places_in(one)) for one in before]
    return {
        _dotted(path)
        for path, value in places_in(patch)
        if not any(path in one and one[path] == value for one in known)
    }


def places_in(patch: Settings, above: Path = ()) -> Iterator[tuple[Path, JsonValue]]:
    """Each place that a patch says something about: its leaves, an empty object among them."""
    for name, value in patch.items():
        if isinstance(value, dict) and value:
            yield from places_in(value, (*above, name))
        else:
            yield (*above, name), value


def _heed(patch: Settings, root: _Branch) -> Heeded:
    walk = _Walk()
    taken = walk.take(patch, root, ())
    return Heeded(taken if isinstance(taken, dict) else {}, tuple(walk.skipped))


def _root(
    panel: Mapping[str, JsonValue] | None,
    doors: Mapping[str, JsonValue] | None,
    remote: Collection[str] | None,
) -> _Branch:
    """The tree of a device; None stands for any part, any door, and for everything opened."""
    return _Branch(
        {
            **dict.fromkeys(WHO_FIELDS, ONLY_THE_FILE),
            "panel": _panel(panel),
            "audio": _Branch({"ring_tone": _Value(_no_ring_tone)}, other=_OPEN, may_go=True),
            "behaviour": _Branch(
                {
                    **dict.fromkeys(LIMIT_FIELDS, ONLY_THE_FILE),
                    "auto_answer": _rights(_ANSWER, ANSWER_FIELDS, remote, may_go=True),
                    "doors": _doors(doors, remote),
                },
                other=_OPEN,
            ),
        },
        other=_OPEN,
    )


def _panel(panel: Mapping[str, JsonValue] | None) -> _Branch:
    parts: dict[str, _Node] = {
        name: _fields(fields, _OPEN if panel is None or panel.get(name) else NOT_THERE)
        for name, fields in PART_FIELDS.items()
    }
    if panel is None:
        parts["call_buttons"] = _Branch({}, other=_fields(CALL_BUTTON_FIELDS, _OPEN))
    else:
        buttons = panel.get("call_buttons")
        known = buttons if isinstance(buttons, dict) else {}
        parts["call_buttons"] = _Branch(
            {name: _fields(CALL_BUTTON_FIELDS, _OPEN) for name in known},
            other=_fields(CALL_BUTTON_FIELDS, NOT_THERE),
        )
    return _Branch(parts)


def _doors(doors: Mapping[str, JsonValue] | None, remote: Collection[str] | None) -> _Branch:
    if doors is None:
        return _Branch({}, other=_rights("behaviour.doors.NAME", DOOR_FIELDS, remote))
    return _Branch(
        {door: _rights(f"behaviour.doors.{door}", DOOR_FIELDS, remote) for door in doors},
        other=_fields(DOOR_FIELDS, NOT_THERE),
    )


def _rights(
    place: str, fields: Collection[str], remote: Collection[str] | None, *, may_go: bool = False
) -> _Branch:
    shut = {
        name: _not_opened(f"{place}.{name}")
        for name in fields
        if not (remote is None or place in remote or f"{place}.{name}" in remote)
    }
    opened: dict[str, _Node] = dict.fromkeys(fields, _OPEN)
    return _Branch(opened | shut, may_go=may_go and not shut)


def _fields(names: Collection[str], node: _Node) -> _Branch:
    return _Branch(dict.fromkeys(names, node))


def _members(document: JsonValue, *path: str) -> dict[str, JsonValue]:
    for step in path:
        document = document.get(step) if isinstance(document, dict) else None
    return document if isinstance(document, dict) else {}


def _no_ring_tone(value: JsonValue) -> str | None:
    return unknown_ring_tone(value) if isinstance(value, str) else None


def _dotted(path: Path) -> str:
    return ".".join(path)[:_PATH_LENGTH]


def _leaves(value: JsonValue, path: Path) -> Iterator[Path]:
    if not isinstance(value, dict):
        yield path
        return
    for name, inner in value.items():
        yield from _leaves(inner, (*path, name))


def local_only_places(model: type[BaseModel]) -> Places:
    """The paths of a settings model that no layer may say.

    Raises:
        TypeError: one is inside a list, which layers replace as a whole, so that it cannot be kept.
    """
    places = frozenset(_places(model, ()))
    for place in places:
        if "[]" in place:
            raise TypeError(f"{'.'.join(place)} is local only, and inside a list: use a mapping")
    return places


def split_local_only(
    document: Mapping[str, Any], places: Places
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A settings document as two: what may be shared, and what is local only. The second merged over
    the first (RFC 7396) is the document again."""
    shared: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for key, value in document.items():
        inner = frozenset(place[1:] for place in places if place[0] in ("*", key))
        if () in inner:
            own[key] = value
        elif inner and isinstance(value, Mapping):
            shared[key], own_inside = split_local_only(value, inner)
            if own_inside:
                own[key] = own_inside
        else:
            shared[key] = value
    return shared, own


def local_only_in(document: Mapping[str, Any], places: Places) -> list[str]:
    """The dotted paths that a layer's settings say and must not, sorted; null, which would remove the
    value, is saying it too. No value is repeated."""
    return sorted(
        ".".join(path) for path in _local_only_leaves(split_local_only(document, places)[1], places)
    )


def _local_only_leaves(own: Mapping[str, Any], places: Places) -> Iterator[tuple[str, ...]]:
    for key, value in own.items():
        inner = frozenset(place[1:] for place in places if place[0] in ("*", key))
        if () in inner:
            yield (key,)
        else:
            yield from ((key, *rest) for rest in _local_only_leaves(value, inner))


def _places(annotation: object, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    origin = get_origin(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, member in annotation.model_fields.items():
            extra = member.json_schema_extra
            if isinstance(extra, dict) and extra.get(SCHEMA_KEY):
                yield (*path, name)
            else:
                yield from _places(member.annotation, (*path, name))
    elif origin in (Union, UnionType):
        for choice in get_args(annotation):
            yield from _places(choice, path)
    elif origin is Annotated:
        yield from _places(get_args(annotation)[0], path)
    elif origin in (dict, Mapping):
        yield from _places(get_args(annotation)[1], (*path, "*"))
    elif origin in (list, tuple, set, frozenset):
        for choice in get_args(annotation):
            yield from _places(choice, (*path, "[]"))


_WIDEST = _root(None, None, None)
_NOTHING_OPENED = _root(None, None, ())
