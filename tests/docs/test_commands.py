"""Every command in the documents is one that exists, with flags that exist."""

import itertools
import os
from typing import Any

import pytest
import typer

from bellwire.cli.main import app
from docs.generate import commands
from tests.docs.documents import ROOT, Block, all_blocks, simple_commands

SHELL_BLOCKS = all_blocks("console", "sh")
_USAGE_ERROR: Any = typer.BadParameter.__mro__[
    1
]  # of the click inside Typer, which exports no more
BELLWIRE: dict[str, Any] = dict(commands("bellwire", typer.main.get_command(app)))


def problem_of(words: list[str]) -> str | None:
    """What is wrong with a command, if it is one of this project's."""
    program = words[0]
    if program.startswith(("script/", "deploy/", "bench/")):
        return None if os.access(ROOT / program, os.X_OK) else f"there is no {program}"
    if program.rpartition("/")[2] != "bellwire":
        return None
    for length in (4, 3, 2):
        command = BELLWIRE.get(" ".join(["bellwire", *words[1:length]]))
        if command is not None:
            return _refusal(command, words[length:])
    return f"there is no command {' '.join(words[:3])}"


def _refusal(command: Any, arguments: list[str]) -> str | None:  # noqa: ANN401 - Typer's own click
    try:
        with command.make_context(command.name, list(arguments)):
            return None
    except _USAGE_ERROR as error:
        refusal: str = error.format_message()
        return refusal


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=lambda block: block.place)
def test_shown_command_exists_and_takes_its_arguments(block: Block) -> None:
    lines = [line for line, _ in block.commands()]
    assert lines, f"{block.place}: no command in a {block.kind} block"
    words = itertools.chain.from_iterable(map(simple_commands, lines))
    assert not [problem for command in words if (problem := problem_of(command))]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("bellwire rely --data try", "there is no command"),
        ("X=1 bellwire relay --dta try", "--dta"),
        ("cd try && bellwire devices add desk-1 --out desk.toml", "--identity"),
        ("bellwire devices drop desk-1", "there is no command"),
        ("bellwire call desk --timeout soon | cat", "--timeout"),
        ("script/deno --once", "there is no script/deno"),
    ],
)
def test_command_that_does_not_exist_is_found(line: str, problem: str) -> None:
    (found,) = filter(None, map(problem_of, simple_commands(line)))
    assert problem in found


def test_documents_show_how_to_start_and_call() -> None:
    shown = {
        path
        for block in SHELL_BLOCKS
        for line, _ in block.commands()
        for path in BELLWIRE
        if line.startswith(f"{path} ")
    }
    assert {"bellwire relay", "bellwire agent", "bellwire call", "bellwire devices add"} <= shown
