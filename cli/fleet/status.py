"""`bellwire fleet status` and `watch`: the table of who follows, who does not, and why."""

import asyncio
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from bellwire.broker.fleet.rollout_guard import RolloutGuard
from bellwire.cli.failures import reported
from bellwire.cli.fleet.apply import NOT_FOLLOWED
from bellwire.cli.fleet.names import did_you_mean
from bellwire.cli.fleet.rollout import rollout_lines
from bellwire.cli.fleet.selection import Selection
from bellwire.cli.fleet.session import (
    FleetDevice,
    JsonOption,
    OperatorOption,
    RetainedFleet,
    open_fleet,
)
from bellwire.cli.fleet.standing import Standing, Standings, error_line, printable, skipped_line
from bellwire.cli.process.service import run_until_stopped
from bellwire.config.fleet.layer import Layer
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import LayerName

_REDRAW_S = 0.25
_ROWS = 100
"""What a person reads; a table of thousands takes seconds to lay out."""

_STYLES = {
    "in step": "green",
    "waiting": "yellow",
    "refused": "bold red",
    "behind": "yellow",
    "unknown": "dim",
}
_DEVICES_NAMED = 10
_SHORT = ("Software", "Config", "Errors")
"""Columns whose cells are a word or two, and stay on one line."""
_URGENCY = ("refused", "behind", "waiting", "unknown", "in step")

CheckOption = Annotated[
    bool,
    typer.Option(
        "--check", help="Exit with 3 if a device is offline, was never seen, or does not follow."
    ),
]

AllOption = Annotated[
    bool, typer.Option("--all", help="Show all; else 100, those that do not follow first.")
]

GuardOption = Annotated[
    bool, typer.Option("--guard", help="Take rollouts back that too many devices refuse.")
]


DevicesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[DEVICE]...", help="Their ids. [all]")
]
GroupOption = Annotated[
    list[str] | None,
    typer.Option("--group", metavar="NAME", help="Those of a group. May be given several times."),
]
StateOption = Annotated[
    list[str] | None,
    typer.Option(
        "--state",
        metavar="STATE",
        help="Those that are `in-step`, `waiting`, `refused`, `behind`, `unknown`; `online`, `offline`,"
        " `never-seen`, `unconfirmed`. May be given several times.",
    ),
]
FaultOption = Annotated[
    list[str] | None,
    typer.Option(
        "--fault",
        metavar="PART",
        help="Those that report a fault of `audio`, `door`, `panel`, ..., or of `any` part.",
    ),
]
TelemetryOption = Annotated[
    bool, typer.Option("--telemetry", help="Show how each machine is, in place of its layers.")
]


@reported
def status(
    devices: DevicesArgument = None,
    group: GroupOption = None,
    state: StateOption = None,
    fault: FaultOption = None,
    telemetry: TelemetryOption = False,
    check: CheckOption = False,
    show_all: AllOption = False,
    as_json: JsonOption = False,
    operator: OperatorOption = None,
) -> None:
    """Shows each device: online, software, the layers in force, whether it follows, and what is wrong.

    *in step* runs what the layers give; *waiting* will, once no call is in progress; *refused* keeps
    the last good configuration, and says why; *behind* runs something else; *unknown* has never said.
    `default:6→7` means that it runs revision 6 of the layer, which is at 7. A device that is registered
    and has not come since is *never seen*. One that is online *unconfirmed* is of an older version: should
    its broker have been killed, it may be gone. Below stand the keys of layers that devices skip, since
    only their own file may say them. --check looks at the devices that are asked for.
    """

    selection = Selection(devices or (), group or (), state or (), fault or ())

    async def run() -> tuple[list[Standing], dict[LayerName, Layer]]:
        async with open_fleet(operator) as fleet:
            return standings_of(fleet), _layers(fleet)

    everybody, layers = asyncio.run(run())
    rows = selection.among(everybody)
    if as_json:
        shown = {
            "devices": [standing.as_json() for standing in rows],
            "rollouts": [
                {"layer": name, "revision": layer.revision, "comment": layer.comment}
                | layer.rollout.model_dump(exclude={"before"})
                for name, layer in layers.items()
                if layer.rollout.percent < 100
            ],
        }
        Console(soft_wrap=True).out(json.dumps(shown, ensure_ascii=False))
    elif rows:
        limit = None if show_all else _ROWS
        Console().print(status_view(rows, layers, limit, show_telemetry=telemetry))
    elif everybody:
        Console().print(f"None of {len(everybody)} devices is as you ask.")
        groups = {one for row in everybody for one in row.groups}
        for name in sorted({*(group or ())} - groups):
            Console().print(f"No device is in group {name}{did_you_mean(name, groups)}")
    else:
        Console().print(
            "No device has reported yet: add one with `bellwire devices add`, and start its agent."
        )
    if check and not all(row.device.online and row.state == "in step" for row in rows):
        raise typer.Exit(NOT_FOLLOWED)


@reported
def watch(
    guard: GuardOption = False, as_json: JsonOption = False, operator: OperatorOption = None
) -> None:
    """Shows the devices live until Ctrl-C. With --json a line for each device that changes.

    With --guard it takes rollouts back that more devices refuse than their --pause-at-errors says. A
    relay does so by itself, and knows which devices are registered; here those count that the broker
    knows.
    """
    run_until_stopped(lambda stop: _watch(stop, operator, guard=guard, as_json=as_json))


async def _watch(
    stop: asyncio.Event, operator: OperatorOption, *, guard: bool, as_json: bool
) -> None:
    async with open_fleet(operator) as fleet, asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(_print_lines(fleet) if as_json else _redraw(fleet))]
        if guard:
            running.append(tasks.create_task(_guard(fleet)))
        await stop.wait()
        for task in running:
            task.cancel()


async def _guard(fleet: RetainedFleet) -> None:
    async def registered(devices: Collection[DeviceId]) -> Collection[DeviceId]:
        # There is no database here: whoever has a presence, which goes with a device's account.
        known = ((device, fleet.devices.get(device)) for device in devices)
        return [device for device, here in known if here is not None and here.presence is not None]

    guard = RolloutGuard(fleet.register, registered)
    for device in fleet.devices.values():
        guard.take(device.device_id, device.reported)
    fleet.listen(lambda device: guard.take(device.device_id, device.reported))
    fleet.session.on_disconnected(guard.forget)
    await guard.run()


async def _redraw(fleet: RetainedFleet) -> None:
    with Live(console=Console(), auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            live.update(status_view(standings_of(fleet), _layers(fleet), _ROWS), refresh=True)
            await fleet.next_change()
            await asyncio.sleep(_REDRAW_S)


async def _print_lines(fleet: RetainedFleet) -> None:
    shown: dict[DeviceId, str] = {}
    out = Console(soft_wrap=True)
    while True:
        for standing in standings_of(fleet):
            line = json.dumps(standing.as_json(), ensure_ascii=False)
            if shown.get(standing.device.device_id) != line:
                shown[standing.device.device_id] = line
                out.out(line)
        await fleet.next_change()
        await asyncio.sleep(_REDRAW_S)


def standings_of(fleet: RetainedFleet) -> list[Standing]:
    """All devices, by id."""
    standings = Standings(fleet.register.layers())
    return [standings.of(device) for _, device in sorted(fleet.devices.items())]


def _layers(fleet: RetainedFleet) -> dict[LayerName, Layer]:
    held = fleet.register.layers()
    return {name: now.layer for name, now in held.items() if now.layer is not None}


def status_view(
    standings: Iterable[Standing],
    layers: Mapping[LayerName, Layer],
    limit: int | None = None,
    *,
    show_telemetry: bool = False,
) -> RenderableType:
    """A row for each device, or for `limit` of them: those that do not follow first. Then what is
    wrong, and the rollouts that are under way."""
    everybody = list(standings)
    rows = everybody
    if limit is not None and len(everybody) > limit:
        rows = sorted(everybody, key=lambda row: _URGENCY.index(row.state))[:limit]
    table = _telemetry_table(rows) if show_telemetry else _table(rows)
    left_out = len(everybody) - len(rows)
    more = f"; {left_out} more: see them with --all or --json" if left_out else ""
    rollouts = [Text(line, "yellow") for line in rollout_lines(layers)]
    wrong = _each_once({row.device.device_id: _errors(row) for row in rows}, "red")
    skipped = _each_once(
        {row.device.device_id: list(map(skipped_line, row.skipped)) for row in everybody}, "yellow"
    )
    return Group(table, *wrong, *skipped, *rollouts, Text(_summary(everybody) + more))


def _table(rows: Iterable[Standing]) -> Table:
    table = _whole_cells(
        "Device", "Online", "Since", "Software", "Config", "Layers", "Last call", "Errors"
    )
    for standing in rows:
        device, reported = standing.device, standing.device.reported
        software = (device.presence and device.presence.software) or (
            reported and reported.software
        )
        table.add_row(
            escape(device.device_id),
            _online(device),
            _since(device),
            escape(printable(software or "-")),
            Text(standing.state, _STYLES[standing.state]),
            escape(printable(_layers_of(standing))),
            escape(printable(_last_call(device))),
            Text(str(len(_errors(standing)) or "-"), "red"),
        )
    return table


def _whole_cells(*headers: str) -> Table:
    """A table that on a narrow terminal breaks its long cells rather than leave out their ends."""
    return Table(*(Column(header, overflow="fold", no_wrap=header in _SHORT) for header in headers))


def _telemetry_table(rows: Iterable[Standing]) -> Table:
    columns = ("Device", "Online", "Since", "Config", *_TELEMETRY, "Told", "Errors")
    table = _whole_cells(*columns)
    for standing in rows:
        device, telemetry = standing.device, standing.device.telemetry
        values = [getattr(telemetry, name, None) for name, _ in _TELEMETRY.values()]
        table.add_row(
            escape(device.device_id),
            _online(device),
            _since(device),
            Text(standing.state, _STYLES[standing.state]),
            *(
                "-" if value is None else written.format(value)
                for value, (_, written) in zip(values, _TELEMETRY.values(), strict=True)
            ),
            f"{telemetry.at.astimezone(UTC):%Y-%m-%d %H:%M}" if telemetry else "-",
            Text(str(len(_errors(standing)) or "-"), "red"),
        )
    return table


_TELEMETRY = {
    "CPU": ("cpu_percent", "{:.0f} %"),
    "Load": ("load_1m", "{:.2f}"),
    "Temp.": ("temperature_c", "{:.0f} °C"),
    "Memory": ("memory_percent", "{:.0f} %"),
    "Disk": ("disk_percent", "{:.0f} %"),
    "Wi-Fi": ("wifi_signal_dbm", "{:.0f} dBm"),
    "Skew": ("clock_skew_s", "{:.1f} s"),
}
"""Columns: the field of the telemetry, and how it is written."""


def _online(device: FleetDevice) -> Text:
    if device.online:
        return Text("yes", "green") if device.is_confirmed else Text("unconfirmed", "yellow")
    return Text("never seen" if device.never_seen else "no", "red")


def _since(device: FleetDevice) -> str:
    """Since when it is there, or is not, as far as that is known (UTC)."""
    since = device.presence.since if device.presence else None
    return f"{since.astimezone(UTC):%Y-%m-%d %H:%M}" if since else "-"


def _layers_of(standing: Standing) -> str:
    """The revisions in force; `6→7` where another is expected."""
    reported = standing.device.reported
    runs = dict(reported.revisions) if reported else {}
    return " ".join(
        f"{name}:{runs[name]}"
        if runs.get(name) == standing.expected.get(name)
        else f"{name}:{runs.get(name, '-')}→{standing.expected.get(name, '-')}"
        for name in dict.fromkeys([*standing.expected, *runs])
    )


def _last_call(device: FleetDevice) -> str:
    """The call that it is in, or when and how the last one ended (UTC)."""
    telemetry = device.telemetry
    if telemetry is None:
        return "-"
    if device.online and telemetry.call not in ("idle", "closed"):
        return f"now: {telemetry.call}"
    last = telemetry.last_call
    return f"{last.ended_at:%Y-%m-%d %H:%M} {last.ended_because}".rstrip() if last else "-"


def _each_once(lines: Mapping[str, list[str]], style: str) -> Iterator[Text]:
    """Each line once, whole, with the devices that it is of: most of a fleet says the same."""
    by_line: dict[str, list[str]] = {}
    for device_id, said in lines.items():
        for line in said:
            by_line.setdefault(line, []).append(device_id)
    for line, devices in by_line.items():
        named = ", ".join(devices[:_DEVICES_NAMED])
        left_out = len(devices) - _DEVICES_NAMED
        more = f" and {left_out} more" if left_out > 0 else ""
        yield Text.assemble((line, style), f"\n  on {named}{more}")


def _errors(standing: Standing) -> list[str]:
    device = standing.device
    waiting = device.reported.waiting if device.reported else ()
    lines = [error_line(error) for error in standing.errors]
    told = {error.reason for error in standing.errors}
    faults = device.telemetry.faults if device.telemetry and device.online else ()
    lines += [
        printable(f"{fault.part}: {fault.reason}") for fault in faults if fault.reason not in told
    ]
    door = device.telemetry.door if device.telemetry and device.online else None
    if door is not None and door.locked_out:
        names = ", ".join(who or "somebody of several" for who in door.locked_out)
        lines.append(printable(f"door: {names} typed too many wrong codes, and is locked out"))
    if waiting:
        lines.append(printable(f"once idle: {', '.join(waiting)}"))
    return lines


def _summary(rows: list[Standing]) -> str:
    counts = {state: sum(row.state == state for row in rows) for state in _STYLES}
    found = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    online = sum(row.device.online for row in rows)
    never = sum(row.device.never_seen for row in rows)
    seen = f", {never} never seen" if never else ""
    return f"{len(rows)} devices, {online} online{seen}: {found or 'none'}"
