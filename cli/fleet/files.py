"""The fleet's layers as files: `default`, `groups/NAME` and `devices/ID`, each `.toml` or `.json`.

A file holds a layer's settings and nothing else: who wrote it and when is the register's to say. TOML
has no null; a layer that removes a value is JSON.
"""

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import JsonValue

from bellwire.config.fleet.layer import LAYER_LIMIT_BYTES
from bellwire.signaling.errors import InvalidInput
from bellwire.signaling.topics import DEFAULT_LAYER, LayerName, device_layer, group_layer

Settings = dict[str, JsonValue]

_FOLDERS = {"groups": group_layer, "devices": device_layer}
_SUFFIXES = (".toml", ".json")


def read_layers(path: Path, name: LayerName | None = None) -> dict[LayerName, Settings]:
    """The layers in a file or a directory; `name` is the layer of a file whose own name does not say.

    Raises:
        InvalidInput: a file cannot be read, is no layer's, or two are the same layer's.
    """
    return {layer: _settings_in(file) for layer, file in find_layers(path, name).items()}


def find_layers(path: Path, name: LayerName | None = None) -> dict[LayerName, Path]:
    """The file of each layer, as `read_layers` reads them.

    Raises:
        InvalidInput: a file is no layer's, or two are the same layer's.
    """
    if not path.is_dir():
        return {name or _layer_named(path): path}
    if name is not None:
        raise InvalidInput(f"{path} is a directory: its files say which layers they are")
    found: dict[LayerName, Path] = {}
    for file in _files_in(path):
        layer = _layer_named(file)
        if layer in found:
            raise InvalidInput(f"{found[layer]} and {file} are both layer {layer}: remove one")
        found[layer] = file
    if not found:
        raise InvalidInput(
            f"{path} holds no layers: write default.toml, groups/NAME.toml or devices/ID.toml there"
        )
    return dict(sorted(found.items()))


def rewrite_layer(file: Path, settings: Settings) -> None:
    """Has a layer's file say something else, in its own format. Comments in it are gone.

    Raises:
        InvalidInput: it cannot be written, or TOML cannot say it.
    """
    if file.suffix != ".json" and _has_null(settings):
        raise InvalidInput(
            f"{file} would have to say null, which TOML cannot: make it a .json file, then do this again"
        )
    try:
        file.write_text(_as_json(settings) if file.suffix == ".json" else tomli_w.dumps(settings))
    except OSError as error:
        raise InvalidInput(f"{file} cannot be written: {error.strerror}") from error


def write_layers(folder: Path, layers: Mapping[LayerName, Settings]) -> dict[LayerName, Path]:
    """Writes layers as files that `read_layers` reads back as they were; returns them."""
    written = {}
    for name, settings in layers.items():
        stem = folder / name.replace("group/", "groups/").replace("device/", "devices/")
        stem.parent.mkdir(parents=True, exist_ok=True)
        if _has_null(settings):
            suffix, text = ".json", _as_json(settings)
        else:
            suffix, text = ".toml", tomli_w.dumps(settings)
        file = stem.with_name(f"{stem.name}{suffix}")  # with_suffix would cut `floor.1`
        file.write_text(text)
        written[name] = file
    return written


def _files_in(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        if file.is_dir() or any(part.startswith(".") for part in inside.parts):
            continue
        expected = (inside.stem == "default" and len(inside.parts) == 1) or (
            len(inside.parts) == 2 and inside.parts[0] in _FOLDERS
        )
        if expected and file.suffix in _SUFFIXES:
            yield file
        elif file.suffix in (*_SUFFIXES, ".yaml", ".yml"):
            raise InvalidInput(
                f"{file} is no layer: a layer is default, groups/NAME or devices/ID, .toml or .json"
            )


def _layer_named(file: Path) -> LayerName:
    if file.parent.name in _FOLDERS:
        return _FOLDERS[file.parent.name](file.stem)
    if file.stem == "default":
        return DEFAULT_LAYER
    raise InvalidInput(
        f"{file} does not say which layer it is: add --default, --group NAME or --device ID,"
        " or call it default.toml, groups/NAME.toml or devices/ID.toml"
    )


def _settings_in(file: Path) -> Settings:
    try:
        content = file.read_bytes()
        if len(content) > 4 * LAYER_LIMIT_BYTES:
            raise InvalidInput(f"{file} is no layer: it has {len(content)} bytes")
        text = content.decode()
        document: Any = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
        document = json.loads(json.dumps(document, allow_nan=False))
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, RecursionError) as error:  # TOML's dates are no JSON
        raise InvalidInput(f"{file} is not a layer's settings: {error}") from error
    if not isinstance(document, dict):
        raise InvalidInput(f"{file} must hold an object of settings")
    return document


def _as_json(settings: Settings) -> str:
    return json.dumps(settings, indent=2, ensure_ascii=False) + "\n"


def _has_null(value: JsonValue) -> bool:
    if isinstance(value, dict):
        return any(map(_has_null, value.values()))
    return any(map(_has_null, value)) if isinstance(value, list) else value is None
