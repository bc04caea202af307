"""`bellwire doctor`: checks each thing that can be wrong, and says how to mend it."""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from bellwire.diagnosis import Finding, Verdict
from bellwire.doctor_agent import examine_agent
from bellwire.doctor_machine import examine_machine
from bellwire.doctor_relay import examine_relay
from bellwire.failures import reported
from bellwire.logs import configure_logs
from bellwire.relay_client import DataOption, KeyFileOption, RelayOption

_SIGNS = {
    Verdict.GOOD: "[green]✓[/]",
    Verdict.BAD: "[bold red]✗[/]",
    Verdict.UNKNOWN: "[yellow]?[/]",
}


@reported
def doctor(
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Examine the agent of this file too.")
    ] = None,
    relay: RelayOption = None,
    data: DataOption = None,
    api_key_file: KeyFileOption = None,
) -> None:
    """Examines this machine, the relay, and with --config FILE a device's agent.

    Each line is one thing that can be wrong: ✓ it is well, ✗ it is not, with how to mend it, ? it
    could not be found out. The exit code is 1 if anything is wrong.
    """
    configure_logs("error")
    console = Console(soft_wrap=True)
    wrong = _show(console, "This machine", examine_machine())
    wrong += _show(console, "The relay", examine_relay(relay, data, api_key_file))
    if config is not None:
        wrong += _show(console, f"The agent of {config}", asyncio.run(examine_agent(config)))
    console.print()
    if wrong:
        console.print(f"[bold red]{wrong} thing{'s' if wrong > 1 else ''} to mend.[/]")
        raise typer.Exit(1)
    console.print("[bold green]All is well.[/]")


def _show(console: Console, title: str, findings: Iterable[Finding]) -> int:
    """Prints findings as they come; returns how many are bad."""
    console.print(f"\n[bold]{escape(title)}[/]")
    wrong = 0
    for finding in findings:
        wrong += finding.verdict is Verdict.BAD
        console.print(f"  {_SIGNS[finding.verdict]} {escape(finding.what)}", highlight=False)
        if finding.mend and finding.verdict is not Verdict.GOOD:
            console.print(f"      → {escape(finding.mend)}", highlight=False)
    return wrong
