"""How each device stands to the layers: what it should run, what it says it runs, and what a change of
the layers would change; computed by the agents' own rules (:mod:`config.fleet.merge`). And what is wrong
with a layer in words."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from bellwire.cli.fleet.session import FleetDevice
from bellwire.config.fleet.layer import Layer, LayerProblem, Reported
from bellwire.config.fleet.merge import LayerVerdict, LocalFile, in_rollout, judge, parse_layer
from bellwire.config.fleet.writing import Held
from bellwire.signaling.topics import LayerName

State = Literal["in step", "waiting", "refused", "behind", "unknown"]

_ABSENT = "(nothing)"

READINGS = (
    *("at", "uptime_s", "boot_s", "cpu_percent", "load_1m", "temperature_c", "memory_percent"),
    *("agent_rss_mb", "disk_percent", "wifi_signal_dbm", "clock_skew_s"),
)
"""What of a device's telemetry is about the machine."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A device, and whether it follows.

    `in step`: it runs what the layers give. `waiting`: it will, once it is idle. `refused`: a layer is
    wrong for it, and it runs the last good one. `behind`: it runs something else, or is away.
    `unknown`: it has never reported, or what its own file says makes no sense to this version.
    """

    device: FleetDevice
    state: State
    expected: Mapping[str, int]
    """The layers that count for it, by the agent's names, and their revisions."""
    skipped: tuple[LayerProblem, ...] = ()
    """What the layers that count say and the device skips, or would if it were of this version."""

    @property
    def errors(self) -> tuple[LayerProblem, ...]:
        """What the device says is wrong; layers among it that it has gone beyond."""
        reported = self.device.reported
        return (*reported.errors, *reported.outdated) if reported else ()

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that the device says it is in."""
        groups = self.device.reported.effective.get("groups") if self.device.reported else None
        return tuple(map(str, groups)) if isinstance(groups, list) else ()

    def as_json(self) -> dict[str, object]:
        """The row of `bellwire fleet status --json`."""
        device, reported = self.device, self.device.reported
        presence, telemetry = device.presence, device.telemetry
        return {
            "device_id": device.device_id,
            "online": device.online,
            "confirmed": device.is_confirmed,
            "since": presence.since.isoformat() if presence and presence.since else None,
            "never_seen": device.never_seen,
            "groups": list(self.groups),
            "software": (presence and presence.software) or (reported and reported.software),
            "state": self.state,
            "drift": self.state in ("behind", "refused"),
            "revisions": dict(reported.revisions) if reported else {},
            "expected": dict(self.expected),
            "hash": reported.hash if reported else None,
            "reported_at": reported.at.isoformat() if reported else None,
            "waiting": list(reported.waiting) if reported else [],
            "errors": [error.model_dump() for error in self.errors],
            "skipped": [skipped.model_dump() for skipped in self.skipped],
            "remote": list(reported.remote) if reported else [],
            "call": telemetry.call if telemetry and device.online else None,
            "last_call": telemetry.last_call.model_dump(mode="json")
            if telemetry and telemetry.last_call
            else None,
            "door": telemetry.door.model_dump() if telemetry and telemetry.door else None,
            "faults": [fault.model_dump() for fault in telemetry.faults] if telemetry else [],
            "telemetry": telemetry.model_dump(mode="json", include=set(READINGS))
            if telemetry
            else None,
        }


class Standings:
    """Judges devices, and remembers what the same file and the same layers came to."""

    def __init__(self, layers: Mapping[LayerName, Held]) -> None:
        self._layers: dict[str, Layer | LayerProblem] = {
            name: parse_layer("device" if name.startswith("device/") else name, held.payload)
            for name, held in layers.items()
        }
        self._groups = {
            name: layer for name, layer in self._layers.items() if not name.startswith("device/")
        }
        self._known: dict[str, LayerVerdict | None] = {}

    def of(self, device: FleetDevice) -> Standing:
        """How a device stands."""
        reported = device.reported
        if reported is None:
            return Standing(device, "unknown", {})
        verdict = self.verdict(reported)
        if verdict is None:
            return Standing(device, "unknown", {}, reported.skipped)
        expected = verdict.revisions | {
            error.layer: error.revision for error in verdict.errors if error.revision
        }
        skipped = tuple(dict.fromkeys([*reported.skipped, *verdict.skipped]))
        return Standing(device, _state(reported, verdict, expected), expected, skipped)

    def verdict(self, reported: Reported) -> LayerVerdict | None:
        """What a device should run, unless a layer is wrong for it. None where its own file is wrong
        as this version sees it: a newer agent's may be."""
        layers = dict(self._groups)
        if (own := self._layers.get(f"device/{reported.device_id}")) is not None:
            layers["device"] = own
        taken = [
            in_rollout(reported.device_id, name, layer.rollout.percent)
            for name, layer in layers.items()
            if isinstance(layer, Layer)
        ]
        key = json.dumps(
            [
                *(reported.local, reported.locked, reported.remote, taken),
                reported.device_id if own else "",
            ]
        )
        if key not in self._known:
            local = LocalFile(reported.device_id, reported.local, reported.locked, reported.remote)
            try:
                self._known[key] = judge(local, layers)
            except ValueError:
                self._known[key] = None
        return self._known[key]


def _state(reported: Reported, verdict: LayerVerdict, expected: Mapping[str, int]) -> State:
    wrong = (*reported.errors, *reported.outdated)
    if any(error.revision in (None, expected.get(error.layer)) for error in wrong):
        return "refused"  # An error of another revision is yesterday's.
    if reported.waiting:
        return "waiting"
    return "in step" if reported.hash == verdict.hash else "behind"


def differences(old: JsonValue, new: JsonValue, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Each place where two documents differ: dotted path, old and new value as JSON."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            below = f"{path}.{name}" if path else name
            if name not in new:
                yield below, _shown(old[name]), _ABSENT
            elif name not in old:
                yield below, _ABSENT, _shown(new[name])
            else:
                yield from differences(old[name], new[name], below)
    elif json.dumps(old, sort_keys=True) != json.dumps(new, sort_keys=True):
        yield path, _shown(old), _shown(new)


def _shown(value: JsonValue) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


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
