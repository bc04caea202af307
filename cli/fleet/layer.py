"""`bellwire fleet set`, `unset`, `log` and `rollback`: one layer at a time."""

import asyncio
import json
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import JsonValue
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bellwire.broker.fleet.layer_register import LayerConflict
from bellwire.cli.failures import fail, reported
from bellwire.cli.fleet.apply import (
    CommentOption,
    DefaultOption,
    DeviceOption,
    GroupOption,
    chosen_layer,
    skipped_lines,
)
from bellwire.cli.fleet.durability import NOT_DURABLE, Durability, say_open, until_durable
from bellwire.cli.fleet.names import unknown_names
from bellwire.cli.fleet.plan import (
    Effect,
    LayerChange,
    effects,
    refuse_rollout_of_rights,
    refuse_shut_rights,
    rollout_on,
)
from bellwire.cli.fleet.rollout import rollout_lines
from bellwire.cli.fleet.session import JsonOption, OperatorOption, RetainedFleet, open_fleet
from bellwire.cli.fleet.standing import error_line, printable
from bellwire.config.agent.layer_reach import said_anew
from bellwire.config.fleet.layer import Layer, Rollout
from bellwire.config.fleet.rollout_pause import COMMENT_LIMIT
from bellwire.config.fleet.writing import Draft, Held
from bellwire.signaling.errors import InvalidInput
from bellwire.signaling.topics import LayerName

Settings = dict[str, JsonValue]

_TRIES = 8
_MISSING = object()

ForceOption = Annotated[
    bool, typer.Option("--force", help="Write it although devices will refuse it.")
]


@reported
def set_value(
    pair: Annotated[
        str, typer.Argument(metavar="KEY=VALUE", help="A dotted key; the value is JSON or text.")
    ],
    default: DefaultOption = False,
    group: GroupOption = None,
    device: DeviceOption = None,
    comment: CommentOption = "",
    force: ForceOption = False,
    as_json: JsonOption = False,
    operator: OperatorOption = None,
) -> None:
    """Sets one value in a layer, such as `audio.ring_volume=0.4`, `log_level=debug`, `groups='["north"]'`.

    `KEY=null` removes the value that a layer below gives. Another operator's change of another key of
    the layer is kept; one of the same key is refused.
    """
    key, equals, text = pair.partition("=")
    if not equals:
        fail(f"{pair}: write it as KEY=VALUE")
    value = _value(text)
    _edit(
        _named(default, group, device),
        key,
        lambda parent, last: parent.__setitem__(last, value),
        operator,
        comment or f"set {key}",
        force=force,
        as_json=as_json,
    )


@reported
def unset(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The dotted key.")],
    default: DefaultOption = False,
    group: GroupOption = None,
    device: DeviceOption = None,
    comment: CommentOption = "",
    force: ForceOption = False,
    as_json: JsonOption = False,
    operator: OperatorOption = None,
) -> None:
    """Takes one key out of a layer, so that the layers below decide it again."""

    def remove(parent: Settings, last: str) -> None:
        if last not in parent:
            raise InvalidInput(f"the layer does not say {key}")
        del parent[last]

    name = _named(default, group, device)
    _edit(name, key, remove, operator, comment or f"unset {key}", force=force, as_json=as_json)


def _named(default: bool, group: str | None, device: str | None) -> LayerName:
    name = chosen_layer(default, group, device)
    if name is None:
        fail("say which layer: --default, --group NAME or --device ID")
    return name


def _value(text: str) -> JsonValue:
    try:
        value: JsonValue = json.loads(text)
    except ValueError:
        return text
    return value


def _edit(
    name: LayerName,
    key: str,
    change: Callable[[Settings, str], None],
    operator: Path | None,
    comment: str,
    *,
    force: bool,
    as_json: bool,
) -> None:
    path = key.split(".")
    if not all(path):
        fail(f"{key!r} is no key: write names joined by dots, such as audio.ring_volume")

    async def run() -> _Written:
        async with open_fleet(operator, histories=[name], to_write=True) as fleet:
            seen: object = None
            for tried in range(_TRIES):
                on = fleet.register.held(name)
                here = _at(on, path)
                if tried and here != seen:
                    raise LayerConflict(name, on)
                seen = here
                try:
                    return await _write(fleet, name, on, _changed(on, path, change), comment, force)
                except LayerConflict:
                    await fleet.settle()
            raise LayerConflict(name, fleet.register.held(name))

    _say(name, asyncio.run(run()), as_json=as_json)


def _at(on: Held, path: list[str]) -> object:
    """What a layer says at a path; a mark of its own where it says nothing."""
    here: Any = on.layer.settings if on.layer else {}
    for step in path:
        if not isinstance(here, dict) or step not in here:
            return _MISSING
        here = here[step]
    return here


def _changed(on: Held, path: list[str], change: Callable[[Settings, str], None]) -> Settings:
    settings: Settings = deepcopy(on.layer.settings) if on.layer else {}
    parent = settings
    for step in path[:-1]:
        below = parent.setdefault(step, {})
        if not isinstance(below, dict):
            raise InvalidInput(f"{'.'.join(path)}: {step} is no object in this layer")
        parent = below
    change(parent, path[-1])
    return settings


@dataclass(frozen=True, slots=True)
class _Written:
    """A revision that was written, who has it on disk, and what is to be said of it."""

    layer: Layer
    durability: Durability
    has_relay: bool
    warnings: list[str]
    skipped: list[str]


async def _write(
    fleet: RetainedFleet, name: LayerName, on: Held, settings: Settings, comment: str, force: bool
) -> _Written:
    """Writes a layer for the share of devices that it is for already, allowing as many errors."""
    old = on.layer.rollout if on.layer else Rollout()
    rollout = old if old.percent < 100 else rollout_on(on, 100, old.pause_at_errors)
    change = LayerChange(name, on, Draft(settings, rollout, comment[:COMMENT_LIMIT]))
    refuse_rollout_of_rights([change], whole=False)
    return await _write_change(fleet, change, force=force)


async def _write_change(fleet: RetainedFleet, change: LayerChange, *, force: bool) -> _Written:
    name, found = change.name, list(effects(fleet, [change], "dry-run"))
    if not force:
        _refuse_bad(fleet, change, found)
    anew = said_anew(change.draft.settings, change.on.layer.settings if change.on.layer else {})
    warnings = unknown_names(fleet, {name: change.draft.settings})
    skipped = [
        replace(effect, skipped=tuple(one for one in effect.skipped if one.path in anew))
        for effect in found
    ]
    layer = await fleet.register.write(name, change.draft, on=change.on)
    durable = (await until_durable(fleet, {name: layer}))[name]
    has_relay = fleet.keepers.present or fleet.keepers.silent
    return _Written(layer, durable, has_relay, warnings, skipped_lines(skipped))


def _refuse_bad(fleet: RetainedFleet, change: LayerChange, found: list[Effect]) -> None:
    for effect in found:
        if effect.errors:
            raise InvalidInput(
                f"device {effect.device_id} would refuse it: {error_line(effect.errors[0])}."
                " Nothing was written; write it all the same with --force"
            )
    refuse_shut_rights(fleet, [change], whole=False)


@reported
def log(
    default: DefaultOption = False,
    group: GroupOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    operator: OperatorOption = None,
) -> None:
    """Shows the last 20 revisions of a layer, newest first."""
    name = _named(default, group, device)

    async def run() -> list[Layer]:
        async with open_fleet(operator, histories=[name]) as fleet:
            return fleet.register.history(name)

    revisions = asyncio.run(run())
    if as_json:
        shown = [revision.model_dump(mode="json") for revision in revisions]
        Console(soft_wrap=True).out(json.dumps(shown, ensure_ascii=False))
    elif revisions:
        Console().print(history_table(revisions))
    else:
        fail(
            f"layer {name} has no revisions: see which layers are in force with `bellwire fleet status`"
        )


@reported
def rollback(
    default: DefaultOption = False,
    group: GroupOption = None,
    device: DeviceOption = None,
    to: Annotated[
        int | None, typer.Option(min=1, metavar="REVISION", help="Which one. [the one before]")
    ] = None,
    comment: CommentOption = "",
    force: ForceOption = False,
    as_json: JsonOption = False,
    operator: OperatorOption = None,
) -> None:
    """Writes an earlier revision's settings again, for all devices, as a new revision.

    The one before is the last whose settings are others than now: a rollout's steps count as one.
    """
    name = _named(default, group, device)

    async def run() -> _Written:
        async with open_fleet(operator, histories=[name], to_write=True) as fleet:
            on = fleet.register.held(name)
            back = _revision_before(name, fleet.register.history(name), on, to)
            draft = Draft(back.settings, comment=comment or f"rollback to {back.revision}")
            return await _write_change(fleet, LayerChange(name, on, draft), force=force)

    _say(name, asyncio.run(run()), as_json=as_json)


def _revision_before(name: LayerName, history: list[Layer], on: Held, wanted: int | None) -> Layer:
    now = on.layer.settings if on.layer else None
    for revision in history:
        if revision.revision == wanted or (wanted is None and revision.settings != now):
            return revision
    missing = "revision before" if wanted is None else f"revision {wanted}"
    kept = ", ".join(str(revision.revision) for revision in history)
    what_next = (
        f"give --to one of {kept}"
        if kept
        else "nothing was ever written to it; see which layers are in force with `bellwire fleet status`"
    )
    raise InvalidInput(f"layer {name} has no {missing} in its history: {what_next}")


def _say(name: LayerName, written: _Written, *, as_json: bool) -> None:
    layer, console = written.layer, Console(stderr=as_json)
    if as_json:
        shown = {
            "layer": name,
            **layer.model_dump(mode="json"),
            "durable": written.durability.as_json(),
            "warnings": written.warnings,
        }
        Console(soft_wrap=True).out(json.dumps(shown, ensure_ascii=False))
    else:
        console.print(
            f"Written: {name} revision {layer.revision}, {written.durability}", highlight=False
        )
        for line in rollout_lines({name: layer}):
            console.print(f"{line}; see `bellwire fleet apply --percent`", markup=False)
    for line in [*(f"Warning: {warning}" for warning in written.warnings), *written.skipped]:
        console.print(line, style="yellow", markup=False, soft_wrap=True)
    say_open(console, written.has_relay, {name: written.durability})
    if not written.durability.is_durable:
        raise typer.Exit(NOT_DURABLE)


def history_table(revisions: Iterable[Layer]) -> Table:
    """A layer's revisions, newest first."""
    table = Table("Revision", "Written (UTC)", "Author", "For", "Comment", "Settings")
    for layer in revisions:
        table.add_row(
            str(layer.revision),
            f"{layer.at:%Y-%m-%d %H:%M:%S}",
            escape(printable(layer.author)),
            "all" if layer.rollout.percent == 100 else f"{layer.rollout.percent} %",
            escape(printable(layer.comment)),
            escape(printable(", ".join(layer.settings))),
        )
    return table
