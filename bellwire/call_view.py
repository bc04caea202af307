"""A call on the terminal, live, and what is typed to it: `invite NAME`, `cancel`, `join NAME`, `end`.

The same commands come from a terminal, where the line being typed is shown under the call, and from
a pipe, line by line.
"""

import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bellwire.keyboard import single_keys
from bellwire.relay_client import RelayClient, RelayRefused
from signaling.answers import CallAnswer
from signaling.calls import CallState

_POLL_S = 0.25
_USAGE = "invite NAME...  ·  join NAME  ·  message TEXT  ·  cancel  ·  end  ·  leave"


def watch_call(client: RelayClient, shown: CallAnswer, console: Console) -> CallAnswer:
    """Shows a call until it has ended or the reader leaves, doing what is typed; returns it as it
    then stood.

    Raises:
        Unavailable: the relay is not reached any more.
    """
    view = _View(client, shown)
    with _lines() as read, Live(view.render(), console=console, refresh_per_second=8) as live:
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

    def render(self) -> RenderableType:
        call = self.shown
        kind = f"{call.call_type} call, {call.mode} mode"
        heading = Text.assemble((call.call_sid, "bold"), f" · {call.state} · {kind}")
        parts: list[RenderableType] = [heading, call_table(call)]
        if self._answer:
            parts.append(Text(self._answer, style="yellow"))
        if self.is_open:
            parts += [Text(_USAGE, style="dim"), Text(f"> {self._typed}")]
        return Group(*parts)


def call_table(call: CallAnswer) -> Table:
    """The users of a call, and who could not be invited."""
    table = Table("Identity", "State", "Device", "Extended data")
    for user in call.users:
        name = f"{user.identity} (caller)" if user.identity == call.from_ else user.identity
        table.add_row(name, user.state, user.main_device or "", user.extended_data)
    for missing in call.error_invitees:
        table.add_row(missing.identity, f"[red]{missing.reason}[/]", "", "")
    return table


Read = Callable[[Callable[[str], None]], list[str]]


@contextmanager
def _lines() -> Iterator[Read]:
    """Gives a function that waits a moment and returns the lines that were typed meanwhile, telling
    of the one that is being typed."""
    if not sys.stdin.isatty():
        yield _Typed(sys.stdin.fileno()).read
        return
    with single_keys() as terminal:
        yield _Typed(terminal).read


class _Typed:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._line = ""
        self._ended = False

    def read(self, typing: Callable[[str], None]) -> list[str]:
        watched = [] if self._ended else [self._descriptor]
        ready, _, _ = select.select(watched, [], [], _POLL_S)
        lines: list[str] = []
        if ready:
            data = os.read(self._descriptor, 4096)
            self._ended = not data
            for key in data.decode(errors="ignore"):
                if key in "\r\n":
                    lines.append(self._line)
                    self._line = ""
                elif key in "\x7f\b":
                    self._line = self._line[:-1]
                elif key.isprintable():
                    self._line += key
        typing(self._line)
        return lines
