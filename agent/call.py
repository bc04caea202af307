"""One call as this device knows it: where it stands, and since when."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from signaling.identifiers import CallSid

_CLOCKS_AGREE_S = 2.0


class Direction(StrEnum):
    """Who called whom (seed 003, Call.direction)."""

    INCOMING = "INCOMING"
    OUTGOING = "OUTGOING"


class CallStatus(StrEnum):
    """Where a call stands for this device (seed 003, Call.status)."""

    PENDING = "pending"
    CONNECTING = "connecting"
    RINGING = "ringing"
    OPEN = "open"
    CLOSED = "closed"


@dataclass(slots=True)
class Call:
    """A call of this device. `sid` is empty while the relay has not yet made an outgoing one."""

    sid: CallSid
    direction: Direction
    from_: str | None
    to: tuple[str, ...]
    expires_at: datetime
    status: CallStatus
    custom_parameters: dict[str, str] = field(default_factory=dict)
    ended_because: str = ""


def ringing_time_left(now: datetime, expires_at: datetime, expires_in_s: int | None) -> timedelta:
    """How long an invite may still ring here.

    The invite says until when; the broker says, in whole seconds rounded up, for how long. Where the
    two disagree this device's clock is wrong (a Pi has none of its own), and the broker is believed.
    """
    by_clock = expires_at - now
    if expires_in_s is None:
        return by_clock
    by_broker = timedelta(seconds=expires_in_s)
    if abs((by_clock - by_broker).total_seconds()) <= _CLOCKS_AGREE_S:
        return by_clock
    return by_broker
