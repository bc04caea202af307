"""Who may import whom: the table of the architecture's folders, checked against every module; and that
neither modules nor rooms stand in a circle, or use what another module keeps to itself."""

import ast
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

MAY_IMPORT: dict[str, frozenset[str]] = {
    "signaling": frozenset(),
    "config": frozenset({"signaling"}),
    "broker": frozenset({"signaling", "config"}),
    "push": frozenset({"signaling", "config", "broker"}),
    "hardware": frozenset({"config"}),
    "agent": frozenset({"signaling", "config", "broker", "hardware"}),
    "cli": frozenset({"signaling", "config", "broker", "push", "hardware", "agent"}),
}

OF_THE_SERVER = frozenset(
    {"alembic", "fastapi", "httptools", "prometheus_client", "sqlalchemy", "starlette"}
    | {"uvicorn", "uvloop"}
)
SIGNATURES = frozenset({"cryptography", "jwt"})
OF_THE_PI = frozenset({"gpiozero", "lgpio", "pyaudio", "webrtc", "wrtc"})

FORBIDDEN: dict[str, frozenset[str]] = {
    "signaling": OF_THE_SERVER | OF_THE_PI | SIGNATURES,
    "config": OF_THE_SERVER | OF_THE_PI | SIGNATURES,
    "broker": OF_THE_SERVER | OF_THE_PI | SIGNATURES,
    "push": OF_THE_PI,
    "hardware": OF_THE_SERVER | SIGNATURES,
    "agent": OF_THE_SERVER,
    "cli": frozenset(),
}

ALLOWED_IN_SIGNALING = frozenset(
    {"__future__", "abc", "base64", "bisect", "collections", "contextlib", "copy", "dataclasses"}
    | {"datetime", "decimal", "enum", "functools", "hashlib", "hmac", "itertools", "json", "math"}
    | {"operator", "pydantic", "re", "string", "types", "typing", "unicodedata", "urllib.parse"}
    | {"xml.etree.ElementTree", "xml.parsers.expat"}
)
"""Nothing of it reads a clock, a file, a network or chance, but `datetime`, which is looked into."""

OF_THE_CHECKOUT = frozenset({"tests", "bench", "docs"} | set(MAY_IMPORT))
"""What is not in an installed Bellwire, or only under its one name."""

CLOCKS = frozenset({"now", "utcnow", "today"})


@dataclass(frozen=True)
class Import:
    """A module that a line imports; from `from a import b` both `a` and `a.b` may be meant."""

    line: int
    module: str
    names: tuple[str, ...] = ()

    @property
    def top(self) -> str:
        """The folder of the product (`push` of `bellwire.push.calls`), or the library."""
        return self.module.removeprefix("bellwire.").partition(".")[0]

    @property
    def is_ours(self) -> bool:
        return self.module.partition(".")[0] == "bellwire"

    def is_among(self, allowed: frozenset[str]) -> bool:
        """Whether all that is imported is one of these modules, or inside one."""
        meant = [f"{self.module}.{name}" for name in self.names] or [self.module]
        return all(any(f"{module}.".startswith(f"{name}.") for name in allowed) for module in meant)


def imports_in(tree: ast.Module, package: tuple[str, ...]) -> Iterator[Import]:
    """Every import of a module, wherever it stands; relative ones made absolute."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield Import(node.lineno, alias.name)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = package[: len(package) - level + 1] if level else ()
                absolute = ".".join([*base, *([module] if module else [])])
                yield Import(node.lineno, absolute, tuple(alias.name for alias in names))
            case ast.Call(
                func=ast.Name(id="__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                yield Import(node.lineno, module)


def violations(source: str, path: str) -> list[str]:
    """What a module imports against the table, as `path:line: what`."""
    tree = ast.parse(source, path)
    parts = Path(path).with_suffix("").parts
    package = parts[0]
    found = []
    for imported in imports_in(tree, ("bellwire", *parts[:-1])):
        first_party = imported.is_ours
        refused = (
            imported.top not in {package, *MAY_IMPORT[package]}
            if first_party
            else imported.top in FORBIDDEN[package]
            or (package == "signaling" and not imported.is_among(ALLOWED_IN_SIGNALING))
        )
        if refused or imported.module.partition(".")[0] in OF_THE_CHECKOUT:
            found.append(f"{path}:{imported.line}: {package} may not import {imported.module}")
    return found


def clock_readings(source: str, path: str) -> list[str]:
    """Where a module reads the clock or opens a file by itself, without any import."""
    return [
        f"{path}:{node.lineno}: {ast.unparse(node.func)}"
        for node in ast.walk(ast.parse(source, path))
        if isinstance(node, ast.Call)
        and (
            (isinstance(node.func, ast.Attribute) and node.func.attr in CLOCKS)
            or (isinstance(node.func, ast.Name) and node.func.id in ("open", "input", "print"))
        )
    ]


def modules_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_package_imports_only_what_the_architecture_allows(package: str) -> None:
    modules = modules_of(package)
    assert modules, f"{package}/ holds no module: the table names a folder that is gone"
    found = [
        violation
        for path in modules
        for violation in violations(path.read_text(), str(path.relative_to(ROOT)))
    ]
    assert not found, "\n".join(found)


def test_every_package_of_the_product_stands_in_the_table() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages - {"tests", "bench"} == set(MAY_IMPORT)
    links = {
        link.name: link.readlink()
        for link in (ROOT / "src/bellwire").iterdir()
        if link.is_symlink()
    }
    assert links == {package: Path("../..") / package for package in MAY_IMPORT}


def test_the_table_has_no_circle_and_keeps_relay_and_agent_apart() -> None:
    def reach(package: str) -> frozenset[str]:
        return MAY_IMPORT[package].union(*map(reach, MAY_IMPORT[package]))

    assert not [package for package in MAY_IMPORT if package in reach(package)]
    assert not {"agent", "hardware"} & reach("push")
    assert "push" not in reach("agent")


def test_signaling_has_no_clock_and_opens_no_file() -> None:
    found = [
        reading
        for path in modules_of("signaling")
        for reading in clock_readings(path.read_text(), str(path.relative_to(ROOT)))
    ]
    assert not found, "\n".join(found)


def modules() -> dict[str, Path]:
    """Every module of the product by its name, packages too."""
    found = {}
    for package in MAY_IMPORT:
        for path in modules_of(package):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(("bellwire", *parts)).removesuffix(".__init__")] = path
    return found


def imported_modules(name: str, source: str, known: Collection[str]) -> set[str]:
    """Which of the product's modules a module imports."""
    found = set()
    for imported in imports_in(ast.parse(source), tuple(name.split(".")[:-1])):
        within = {f"{imported.module}.{one}" for one in imported.names} & set(known)
        found |= within or ({imported.module} & set(known))
    return found - {name}


def circles(graph: Mapping[str, set[str]]) -> list[str]:
    """The things of a graph that stand in a circle, or hang on one: none where it has none."""
    waiting = {one: set(others) for one, others in graph.items()}
    while free := [one for one, others in waiting.items() if not others & waiting.keys()]:
        for one in free:
            del waiting[one]
    return sorted(waiting)


def room_of(module: str) -> str:
    """The package of a module; one that stands in a folder of the top is a room by itself: `push.relay`
    puts the rooms together, `push.metrics` is used by all."""
    parts = module.split(".")
    return module if len(parts) <= 3 else ".".join(parts[:-1])


def test_no_module_and_no_room_stands_in_a_circle() -> None:
    known = modules()
    graph = {name: imported_modules(name, path.read_text(), known) for name, path in known.items()}
    assert circles(graph) == []
    rooms: dict[str, set[str]] = {}
    for name, others in graph.items():
        there = name if known[name].name == "__init__.py" else room_of(name)
        rooms.setdefault(there, set()).update(
            {other if known[other].name == "__init__.py" else room_of(other) for other in others}
            - {there}
        )
    assert circles(rooms) == []


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]
    assert circles({"a": {"b"}, "b": {"c", "d"}, "c": {"d"}, "d": set()}) == []


def test_no_room_holds_more_than_sixteen_modules_and_each_says_what_lives_there() -> None:
    rooms = {path.parent for path in modules().values()} - {ROOT / "push/store/migrations"}
    for room in rooms:
        held = [path for path in room.glob("*.py") if path.name != "__init__.py"]
        assert len(held) <= 17, f"{room.relative_to(ROOT)} holds {len(held)} modules"
        if "migrations" not in room.parts:
            assert ast.get_docstring(ast.parse((room / "__init__.py").read_text())), room


def private_names(source: str) -> list[str]:
    """What a module imports that another keeps to itself."""
    return [
        f"{imported.module}.{name}"
        for imported in imports_in(ast.parse(source), ())
        if imported.is_ours
        for name in [*imported.module.split("."), *imported.names]
        if name.startswith("_") and not name.endswith("__")
    ]


def test_no_module_imports_what_another_keeps_to_itself() -> None:
    found = {name: private_names(path.read_text()) for name, path in modules().items()}
    assert {name: names for name, names in found.items() if names} == {}
    assert private_names("from bellwire.push.calls.calls import _due") == [
        "bellwire.push.calls.calls._due"
    ]


@pytest.mark.parametrize(
    ("path", "source", "module"),
    [
        ("push/app.py", "import bellwire.agent.phone", "bellwire.agent.phone"),
        ("push/api/calls.py", "from bellwire.hardware import panel", "bellwire.hardware"),
        ("push/app.py", "import gpiozero", "gpiozero"),
        ("push/app.py", "from ..agent import phone", "bellwire.agent"),
        ("agent/phone.py", "from bellwire.push.calls import Calls", "bellwire.push.calls"),
        ("agent/main.py", "import fastapi", "fastapi"),
        ("agent/main.py", "from sqlalchemy.ext import asyncio", "sqlalchemy.ext"),
        ("broker/session.py", "import jwt", "jwt"),
        ("hardware/panel.py", "import jwt", "jwt"),
        ("hardware/panel.py", "import uvicorn", "uvicorn"),
        ("hardware/panel.py", "from bellwire.signaling import rules", "bellwire.signaling"),
        ("hardware/panel.py", "import bellwire.cli", "bellwire.cli"),
        ("config/relay.py", "import bellwire.broker.session", "bellwire.broker.session"),
        ("signaling/rules.py", "import asyncio", "asyncio"),
        ("signaling/rules.py", "import os", "os"),
        ("signaling/rules.py", "import os.path as p", "os.path"),
        ("signaling/rules.py", "from time import monotonic", "time"),
        ("signaling/rules.py", "import random", "random"),
        ("signaling/rules.py", "import structlog", "structlog"),
        ("signaling/rules.py", "import pydantic_settings", "pydantic_settings"),
        ("signaling/rules.py", "from urllib import request", "urllib"),
        ("signaling/rules.py", "import urllib", "urllib"),
        ("signaling/rules.py", "import push", "push"),
        ("signaling/rules.py", "from bellwire.config import panel", "bellwire.config"),
        ("signaling/rules.py", "from tests.signaling import helpers", "tests.signaling"),
        ("signaling/rules.py", "def f():\n    import socket", "socket"),
        (
            "signaling/rules.py",
            "if TYPE_CHECKING:\n    import bellwire.push.app",
            "bellwire.push.app",
        ),
        ("signaling/rules.py", "importlib.import_module('bellwire.push.app')", "bellwire.push.app"),
        ("signaling/rules.py", "__import__('subprocess')", "subprocess"),
    ],
)
def test_forbidden_import_is_caught_with_its_file_and_line(
    path: str, source: str, module: str
) -> None:
    line = 2 + source.count("\n")
    package = path.partition("/")[0]
    assert violations(f"\n{source}\n", path) == [
        f"{path}:{line}: {package} may not import {module}"
    ]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("signaling/rules.py", "from bellwire.signaling.calls import Call\nfrom . import events"),
        ("signaling/twiml.py", "from urllib.parse import quote\nfrom urllib import parse"),
        ("signaling/twiml.py", "import xml.etree.ElementTree as ET\nimport collections.abc"),
        ("push/channels/apns.py", "import asyncio\nfrom ..store import outbox\nimport fastapi"),
        ("agent/phone.py", "from bellwire.hardware.panel import Panel\nimport aiomqtt"),
        ("agent/caller_verification.py", "import jwt"),
        ("cli/main.py", "import bellwire.agent.main\nimport bellwire.push.app"),
    ],
)
def test_allowed_import_is_let_through(path: str, source: str) -> None:
    assert violations(source, path) == []


@pytest.mark.parametrize("source", ["datetime.now(UTC)", "date.today()", "open('x')", "print(1)"])
def test_clock_or_file_in_signaling_is_caught(source: str) -> None:
    (found,) = clock_readings(f"\n{source}", "signaling/rules.py")
    assert found.startswith("signaling/rules.py:2: ")
