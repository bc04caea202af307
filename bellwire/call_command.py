"""`bellwire call`: a call from the terminal."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from bellwire.failures import fail, reported
from bellwire.relay_client import DataOption, KeyFileOption, RelayClient, RelayOption, find_relay
from signaling.answers import CallAnswer
from signaling.calls import CallState
from signaling.params import unique_parameters

_POLL_S = 0.25


@reported
def call(
    to: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="The identities to call.")
    ] = None,
    from_: Annotated[str | None, typer.Option("--from", metavar="NAME", help="Who calls.")] = None,
    timeout: Annotated[float, typer.Option(min=1, max=600, help="Seconds to ring.")] = 60,
    param: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A custom parameter.")
    ] = None,
    twiml: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A TwiML document that says it all.")
    ] = None,
    watch: Annotated[bool, typer.Option(help="Show the call until it has ended.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the call as JSON.")] = False,
    relay: RelayOption = None,
    data: DataOption = None,
    api_key_file: KeyFileOption = None,
) -> None:
    """Calls identities and shows who answers. Ctrl-C cancels a call that nobody has answered."""
    if bool(to) == bool(twiml):
        fail("say whom to call, or give --twiml FILE: one of the two")
    with RelayClient(find_relay(relay, data, api_key_file)) as client:
        if twiml is not None:
            made = client.create_call_from_twiml(_read(twiml))
        else:
            invite: dict[str, Any] = {
                "to": to,
                "timeout": timeout,
                "custom_parameters": _parameters(param or []),
            }
            made = client.create_call(invite | ({} if from_ is None else {"from": from_}))
        if watch and not as_json:
            made = _watch(client, made)
    if as_json:
        Console(soft_wrap=True).out(made.model_dump_json(by_alias=True))


def _watch(client: RelayClient, shown: CallAnswer) -> CallAnswer:
    try:
        with Live(_table(shown), refresh_per_second=8) as live:
            while shown.state is not CallState.ENDED:
                time.sleep(_POLL_S)
                shown = client.call(shown.call_sid)
                live.update(_table(shown))
    except KeyboardInterrupt:
        if shown.state is CallState.RINGING:
            client.operate(shown.call_sid, "cancel", {})
            Console().print("Cancelled.")
        else:
            Console().print(f"The call goes on: see it with GET /v1/calls/{shown.call_sid}")
    return shown


def _table(shown: CallAnswer) -> Table:
    table = Table("Identity", "State", "Device", title=f"{shown.call_sid} · {shown.state}")
    for user in shown.users:
        table.add_row(user.identity, user.state, user.main_device or "")
    for missing in shown.error_invitees:
        table.add_row(missing.identity, f"[red]{missing.reason}[/]", "")
    return table


def _parameters(pairs: list[str]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            fail(f"--param {pair}: write it as NAME=VALUE")
    return unique_parameters((name, value) for name, _, value in (p.partition("=") for p in pairs))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror}")
