"""One retained layer of the fleet's configuration, and what an agent reports of the sum (spec §6).

Layers merge in this order, each over the ones before (RFC 7396: objects merge, lists and values
replace, null removes): the agent's own file, `default`, each of the device's groups in the order in
which its `groups` names them, `device`. What the local file locks no layer changes.
"""

import hashlib
import json
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

LAYER_LIMIT_BYTES = 64 * 1024
HISTORY_LENGTH = 20

Revision = Annotated[int, Field(ge=1, le=2**53 - 1)]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Rollout(_Document):
    """For which share of the devices a layer is in force: `percent` of them, always the same ones, and
    none further once more than `pause_at_errors` of those report errors."""

    percent: Annotated[int, Field(ge=0, le=100)] = 100
    pause_at_errors: Annotated[int, Field(ge=1)] | None = None


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


class LayerProblem(_Document):
    """One thing wrong with a layer: `layer` is `default`, `group/NAME` or `device`; `path` is dotted."""

    layer: str
    revision: int | None
    path: str
    reason: str


class Reported(_Document):
    """What an agent runs, retained on `config/reported`. `sources` tells for each dotted path of
    `effective` which layer its value is from (`file` for the local file, `built-in` for a default);
    `revisions` are the layers in force, `waiting` those that take effect when the device is idle."""

    device_id: str
    software: str
    at: AwareDatetime
    hash: str
    effective: dict[str, JsonValue]
    sources: dict[str, str]
    revisions: dict[str, int]
    errors: tuple[LayerProblem, ...] = ()
    waiting: tuple[str, ...] = ()
    state: Literal["applied", "refused", "waiting"] = "applied"


def hash_of(document: JsonValue) -> str:
    """The SHA-256 of a JSON document, whatever the order of its members, in hex digits."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
