"""`bellwire call`: a call from the terminal."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from bellwire.call_view import call_table, watch_call
from bellwire.failures import fail, reported
from bellwire.relay_client import DataOption, KeyFileOption, RelayClient, RelayOption, find_relay
from signaling.answers import CallAnswer
from signaling.calls import CallState, CallType, Mode
from signaling.params import unique_parameters


@reported
def call(
    to: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="The identities to call.")
    ] = None,
    from_: Annotated[str | None, typer.Option("--from", metavar="NAME", help="Who calls.")] = None,
    group: Annotated[
        str | None, typer.Option(metavar="NAME", help="Call all members of a group instead.")
    ] = None,
    mode: Annotated[
        Mode, typer.Option(help="advanced: users may invite, join and end.")
    ] = Mode.COMMON,
    call_type: Annotated[
        CallType, typer.Option("--type", help="What is to be exchanged.")
    ] = CallType.AUDIO,
    timeout: Annotated[float, typer.Option(min=1, max=600, help="Seconds to ring.")] = 60,
    param: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A custom parameter.")
    ] = None,
    twiml: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A TwiML document that says it all.")
    ] = None,
    sid: Annotated[
        str | None, typer.Option(metavar="SID", help="Show a call that there is already.")
    ] = None,
    watch: Annotated[bool, typer.Option(help="Show the call until it has ended.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the call as JSON.")] = False,
    relay: RelayOption = None,
    data: DataOption = None,
    api_key_file: KeyFileOption = None,
) -> None:
    """Calls identities and shows, live, who answers.

    Meanwhile type, or pipe in line by line: `invite NAME...`, `join NAME` (both in advanced mode),
    `message TEXT`, `cancel` (while nobody has answered), `end`, or `leave` to let the call go on.
    Ctrl-C cancels a call that nobody has answered.
    """
    if sum(map(bool, (to, group, twiml, sid))) != 1:
        fail("say whom to call, or give one of --group NAME, --twiml FILE and --sid SID")
    invite: dict[str, Any] = {
        "to": to or {"group": group},
        "mode": mode,
        "call_type": call_type,
        "timeout": timeout,
        "custom_parameters": _parameters(param or []),
    }
    if from_ is not None:
        invite["from"] = from_
    console = Console()
    with RelayClient(find_relay(relay, data, api_key_file)) as client:
        if sid is not None:
            shown = client.call(sid)
        elif twiml is not None:
            shown = client.create_call_from_twiml(_read(twiml))
        else:
            shown = client.create_call(invite)
        if watch and not as_json:
            shown = _watch(client, shown, console)
    if as_json:
        Console(soft_wrap=True).out(shown.model_dump_json(by_alias=True))
    elif not watch:
        console.print(shown.call_sid, call_table(shown))


def _watch(client: RelayClient, shown: CallAnswer, console: Console) -> CallAnswer:
    try:
        shown = watch_call(client, shown, console)
    except KeyboardInterrupt:
        shown = client.call(shown.call_sid)
        if shown.state is CallState.RINGING:
            shown = client.operate(shown.call_sid, "cancel", {})
            console.print("Cancelled.")
    if shown.state is not CallState.ENDED:
        console.print(f"The call goes on: see it with bellwire call --sid {shown.call_sid}")
    return shown


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
