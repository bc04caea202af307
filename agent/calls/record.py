"""What a call is seen to be from outside at one moment. Plain values."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from pydantic import JsonValue

from bellwire.signaling.calls.calls import Attestation
from bellwire.signaling.identifiers import CallSid, Identity


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
    RECONNECTING = "reconnecting"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class CallerInfo:
    """What is known of the caller (seed 003, callerInfo): verified is who called with a token of
    their own (SHAKEN attestation A)."""

    is_verified: bool


@dataclass(frozen=True, slots=True)
class Message:
    """What one party says to the others (seed 003, "Call Message Events"). `from_` is the sender's
    address as on the wire, None where a server says it for itself; `attestation` how sure the relay is
    of it, None where the relay is too old to tell."""

    content: JsonValue
    content_type: str
    message_type: str
    voice_event_sid: str
    from_: str | None = None
    attestation: Attestation | None = None


@dataclass(frozen=True, slots=True)
class Acceptance:
    """How another party came into the call: on which device, and how sure the relay is that it was the
    party itself; None where it does not say."""

    identity: Identity
    attestation: Attestation | None = None
    main_device: str | None = None


@dataclass(frozen=True, slots=True)
class CallRecord:
    """A call as it stood at one moment. `sid` is empty while the relay has not yet made an outgoing
    one; `ended_because` says in words why it is closed; `acceptances` are those of the others who are
    or were in it, as far as is known here."""

    sid: CallSid
    direction: Direction
    from_: str | None
    to: tuple[str, ...]
    expires_at: datetime
    status: CallStatus
    custom_parameters: dict[str, str] = field(default_factory=dict)
    ended_because: str = ""
    acceptances: tuple[Acceptance, ...] = ()
