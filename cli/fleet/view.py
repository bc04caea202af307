"""How the fleet looks on a terminal: tables of devices, differences and revisions."""

from collections.abc import Iterable, Iterator, Mapping

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from bellwire.cli.fleet.plan import Change, Effect
from bellwire.cli.fleet.rollout import Followed
from bellwire.cli.fleet.session import Device
from bellwire.cli.fleet.standing import Standing
from bellwire.config.fleet.layer import Layer, LayerProblem
from bellwire.config.fleet.rollout_pause import can_pause, takes_rights_away
from bellwire.signaling.topics import LayerName

_STYLES = {
    "in step": "green",
    "waiting": "yellow",
    "refused": "bold red",
    "behind": "yellow",
    "unknown": "dim",
}
_DEVICES_NAMED = 10
_URGENCY = ("refused", "behind", "waiting", "unknown", "in step")


def status_view(
    standings: Iterable[Standing], layers: Mapping[LayerName, Layer], limit: int | None = None
) -> RenderableType:
    """A row for each device, or for `limit` of them: those that do not follow first. Then what is
    wrong, and the rollouts that are under way."""
    everybody = list(standings)
    rows = everybody
    if limit is not None and len(everybody) > limit:
        rows = sorted(everybody, key=lambda row: _URGENCY.index(row.state))[:limit]
    table = Table("Device", "Online", "Software", "Config", "Layers", "Last call", "Errors")
    for standing in rows:
        device, reported = standing.device, standing.device.reported
        software = (device.presence and device.presence.software) or (
            reported and reported.software
        )
        table.add_row(
            escape(device.device_id),
            _online(device),
            escape(printable(software or "-")),
            Text(standing.state, _STYLES[standing.state]),
            escape(printable(_layers(standing))),
            escape(printable(_last_call(device))),
            Text(str(len(_errors(standing)) or "-"), "red"),
        )
    left_out = len(everybody) - len(rows)
    more = f"; {left_out} more: see them with --all or --json" if left_out else ""
    rollouts = [Text(line, "yellow") for line in rollout_lines(layers)]
    wrong = _each_once({row.device.device_id: _errors(row) for row in rows}, "red")
    skipped = _each_once(
        {row.device.device_id: list(map(skipped_line, row.skipped)) for row in everybody}, "yellow"
    )
    return Group(table, *wrong, *skipped, *rollouts, Text(_summary(everybody) + more))


def _online(device: Device) -> Text:
    if device.online:
        return Text("yes", "green")
    return Text("never seen" if device.never_seen else "no", "red")


def _layers(standing: Standing) -> str:
    """The revisions in force; `6→7` where another is expected."""
    reported = standing.device.reported
    runs = dict(reported.revisions) if reported else {}
    return " ".join(
        f"{name}:{runs[name]}"
        if runs.get(name) == standing.expected.get(name)
        else f"{name}:{runs.get(name, '-')}→{standing.expected.get(name, '-')}"
        for name in dict.fromkeys([*standing.expected, *runs])
    )


def _last_call(device: Device) -> str:
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


def rollout_lines(layers: Mapping[LayerName, Layer]) -> Iterator[str]:
    """A line for each layer that is not for all devices."""
    for name, layer in layers.items():
        rollout = layer.rollout
        paused = rollout.paused_at is not None
        what = f", {layer.comment}" if paused and layer.comment else ", paused" if paused else ""
        never = (
            "; refusing it never takes it back, since it takes rights away"
            if can_pause(layer) and takes_rights_away(layer)
            else ""
        )
        if rollout.percent == 100 and not never:
            continue
        yield printable(
            f"{name} revision {layer.revision} is for {rollout.percent} % of its devices{what}{never}"
        )


def _summary(rows: list[Standing]) -> str:
    counts = {state: sum(row.state == state for row in rows) for state in _STYLES}
    found = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    online = sum(row.device.online for row in rows)
    never = sum(row.device.never_seen for row in rows)
    seen = f", {never} never seen" if never else ""
    return f"{len(rows)} devices, {online} online{seen}: {found or 'none'}"


def error_line(error: LayerProblem) -> str:
    """One thing wrong with a layer."""
    revision = f" revision {error.revision}" if error.revision else ""
    return printable(f"{error.layer}{revision}, {error.path or 'the whole'}: {error.reason}")


def skipped_line(skipped: LayerProblem) -> str:
    """One key of a layer that has no effect."""
    return f"skipped: {error_line(skipped)}"


def printable(text: str) -> str:
    """What a device or another operator says, without what a terminal would take for commands."""
    return "".join(char if char.isprintable() else "�" for char in text)


def changes_view(changes: Iterable[Change]) -> RenderableType:
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


def _difference_line(difference: tuple[str, str, str]) -> Text:
    path, old, new = difference
    return Text.assemble("  ", (path, "cyan"), ": ", (old, "red"), " → ", (new, "green"))


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


def followed_line(followed: Followed) -> str:
    """How many follow, in one line."""
    return (
        f"{len(followed.following)} of {len(followed.concerned)} online devices follow"
        f", {len(followed.errors)} refuse, {len(followed.missing)} have not said"
    )
