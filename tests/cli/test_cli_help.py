"""`--help` of every command: it exits 0 and leaves nothing unexplained."""

from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from bellwire.cli.main import app

WIDE = {"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"}


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:  # noqa: ANN401
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


COMMANDS = list(commands(typer.main.get_command(app)))


@pytest.mark.parametrize(
    ("path", "command"), COMMANDS, ids=[" ".join(path) or "bellwire" for path, _ in COMMANDS]
)
def test_help_says_what_the_command_and_each_of_its_options_is_for(
    path: tuple[str, ...],
    command: Any,  # noqa: ANN401 - click's, which ships with Typer
) -> None:
    shown = CliRunner().invoke(app, [*path, "--help"], env=WIDE)
    assert shown.exit_code == 0
    assert command.help.splitlines()[0].replace("`", "") in shown.output
    for parameter in command.params:
        if not getattr(parameter, "hidden", False) and parameter.name != "help":
            assert parameter.help, f"{path} {parameter.name} is not explained"
            assert (parameter.metavar or parameter.opts[0]) in shown.output


@pytest.mark.parametrize(
    "path",
    [path for path, command in COMMANDS if not getattr(command, "commands", {})],
    ids=" ".join,
)
def test_help_ends_with_a_command_to_paste(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [*path, "--help"], env=WIDE)
    assert f"Example: bellwire {' '.join(path)}" in " ".join(shown.output.split())


def test_every_command_of_the_architecture_is_there() -> None:
    names = {" ".join(path) for path, _ in COMMANDS}
    assert names >= {
        *("relay", "agent", "demo", "call", "token", "doctor"),
        *("devices add", "devices list", "devices remove"),
    }


@pytest.mark.parametrize("path", [[], ["devices"]], ids=["bellwire", "bellwire devices"])
def test_group_without_a_command_shows_its_help(path: list[str]) -> None:
    shown = CliRunner().invoke(app, path, env=WIDE)
    asked = CliRunner().invoke(app, [*path, "--help"], env=WIDE)
    assert shown.output.strip() == asked.output.strip()


def test_version_is_shown() -> None:
    shown = CliRunner().invoke(app, ["--version"], env=WIDE)
    assert (shown.exit_code, shown.output.split()[0]) == (0, "bellwire")
