"""The `bellwire` command: its subcommands, each imported when it is called, and how errors reach the
terminal."""

import atexit
import logging
import os
import sys
from collections.abc import Iterator, MutableMapping
from importlib import import_module
from importlib.metadata import version
from typing import Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

_COMMANDS = {
    "relay": (
        "relay:relay",
        "Example: `bellwire relay --listen 0.0.0.0:8080 --data /var/lib/bellwire`",
    ),
    "agent": ("agent:agent", "Example: `bellwire agent --config desk.toml --simulate`"),
    "call": (
        "call:call",
        "Example: `bellwire call desk --from lobby --param reason=parcel`",
    ),
    "demo": ("demo.command:demo", "Example: `bellwire demo --once`"),
}
"""Command: where its function is, and how its help ends."""

_GROUPS = {
    "devices": "devices:devices",
    "token": "token:token",
    "keys": "keys:keys",
    "fleet": "fleet.command:fleet",
    "push": "push.command:push",
    "doctor": "doctor.command:doctor",
}
"""Group of commands: where it is."""


def _new_app(**options: Any) -> typer.Typer:  # noqa: ANN401 - Typer's own
    return typer.Typer(rich_markup_mode="markdown", pretty_exceptions_show_locals=False, **options)


class _Subcommands(MutableMapping[str, Any]):
    """All of them by name. Together they take seconds to import on a Pi, and one is called."""

    def __init__(self) -> None:
        self._built: dict[str, Any] = dict.fromkeys([*_COMMANDS, *_GROUPS])

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - click's, which ships with Typer
        if self._built[name] is None:
            self._built[name] = _build(name)
        return self._built[name]

    def __setitem__(self, name: str, command: Any) -> None:  # noqa: ANN401
        self._built[name] = command

    def __delitem__(self, name: str) -> None:
        del self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._built)

    def __len__(self) -> int:
        return len(self._built)


def _build(name: str) -> Any:  # noqa: ANN401
    around = _new_app()
    if name in _COMMANDS:
        place, epilog = _COMMANDS[name]
        around.command(name, epilog=epilog)(_import(place))
    else:
        around.add_typer(_import(_GROUPS[name]), name=name)
    return typer.main.get_group(around).commands[name]


def _import(place: str) -> Any:  # noqa: ANN401
    module, _, attribute = place.partition(":")
    return getattr(import_module(f"bellwire.cli.{module}"), attribute)


class _Group(TyperGroup):
    def __init__(self, **options: Any) -> None:  # noqa: ANN401
        super().__init__(**options)
        self.commands = _Subcommands()


app = _new_app(
    name="bellwire",
    cls=_Group,
    no_args_is_help=True,
    help="Rings intercoms, desk phones, mobiles and browsers, on servers you own.",
    epilog="Start with `bellwire demo`, or with `bellwire relay` and docs/getting-started.md.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        Console().print(f"bellwire {version('bellwire')}")
        raise typer.Exit


@app.callback()
def bellwire(
    show_version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version."
    ),
) -> None:
    """Rings intercoms, desk phones, mobiles and browsers, on servers you own."""
    del show_version


def main() -> None:
    """The console script. Entry points call it; so does `python -m bellwire`."""
    try:
        code = app()
    except SystemExit as ended:
        code = ended.code
    if "livekit" in sys.modules and (code is None or isinstance(code, int)):
        _end_at_once(code or 0)
    sys.exit(code)


def _end_at_once(code: int) -> NoReturn:
    """Ends the process without taking the interpreter apart. A thread of livekit's that logs in that moment
    would be ended inside of Rust, which aborts: a command that had done all ended with SIGABRT."""
    atexit._run_exitfuncs()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
