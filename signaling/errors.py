"""Every error a user of Bellwire can meet, typed. Two families:

`CallError` is what went wrong with a call, by Twilio's code (seed 000 and 003: `TwilioError`).
The rest say why a request was refused; each is raised once and turned into an HTTP or MQTT
answer in one place.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """One row of the error table: what a code means, why it is seen, what helps, and when it happens in
    Bellwire (`docs/errors.md` is made of it)."""

    code: int
    name: str
    description: str
    explanation: str
    causes: tuple[str, ...]
    solutions: tuple[str, ...]
    happens: str


_NETWORK = ("The network between this device and the relay is down or blocked",)
_CHECK_NETWORK = ("Check the device's network, then run `bellwire doctor`",)
_RELAY_LOG = ("Look for the call's SID in the relay's log",)
_MEDIA = ("The two ends have no audio format or network path in common",)

ERROR_TABLE: dict[int, ErrorKind] = {
    kind.code: kind
    for kind in (
        ErrorKind(
            20151,
            "AuthFailureCodeError",
            "Authentication failed",
            "The relay could not authenticate this client",
            ("The access token is forged, expired or for another relay", "The API key is wrong"),
            ("Ask your backend for a new token (`POST /v1/tokens`)", "Check the key file"),
            "Over HTTP and WebSocket: 401, where a token or API key is missing, forged, expired"
            " or revoked. On a device: the broker refuses its password (`Device.open`).",
        ),
        ErrorKind(
            31005,
            "ConnectionError",
            "Connection error",
            "The connection to the relay failed for a reason no other code names",
            _NETWORK,
            _CHECK_NETWORK,
            "On a device: the broker or the relay cannot be reached for a reason that no other"
            " code names.",
        ),
        ErrorKind(
            31008,
            "CallCancelledError",
            "Call cancelled",
            "The call, or this invitation into it, was cancelled before it was answered: a normal end",
            ("The caller gave up, or went offline", "A server withdrew it"),
            ("None needed",),
            "From the relay: 409, where an operation comes to a call, or to an invitation, that"
            " was cancelled.",
        ),
        ErrorKind(
            31009,
            "TransportError",
            "Transport error",
            "A message could not be sent to the relay",
            _NETWORK,
            _CHECK_NETWORK,
            "On a device: what it says does not reach the broker.",
        ),
        ErrorKind(
            31201,
            "AuthorizationError",
            "Authorization error",
            "The credentials are valid but not for what was asked",
            ("The token names another identity or device",),
            ("Use a token of the identity that acts",),
            "On a device: the broker does not let it publish where it must, such as after its"
            " registration was taken away.",
        ),
        ErrorKind(
            31403,
            "ForbiddenError",
            "Forbidden",
            "The relay understood the request and will not carry it out",
            (
                "The call is somebody else's",
                "The call's state does not allow the operation",
                "The user is in the call on another device",
                "The call policy does not let this caller ring them",
            ),
            (
                "Read the call's state (`GET /v1/calls/{sid}`) before the next operation",
                "Let the device that asks `join` the call first",
                "Ask the relay's operator for the call policy",
            ),
            "From the relay: 403, where the call is somebody else's, the token is another's or"
            " the call policy says no; 409, where the state does not allow the operation, or"
            " another device than the main one asks.",
        ),
        ErrorKind(
            31408,
            "RequestTimeoutError",
            "Request timeout",
            "No answer came in time",
            ("The relay or broker is down or overloaded",),
            _CHECK_NETWORK,
            "On a device: the relay has not answered a request within the time that it had.",
        ),
        ErrorKind(
            31481,
            "CallDoesNotExistError",
            "Call or transaction does not exist",
            "No call has this SID",
            ("The SID is mistyped", "The call is older than the relay keeps"),
            ("List the identity's calls (`GET /v1/calls`)",),
            "From the relay: 404, where no call has the SID. On a device: a message is to be said"
            " in a call without a SID, or one that is over.",
        ),
        ErrorKind(
            31487,
            "RequestTerminatedError",
            "Request terminated",
            "The call had ended, or the time to answer it was over",
            (
                "The other party hung up first",
                "Nobody answered in time",
                "The backend hung up",
            ),
            ("None needed",),
            "From the relay: 409, where an operation comes to a call that has ended, or to an"
            " invitation that has run out. On a device: a call ended before a sound had been"
            " played to its end. In a call that a backend is asked about: its TwiML hangs up, or the"
            " caller went offline meanwhile.",
        ),
        ErrorKind(
            31500,
            "InternalServerError",
            "Internal server error",
            "The relay failed in a way it does not know",
            ("A defect in the relay",),
            _RELAY_LOG,
            "From the relay: 500, a defect; its log says more.",
        ),
        ErrorKind(
            31502,
            "BadGatewayError",
            "Bad gateway",
            "A server behind the relay answered with nonsense",
            ("A proxy or push service is misconfigured", "The backend at `voice_url` is broken"),
            _RELAY_LOG,
            "On a device: the relay's answer is not understood. In a call that a backend is asked"
            " about: it cannot be reached, or its answer is no TwiML that the relay carries out.",
        ),
        ErrorKind(
            31503,
            "ServiceUnavailableError",
            "Service unavailable",
            "The relay cannot serve the request now",
            ("It is starting, stopping or overloaded", "Its database or broker is away"),
            ("Try again after the time in Retry-After", "Look at /readyz"),
            "From the relay: 503, while its database or its broker is away, it has no room, it stops, or"
            " too many calls wait for the backend. On a device: it is told to ask less often (429).",
        ),
        ErrorKind(
            31504,
            "GatewayTimeoutError",
            "Gateway timeout",
            "A server behind the relay did not answer in time",
            ("A push service, the broker or the backend at `voice_url` is slow or away",),
            _RELAY_LOG,
            "In a call that a backend is asked about: it does not answer in time.",
        ),
        ErrorKind(
            31530,
            "DNSResolutionError",
            "DNS resolution error",
            "The relay's or broker's name could not be resolved",
            ("The name is mistyped", "The network's name server is down"),
            ("Check the address in the configuration", *_CHECK_NETWORK),
            "On a device: the name of the broker cannot be resolved. In `bellwire doctor`: that, or the"
            " relay's.",
        ),
        ErrorKind(
            31600,
            "BusyEverywhereError",
            "Busy everywhere",
            "The invite was rejected on behalf of every device of the identity",
            ("The invitee rejected the call, or is in another one",),
            ("Call again later",),
            "On the caller's device: every invitee has rejected the call, or is in another one."
            " In a call that a backend is asked about: its TwiML rejects it.",
        ),
        ErrorKind(
            31604,
            "DoesNotExistAnywhereError",
            "Does not exist anywhere",
            "Nobody who could be called has this identity",
            ("The identity is mistyped", "No device has been registered for it"),
            ("Register a device (`bellwire devices add`)",),
            "From the relay: 404, where none of the invitees has a device.",
        ),
        ErrorKind(
            53001,
            "SignalingConnectionDisconnectedError",
            "Signalling connection disconnected",
            "The device lost the relay during a call",
            _NETWORK,
            _CHECK_NETWORK,
            "On a device: the broker was lost while the call was on. It comes with `reconnecting`, and"
            " ends the call if the broker does not come back in time.",
        ),
        ErrorKind(
            53400,
            "MediaClientLocalDescFailedError",
            "Client is unable to create or apply a local media description",
            "WebRTC refused this device's own description of its audio",
            ("No audio device", "An unsupported audio constraint"),
            ("Run `bellwire doctor` on the device",),
            "On a device: the microphone or speaker is not there or does not work, or it has no"
            " sound at all.",
        ),
        ErrorKind(
            53401,
            "MediaServerLocalDescFailedError",
            "Server is unable to create or apply a local media description",
            "The media server refused its own description of the audio",
            ("The media server is misconfigured",),
            ("Check the media server's log",),
            "On a device: the relay has no room for a call of more than five, or its Janus"
            " refuses.",
        ),
        ErrorKind(
            53402,
            "MediaClientRemoteDescFailedError",
            "Client is unable to apply a remote media description",
            "WebRTC refused the other party's description of its audio",
            _MEDIA,
            ("Update the software of both ends",),
            "On a device: what the other party says of its sound is no description that WebRTC"
            " takes.",
        ),
        ErrorKind(
            53403,
            "MediaServerRemoteDescFailedError",
            "Server is unable to apply a remote media description",
            "The media server refused this device's description of its audio",
            _MEDIA,
            ("Check the media server's log",),
            "On a device: the room does not take the description of this device's sound.",
        ),
        ErrorKind(
            53404,
            "MediaNoSupportedCodecError",
            "No supported codec",
            "The two ends share neither Opus nor PCMU",
            _MEDIA,
            ("Allow Opus or PCMU at both ends",),
            "On a device: the other party offers neither Opus nor PCMU.",
        ),
        ErrorKind(
            53405,
            "MediaConnectionError",
            "Media connection failed",
            "No network path for the audio was found, or it was lost for good",
            ("A firewall blocks UDP and no TURN server is configured",),
            ("Configure a TURN server", *_CHECK_NETWORK),
            "On a device: no way for the sound was found, or it was lost and did not come back.",
        ),
    )
}


class CallError(Exception):
    """A call failed, or an end that the other party should be told the reason of.

    Args:
        code: A code of `ERROR_TABLE`.
        message: What is known of this one occurrence.
        original_error: What the library or system below said, if anything.

    Raises:
        KeyError: the code is not in the table.
    """

    def __init__(self, code: int, message: str = "", original_error: str | None = None) -> None:
        kind = ERROR_TABLE[code]
        self.code = kind.code
        self.name = kind.name
        self.message = message or kind.description
        self.description = kind.description
        self.explanation = kind.explanation
        self.causes = kind.causes
        self.solutions = kind.solutions
        self.original_error = original_error
        super().__init__(f"{self.name} ({self.code}): {self.message}")


class Refusal(Exception):
    """A request that was not carried out and changed nothing.

    `slug` names the kind in problem documents, `code` is Twilio's where one fits, and `fields`
    are the kind's own members of the problem document.
    """

    slug: ClassVar[str]
    title: ClassVar[str]
    code: int | None = None

    def __init__(self, detail: str, **fields: Any) -> None:  # noqa: ANN401 - JSON members
        super().__init__(detail)
        self.detail = detail
        self.fields = fields


class InvalidInput(Refusal, ValueError):
    """A value is not what the field takes. A ValueError, so that pydantic reports where it stood."""

    slug = "invalid-input"
    title = "The request is not valid"


class TooLarge(Refusal):
    """A body or payload is over its limit; names the size and the limit in bytes."""

    slug = "too-large"
    title = "The request is too large"


class HeadTooLarge(Refusal):
    """A request's line and fields are over their limit, which names the bytes; or there are too many of
    them. The connection is closed."""

    slug = "head-too-large"
    title = "The head of the request is too large"


class TooSlow(Refusal):
    """A request has not come whole in the time that it may take. The connection is closed."""

    slug = "too-slow"
    title = "The request was too slow"


class Unauthenticated(Refusal):
    """No credentials, or forged, expired or unknown ones."""

    slug = "unauthenticated"
    title = "Authentication failed"
    code = 20151


class Forbidden(Refusal):
    """Valid credentials that do not reach this far, somebody else's call, or one that the relay's call
    policy does not allow."""

    slug = "forbidden"
    title = "Not allowed"
    code = 31403


class CallNotFound(Refusal):
    """No call has this SID."""

    slug = "call-not-found"
    title = "The call does not exist"
    code = 31481


class NobodyToCall(Refusal):
    """None of the invitees can be called; `error_invitees` says why, one by one."""

    slug = "nobody-to-call"
    title = "None of the invitees can be called"
    code = 31604


class NotFound(Refusal):
    """A device, group or route that does not exist."""

    slug = "not-found"
    title = "Not found"


class Conflict(Refusal):
    """The request contradicts an earlier one, such as another body under one Idempotency-Key."""

    slug = "conflict"
    title = "The request contradicts an earlier one"


class WhyRefused(StrEnum):
    """Why an operation on a call was refused: by the state of the user or of the call; because the call,
    or the user's invitation, was cancelled, or the call has ended, or the invitation has run out; or
    because another device is the user's main one."""

    STATE = "state"
    CANCELLED = "cancelled"
    ENDED = "ended"
    TIMED_OUT = "timed-out"
    NOT_MAIN_DEVICE = "not-main-device"


_CODES = {WhyRefused.CANCELLED: 31008, WhyRefused.ENDED: 31487, WhyRefused.TIMED_OUT: 31487}


class OperationRefused(Refusal):
    """The state of the user or of the call does not allow the operation, or another device is the user's
    main one; names operation, state and reason."""

    slug = "operation-refused"
    title = "The state does not allow this operation"
    code = 31403

    def __init__(
        self, operation: str, state: str, detail: str, reason: WhyRefused = WhyRefused.STATE
    ) -> None:
        super().__init__(detail, operation=operation, state=state, reason=reason)
        self.operation = operation
        self.state = state
        self.reason = reason
        self.code = _CODES.get(reason, 31403)


class TooManyRequests(Refusal):
    """A flood: more is asked by one caller, address or connection, or for one app or device, than may be;
    `retry_after_s` says when to ask again."""

    slug = "too-many-requests"
    title = "Too many requests"

    def __init__(self, detail: str, retry_after_s: float = 1.0) -> None:
        super().__init__(detail, retry_after_s=retry_after_s)
        self.retry_after_s = retry_after_s


class Unavailable(Refusal):
    """The relay cannot do this now; trying again later may succeed."""

    slug = "unavailable"
    title = "Service unavailable"
    code = 31503


class CallRejected(Refusal):
    """The backend, asked whom to ring, has refused the call; `reason` is `rejected` or `busy`."""

    slug = "call-rejected"
    title = "The backend has refused the call"
    code = 31600


class HungUp(Refusal):
    """The backend, asked whom to ring, has ended the call instead."""

    slug = "hung-up"
    title = "The backend has ended the call"
    code = 31487


class BadGateway(Refusal):
    """The backend, asked whom to ring, could not be reached, or its answer is no TwiML that can be carried
    out. Nobody was rung."""

    slug = "bad-gateway"
    title = "The backend's answer is not good"
    code = 31502


class GatewayTimeout(Refusal):
    """The backend, asked whom to ring, has not answered in time. Nobody was rung."""

    slug = "gateway-timeout"
    title = "The backend has not answered in time"
    code = 31504
