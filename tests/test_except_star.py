"""Before Python 3.11.4 (Debian 12 has 3.11.2) what is raised in an `except*` comes out wrapped in a group
(CPython gh-103590): a cancellation would be none, an error of ours not be known."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("agent", "broker", "cli", "config", "hardware", "push", "signaling")
FILES = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]


def what_may_raise(source: str) -> list[int]:
    """The lines in an `except*` that raise, wait, or end a command."""
    handlers = [
        handler
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.TryStar)
        for handler in node.handlers
    ]
    return [
        inside.lineno
        for handler in handlers
        for inside in ast.walk(handler)
        if isinstance(inside, ast.Raise | ast.Await)
        or (isinstance(inside, ast.Call) and getattr(inside.func, "id", "") == "fail")
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_is_raised_where_a_group_is_handled(file: Path) -> None:
    assert what_may_raise(file.read_text()) == []


@pytest.mark.parametrize("statement", ["raise error", "await waiting", "fail(str(error))"])
def test_what_may_raise_is_found(statement: str) -> None:
    source = f"async def f():\n try: pass\n except* ValueError as error:\n  {statement}\n"
    assert what_may_raise(source) == [4]
