"""The `bellwire` command: its subcommands, and how errors reach the terminal."""

import sys
from importlib.metadata import version

import typer
from rich.console import Console

from bellwire import (
    agent_command,
    call_command,
    demo_command,
    doctor_command,
    relay_command,
    token_command,
)
from bellwire.devices_command import devices
from bellwire.doctor_audio import audio, doctor_audio_epilog
from bellwire.fleet_command import fleet
from bellwire.push_command import push

app = typer.Typer(
    name="bellwire",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    help="Rings intercoms, desk phones, mobiles and browsers, on servers you own.",
    epilog="Start with `bellwire demo`, or with `bellwire relay` and docs/getting-started.md.",
)
app.command(
    "relay", epilog="Example: `bellwire relay --listen 0.0.0.0:8080 --data /var/lib/bellwire`"
)(relay_command.relay)
app.command("agent", epilog="Example: `bellwire agent --config desk.toml --simulate`")(
    agent_command.agent
)
app.command("call", epilog="Example: `bellwire call desk --from lobby --param reason=parcel`")(
    call_command.call
)
app.add_typer(devices, name="devices")
app.add_typer(fleet, name="fleet")
app.add_typer(push, name="push")
app.command("token", epilog="Example: `bellwire token alice --ttl 3600`")(token_command.token)
doctor = typer.Typer()
doctor.callback(
    invoke_without_command=True, epilog="Example: `bellwire doctor --config desk.toml`"
)(doctor_command.doctor)
doctor.command("audio", epilog=doctor_audio_epilog)(audio)
app.add_typer(doctor, name="doctor")
app.command("demo", epilog="Example: `bellwire demo --once`")(demo_command.demo)


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
    """The console script."""
    sys.exit(app())
