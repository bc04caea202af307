"""What this device does with an invite at this moment (spec §5 "Behaviour"): rings, how loud, answers by
itself, is busy; and whether a call button calls again. Decisions alone: `agent.conduct` and
`agent.dialling` carry them out. Doors are in `agent.door_release`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar
from zoneinfo import ZoneInfo

from config.behaviour import (
    WEEKDAYS,
    AutoAnswer,
    BehaviourSettings,
    DoNotDisturb,
    Hours,
    Quiet,
)
from signaling.calls import RejectStatus
from signaling.identifiers import parse_identity

_Range = TypeVar("_Range", bound=Hours)


@dataclass(frozen=True, slots=True)
class Invited:
    """An invite as it reached this device, its moments by this device's clock. `caller` is as on the
    wire or not, None where unknown; `verified`: whether the relay vouches for them."""

    caller: str | None
    came_at: datetime
    expires_at: datetime
    verified: bool = False


@dataclass(frozen=True, slots=True)
class InviteDecision:
    """What becomes of an invite. With `reject` set nothing else happens; `because` is for the log.

    `ring_volume` is 0.0 to 1.0; at 0 neither speaker nor bell sounds, while the light shows the call.
    `auto_answer_at` may be past: then it is answered now.
    """

    because: str
    reject: RejectStatus | None = None
    ring_volume: float = 0.0
    auto_answer_at: datetime | None = None


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
    caller = _identity(invited.caller)
    if in_call and not settings.call_waiting:
        return InviteDecision("in a call, and call waiting is off", reject=RejectStatus.BUSY)
    quiet = _quiet_at(settings, caller, _local(settings, now))
    # Neither a device that is to keep quiet nor one in a call opens its microphone by itself.
    if quiet is not None:
        turned_away = RejectStatus.REJECTED if quiet.treatment == "reject" else None
        return InviteDecision(_name(quiet), reject=turned_away)
    return InviteDecision(
        "it may ring",
        ring_volume=ring_volume_at(settings, invited.caller, now, ring_volume),
        auto_answer_at=None if in_call else _auto_answer_at(settings.auto_answer, caller, invited),
    )


def ring_volume_at(
    settings: BehaviourSettings, caller: str | None, now: datetime, otherwise: float
) -> float:
    """How loud it rings for a caller at a moment, 0.0 to 1.0; 0 where it is to keep quiet. It may
    change while it rings.

    Raises:
        ValueError: `now` has no time zone.
    """
    local = _local(settings, now)
    if _quiet_at(settings, _identity(caller), local) is not None:
        return 0.0
    hours = _first_at(settings.ring_volume_hours, local)
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


def _quiet_at(settings: BehaviourSettings, caller: str | None, local: datetime) -> Quiet | None:
    """Why it is to keep quiet for a caller, None where it is not."""
    quiet: Quiet | None = settings.do_not_disturb
    if not settings.do_not_disturb.enabled:
        quiet = _first_at(settings.quiet_hours, local)
    return None if quiet is None or caller in quiet.except_callers else quiet


def _name(quiet: Quiet) -> str:
    return f"{'do not disturb' if isinstance(quiet, DoNotDisturb) else 'quiet hours'}: {quiet.treatment}"


def _identity(address: str | None) -> str | None:
    try:
        return None if address is None else parse_identity(address)
    except ValueError:
        return None  # nobody whom a list could name


def _auto_answer_at(auto: AutoAnswer, caller: str | None, invited: Invited) -> datetime | None:
    if caller not in auto.callers or (auto.verified_only and not invited.verified):
        return None
    at = invited.came_at + timedelta(seconds=auto.after_s)
    return at if at < invited.expires_at else None
