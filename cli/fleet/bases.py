"""Which revision of each layer a directory of files was made of, so that `apply` overwrites nothing that its
author has not seen: `bellwire fleet export` notes it beside the files, and `apply` looks.

A directory without the note is applied as it is. What counts is what a layer says: a revision that says what
the noted one said, such as a rollout's next step, overwrites nothing."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from bellwire.cli.fleet.files import Settings
from bellwire.config.fleet.layer import Layer, hash_of
from bellwire.config.fleet.writing import Held
from bellwire.signaling.errors import InvalidInput, Refusal
from bellwire.signaling.topics import LayerName

NOTE = ".bellwire-fleet.json"

_MISSING = object()
_SHOWN = 80


class LayerChanged(Refusal):
    """A layer says something else than the revision that a file was made of."""

    slug = "layer-changed"
    title = "Another revision came since the files were exported"


class Base(BaseModel):
    """The revision that a file was made of; `hash` is that of its settings."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    file: str
    revision: int = Field(ge=0)
    hash: str


class _Note(BaseModel):
    model_config = ConfigDict(extra="ignore")

    layers: dict[LayerName, Base] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bases:
    """What a directory's note says."""

    path: Path
    layers: dict[LayerName, Base]

    def of(self, name: LayerName) -> Base:
        """What a layer's file was made of: of nothing, where the note does not know it."""
        return self.layers.get(name) or Base(file="", revision=0, hash=hash_of({}))


def find_bases(path: Path) -> Bases | None:
    """The note beside the files at `path`, a directory or one of its files; None where there is none.

    Raises:
        InvalidInput: it cannot be read.
    """
    folders = [path] if path.is_dir() else [path.parent, path.parent.parent]
    for folder in folders:
        file = folder / NOTE
        if not file.is_file():
            continue
        try:
            return Bases(file, _Note.model_validate_json(file.read_bytes()).layers)
        except (OSError, ValidationError) as error:
            raise InvalidInput(
                f"{file}, which notes what the files were made of, cannot be read: export into a new"
                " directory, or remove it to write over whatever the layers say now"
            ) from error
    return None


def note_bases(
    path: Path, layers: Mapping[LayerName, Layer], files: Mapping[LayerName, Path]
) -> None:
    """Notes at `path`, beside what it says already, that these files are what these layers say.

    Raises:
        InvalidInput: it cannot be written.
    """
    known = find_bases(path.parent)
    noted = dict(known.layers) if known else {}
    for name, layer in layers.items():
        file = files[name]
        noted[name] = Base(
            file=file.name if file.parent == path.parent else f"{file.parent.name}/{file.name}",
            revision=layer.revision,
            hash=hash_of(layer.settings),
        )
    document = {"layers": {name: base.model_dump() for name, base in sorted(noted.items())}}
    beside = path.with_name(f"{path.name}.new")
    try:
        beside.write_text(json.dumps(document, indent=2) + "\n")
        beside.replace(path)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror}") from error


def changed_since(
    bases: Bases, layers: Mapping[LayerName, Held], wanted: Mapping[LayerName, Settings]
) -> dict[LayerName, Layer]:
    """The layers that say neither what the files were made of nor what they say now."""
    changed = {}
    for name, settings in wanted.items():
        layer = layers[name].layer if name in layers else None
        if layer is None or same(layer.settings, settings):
            continue
        if hash_of(layer.settings) != bases.of(name).hash:
            changed[name] = layer
    return changed


def refuse_changed(bases: Bases, changed: Mapping[LayerName, Layer]) -> None:
    """Raises LayerChanged where there is such a layer."""
    for name, layer in sorted(changed.items()):
        raise LayerChanged(
            f"layer {name}: {_named(layer)} came since the file was made of"
            f" {_made_of(bases.of(name))}, and nothing was written. See it with `bellwire fleet diff`;"
            " take both with --merge, or export into a new directory and change that"
        )


def merged(
    bases: Bases,
    changed: Mapping[LayerName, Layer],
    wanted: Mapping[LayerName, Settings],
    histories: Mapping[LayerName, Iterable[Layer]],
) -> dict[LayerName, Settings]:
    """What the changed layers are to say so that both sides' changes hold, key by key.

    Raises:
        LayerChanged: both have changed one key, each otherwise; or the history has no longer what the
            file was made of.
    """
    found = {}
    for name, layer in sorted(changed.items()):
        base = _settings_of(name, bases.of(name), histories[name])
        settings, conflicts = merge_three(base, wanted[name], layer.settings)
        if conflicts:
            path, ours, theirs = conflicts[0]
            paths = ", ".join(sorted(path for path, _, _ in conflicts))
            raise LayerChanged(
                f"layer {name}: the file and {_named(layer)} both change {paths}: {path} is {ours} in the"
                f" file and {theirs} there; nothing was written. Write theirs into the file and apply with"
                " --merge again, or export into a new directory and change that"
            )
        found[name] = settings
    return found


def merge_three(
    base: Settings, ours: Settings, theirs: Settings, above: str = ""
) -> tuple[Settings, list[tuple[str, str, str]]]:
    """Both changes of one document, and the dotted paths that both have changed, each otherwise, with
    what the one and the other say."""
    result: Settings = {}
    conflicts: list[tuple[str, str, str]] = []
    for name in dict.fromkeys([*ours, *theirs]):
        was, our, their = (side.get(name, _MISSING) for side in (base, ours, theirs))
        path = f"{above}.{name}" if above else name
        if same(our, their) or same(their, was):
            chosen = our
        elif same(our, was):
            chosen = their
        elif isinstance(our, dict) and isinstance(their, dict):
            inner = was if isinstance(was, dict) else {}
            chosen, found = merge_three(inner, our, their, path)
            conflicts += found
        else:
            conflicts.append((path, _shown(our), _shown(their)))
            continue
        if chosen is not _MISSING:
            result[name] = chosen  # type: ignore[assignment]
    return result, conflicts


def same(one: object, other: object) -> bool:
    """Whether two JSON values are the same; 1 is not true."""
    if one is _MISSING or other is _MISSING:
        return one is other
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _settings_of(name: LayerName, base: Base, history: Iterable[Layer]) -> dict[str, JsonValue]:
    if base.revision == 0:
        return {}
    for layer in history:
        if hash_of(layer.settings) == base.hash:
            return layer.settings
    raise LayerChanged(
        f"layer {name}: its history does not go back to {_made_of(base)}, so that nobody can tell who has"
        " changed what; nothing was written. Export into a new directory, and change that"
    )


def _named(layer: Layer) -> str:
    return f"revision {layer.revision} by {layer.author} ({layer.at:%Y-%m-%d %H:%M:%S} UTC)"


def _made_of(base: Base) -> str:
    return f"revision {base.revision}" if base.revision else "no revision"


def _shown(value: object) -> str:
    return "left out" if value is _MISSING else json.dumps(value, ensure_ascii=False)[:_SHOWN]
