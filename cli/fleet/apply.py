"""`bellwire fleet apply`, `diff` and `export`: the fleet's configuration as files, and what they print."""

import asyncio
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from bellwire.cli.failures import fail, reported
from bellwire.cli.fleet.bases import (
    NOTE,
    Bases,
    changed_since,
    find_bases,
    merged,
    note_bases,
    refuse_changed,
)
from bellwire.cli.fleet.durability import NOT_DURABLE, Durability, say_open, until_durable
from bellwire.cli.fleet.files import (
    Settings,
    find_layers,
    read_layers,
    rewrite_layer,
    write_layers,
)
from bellwire.cli.fleet.names import unknown_names
from bellwire.cli.fleet.plan import (
    Effect,
    LayerChange,
    effects,
    plan,
    refuse_rollout_of_rights,
    refuse_shut_rights,
    refuse_wiring,
)
from bellwire.cli.fleet.rollout import (
    Followed,
    RolloutOutcome,
    followed_line,
    roll_out,
    rollout_lines,
    write_all,
)
from bellwire.cli.fleet.session import JsonOption, OperatorOption, RetainedFleet, open_fleet
from bellwire.cli.fleet.standing import error_line, skipped_line
from bellwire.config.fleet.layer import Layer
from bellwire.config.fleet.rollout_pause import can_pause
from bellwire.signaling.errors import InvalidInput
from bellwire.signaling.topics import DEFAULT_LAYER, LayerName, device_layer, group_layer

NOT_FOLLOWED = 3
"""The exit code that says: it was done, and the fleet does not follow; or there is a difference."""

PathArgument = Annotated[
    Path, typer.Argument(metavar="PATH", help="A layer's file, or a directory of them.")
]
DefaultOption = Annotated[bool, typer.Option("--default", help="The layer of all devices.")]
GroupOption = Annotated[
    str | None, typer.Option("--group", metavar="NAME", help="The layer of a group.")
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", metavar="ID", help="The layer of one device.")
]
CommentOption = Annotated[
    str, typer.Option("--comment", metavar="TEXT", help="Why, for the history.")
]


def chosen_layer(default: bool, group: str | None, device: str | None) -> LayerName | None:
    """The layer that the options name; None where they name none."""
    if sum((default, group is not None, device is not None)) > 1:
        fail("give one of --default, --group NAME and --device ID")
    if group is not None:
        return group_layer(group)
    if device is not None:
        return device_layer(device)
    return DEFAULT_LAYER if default else None


@reported
def apply(
    path: PathArgument,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show what it would change on each device; write nothing."),
    ] = False,
    percent: Annotated[
        str | None,
        typer.Option(
            metavar="N[,N...]",
            help="For this share of the devices only; several are steps, taken with --wait. [100]",
        ),
    ] = None,
    pause_at_errors: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Go back a step if more devices refuse it: --wait, a relay and `watch --guard` do.",
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until all devices that are online follow.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(min=1, max=86_400, help="Seconds to wait at most, for each step.")
    ] = 30,
    force: Annotated[
        bool, typer.Option("--force", help="Write it although devices will refuse it.")
    ] = False,
    merge: Annotated[
        bool,
        typer.Option(
            "--merge",
            help="Take what came since the export, too: into the layers and into the files.",
        ),
    ] = False,
    comment: CommentOption = "",
    default: DefaultOption = False,
    group: GroupOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    operator: OperatorOption = None,
) -> None:
    """Makes the layers say what files say: `default`, `groups/NAME`, `devices/ID`, .toml or .json.

    Layers that have no file are left alone. What a device that is known would refuse is not written, nor
    what only a device's own file says (wiring, a door's times), nor who may open doors where a device's
    file does not open that to layers.
    A layer that another operator has changed since `bellwire fleet export` wrote its file, or while this
    runs, is refused, and names them; `--merge` takes both sides' changes, key by key, and rewrites the file.
    "Written" means that a relay has stored it, or that a device has it on its disk. The exit code is 0 if
    all was done, 4 if it is not yet durable, 3 if devices do not follow (`--wait`), 1 if it was not done.
    """
    steps = _steps(percent)
    if device is not None and pause_at_errors is not None:
        fail("--pause-at-errors counts devices, and a device's layer is for one: leave it out")
    if len(steps) > 1 and not wait:
        fail("steps need --wait: it is this command that takes them")
    files = find_layers(path, chosen_layer(default, group, device))
    wanted = read_layers(path, chosen_layer(default, group, device))
    asyncio.run(
        _apply(
            _Files(files, wanted, find_bases(path)),
            operator,
            merge=merge,
            steps=steps,
            pause_at_errors=pause_at_errors,
            dry_run=dry_run,
            force=force,
            timeout_s=timeout if wait else None,
            comment=comment,
            as_json=as_json,
        )
    )


@dataclass(frozen=True, slots=True)
class _Files:
    """The files that are applied: of which layers they are, what they say, what they were made of."""

    paths: Mapping[LayerName, Path]
    wanted: dict[LayerName, Settings]
    bases: Bases | None

    def merged(self, fleet: RetainedFleet, *, merge: bool) -> "_Files":
        """As they are to be applied: what came since they were made is refused, or merged into them."""
        if self.bases is None:
            return self
        changed = changed_since(self.bases, fleet.register.layers(), self.wanted)
        if not merge:
            refuse_changed(self.bases, changed)
        histories = {name: fleet.register.history(name) for name in changed}
        both = merged(self.bases, changed, self.wanted, histories)
        return _Files(self.paths, {**self.wanted, **both}, self.bases)

    def note(self, layers: Mapping[LayerName, Layer], before: Mapping[LayerName, Settings]) -> None:
        """Has the files say what was merged, and notes what they are made of now."""
        for name, settings in self.wanted.items():
            if settings != before[name]:
                rewrite_layer(self.paths[name], settings)
        if self.bases is not None:
            note_bases(self.bases.path, layers, self.paths)


async def _apply(
    files: _Files,
    operator: Path | None,
    *,
    merge: bool,
    steps: list[int],
    pause_at_errors: int | None,
    dry_run: bool,
    force: bool,
    timeout_s: float | None,
    comment: str,
    as_json: bool,
) -> None:
    console = Console(stderr=as_json)
    read, durable = files.wanted, dict[LayerName, Durability]()
    async with open_fleet(operator, histories=read, to_write=not dry_run) as fleet:
        files = files.merged(fleet, merge=merge)
        warnings = unknown_names(fleet, files.wanted)
        for warning in warnings:
            console.print(f"Warning: {warning}", style="yellow", markup=False, soft_wrap=True)
        changes = plan(
            fleet.register.layers(),
            files.wanted,
            percent=steps[-1] if steps else None,
            pause_at_errors=pause_at_errors,
            comment=comment,
        )
        found = list(effects(fleet, changes, "dry-run"))
        console.print(changes_view(changes), soft_wrap=True)
        if dry_run:
            console.print(effects_view(found), soft_wrap=True)
            try:
                _refuse(fleet, changes, found, force=force)
            except InvalidInput as error:
                console.print(f"Without --dry-run: {error.detail}", style="red", markup=False)
            _print_json(as_json, changes, found, None, durable, warnings)
            return
        _refuse(fleet, changes, found, force=force)
        outcome = await _write(fleet, changes, steps, pause_at_errors, timeout_s, console)
        durable = await until_durable(fleet, outcome.written)
        has_relay = fleet.keepers.present or fleet.keepers.silent
        held = fleet.register.layers()
        layers = {name: now.layer for name in read if (now := held.get(name)) and now.layer}
    files.note({**layers, **outcome.written}, read)
    _print_json(as_json, changes, found, outcome, durable, warnings)
    _say_outcome(console, outcome, steps, durable)
    for line in skipped_lines(found):
        console.print(line, style="yellow", markup=False, soft_wrap=True)
    say_open(console, has_relay, durable)
    if not all(one.is_durable for one in durable.values()):
        raise typer.Exit(NOT_DURABLE)
    if not outcome.is_good:
        raise typer.Exit(NOT_FOLLOWED)


def _refuse(
    fleet: RetainedFleet, changes: list[LayerChange], found: list[Effect], *, force: bool
) -> None:
    refuse_wiring(changes)
    refuse_rollout_of_rights(changes, whole=True)
    if not force:
        _refuse_bad(found)
        refuse_shut_rights(fleet, changes, whole=True)


def _refuse_bad(found: list[Effect]) -> None:
    bad = [effect for effect in found if effect.errors]
    if bad:
        raise InvalidInput(
            f"{len(bad)} device(s) would refuse it, the first {bad[0].device_id}:"
            f" {error_line(bad[0].errors[0])}. Nothing was written; see all with --dry-run,"
            " or write it all the same with --force"
        )


async def _write(
    fleet: RetainedFleet,
    changes: list[LayerChange],
    steps: list[int],
    pause_at_errors: int | None,
    timeout_s: float | None,
    console: Console,
) -> RolloutOutcome:
    if not changes or timeout_s is None:
        return RolloutOutcome(await write_all(fleet, changes))
    with Live(console=console, transient=True, refresh_per_second=8) as live:

        def show(percent: int, followed: Followed) -> None:
            live.update(f"{percent} %: {followed_line(followed)}")

        return await roll_out(
            fleet,
            changes,
            steps or [100],
            pause_at_errors=pause_at_errors,
            timeout_s=timeout_s,
            show=show,
        )


def _say_outcome(
    console: Console,
    outcome: RolloutOutcome,
    steps: list[int],
    durable: Mapping[LayerName, Durability],
) -> None:
    for name, layer in outcome.written.items():
        share = "" if layer.rollout.percent == 100 else f" for {layer.rollout.percent} %"
        console.print(
            f"Written: {name} revision {layer.revision}{share}, {durable[name]}", highlight=False
        )
    if outcome.followed is None:
        if any(map(can_pause, outcome.written.values())):
            console.print(
                "It goes back by itself where a relay runs on this broker; without one keep"
                " `bellwire fleet watch --guard` running."
            )
        return
    console.print(followed_line(outcome.followed), highlight=False)
    for device_id, error in sorted(outcome.followed.errors.items())[:10]:
        console.print(f"  ✗ {device_id}: {error_line(error)}", style="red", markup=False)
    for device_id in outcome.followed.missing[:10]:
        console.print(f"  ? {device_id} has not said that it follows", style="yellow", markup=False)
    if outcome.paused:
        for line in rollout_lines(outcome.written):
            console.print(line, style="bold red", markup=False)
        console.print("Paused: mend what was refused, then apply it again.", style="bold red")
    elif steps and any(layer.rollout.percent < 100 for layer in outcome.written.values()):
        console.print("Next: apply again with a larger --percent, or with --percent 100.")


def _print_json(
    as_json: bool,
    changes: list[LayerChange],
    found: list[Effect],
    outcome: RolloutOutcome | None,
    durable: Mapping[LayerName, Durability],
    warnings: list[str],
) -> None:
    if not as_json:
        return
    followed = outcome.followed if outcome else None
    document = {
        "changes": [
            {
                "layer": change.name,
                "from_revision": change.on.layer.revision if change.on.layer else None,
                "differences": _differences(change.differences),
            }
            for change in changes
        ],
        "devices": [
            {
                "device_id": effect.device_id,
                "differences": _differences(effect.differences),
                "errors": [error.model_dump() for error in effect.errors],
                "skipped": [skipped.model_dump() for skipped in effect.skipped],
            }
            for effect in found
        ],
        "written": {name: layer.revision for name, layer in outcome.written.items()}
        if outcome
        else {},
        "following": sorted(followed.following) if followed else None,
        "refusing": sorted(followed.errors) if followed else None,
        "silent": followed.missing if followed else None,
        "paused": bool(outcome and outcome.paused),
        "durable": {name: one.as_json() for name, one in durable.items()},
        "warnings": warnings,
    }
    Console(soft_wrap=True).out(json.dumps(document, ensure_ascii=False))


def _differences(found: list[tuple[str, str, str]]) -> list[dict[str, str]]:
    return [{"path": path, "old": old, "new": new} for path, old, new in found]


def _steps(text: str | None) -> list[int]:
    if text is None:
        return []
    try:
        steps = [int(part) for part in text.split(",")]
    except ValueError:
        steps = []
    if not steps or steps != sorted(set(steps)) or not 0 <= steps[0] <= steps[-1] <= 100:
        fail(f"--percent {text}: write a number of 0 to 100, or growing steps such as 10,50,100")
    return steps


@reported
def diff(
    path: PathArgument,
    default: DefaultOption = False,
    group: GroupOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    operator: OperatorOption = None,
) -> None:
    """Shows how the layers differ from files. The exit code is 3 if they do.

    `bellwire fleet apply --dry-run` shows besides what each device would run.
    """

    async def run() -> list[LayerChange]:
        wanted = read_layers(path, chosen_layer(default, group, device))
        async with open_fleet(operator) as fleet:
            return plan(fleet.register.layers(), wanted)

    changes = asyncio.run(run())
    if as_json:
        _print_json(as_json, changes, [], None, {}, [])
    else:
        Console().print(changes_view(changes), soft_wrap=True)
    if changes:
        raise typer.Exit(NOT_FOLLOWED)


@reported
def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write the files.")],
    as_json: JsonOption = False,
    operator: OperatorOption = None,
) -> None:
    """Writes all layers into a directory that `bellwire fleet apply` takes back unchanged.

    Beside them it notes which revision each file was made of, so that `apply` overwrites nothing that came
    since.
    """

    async def run() -> dict[LayerName, Layer]:
        async with open_fleet(operator) as fleet:
            held = fleet.register.layers()
            return {name: now.layer for name, now in held.items() if now.layer}

    if folder.exists() and any(folder.iterdir()):
        fail(f"{folder} is not empty: give a new directory")
    layers = asyncio.run(run())
    written = write_layers(folder, {name: layer.settings for name, layer in layers.items()})
    folder.mkdir(parents=True, exist_ok=True)
    note_bases(folder / NOTE, layers, written)
    if as_json:
        Console(soft_wrap=True).out(json.dumps({"files": list(map(str, written.values()))}))
        return
    for file in written.values():
        Console(soft_wrap=True).out(str(file))
    Console().print(f"{len(written)} layers. Change them, then: bellwire fleet apply {folder}")


def changes_view(changes: Iterable[LayerChange]) -> RenderableType:
    """What is to be written, layer by layer."""
    lines: list[Text] = []
    for change in changes:
        before = change.on.layer
        what = f"revision {before.revision} → {before.revision + 1}" if before else "new"
        lines.append(Text.assemble((change.name, "bold"), f" ({what})"))
        lines.extend(map(_difference_line, change.differences))
    return Group(*lines) if lines else Text("Nothing to change: the layers say this already.")


def effects_view(effects: Iterable[Effect]) -> RenderableType:
    """What would change on each device."""
    lines: list[Text] = []
    for effect in effects:
        lines.append(Text.assemble(("device ", ""), (effect.device_id, "bold")))
        lines.extend(map(_difference_line, effect.differences))
        lines.extend(Text(f"  ✗ {error_line(error)}", "bold red") for error in effect.errors)
        lines.extend(Text(f"  {skipped_line(skipped)}", "yellow") for skipped in effect.skipped)
    return Group(*lines) if lines else Text("No device that has reported would run anything else.")


def skipped_lines(effects: Iterable[Effect]) -> list[str]:
    """What of the layers has no effect on devices, each once, with how many of them."""
    by_line: dict[str, list[str]] = {}
    for effect in effects:
        for skipped in effect.skipped:
            by_line.setdefault(skipped_line(skipped), []).append(effect.device_id)
    return [
        f"{line} (on {devices[0]}" + (f" and {len(devices) - 1} more)" if devices[1:] else ")")
        for line, devices in by_line.items()
    ]


def _difference_line(difference: tuple[str, str, str]) -> Text:
    path, old, new = difference
    return Text.assemble("  ", (path, "cyan"), ": ", (old, "red"), " → ", (new, "green"))
