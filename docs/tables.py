"""Markdown tables, and pydantic models as such."""

import json
from collections.abc import Collection, Iterable
from typing import Any

from pydantic import BaseModel


def table(heads: list[str], rows: Iterable[list[str]]) -> str:
    """A table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(
        f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |\n"
        for cells in lines
    )


def sections(models: Iterable[tuple[str, type[BaseModel], str]]) -> str:
    """A section for each heading, model, and table of its fields."""
    return "\n".join(
        f"### {head}\n\n{_purpose(model)}\n\n{fields}" for head, model, fields in models
    )


def _purpose(model: type[BaseModel]) -> str:
    """What a model says it is. Where it says "See `Base`.", what the base says stands in place of that."""
    text = inline(model.__doc__)
    for base in model.__mro__[1:]:
        text = text.replace(f"See `{base.__name__}`.", inline(base.__doc__))
    return text


def taken(model: type[BaseModel], left_out: Collection[str] = ()) -> str:
    """The fields of a model that is read: what each takes, and what it is where it is left out."""
    rows = [
        [f"`{name}`", kind, "required" if required else _json_default(described)]
        for name, kind, described, required in _fields(model, left_out)
    ]
    return table(["field", "what it takes", "default"], rows)


def sent(model: type[BaseModel], left_out: Collection[str] = (), *, missing: str) -> str:
    """The fields of a model that is written; `missing` says how one without a value looks."""
    rows = [
        [f"`{name}`", kind, "always" if required or "default" in described else missing]
        for name, kind, described, required in _fields(model, left_out)
    ]
    return table(["field", "what it holds", "there"], rows) if rows else "No further fields.\n"


def _fields(
    model: type[BaseModel], left_out: Collection[str]
) -> Iterable[tuple[str, str, dict[str, Any], bool]]:
    """Name, kind, schema, and whether it is required, of each field."""
    schema = model.model_json_schema(by_alias=True)
    for name, described in schema["properties"].items():
        if name not in left_out:
            kind = _kind(described, schema.get("$defs", {}))
            unit = f", {described['description']}" if described.get("description") else ""
            if described.get("default", "") is None:
                del described["default"]
            yield name, kind + unit, described, name in schema.get("required", ())


def _kind(described: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "$ref" in described:
        name = described["$ref"].rpartition("/")[2]
        return _kind(definitions[name], definitions)
    if choices := described.get("anyOf") or described.get("oneOf"):
        kinds = [_kind(choice, definitions) for choice in choices]
        return " or ".join(kind for kind in kinds if kind != "null")
    if "enum" in described:
        return ", ".join(f"`{value}`" for value in described["enum"])
    if "const" in described:
        return f"`{described['const']}`"
    if described.get("type") == "array":
        return f"list of {_kind(described['items'], definitions)}"
    if described.get("type") == "object":
        if names := described.get("properties"):
            return "object of " + ", ".join(f"`{name}`" for name in names)
        return "object of strings"
    return _scalar(described)


def _scalar(described: dict[str, Any]) -> str:
    kind = described.get("format", described.get("type", "any"))
    kind = {"date-time": "RFC 3339 time"}.get(kind, kind)
    low, high = (described.get(bound) for bound in ("minimum", "maximum"))
    longest = described.get("maxLength")
    limits = "" if low is None else f" {low:g} to {high:g}" if _tells(high) else f" from {low:g}"
    return f"{kind}{limits}" + (f" up to {longest} characters" if longest else "")


def _tells(high: float | None) -> bool:
    """Whether an upper bound says something to a reader, rather than how the number is stored."""
    return high is not None and high < 2**53


def _json_default(described: dict[str, Any]) -> str:
    default = described.get("default")
    return "absent" if default is None else f"`{json.dumps(default)}`"


def inline(text: str | None) -> str:
    """A docstring on one line."""
    return " ".join((text or "").split())


def paragraphs(text: str | None) -> str:
    """A docstring with a line for each paragraph."""
    return "\n\n".join(inline(paragraph) for paragraph in (text or "").split("\n\n"))
