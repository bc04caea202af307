"""Writing changes to the fleet, and seeing whether it follows.

The command that rolls out raises the share of the devices step by step, and waits until those that are
online have said what they run. Where more than `pause_at_errors` of them refuse what it wrote, it
writes the share of the step before, and stops. A rollout guard (:mod:`broker.fleet.rollout_guard`) that is
faster does the same, for each layer by itself, and goes on when the command has ended.
"""

import asyncio
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from bellwire.broker.fleet.layer_register import LayerConflict
from bellwire.cli.fleet.files import Settings
from bellwire.cli.fleet.plan import LayerChange, rollout_on
from bellwire.cli.fleet.session import FleetDevice, RetainedFleet
from bellwire.cli.fleet.standing import Standings, printable
from bellwire.config.fleet.layer import Layer, LayerProblem, Rollout
from bellwire.config.fleet.merge import in_rollout
from bellwire.config.fleet.rollout_pause import (
    can_pause,
    pause,
    refusing,
    said_in,
    takes_rights_away,
)
from bellwire.config.fleet.writing import Draft
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import LayerName, known_as

_AT_ONCE = 16
_ASK_AGAIN_S = 3.0
"""Of silence, until what is missing is read again."""
_COALESCE_S = 0.05
"""Between two looks at the fleet, so that a thousand reports in a second cost twenty looks."""


@dataclass(frozen=True, slots=True)
class Followed:
    """Who follows written layers, of the devices that are online and that they count for."""

    concerned: frozenset[DeviceId]
    following: frozenset[DeviceId]
    errors: dict[DeviceId, LayerProblem]

    @property
    def missing(self) -> list[DeviceId]:
        """Those who have said nothing yet."""
        return sorted(self.concerned - self.following - self.errors.keys())

    @property
    def is_complete(self) -> bool:
        """Whether all have."""
        return not self.missing


@dataclass(frozen=True, slots=True)
class RolloutOutcome:
    """What was written, who followed (None where nobody waited), and whether it was paused."""

    written: dict[LayerName, Layer]
    followed: Followed | None = None
    paused: bool = False

    @property
    def is_good(self) -> bool:
        """Whether all that is online runs it."""
        return not self.paused and (
            self.followed is None or (self.followed.is_complete and not self.followed.errors)
        )


async def write_all(fleet: RetainedFleet, changes: Sequence[LayerChange]) -> dict[LayerName, Layer]:
    """Writes changes, several at once. Those before a conflict stand.

    Raises:
        LayerConflict: another operator came first.
    """
    turns = asyncio.Semaphore(_AT_ONCE)

    async def write(change: LayerChange) -> tuple[LayerName, Layer]:
        async with turns:
            layer = await fleet.register.write(change.name, change.draft, on=change.on)
            return change.name, layer

    done = await asyncio.gather(*map(write, changes), return_exceptions=True)
    for outcome in done:
        if isinstance(outcome, BaseException):
            raise outcome
    return dict(pair for pair in done if not isinstance(pair, BaseException))


async def roll_out(
    fleet: RetainedFleet,
    changes: Sequence[LayerChange],
    steps: Sequence[int],
    *,
    pause_at_errors: int | None,
    timeout_s: float,
    show: Callable[[int, Followed], None],
) -> RolloutOutcome:
    """Writes changes for a growing share of the devices, each step once the one before is followed.
    `show` is told the step and how it stands. Each step has `timeout_s`; who is silent then is no error,
    and ends the rollout at this step. The first step goes back to the share that the layer has already.

    Raises:
        LayerConflict: another operator wrote one of the layers meanwhile.
    """
    before = {change.name: rollout_on(change.on, 0).before for change in changes}
    wanted = {change.name: change.draft for change in changes}

    on = {change.name: change.on for change in changes}
    back_to = {name: draft.rollout.back_to for name, draft in wanted.items()}
    outcome = RolloutOutcome({})
    for percent in steps:
        drafts = {
            name: replace(draft, rollout=_share(draft, percent, back_to[name], before[name]))
            for name, draft in wanted.items()
        }
        written = await write_all(fleet, [LayerChange(name, on[name], drafts[name]) for name in on])
        followed = await follow(
            fleet,
            written,
            timeout_s=timeout_s,
            show=functools.partial(show, percent),
            errors_at_most=pause_at_errors,
        )
        outcome = RolloutOutcome(written, followed)
        if _overtaken(fleet, written) or _too_many(followed, pause_at_errors):
            return RolloutOutcome(await _pause(fleet, written, followed), followed, paused=True)
        if not followed.is_complete:
            break
        on = {name: fleet.register.held(name) for name in on}
        back_to = dict.fromkeys(back_to, percent)
    return outcome


def _share(draft: Draft, percent: int, back_to: int, before: Settings) -> Rollout:
    may_go_back = percent < 100 or draft.rollout.pause_at_errors is not None
    return draft.rollout.model_copy(
        update={
            "percent": percent,
            "back_to": back_to if back_to < percent else 0,
            "before": before if may_go_back else {},
        }
    )


def _too_many(followed: Followed, errors_at_most: int | None) -> bool:
    return errors_at_most is not None and len(followed.errors) > errors_at_most


def _overtaken(fleet: RetainedFleet, written: Mapping[LayerName, Layer]) -> bool:
    """Whether somebody has written one of the layers since."""
    return any(fleet.register.held(name).layer != layer for name, layer in written.items())


async def _pause(
    fleet: RetainedFleet, written: Mapping[LayerName, Layer], followed: Followed
) -> dict[LayerName, Layer]:
    """Takes each of the layers back that a guard has not taken back already, but one that takes rights
    away.

    Raises:
        LayerConflict: another operator wrote one of them.
    """
    paused = {}
    for name, layer in written.items():
        on = fleet.register.held(name)
        if on.layer == layer and takes_rights_away(layer):
            paused[name] = layer
            continue
        if on.layer == layer:
            try:
                paused[name] = await fleet.register.write(
                    name, pause(layer, followed.errors), on=on
                )
                continue
            except LayerConflict:
                on = fleet.register.held(name)
        if on.layer is None or on.layer.rollout.paused_at is None:
            raise LayerConflict(name, on)
        paused[name] = on.layer
    return paused


async def follow(
    fleet: RetainedFleet,
    written: Mapping[LayerName, Layer],
    *,
    timeout_s: float,
    show: Callable[[Followed], None] = lambda _: None,
    errors_at_most: int | None = None,
) -> Followed:
    """Waits until each device that is online has said that it runs the layers, or why it does not; no
    longer than until more than `errors_at_most` refuse them, or somebody else has written them."""
    standings = Standings(fleet.register.layers())
    concerned = {
        device.device_id: layers
        for device in fleet.devices.values()
        if (layers := _counting(device, standings, written))
    }

    def look() -> Followed:
        return _look(fleet, written, concerned)

    followed = look()
    try:
        async with asyncio.timeout(timeout_s):
            while not followed.is_complete and not _too_many(followed, errors_at_most):
                if _overtaken(fleet, written):
                    break
                show(followed)
                await _next_change(fleet, followed)
                await asyncio.sleep(_COALESCE_S)
                followed = look()
    except TimeoutError:
        followed = look()
    show(followed)
    return followed


async def _next_change(fleet: RetainedFleet, followed: Followed) -> None:
    try:
        async with asyncio.timeout(_ASK_AGAIN_S):
            await fleet.next_change()
    except TimeoutError:
        await fleet.read_again(followed.missing)


def _look(
    fleet: RetainedFleet,
    written: Mapping[LayerName, Layer],
    concerned: Mapping[DeviceId, Mapping[str, Layer]],
) -> Followed:
    reports = {
        device_id: device.reported
        for device_id in concerned
        # Otherwise it has gone meanwhile.
        if (device := fleet.devices.get(device_id)) and device.online and device.reported
    }
    said = {device_id: said_in(reported) for device_id, reported in reports.items()}
    layers = {name: held.layer for name, held in fleet.register.layers().items() if held.layer}
    errors: dict[DeviceId, LayerProblem] = {}
    for name, layer in written.items():
        errors = refusing(name, layer, said, layers) | errors
    following = {
        device_id
        for device_id, reported in reports.items()
        if device_id not in errors
        and all(reported.revisions.get(n) == la.revision for n, la in concerned[device_id].items())
    }
    return Followed(frozenset(reports), frozenset(following), errors)


def _counting(
    device: FleetDevice, standings: Standings, written: Mapping[LayerName, Layer]
) -> dict[str, Layer]:
    """Of the written layers those that count for a device, by the names that it calls them."""
    if not device.online:
        return {}
    expected = standings.of(device).expected
    named = {known_as(name, device.device_id): layer for name, layer in written.items()}
    return {
        name: layer
        for name, layer in named.items()
        if name in expected and in_rollout(device.device_id, name, layer.rollout.percent)
    }


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


def followed_line(followed: Followed) -> str:
    """How many follow, in one line."""
    return (
        f"{len(followed.following)} of {len(followed.concerned)} online devices follow"
        f", {len(followed.errors)} refuse, {len(followed.missing)} have not said"
    )
