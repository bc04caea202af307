"""Which devices `bellwire fleet status` shows: those that fit every option that is given, and of one that
is given several times any of its values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from bellwire.cli.fleet.standing import Standing, State
from bellwire.signaling.errors import InvalidInput, NotFound

ANY_FAULT = "any"
_PRESENCES = ("online", "offline", "never seen", "unconfirmed")
STATES = (*get_args(State), *_PRESENCES)
"""What `--state` takes; of words with a space also with `-` in its place."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What is asked for; empty is all.

    Args:
        devices: Their ids.
        groups: A group of theirs, as they report it.
        states: One of `STATES`.
        faults: A part that they report a fault of, or `ANY_FAULT`.
    """

    devices: Sequence[str] = ()
    groups: Sequence[str] = ()
    states: Sequence[str] = ()
    faults: Sequence[str] = ()

    def __post_init__(self) -> None:
        for state in self.states:
            if state.replace("-", " ") not in STATES:
                known = ", ".join(state.replace(" ", "-") for state in STATES)
                raise InvalidInput(f"--state {state}: must be one of {known}")

    def among(self, standings: Sequence[Standing]) -> list[Standing]:
        """Those that are asked for.

        Raises:
            NotFound: one is named that is not in the fleet.
        """
        unknown = set(self.devices) - {standing.device.device_id for standing in standings}
        if unknown:
            raise NotFound(
                f"no device {min(unknown)} has ever reported: see `bellwire fleet status`"
            )
        return [*filter(self.takes, standings)]

    def takes(self, standing: Standing) -> bool:
        """Whether a device is asked for."""
        return (
            (not self.devices or standing.device.device_id in self.devices)
            and (not self.groups or not set(self.groups).isdisjoint(standing.groups))
            and (not self.states or any(_is(standing, state) for state in self.states))
            and (not self.faults or any(_has(standing, part) for part in self.faults))
        )


def _is(standing: Standing, state: str) -> bool:
    device = standing.device
    match state.replace("-", " "):
        case "online":
            return device.online
        case "offline":
            return not device.online and not device.never_seen
        case "never seen":
            return device.never_seen
        case "unconfirmed":
            return not device.is_confirmed
        case config:
            return standing.state == config


def _has(standing: Standing, part: str) -> bool:
    telemetry = standing.device.telemetry
    parts = [fault.part for fault in telemetry.faults] if telemetry else []
    return bool(parts) if part == ANY_FAULT else part in parts
