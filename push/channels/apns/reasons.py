"""What each answer of APNs means for a push, "Unregistered" for one that its token is dead: Apple's table
of reasons, and by status where a reason is unknown (Apple, "Handling notification responses from APNs")."""

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from enum import Enum, auto

from bellwire.push.channels.channel import (
    ChannelAtFault,
    DeliveryFailed,
    DeliveryRefused,
    TokenDead,
)

EXPIRED_TOKEN = "ExpiredProviderToken"  # noqa: S105 - a reason, no secret
_CLOCK_MATTERS = frozenset({EXPIRED_TOKEN, "InvalidProviderToken"})
_CLOCK_TOLERANCE_S = 60.0


class Meaning(Enum):
    """What becomes of a push."""

    TOKEN_DEAD = auto()
    AT_FAULT = auto()
    TRY_AGAIN = auto()
    REFUSED = auto()


REASONS = {
    "BadDeviceToken": Meaning.TOKEN_DEAD,
    "DeviceTokenNotForTopic": Meaning.TOKEN_DEAD,
    "ExpiredToken": Meaning.TOKEN_DEAD,
    "Unregistered": Meaning.TOKEN_DEAD,
    "BadCertificate": Meaning.AT_FAULT,
    "BadCertificateEnvironment": Meaning.AT_FAULT,
    "BadEnvironmentKeyIdInToken": Meaning.AT_FAULT,
    "BadEnvironmentKeyInToken": Meaning.AT_FAULT,
    EXPIRED_TOKEN: Meaning.AT_FAULT,
    "Forbidden": Meaning.AT_FAULT,
    "InvalidProviderToken": Meaning.AT_FAULT,
    "MissingProviderToken": Meaning.AT_FAULT,
    "TopicDisallowed": Meaning.AT_FAULT,
    "UnrelatedKeyIdInToken": Meaning.AT_FAULT,
    "IdleTimeout": Meaning.TRY_AGAIN,
    "InternalServerError": Meaning.TRY_AGAIN,
    "ServiceUnavailable": Meaning.TRY_AGAIN,
    "Shutdown": Meaning.TRY_AGAIN,
    "TooManyProviderTokenUpdates": Meaning.TRY_AGAIN,
    "TooManyRequests": Meaning.TRY_AGAIN,
    "BadCollapseId": Meaning.REFUSED,
    "BadExpirationDate": Meaning.REFUSED,
    "BadMessageId": Meaning.REFUSED,
    "BadPath": Meaning.REFUSED,
    "BadPriority": Meaning.REFUSED,
    "BadTopic": Meaning.REFUSED,
    "DuplicateHeaders": Meaning.REFUSED,
    "InvalidPushType": Meaning.REFUSED,
    "MethodNotAllowed": Meaning.REFUSED,
    "MissingDeviceToken": Meaning.REFUSED,
    "MissingTopic": Meaning.REFUSED,
    "PayloadEmpty": Meaning.REFUSED,
    "PayloadTooLarge": Meaning.REFUSED,
}


def meaning_of(status: str, reason: str) -> Meaning:
    """What an answer other than 200 means."""
    known = REASONS.get(reason)
    if known is not None:
        return known
    match status:
        case "410":
            return Meaning.TOKEN_DEAD
        case "401" | "403":
            return Meaning.AT_FAULT
        case "408" | "425" | "429":
            return Meaning.TRY_AGAIN
        case _:
            return Meaning.REFUSED if status.startswith("4") else Meaning.TRY_AGAIN


def read_reason(body: bytes) -> tuple[str, int | None]:
    """The reason, "" for none, and the timestamp in milliseconds that an error's body gives."""
    try:
        document = json.loads(body)
    except ValueError:  # No JSON, or not UTF-8.
        return "", None
    if not isinstance(document, dict):
        return "", None
    reason, timestamp = document.get("reason"), document.get("timestamp")
    return (
        reason[:100] if isinstance(reason, str) else "",
        timestamp if isinstance(timestamp, int) else None,
    )


def failure_of(
    status: str,
    reason: str,
    *,
    timestamp_ms: int | None = None,
    retry_after_s: float | None = None,
    server_clock: datetime | None = None,
    now: datetime,
) -> DeliveryFailed | DeliveryRefused:
    """What to raise for an answer other than 200."""
    said = f"APNs: {status} {reason}".rstrip()
    match meaning_of(status, reason):
        case Meaning.TOKEN_DEAD:
            return TokenDead(said, _moment(timestamp_ms))
        case Meaning.REFUSED:
            return DeliveryRefused(said)
        case Meaning.TRY_AGAIN:
            return DeliveryFailed(said, retry_after_s)
        case Meaning.AT_FAULT:
            if reason in _CLOCK_MATTERS:
                said = f"{said}: {_clock_advice(server_clock, now)}"
            return ChannelAtFault(said, retry_after_s)


def _clock_advice(server_clock: datetime | None, now: datetime) -> str:
    keys = "check key_id, team_id and that the key was not revoked"
    if server_clock is None:
        return f"check that this machine's clock is right; else {keys}"
    ahead_s = (now - server_clock).total_seconds()
    if abs(ahead_s) <= _CLOCK_TOLERANCE_S:
        return f"the clock agrees with APNs', so {keys}"
    side = "ahead of" if ahead_s > 0 else "behind"
    minutes = round(abs(ahead_s) / 60)
    return f"this machine's clock is {minutes} min {side} APNs': check the clock, set it (NTP)"


def _moment(timestamp_ms: int | None) -> datetime | None:
    if timestamp_ms is None or not 0 < timestamp_ms < 1 << 48:
        return None
    with suppress(OverflowError, ValueError, OSError):
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=timestamp_ms)
    return None
