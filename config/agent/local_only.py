"""Which settings only a device's own file may say, because they are secrets: they never travel in a
fleet's configuration (spec §6).

A field says so itself: `code: Annotated[SecretStr | None, LOCAL_ONLY] = None`. The published JSON Schema
shows it as `"x-local-only": true`.
"""

from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, Field

SCHEMA_KEY = "x-local-only"
LOCAL_ONLY: Any = Field(json_schema_extra={SCHEMA_KEY: True})

Places = frozenset[tuple[str, ...]]
"""Paths from a document's root; `*` stands for every key of a mapping."""


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
    return sorted(".".join(path) for path in _leaves(split_local_only(document, places)[1], places))


def _leaves(own: Mapping[str, Any], places: Places) -> Iterator[tuple[str, ...]]:
    for key, value in own.items():
        inner = frozenset(place[1:] for place in places if place[0] in ("*", key))
        if () in inner:
            yield (key,)
        else:
            yield from ((key, *rest) for rest in _leaves(value, inner))


def _places(annotation: object, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    origin = get_origin(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get(SCHEMA_KEY):
                yield (*path, name)
            else:
                yield from _places(field.annotation, (*path, name))
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
