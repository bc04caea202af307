"""What an installed Bellwire is: one import name, whose rooms are the checkout's, and which works beside the
modules of whoever uses it."""

import ast
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import bellwire

CHECKOUT = Path(__file__).parents[2]
SOMEBODY_ELSES = ("config", "agent", "push", "broker", "hardware", "signaling")
ROOMS = ("agent", "broker", "cli", "config", "hardware", "push", "signaling")

RING = """\
import asyncio

import bellwire
from bellwire.cli.demo.once import play
from bellwire.cli.demo.stage import demo_stage


async def ring():
    async with demo_stage() as stage:
        played = await play(stage)
    print(bellwire.__file__, played.call.state, played.custom_parameters["caller_first_name"])


asyncio.run(ring())
"""
"""A builder's own script: a relay with its broker, and a simulated station that rings, is answered and hung
up by its pins."""


def run(*arguments: str | Path, folder: Path) -> str:
    done = subprocess.run(  # noqa: S603 - our own arguments
        arguments, cwd=folder, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def build(kind: str, source: Path, folder: Path) -> Path:
    run(sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", folder, folder=source)
    (built,) = folder.glob("bellwire-*")
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", CHECKOUT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that is built of the sdist alone."""
    source = tmp_path_factory.mktemp("source")
    # Debian's Python 3.11.2 knows no `filter` of tarfile yet, and a newer one warns where it is missing.
    subprocess.run(["tar", "-xzf", sdist, "-C", source], check=True)  # noqa: S603, S607 - our own
    (unpacked,) = source.iterdir()
    return build("wheel", unpacked, tmp_path_factory.mktemp("wheel"))


def dependencies_of(extra: str, bellwire: metadata.Distribution) -> set[str]:
    """The distributions that `bellwire[extra]` brings, by their metadata in the environment of the tests."""
    found: set[str] = set()
    waiting = [Requirement(f"bellwire[{extra}]")]
    while waiting:
        wanted = waiting.pop()
        key = f"{wanted.name}[{','.join(sorted(wanted.extras))}]"
        if key in found:
            continue
        found.add(key)
        ours = wanted.name == "bellwire"
        for line in (bellwire.requires if ours else metadata.requires(wanted.name)) or ():
            needed = Requirement(line)
            extras = wanted.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(needed)
    return {key.partition("[")[0] for key in found} - {"bellwire"}


class Environment:
    """One that holds Bellwire and nothing else; what it depends on it finds in that of the tests, so that no
    network is needed, and without the tests' own editable Bellwire, whose .pth is only read where it lies.

    Args:
        folder: Where it is made.
        wheel: What is installed.
    """

    def __init__(self, folder: Path, wheel: Path) -> None:
        venv.create(folder, symlinks=True)
        self.python = folder / "bin/python"
        (self.packages,) = folder.glob("lib/python*/site-packages")
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", self.python)
        run(*pip, "install", "--quiet", "--no-index", "--no-deps", wheel, folder=folder)
        self.installed = {path.name for path in self.packages.iterdir()}
        found = sysconfig.get_path("purelib")
        (self.packages / "dependencies.pth").write_text(f"{found}\n")


def linked(distributions: set[str], folder: Path) -> Path:
    """A folder that holds these distributions, of the tests' environment, and no other."""
    folder.mkdir()
    for name in distributions:
        for file in metadata.files(name) or ():
            top = Path(file.parts[0])
            place = Path(str(metadata.distribution(name).locate_file(top)))
            if top.name not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(place)
    return folder


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("installed") / "env", wheel)


@pytest.fixture
def strangers_folder(tmp_path: Path) -> Path:
    """A folder with somebody else's modules, none of which survives an import."""
    for name in SOMEBODY_ELSES:
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('{name} is somebody else\\'s')\n")
    return tmp_path


def modules_of_the_checkout() -> Iterator[str]:
    for room in ROOMS:
        for path in (CHECKOUT / room).rglob("*"):
            if path.is_file() and path.suffix in (".py", ".mako"):
                yield f"bellwire/{path.relative_to(CHECKOUT)}"
    for name in ("__init__.py", "__main__.py", "py.typed"):
        yield f"bellwire/{name}"


def test_a_wheel_holds_each_module_of_the_checkout_once_and_nothing_beside_bellwire(
    wheel: Path,
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))
    ours = [name for name in names if ".dist-info/" not in name]
    assert sorted(ours) == sorted(modules_of_the_checkout())


def test_a_wheel_of_the_checkout_is_that_of_the_sdist(wheel: Path, tmp_path: Path) -> None:
    assert build("wheel", CHECKOUT, tmp_path).read_bytes() == wheel.read_bytes()


def test_an_sdist_holds_no_link_and_no_file_twice(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert all(member.isfile() for member in members)
    assert len({member.name for member in members}) == len(members)
    top = f"{members[0].name.partition('/')[0]}/"
    in_source = {member.name.removeprefix(top) for member in members}
    assert {name for name in in_source if name.startswith("src/")} == {
        "src/bellwire/__init__.py",
        "src/bellwire/__main__.py",
        "src/bellwire/py.typed",
    }


def test_an_editable_bellwire_is_the_checkout_and_holds_no_copy_of_it(tmp_path: Path) -> None:
    code = "import hatchling.build, sys; hatchling.build.build_editable(sys.argv[1])"  # PEP 660
    run(sys.executable, "-c", code, tmp_path, folder=CHECKOUT)
    (editable,) = tmp_path.iterdir()
    with zipfile.ZipFile(editable) as archive:
        ours = [name for name in archive.namelist() if ".dist-info/" not in name]
        assert ours == ["_bellwire.pth"]
        assert archive.read("_bellwire.pth").decode().strip() == str(CHECKOUT / "src")


def test_an_installation_adds_bellwire_alone_to_site_packages(environment: Environment) -> None:
    added = {name for name in environment.installed if not name.endswith(".dist-info")}
    assert added == {"bellwire"}


def test_an_installed_bellwire_rings_beside_a_builders_own_modules(
    environment: Environment, strangers_folder: Path
) -> None:
    (strangers_folder / "ring.py").write_text(RING)
    said = run(environment.python, "ring.py", folder=strangers_folder).splitlines()[-1]
    assert said.split() == [str(environment.packages / "bellwire/__init__.py"), "ended", "alice"]


def test_the_pi_installer_looks_at_every_folder_that_is_packed() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    packed = project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    installer = (CHECKOUT / "deploy/install-pi").read_text()
    (looked_at,) = re.findall(r"find pyproject\.toml requirements/agent\.lock (.+) \\\n", installer)
    assert set(looked_at.split()) >= {place.partition("/")[0] for place in packed}


# The front door


def test_the_front_door_tells_type_checkers_what_it_opens_to_programs() -> None:
    tree = ast.parse((CHECKOUT / "src/bellwire/__init__.py").read_text())
    (guarded,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {
        alias.name: f"bellwire.{node.module}" if node.level else node.module
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(told) == sorted(bellwire.__all__)
    for name, module in told.items():
        assert getattr(bellwire, name) is getattr(import_module(str(module)), name)
    assert set(bellwire.__all__) <= set(dir(bellwire))


def test_the_front_door_knows_no_other_name() -> None:
    with pytest.raises(AttributeError, match=r"module 'bellwire' has no attribute 'Devise'"):
        _ = bellwire.Devise  # type: ignore[attr-defined]


def test_the_front_door_opens_with_the_relay_alone_and_says_what_a_device_needs_more(
    environment: Environment, tmp_path: Path
) -> None:
    code = "import bellwire, bellwire.push.relay\nprint(bellwire.CallError)\nbellwire.Device"
    (installed,) = metadata.distributions(name="bellwire", path=[str(environment.packages)])
    found = linked(dependencies_of("relay", installed), tmp_path / "relay")
    done = subprocess.run(  # noqa: S603 - our own arguments
        [environment.python, "-S", "-c", code],  # without the .pth
        env={"PYTHONPATH": f"{environment.packages}:{found}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "<class 'bellwire.signaling.errors.CallError'>\n", done.stderr
    assert done.stderr.splitlines()[-1] == (
        "ImportError: bellwire.Device needs numpy, which is not installed: pip install 'bellwire[agent]'"
    )
