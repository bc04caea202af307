"""`bellwire doctor`: checks each thing that can be wrong, and says how to mend it; `bellwire doctor audio`
looks at the sound alone."""

import asyncio
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from bellwire.cli.doctor.agent import examine_agent
from bellwire.cli.doctor.audio import audio
from bellwire.cli.doctor.diagnosis import Condition, Finding, bad, unknown
from bellwire.cli.doctor.machine import examine_machine
from bellwire.cli.doctor.relay import examine_call_policy, examine_relay
from bellwire.cli.failures import reported
from bellwire.cli.process.logs import configure_logs
from bellwire.cli.relay_client import DataOption, KeyFileOption, RelayOption
from bellwire.config.agent.settings import AgentSettings
from bellwire.config.relay import RelaySettings, load_relay_settings
from bellwire.config.setting_mistakes import mistake_in_words
from bellwire.signaling.errors import InvalidInput

_SIGNS = {
    Condition.GOOD: "[green]✓[/]",
    Condition.BAD: "[bold red]✗[/]",
    Condition.UNKNOWN: "[yellow]?[/]",
    Condition.WARNING: "[yellow]![/]",
}


doctor = typer.Typer()
doctor.command("audio", epilog="Example: `bellwire doctor audio --config desk.toml`")(audio)


@doctor.callback(
    invoke_without_command=True, epilog="Example: `bellwire doctor --config desk.toml`"
)
@reported
def look_at_all(
    context: typer.Context,
    config: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Examine this agent, or this relay's settings, too."),
    ] = None,
    relay: RelayOption = None,
    data: DataOption = None,
    api_key_file: KeyFileOption = None,
) -> None:
    """Examines this machine, the relay, and with --config FILE a device's agent.

    FILE may also be a relay's: then its push settings are examined, with the keys and certificates
    that they name, and its call policy. Push settings in the environment are examined too. --config may
    be given several times.

    Each line is one thing that can be wrong: ✓ it is well, ✗ it is not, with how to mend it, ! it
    will not be well for long, ? it could not be found out. The exit code is 1 if anything is wrong.
    """
    if context.invoked_subcommand is not None:
        return
    configure_logs("error")
    console = Console(soft_wrap=True)
    of_relays = {file: found for file in config or [] if (found := _relay_settings_in(file))}
    data = data or next(
        (Path(found["data"]) for found in of_relays.values() if "data" in found), None
    )
    wrong = _show(console, "This machine", examine_machine())
    wrong += _show(console, "The relay", examine_relay(relay, data, api_key_file))
    for file in list[Path | None](of_relays) or [None]:
        wrong += _show(console, _title(file), _push_settings(file))
        if file is not None:
            wrong += _show(console, f"The call policy of {file}", _call_policy(file))
    for file in config or []:
        if file not in of_relays:
            wrong += _show(console, f"The agent of {file}", asyncio.run(examine_agent(file)))
    console.print()
    if wrong:
        console.print(f"[bold red]{wrong} thing{'s' if wrong > 1 else ''} to mend.[/]")
        raise typer.Exit(1)
    console.print("[bold green]All is well.[/]")


def _relay_settings_in(file: Path) -> dict[str, Any]:
    """What stands in a file of a relay's settings: it names some, and none that only an agent has.
    Nothing where it is another's file, or cannot be read: the look at the agent says why."""
    try:
        found = tomllib.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    of_agents = AgentSettings.model_fields.keys() - RelaySettings.model_fields.keys()
    is_relays = found.keys() & RelaySettings.model_fields.keys() and not found.keys() & of_agents
    return found if is_relays else {}


def _title(file: Path | None) -> str:
    return f"The push settings of {file}" if file else "The push settings of the environment"


def _push_settings(file: Path | None) -> Iterable[Finding]:
    """What there is to say of the push settings; of the environment nothing, where it has none."""
    try:
        from bellwire.cli.doctor.push import examine_push, has_push
    except ImportError as error:
        return (
            []
            if file is None
            else [unknown(f"they were not examined ({error})", "pip install 'bellwire[relay]'")]
        )
    try:
        settings = load_relay_settings(file)
    except InvalidInput as error:
        return [bad(error.detail, "mend the file")]
    except ValidationError as error:
        return [
            bad(mistake_in_words(problem, RelaySettings.model_fields), "mend this setting")
            for problem in error.errors(include_url=False, include_input=False)
        ]
    return examine_push(settings) if file is not None or has_push(settings) else []


def _call_policy(file: Path) -> Iterable[Finding]:
    """What there is to say of who may ring whom; of settings that cannot be read it is said above."""
    try:
        return examine_call_policy(load_relay_settings(file))
    except (InvalidInput, ValidationError):
        return []


def _show(console: Console, title: str, findings: Iterable[Finding]) -> int:
    """Prints findings as they come, under their title where there are any; returns how many are bad."""
    wrong = 0
    for number, finding in enumerate(findings):
        if not number:
            console.print(f"\n[bold]{escape(title)}[/]")
        wrong += finding.condition is Condition.BAD
        console.print(f"  {_SIGNS[finding.condition]} {escape(finding.what)}", highlight=False)
        if finding.mend and finding.condition is not Condition.GOOD:
            console.print(f"      → {escape(finding.mend)}", highlight=False)
    return wrong
