"""One retained layer of the fleet's configuration, and what an agent reports of the sum (spec §6).

Layers merge in this order, each over the ones before (RFC 7396: objects merge, lists and values
replace, null removes): the agent's own file, `default`, each of the device's groups in the order in
which its `groups` names them, `device`. What the local file locks no layer changes. The rules are in
:mod:`config.fleet_merge`.
"""

import hashlib
import json
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, field_validator

LAYER_LIMIT_BYTES = 64 * 1024
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
    (:mod:`config.rollout_pause`), and `paused_at` then says which share that was."""

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
    compute what a layer would change."""

    device_id: str
    software: str
    at: AwareDatetime
    hash: str
    effective: dict[str, JsonValue]
    sources: dict[str, str]
    revisions: dict[str, int]
    local: dict[str, JsonValue] = Field(default_factory=dict)
    locked: tuple[str, ...] = ()
    errors: tuple[LayerProblem, ...] = ()
    waiting: tuple[str, ...] = ()
    state: Literal["applied", "refused", "waiting"] = "applied"


def hash_of(document: JsonValue) -> str:
    """The SHA-256 of a JSON document, whatever the order of its members, in hex digits."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
