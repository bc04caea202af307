"""What this device does with an invite at this moment (spec §5 "Behaviour"): rings, how loud, answers by
itself, is busy, forwards. Decisions alone; nothing here waits or acts. Doors are in `agent.door_release`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar
from zoneinfo import ZoneInfo

from config.behaviour import (
    WEEKDAYS,
    AutoAnswer,
    BehaviourSettings,
    DoNotDisturb,
    Forwarding,
    Hours,
    Quiet,
)
from signaling.calls import RejectStatus
from signaling.identifiers import parse_identity

_Range = TypeVar("_Range", bound=Hours)


@dataclass(frozen=True, slots=True)
class Invited:
    """An invite as it reaches this device. `caller` is as on the wire or not, None where unknown;
    `verified`: whether the relay vouches for them; `forwarded`: whether another device sent it on."""

    caller: str | None
    expires_at: datetime
    verified: bool = False
    forwarded: bool = False


@dataclass(frozen=True, slots=True)
class Forward:
    """Whom an unanswered call goes on to, at what moment."""

    at: datetime
    to: tuple[str, ...] = ()
    group: str | None = None


@dataclass(frozen=True, slots=True)
class InviteDecision:
    """What becomes of an invite. With `reject` set nothing else happens; `because` is for the log.

    `ring_volume` is 0.0 to 1.0; with `audible` False neither speaker nor bell sounds, while the light
    shows the call. `waiting`: it rings within a call, so quietly in the ear.
    """

    because: str
    reject: RejectStatus | None = None
    audible: bool = False
    ring_volume: float = 0.0
    waiting: bool = False
    auto_answer_at: datetime | None = None
    forward: Forward | None = None


def decide_invite(
    settings: BehaviourSettings,
    invited: Invited,
    *,
    now: datetime,
    in_call: bool,
    ring_volume: float,
) -> InviteDecision:
    """What this device does with an invite.

    Args:
        settings: How it behaves.
        invited: The invite.
        now: The moment, with its time zone.
        in_call: Whether it has a call already, ringing or open.
        ring_volume: `audio.ring_volume`, for the hours that name none.

    Raises:
        ValueError: `now` has no time zone.
    """
    local = _local(settings, now)
    caller = _identity(invited.caller)
    if in_call and not settings.call_waiting:
        return InviteDecision("in a call, and call waiting is off", reject=RejectStatus.BUSY)
    quiet = _quiet_at(settings, local)
    undisturbed = quiet is not None and caller not in quiet.except_callers
    if quiet is not None and undisturbed and quiet.treatment == "reject":
        return InviteDecision(_name(quiet), reject=RejectStatus.REJECTED)
    volume = ring_volume_at(settings, now, ring_volume)
    answer_at = None
    # Neither a device that is to keep quiet nor one in a call opens its microphone by itself.
    if not undisturbed and not in_call:
        answer_at = _auto_answer_at(settings.auto_answer, caller, invited, now)
    return InviteDecision(
        _name(quiet) if quiet is not None and undisturbed else "it may ring",
        audible=not undisturbed and volume > 0,
        ring_volume=0.0 if undisturbed else volume,
        waiting=in_call,
        auto_answer_at=answer_at,
        forward=_forward(settings.forwarding, caller, invited, now, answer_at),
    )


def ring_volume_at(settings: BehaviourSettings, now: datetime, otherwise: float) -> float:
    """How loud it rings at a moment, 0.0 to 1.0; it may change while it rings.

    Raises:
        ValueError: `now` has no time zone.
    """
    hours = _first_at(settings.ring_volume_hours, _local(settings, now))
    return otherwise if hours is None else hours.volume


def redial_in_s(settings: BehaviourSettings, calls_made: int, *, unanswered: bool) -> float | None:
    """In how many seconds a call button calls its people again; None: not again.

    Args:
        settings: How this device behaves.
        calls_made: How often this press has called them.
        unanswered: Whether the last call ended because nobody answered in time. One that was
            rejected, cancelled or failed is not repeated.
    """
    if not unanswered or calls_made > settings.redial.times:
        return None
    return settings.redial.pause_s


def within(hours: Hours, local: datetime) -> bool:
    """Whether a moment, on the clock on the wall, is in a weekly range."""
    clock = local.time().replace(tzinfo=None)
    today = WEEKDAYS[local.weekday()] in hours.days
    yesterday = WEEKDAYS[local.weekday() - 1] in hours.days
    if hours.start < hours.end:
        return today and hours.start <= clock < hours.end
    return (today and clock >= hours.start) or (yesterday and clock < hours.end)


def _local(settings: BehaviourSettings, now: datetime) -> datetime:
    if now.tzinfo is None:
        raise ValueError(f"the moment {now.isoformat()} has no time zone: give an aware datetime")
    return now.astimezone(ZoneInfo(settings.time_zone))


def _first_at(ranges: Iterable[_Range], local: datetime) -> _Range | None:
    return next((hours for hours in ranges if within(hours, local)), None)


def _quiet_at(settings: BehaviourSettings, local: datetime) -> Quiet | None:
    if settings.do_not_disturb.enabled:
        return settings.do_not_disturb
    return _first_at(settings.quiet_hours, local)


def _name(quiet: Quiet) -> str:
    return f"{'do not disturb' if isinstance(quiet, DoNotDisturb) else 'quiet hours'}: {quiet.treatment}"


def _identity(address: str | None) -> str | None:
    try:
        return None if address is None else parse_identity(address)
    except ValueError:
        return None  # nobody whom a list could name


def _auto_answer_at(
    auto: AutoAnswer, caller: str | None, invited: Invited, now: datetime
) -> datetime | None:
    if caller not in auto.callers or (auto.verified_only and not invited.verified):
        return None
    at = now + timedelta(seconds=auto.after_s)
    return at if at < invited.expires_at else None


def _forward(
    forwarding: Forwarding | None,
    caller: str | None,
    invited: Invited,
    now: datetime,
    answer_at: datetime | None,
) -> Forward | None:
    """Where it goes on to: once only, so that two devices that forward to one another do not call each
    other for ever, and never back to the caller."""
    if forwarding is None or invited.forwarded or answer_at is not None:
        return None
    at = now + timedelta(seconds=forwarding.after_s)
    to: Sequence[str] = [identity for identity in forwarding.to if identity != caller]
    if at >= invited.expires_at or not (to or forwarding.group):
        return None
    return Forward(at, tuple(to), forwarding.group)
