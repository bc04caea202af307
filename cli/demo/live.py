"""The live demo: relay, broker and two stations on one screen; the keyboard presses the buttons."""

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel as Frame
from rich.table import Table
from rich.text import Text

from bellwire.agent.calls.call import Call, CallRecord, CallStatus
from bellwire.cli.demo.stage import Stage, Station, demo_stage
from bellwire.cli.demo.talk import voice
from bellwire.cli.keyboard import single_keys
from bellwire.hardware.audio.block import Meter, volume

_FRAMES_PER_S = 12
_EVENTS_SHOWN = 10

_KEYS = {
    "1": ("lobby", "1", "call desk"),
    "2": ("lobby", "a", "answer"),
    "3": ("lobby", "h", "reject or hang up"),
    "4": ("lobby", "say", "speak"),
    "7": ("desk", "1", "call lobby"),
    "8": ("desk", "a", "answer"),
    "9": ("desk", "h", "reject or hang up"),
    "0": ("desk", "say", "speak"),
}
_SPEAK = "say"
_PITCHES_HZ = {"lobby": 110.0, "desk": 190.0}
_BAR_CELLS = 20


async def demo_live(console: Console) -> None:
    """Shows the stage until `q` or Ctrl-C.

    Raises:
        Unavailable: the relay did not start.
    """
    console.print("Setting the stage: a relay, its broker, and two simulated stations ...")
    async with demo_stage() as stage:
        await _Screen(stage, console).run()


class _Screen:
    def __init__(self, stage: Stage, console: Console) -> None:
        self._stage = stage
        self._console = console
        self._stations = {station.name: station for station in (stage.lobby, stage.desk)}
        self._events: deque[str] = deque(maxlen=_EVENTS_SHOWN)
        self._pressed: asyncio.Queue[str] = asyncio.Queue()
        self._meters = {name: {"spoken": Meter(), "heard": Meter()} for name in self._stations}
        for station in self._stations.values():
            station.agent.phone.watch(self._noter(station.name))
            station.agent.device.on_change(self._meter(station.name))
            station.card.listen(self._meters[station.name]["heard"].add)

    def _meter(self, name: str) -> Callable[[Call], None]:
        """Shows the microphone's level of each call, and nothing's after it."""
        meters = self._meters[name]
        metered: list[Call] = []

        def follow(call: Call) -> None:
            if call not in metered:
                metered[:] = [call]
                call.local_stream.listen(meters["spoken"].add)
            if call.status() is CallStatus.CLOSED:
                for meter in meters.values():
                    meter.clear()

        return follow

    async def run(self) -> None:
        with (
            _keys_into(self._pressed.put_nowait),
            Live(
                self._render(),
                console=self._console,
                refresh_per_second=_FRAMES_PER_S,
                screen=False,
            ) as live,
        ):
            async with asyncio.TaskGroup() as tasks:
                drawing = tasks.create_task(self._draw(live))
                await self._follow_keys()
                drawing.cancel()

    async def _follow_keys(self) -> None:
        while (key := await self._pressed.get()) not in ("q", "\x03", "\x04"):
            if key in _KEYS:
                name, button, label = _KEYS[key]
                self._note(name, f"pressed: {label}")
                station = self._stations[name]
                if button == _SPEAK:
                    station.card.say(voice(_PITCHES_HZ[name]))
                else:
                    await station.fingers.press(button)

    async def _draw(self, live: Live) -> None:
        while True:
            live.update(self._render())
            await asyncio.sleep(1 / _FRAMES_PER_S)

    def _render(self) -> RenderableType:
        frames = [self._station(station) for station in self._stations.values()]
        events = Text("\n".join(self._events) or "Press 1: the lobby calls the desk.")
        return Group(
            Columns(frames, equal=True, expand=True),
            Frame(events, title="what happens", height=_EVENTS_SHOWN + 2),
            Text(f"relay {self._stage.client.url} (docs at /docs) · q quits", style="dim"),
        )

    def _station(self, station: Station) -> Frame:
        call = station.agent.phone.call
        light = station.agent.panel.status_light
        rows = Table.grid(padding=(0, 2))
        rows.add_row(
            "bell", Text("● ringing", "bold red") if station.fingers.is_ringing else "○ silent"
        )
        rows.add_row("light", "" if light is None or light.pattern is None else light.pattern.value)
        rows.add_row("call", "none" if call is None else f"{call.status} {call.direction.lower()}")
        rows.add_row("with", _other_party(call))
        for what, meter in self._meters[station.name].items():
            rows.add_row(what, _bar(meter.db))
        rows.add_row("")
        for key, (name, _, label) in _KEYS.items():
            if name == station.name:
                rows.add_row(Text(f"[{key}]", "bold"), label)
        return Frame(rows, title=station.name)

    def _noter(self, name: str) -> Callable[[CallRecord], None]:
        def note(call: CallRecord) -> None:
            reason = f" ({call.ended_because})" if call.status is CallStatus.CLOSED else ""
            self._note(name, f"call {call.status}{reason}")

        return note

    def _note(self, who: str, what: str) -> None:
        self._events.append(f"{datetime.now().astimezone():%H:%M:%S.%f}"[:-3] + f"  {who:6} {what}")


def _other_party(call: CallRecord | None) -> str:
    if call is None:
        return ""
    parties = ", ".join(call.to) if call.direction == "OUTGOING" else (call.from_ or "")
    return parties.replace("client:", "")


def _bar(db: float) -> Text:
    cells = round(volume(db) * _BAR_CELLS)
    return Text("█" * cells + "░" * (_BAR_CELLS - cells), "green" if cells else "dim")


@contextmanager
def _keys_into(take: Callable[[str], None]) -> Iterator[None]:
    """Hands each key typed to `take`."""
    loop = asyncio.get_running_loop()
    with single_keys() as terminal:
        loop.add_reader(terminal, lambda: take(sys.stdin.read(1)))
        try:
            yield
        finally:
            loop.remove_reader(terminal)
