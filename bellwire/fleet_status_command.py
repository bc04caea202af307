"""`bellwire fleet status` and `watch`: who follows, who does not, and why."""

import asyncio
import json
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from bellwire.failures import reported
from bellwire.fleet_apply_command import NOT_FOLLOWED
from bellwire.fleet_session import Fleet, JsonOption, OperatorOption, open_fleet
from bellwire.fleet_standing import Standing, Standings
from bellwire.fleet_view import status_table
from bellwire.stopping import run_until_stopped
from signaling.identifiers import DeviceId

_REDRAW_S = 0.25
_ROWS = 100
"""What a person reads; a table of thousands takes seconds to lay out."""

CheckOption = Annotated[
    bool, typer.Option("--check", help="Exit with 3 if a device that is online does not follow.")
]

AllOption = Annotated[
    bool, typer.Option("--all", help="Show all; else 100, those that do not follow first.")
]


@reported
def status(
    check: CheckOption = False,
    show_all: AllOption = False,
    as_json: JsonOption = False,
    operator: OperatorOption = None,
) -> None:
    """Shows each device: online, software, the layers in force, whether it follows, and what is wrong.

    *in step* runs what the layers give; *waiting* will, once no call is in progress; *refused* keeps
    the last good configuration, and says why; *behind* runs something else; *unknown* has never said.
    `default:6→7` means that it runs revision 6 of the layer, which is at 7.
    """

    async def run() -> list[Standing]:
        async with open_fleet(operator) as fleet:
            return standings_of(fleet)

    rows = asyncio.run(run())
    if as_json:
        shown = {"devices": [standing.as_json() for standing in rows]}
        Console(soft_wrap=True).out(json.dumps(shown, ensure_ascii=False))
    elif rows:
        Console().print(status_table(rows, None if show_all else _ROWS))
    else:
        Console().print(
            "No device has reported yet: add one with `bellwire devices add`, and start its agent."
        )
    if check and any(row.device.online and row.state != "in step" for row in rows):
        raise typer.Exit(NOT_FOLLOWED)


@reported
def watch(as_json: JsonOption = False, operator: OperatorOption = None) -> None:
    """Shows the devices live until Ctrl-C. With --json a line for each device that changes."""
    run_until_stopped(lambda stop: _watch(stop, operator_file=operator, as_json=as_json))


async def _watch(stop: asyncio.Event, *, operator_file: OperatorOption, as_json: bool) -> None:
    async with open_fleet(operator_file) as fleet, asyncio.TaskGroup() as tasks:
        showing = tasks.create_task(_print_lines(fleet) if as_json else _redraw(fleet))
        await stop.wait()
        showing.cancel()


async def _redraw(fleet: Fleet) -> None:
    with Live(console=Console(), auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            live.update(status_table(standings_of(fleet), _ROWS), refresh=True)
            await fleet.next_change()
            await asyncio.sleep(_REDRAW_S)


async def _print_lines(fleet: Fleet) -> None:
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


def standings_of(fleet: Fleet) -> list[Standing]:
    """All devices, by id."""
    standings = Standings(fleet.register.layers())
    return [standings.of(device) for _, device in sorted(fleet.devices.items())]
