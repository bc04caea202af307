"""The rooms of the product as docs/architecture.md shows them: what each package says of itself, and which
rooms of the same folder it is built on. Drawn from the code, so that it cannot be out of date."""

import ast
from collections.abc import Iterable
from pathlib import Path

from docs.tables import table

ROOT = Path(__file__).resolve().parents[1]

FOLDERS = ("cli", "agent", "hardware", "push", "broker", "config", "signaling")
"""From the outermost to the one that all are built on."""


def rooms() -> str:
    """A row for each room, those that others are built on below them. A module that stands in a folder of
    the top by itself is a room too."""
    return table(
        ["room", "what lives there, and what does not", "built on"],
        (row for folder in FOLDERS for row in _rows(folder)),
    )


def _rows(folder: str) -> Iterable[list[str]]:
    built_on = _arrows(folder)
    for room in _from_the_top(built_on):
        if room == folder:
            continue
        shown = f"`{room}/`" if (ROOT / room).is_dir() else f"`{room}.py`"
        others = ", ".join(f"`{_short(other)}`" for other in sorted(built_on[room] - {folder}))
        yield [shown, _says(room), others or "-"]


def _says(room: str) -> str:
    """The first sentences of its docstring, up to the first blank line."""
    path = ROOT / room
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    return " ".join((ast.get_docstring(ast.parse(source)) or "").partition("\n\n")[0].split())


def _short(room: str) -> str:
    return room.partition("/")[2]


def _arrows(folder: str) -> dict[str, set[str]]:
    """Each room of a folder, and the others of it that its modules import."""
    rooms = {str(path.parent.relative_to(ROOT)) for path in (ROOT / folder).rglob("__init__.py")}
    arrows: dict[str, set[str]] = {room: set() for room in rooms}
    for path in sorted((ROOT / folder).rglob("*.py")):
        room = _room_of(path)
        arrows.setdefault(room, set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                for name in node.names:
                    other = _meant(node.module, name.name)
                    if other is not None and other.split("/")[0] == folder and other != room:
                        arrows[room].add(other)
    return {room: others for room, others in arrows.items() if "migrations" not in room}


def _room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "/".join(parts if len(parts) == 2 and parts[1] != "__init__" else parts[:-1])


def _meant(module: str, name: str) -> str | None:
    """The room that `from module import name` reaches into."""
    if not module.startswith("bellwire."):
        return None
    path = ROOT.joinpath(*module.split(".")[1:])
    for found in (path / f"{name}.py", path.with_suffix(".py"), path / "__init__.py"):
        if found.exists():
            return _room_of(found)
    return None


def _from_the_top(arrows: dict[str, set[str]]) -> list[str]:
    """The rooms in an order in which each stands above those it is built on."""
    left, ordered = dict(arrows), []
    while left:
        used = set().union(*left.values())
        top = sorted(room for room in left if room not in used) or sorted(left)
        ordered += top
        for room in top:
            del left[room]
    return ordered
