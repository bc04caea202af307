"""What a backend's TwiML asks for beside whom to ring, as values: what a call keeps of its `<Dial>`.
`dial_course` says how it goes on."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from bellwire.signaling.identifiers import Identity


class CallbackMethod(StrEnum):
    """How a backend is asked."""

    POST = "POST"
    GET = "GET"


@dataclass(frozen=True, slots=True)
class Callback:
    """A request that is owed to a backend."""

    url: str
    method: CallbackMethod = CallbackMethod.POST


class LegEvent(StrEnum):
    """What may be told of a `<Client>` that is rung, in this order."""

    INITIATED = "initiated"
    RINGING = "ringing"
    ANSWERED = "answered"
    COMPLETED = "completed"


class DialStatus(StrEnum):
    """How ringing somebody ended: Twilio's `DialCallStatus`, and the `CallStatus` of a leg that is over."""

    COMPLETED = "completed"
    CANCELED = "canceled"
    BUSY = "busy"
    NO_ANSWER = "no-answer"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Leg:
    """One `<Client>` of a `<Dial>`, and how far it has come.

    Args:
        identity: Whom it rings.
        callback: Whom to tell; None: nobody.
        events: What of.
        reached: What has happened last.
        told: How many requests are owed for it so far, made or not.
        answered_at: When it was answered.
        status: How it ended; None while it has not.
    """

    identity: Identity
    callback: Callback | None = None
    events: tuple[LegEvent, ...] = ()
    reached: LegEvent | None = None
    told: int = 0
    answered_at: datetime | None = None
    status: DialStatus | None = None


@dataclass(frozen=True, slots=True)
class Dial:
    """What a call keeps of the `<Dial>` that it was made by.

    Args:
        legs: Whom it rings, also those whom it could not.
        action: What to ask once it is over.
        time_limit_s: How long the call may last from the first answer on.
        ends_at: When that is over.
        first_takes_it: Whether the first to answer has the call to themselves, as on Twilio: the others
            are cancelled.
        caller_id: Who is shown as the caller, where it is not who calls.
        asked_to: What the caller has asked for, in the caller's words.
    """

    legs: tuple[Leg, ...]
    action: Callback | None = None
    time_limit_s: int | None = None
    ends_at: datetime | None = None
    first_takes_it: bool = False
    caller_id: Identity | None = None
    asked_to: str = ""
