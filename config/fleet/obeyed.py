"""The highest revision of each layer that a device has obeyed: it never goes back.

A broker that comes back with an old disk, or anybody who writes an old layer again, shows a device what it
was told before. It keeps what it runs, and says so; who wants it otherwise writes a higher revision. The
same holds for another content under the revision that it runs.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from bellwire.config.fleet.layer import Layer, LayerProblem, Revision, hash_of

_REMEMBERED_AT_MOST = 64
"""Layers: those in force and some that were, such as those of groups that the device has left."""


class Obeyed(BaseModel):
    """A layer's highest revision that was obeyed, and the hash of what it said."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    revision: Revision
    hash: Annotated[str, Field(max_length=64)]


class ObeyedLayers:
    """What a device has obeyed, by the layer's name.

    Args:
        known: What it knows from before.
    """

    def __init__(self, known: Mapping[str, Obeyed] | None = None) -> None:
        self._highest = dict(known or {})

    @property
    def highest(self) -> dict[str, Obeyed]:
        """As it is to be kept."""
        return dict(self._highest)

    def note(self, in_force: Mapping[str, Layer]) -> None:
        """These layers are in force now."""
        for name, layer in in_force.items():
            known = self._highest.get(name)
            if known is None or layer.revision > known.revision:
                self._highest.pop(name, None)
                self._highest[name] = Obeyed(revision=layer.revision, hash=content_hash(layer))
        left = [name for name in self._highest if name not in in_force]
        for name in left[: max(0, len(self._highest) - _REMEMBERED_AT_MOST)]:
            del self._highest[name]

    def sift(
        self, shown: Mapping[str, Layer | LayerProblem], own: Mapping[str, Layer]
    ) -> tuple[dict[str, Layer | LayerProblem], tuple[LayerProblem, ...]]:
        """What the device is to look at of the layers that it is shown: in place of one that it has gone
        beyond its own, where it has it still. And those that it does not follow, each with the reason."""
        followed: dict[str, Layer | LayerProblem] = {}
        outdated: list[LayerProblem] = []
        for name, layer in shown.items():
            why = self._why_not(name, layer) if isinstance(layer, Layer) else None
            if why is None:
                followed[name] = layer
                continue
            outdated.append(LayerProblem(layer=name, revision=layer.revision, path="", reason=why))
            if name in own:
                followed[name] = own[name]
        return followed, tuple(outdated)

    def beyond(self, revisions: Iterable[tuple[str, int]]) -> dict[str, int]:
        """The revisions that were obeyed and are higher than these, or of layers not among them."""
        known = dict(revisions)
        return {
            name: obeyed.revision
            for name, obeyed in self._highest.items()
            if obeyed.revision > known.get(name, 0)
        }

    def _why_not(self, name: str, shown: Layer) -> str | None:
        known = self._highest.get(name)
        if known is None or shown.revision > known.revision:
            return None
        if shown.revision < known.revision:
            return (
                f"older than revision {known.revision}, which this device has obeyed and keeps: write the"
                f" layer again, above revision {known.revision}"
            )
        if known.hash == content_hash(shown):
            return None
        return (
            f"another content than that of revision {known.revision} which this device has obeyed and"
            f" keeps: write the layer again, above revision {known.revision}"
        )


def content_hash(layer: Layer) -> str:
    """The hash of what a layer says. What a later version adds to layers, and this one does not say, makes
    no difference."""
    return hash_of(layer.model_dump(mode="json", exclude_defaults=True))
