"""The rules of writing a layer with compare-and-set over a broker that only stores and forwards.

Pure: who holds the claim on a layer, what follows what is retained, and which slot of the history a
revision has. The protocol around them, and what it promises, stands in :mod:`broker.fleet.layer_register`.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from bellwire.config.agent.layer_reach import (
    ONLY_THE_FILE,
    WHO_FIELDS,
    local_only_in,
    never_heeded,
    said_anew,
)
from bellwire.config.agent.settings import LOCAL_ONLY_PLACES
from bellwire.config.fleet.layer import (
    HISTORY_LENGTH,
    LAYER_LIMIT_BYTES,
    Layer,
    Rollout,
    hash_of,
    too_much_in,
)
from bellwire.signaling.errors import InvalidInput

CLAIM_LIFE_S = 10
"""How long a claim keeps others from writing; the broker forgets it then (MQTT 5 message expiry)."""
CLAIM_USE_S = 5.0
"""Within which its holder writes: half, so that clocks and networks may differ."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a layer's topic retains; `layer` is None where that is nothing, or no layer."""

    payload: bytes = b""
    layer: Layer | None = None

    @property
    def fingerprint(self) -> str:
        """The hash that the next author writes as `parent`; empty where nothing is retained."""
        if not self.payload:
            return ""
        try:
            return hash_of(json.loads(self.payload))
        except (ValueError, RecursionError):
            return hashlib.sha256(self.payload).hexdigest()

    @property
    def mark(self) -> "Mark":
        """Which revision it is, without what it says."""
        return Mark(0 if self.layer is None else self.layer.revision, self.fingerprint)


class Mark(NamedTuple):
    """Which revision of a layer something is, by number and fingerprint; 0 is of what is no layer."""

    revision: int = 0
    hash: str = ""


NOTHING = Held()


def held(payload: bytes) -> Held:
    """What a retained payload is."""
    try:
        layer = Layer.model_validate_json(payload) if len(payload) <= LAYER_LIMIT_BYTES else None
    except ValidationError:
        layer = None
    return Held(payload, layer)


@dataclass(frozen=True, slots=True)
class Draft:
    """What an operator wants a layer to say."""

    settings: dict[str, JsonValue]
    rollout: Rollout = field(default_factory=Rollout)
    comment: str = ""


def layer_after(before: Held, draft: Draft, *, author: str, at: datetime, known: int) -> Layer:
    """The layer to retain next. `known` is the highest revision of the history, which counts on where
    the layer itself was removed or is not to be read.

    Raises:
        InvalidInput: it is larger than devices take, or says what only a device's own file may.
    """
    _refuse_what_only_a_file_says(before, draft)
    layer = Layer(
        revision=max(known, before.layer.revision if before.layer else 0) + 1,
        author=author,
        at=at,
        settings=draft.settings,
        parent=before.fingerprint,
        rollout=draft.rollout,
        comment=draft.comment,
    )
    for settings in (layer.settings, layer.rollout.before):
        if (too_much := too_much_in(settings)) is not None:
            raise InvalidInput(f"{too_much}: nothing was written")
    size = len(document_of(layer))
    if size > LAYER_LIMIT_BYTES:
        raise InvalidInput(
            f"a layer has at most {LAYER_LIMIT_BYTES} bytes, this one has {size}: move what only some"
            " devices need into layers of their groups"
        )
    return layer


def _refuse_what_only_a_file_says(before: Held, draft: Draft) -> None:
    """A secret at all: every device could read it, and the broker would keep it. Wiring, which devices
    skip, where the layer did not say it already: a layer from before that was so can be mended bit by
    bit, and paused."""
    old = before.layer
    known = [] if old is None else [old.settings, old.rollout.before]
    for settings in (draft.settings, draft.rollout.before):
        own = [name for name in WHO_FIELDS if name in settings]
        anew = said_anew(settings, *known)
        unheeded = {path: why for path, why in never_heeded(settings).items() if path in anew}
        found = [
            *local_only_in(settings, LOCAL_ONLY_PLACES),
            *own,
            *(path for path, why in unheeded.items() if why == ONLY_THE_FILE),
        ]
        if found:
            is_new = any(path == found[0] or path.startswith(f"{found[0]}.") for path in anew)
            how = "leave it out here" if is_new else f"first `bellwire fleet unset {found[0]}` here"
            raise InvalidInput(
                f"{found[0]}: {ONLY_THE_FILE}, no layer; devices would skip it. Say it there, and"
                f" {how}; nothing was written"
            )
        for path, why in unheeded.items():
            raise InvalidInput(f"{path}: {why}. Devices would skip it; nothing was written")


def document_of(layer: Layer) -> bytes:
    """A layer as it is retained."""
    return layer.model_dump_json().encode()


def slot_of(revision: int) -> int:
    """Where in the history a revision stands: a ring, so that it never grows."""
    return revision % HISTORY_LENGTH


def in_order(revisions: Iterable[Layer]) -> list[Layer]:
    """A history, newest first."""
    return sorted(revisions, key=lambda layer: layer.revision, reverse=True)


class Claim(BaseModel):
    """That `author` is about to write on top of `parent`; `nonce` tells claims apart."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    nonce: Annotated[str, Field(min_length=8, max_length=64)]
    author: Annotated[str, Field(min_length=1, max_length=128)]
    parent: Annotated[str, Field(max_length=64)]


class Claims:
    """The claims on one layer, in the order in which the broker sends them, which is the same for all.

    The first claim on a parent holds it for its life; one that comes meanwhile has lost, for good.
    """

    def __init__(self) -> None:
        self._holders: dict[str, tuple[Claim, float]] = {}

    def take(self, claim: Claim, now: float, life_s: float) -> None:
        """A claim has come, at `now` in monotonic seconds."""
        self._holders = {p: held for p, held in self._holders.items() if held[1] > now}
        self._holders.setdefault(claim.parent, (claim, now + life_s))

    def holder(self, parent: str, now: float) -> Claim | None:
        """Who may write on top of `parent`."""
        claim, until = self._holders.get(parent, (None, 0.0))
        return claim if until > now else None
