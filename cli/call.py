"""`bellwire call`: makes a call, shows it live, and does what is typed to it, such as `invite NAME` or `end`.

The same commands come from a terminal, where the line being typed is shown under the call, and from
a pipe, line by line.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from bellwire.cli.failures import fail, reported
from bellwire.cli.keyboard import typed_lines
from bellwire.cli.relay_client import (
    DataOption,
    KeyFileOption,
    RelayClient,
    RelayOption,
    RelayRefused,
    find_relay,
)
from bellwire.signaling.calls.calls import CallState, CallType, Mode
from bellwire.signaling.twi_params import unique_parameters
from bellwire.signaling.wire.answers import CallAnswer, CallDeliveriesAnswer

_USAGE = "invite NAME...  ·  join NAME  ·  message TEXT  ·  cancel [NAME...]  ·  end  ·  leave"


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
    deliveries: Annotated[
        bool,
        typer.Option(
            "--deliveries",
            help="Show of the call --sid what reached which device, when, and why not.",
        ),
    ] = False,
    watch: Annotated[bool, typer.Option(help="Show the call until it has ended.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the call as JSON.")] = False,
    relay: RelayOption = None,
    data: DataOption = None,
    api_key_file: KeyFileOption = None,
) -> None:
    """Calls identities and shows, live, who answers.

    Meanwhile type, or pipe in line by line: `invite NAME...`, `join NAME` (both in advanced mode),
    `message TEXT`, `cancel NAME...` (who has not answered; without names all such), `end`, or `leave`
    to let the call go on.
    Ctrl-C cancels a call that nobody has answered.
    """
    if sum(map(bool, (to, group, twiml, sid))) != 1:
        fail("say whom to call, or give one of --group NAME, --twiml FILE and --sid SID")
    if deliveries and sid is None:
        fail("--deliveries shows those of a call that there is: name it with --sid SID")
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
        reached = client.deliveries(shown.call_sid) if deliveries else None
        if watch and not as_json and reached is None:
            shown = _watch(client, shown, console)
    if as_json:
        asked = shown if reached is None else reached
        Console(soft_wrap=True).out(asked.model_dump_json(by_alias=True))
    elif not watch or reached is not None:
        console.print(shown.call_sid, _standing(shown), call_table(shown))
    if reached is not None and not as_json:
        console.print(deliveries_table(reached))


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


def watch_call(client: RelayClient, shown: CallAnswer, console: Console) -> CallAnswer:
    """Shows a call until it has ended or the reader leaves, doing what is typed; returns it as it
    then stood.

    Raises:
        Unavailable: the relay is not reached any more.
    """
    view = _View(client, shown)
    with typed_lines() as read, Live(view.render(), console=console, refresh_per_second=8) as live:
        while view.is_open:
            for line in read(view.type):
                view.do(line)
            view.refresh()
            live.update(view.render())
    return view.shown


class _View:
    def __init__(self, client: RelayClient, shown: CallAnswer) -> None:
        self.shown = shown
        self._client = client
        self._typed = ""
        self._answer = ""
        self._left = False

    @property
    def is_open(self) -> bool:
        return not self._left and self.shown.state is not CallState.ENDED

    def refresh(self) -> None:
        self.shown = self._client.call(self.shown.call_sid)

    def type(self, text: str) -> None:
        self._typed = text

    def do(self, line: str) -> None:
        """Does what a line says; what is wrong with it is shown."""
        command, _, rest = line.strip().partition(" ")
        names = rest.split()
        try:
            match command, names:
                case "", []:
                    return
                case "invite", [_, *_]:
                    self._operate("invite", {"to": names})
                case "join", [name]:
                    self._operate("join", {"identity": name})
                case "message", [_, *_]:
                    self._operate("messages", {"content": rest.strip()})
                case "cancel", [_, *_]:
                    self._cancel(names)
                case (("cancel" | "end"), []):
                    self._operate(command, {})
                case "leave", []:
                    self._left = True
                case _:
                    self._answer = f"{line.strip()!r} is none of: {_USAGE}"
        except RelayRefused as refused:
            self._answer = str(refused)

    def _operate(self, operation: str, body: dict[str, object]) -> None:
        self.shown = self._client.operate(self.shown.call_sid, operation, body)
        self._answer = f"{operation}: done"

    def _cancel(self, names: list[str]) -> None:
        answer = self._client.operate(self.shown.call_sid, "cancel", {"to": names})
        self.refresh()  # what an answer to this has for errors are not the call's own
        left = [f"{error.identity} ({error.reason})" for error in answer.error_invitees]
        self._answer = f"cancel: not {', '.join(left)}" if left else "cancel: done"

    def render(self) -> RenderableType:
        call = self.shown
        kind = f"{call.call_type} call, {call.mode} mode"
        heading = Text.assemble((call.call_sid, "bold"), f" · {_standing(call)} · {kind}")
        parts: list[RenderableType] = [heading, call_table(call)]
        if self._answer:
            parts.append(Text(self._answer, style="yellow"))
        if self.is_open:
            parts += [Text(_USAGE, style="dim"), Text(f"> {self._typed}")]
        return Group(*parts)


def _standing(call: CallAnswer) -> str:
    """Its state; of one that has ended, why, by whom, and how long it was."""
    if call.end_reason is None:
        return call.state
    by = f" by {call.ended_by}" if call.ended_by else ""
    lasted = "" if call.duration_s is None else f", after {call.duration_s:.0f} s"
    return f"{call.state}: {call.end_reason}{by}{lasted}"


_NO_DELIVERIES = (
    "No delivery is on record. Pushes are for a week; over mqtt and websocket only what is owed, failed, or"
    " was confirmed as received."
)


def deliveries_table(reached: CallDeliveriesAnswer) -> Table | str:
    """What of a call reached which device: each attempt, with its time and the other side's answer; where
    none is on record, why."""
    if not reached.deliveries:
        return _NO_DELIVERIES
    table = Table(
        "Device", "Channel", "Event", "State", "When (UTC)", Column("Answer", overflow="fold")
    )
    for delivery in reached.deliveries:
        channel = f"{delivery.channel} {delivery.app or ''}".strip()
        tries = [f"{one.at:%H:%M:%S} {one.result}" for one in delivery.tries]
        answers = [one.answer for one in delivery.tries]
        if not tries or delivery.detail not in answers[-1:]:
            tries.append("" if delivery.at is None else f"{delivery.at:%H:%M:%S} {delivery.state}")
            answers.append(delivery.detail)
        if delivery.received_at is not None:
            tries.append(f"{delivery.received_at:%H:%M:%S} received")
            answers.append(f"after {delivery.latency_ms} ms" if delivery.latency_ms else "")
        event = "invite" if delivery.event else delivery.event_id.rpartition("-")[2]
        told = (escape("\n".join(lines)) for lines in (tries, answers))
        table.add_row(delivery.device_id, channel, event, delivery.state, *told)
    return table


def call_table(call: CallAnswer) -> Table:
    """The users of a call, and who could not be invited."""
    table = Table("Identity", "State", "Device", "Extended data")
    for user in call.users:
        name = f"{user.identity} (caller)" if user.identity == call.from_ else user.identity
        table.add_row(name, user.state, user.main_device or "", user.extended_data)
    for missing in call.error_invitees:
        table.add_row(missing.identity, f"[red]{missing.reason}[/]", "", "")
    return table
