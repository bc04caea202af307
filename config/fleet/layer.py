"""One retained layer of the fleet's configuration, and what an agent reports of the sum (spec §6).

Layers merge in this order, each over the ones before (RFC 7396: objects merge, lists and values
replace, null removes): the agent's own file, `default`, each of the device's groups in the order in
which its `groups` names them, `device`. What the local file locks a device skips. The rules are in
:mod:`config.fleet.merge`.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, field_validator

LAYER_LIMIT_BYTES = 64 * 1024
LAYER_LIMIT_VALUES = 4096
"""How many keys and items of lists a layer has at most: checking more would keep a device busy."""
LAYER_LIMIT_DEPTH = 16
LAYER_LIMIT_KEY = 256
HISTORY_LENGTH = 20

Revision = Annotated[int, Field(ge=1, le=2**53 - 1)]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


def _refuse_non_numbers(settings: dict[str, JsonValue]) -> dict[str, JsonValue]:
    try:
        json.dumps(settings, allow_nan=False)
    except ValueError as error:
        raise ValueError("NaN and Infinity are no JSON numbers (RFC 8259)") from error
    return settings


class Rollout(_Document):
    """For which share of the devices a layer is in force: `percent` of them, always the same ones. The
    others run `before`, the settings of the revision before (nothing where there is none): a device
    that never saw that revision still knows it.

    Once more than `pause_at_errors` of that share refuse the layer, it goes back to the share `back_to`
    (:mod:`config.fleet.rollout_pause`), and `paused_at` then says which share that was."""

    percent: Annotated[int, Field(ge=0, le=100)] = 100
    pause_at_errors: Annotated[int, Field(ge=1)] | None = None
    back_to: Annotated[int, Field(ge=0, le=100)] = 0
    paused_at: Annotated[int, Field(ge=1, le=100)] | None = None
    before: dict[str, JsonValue] = Field(default_factory=dict)

    _numbers = field_validator("before")(_refuse_non_numbers)


class Layer(_Document):
    """A layer as it is retained. `settings` is a merge patch over AgentSettings' configurable part;
    `parent` is the hash of the layer that the author had before them, empty for a first one."""

    revision: Revision
    author: Annotated[str, Field(min_length=1, max_length=128)]
    at: AwareDatetime
    settings: dict[str, JsonValue]
    parent: Annotated[str, Field(max_length=64)] = ""
    rollout: Rollout = Field(default_factory=Rollout)
    comment: Annotated[str, Field(max_length=512)] = ""

    _numbers = field_validator("settings")(_refuse_non_numbers)


class LayerProblem(_Document):
    """One thing wrong with a layer: `layer` is `default`, `group/NAME` or `device`; `path` is dotted."""

    layer: str
    revision: int | None
    path: str
    reason: str


class Reported(_Document):
    """What an agent runs, retained on `config/reported`. `sources` tells for each dotted path of
    `effective` which layer its value is from (`file` for the local file, `built-in` for a default);
    `revisions` are the layers in force, `waiting` the settings that take effect when the device is
    idle. `local` and `locked` are the configurable part of its own file, so that an operator can
    compute what a layer would change; `remote` is what it opens to layers. `skipped` are the keys of the
    layers in force that the device does not heed, which is no error: the rest of the layer counts.

    `outdated` are layers that the broker shows at a revision that the device has gone beyond, or with
    another content under the revision that it runs: it keeps its own. `obeyed` are the highest revisions
    that it has obeyed of layers where that is more than `revisions` says. `on_disk` tells whether it has
    the layers in force on a disk of its own."""

    device_id: str
    software: str
    at: AwareDatetime
    hash: str
    effective: dict[str, JsonValue]
    sources: dict[str, str]
    revisions: dict[str, int]
    local: dict[str, JsonValue] = Field(default_factory=dict)
    locked: tuple[str, ...] = ()
    remote: tuple[str, ...] = ()
    errors: tuple[LayerProblem, ...] = ()
    skipped: tuple[LayerProblem, ...] = ()
    outdated: tuple[LayerProblem, ...] = ()
    obeyed: dict[str, int] = Field(default_factory=dict)
    on_disk: bool = True
    waiting: tuple[str, ...] = ()
    state: Literal["applied", "refused", "waiting"] = "applied"


def hash_of(document: JsonValue) -> str:
    """The SHA-256 of a JSON document, whatever the order of its members, in hex digits."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def too_much_in(settings: dict[str, JsonValue]) -> str | None:
    """Why settings are more than a device checks; None where they are not."""
    values = 0
    level: list[JsonValue] = [settings]
    for _ in range(LAYER_LIMIT_DEPTH):
        if any(
            len(key) > LAYER_LIMIT_KEY
            for value in level
            if isinstance(value, dict)
            for key in value
        ):
            return f"a key of a layer has at most {LAYER_LIMIT_KEY} characters"
        level = [inner for value in level for inner in _inside(value)]
        values += len(level)
        if values > LAYER_LIMIT_VALUES:
            return (
                f"a layer has at most {LAYER_LIMIT_VALUES} values, keys and items of lists counted"
            )
        if not level:
            return None
    return f"a layer is at most {LAYER_LIMIT_DEPTH} objects and lists deep"


def values_in(settings: dict[str, JsonValue]) -> int:
    """How many keys and items of lists there are."""
    values = 0
    level: list[JsonValue] = [settings]
    while level:
        level = [inner for value in level for inner in _inside(value)]
        values += len(level)
    return values


def _inside(value: JsonValue) -> Iterable[JsonValue]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
