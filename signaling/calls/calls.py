"""What a call is: its users, their states and its own. Plain values; `rules` alone moves them."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from bellwire.signaling.calls.dials import Dial
from bellwire.signaling.identifiers import CallSid, DeviceId, Identity

if TYPE_CHECKING:
    from dataclasses import replace as replace
else:

    def replace(value, /, **changes):  # noqa: ANN001, ANN003, ANN201 - typed above
        """`dataclasses.replace` for `Call` and `User`: for this they have no slots. It takes 1 us where
        that of dataclasses, which reads and sets each field by name, takes 6, a dozen times a call."""
        changed = object.__new__(type(value))
        changed.__dict__.update(value.__dict__)
        changed.__dict__.update(changes)
        return changed


MAX_USERS = 10
"""Who is in an advanced call or invited to it at once, the caller included (seed 001: "a maximum of 10
users"). A common call that has had more is a large one: most of its users hear of themselves alone."""

DEFAULT_MAX_INVITEES, MAX_INVITEES = 30, 100
"""How many may be invited to a common call, as a relay is told, and at most."""

MAX_KNOWN = MAX_INVITEES + 1
"""How many users a call remembers, those who have left it among them: it is kept as one document."""


class Mode(StrEnum):
    """How long the call lives: until all have answered and hung up, or until a user ends it."""

    COMMON = "common"
    ADVANCED = "advanced"


class CallType(StrEnum):
    """What the caller wants to exchange."""

    AUDIO = "audio"
    VIDEO = "video"


class Attestation(StrEnum):
    """How sure the relay is of who did something, with the levels of SHAKEN (RFC 8588, 4): that
    somebody's own token or connection did it, or a server did, in somebody's name."""

    FULL = "A"
    PARTIAL = "B"


class CallState(StrEnum):
    """The call's own state: nobody has answered, somebody has, it is over."""

    RINGING = "ringing"
    OPEN = "open"
    ENDED = "ended"


class EndReason(StrEnum):
    """How a call has ended: what the last thing was that left nothing of it. That somebody answered
    before stands in `answered_at`, and what each invitee did in their states."""

    HUNG_UP = "hung-up"
    """A party left, and fewer than two were left."""
    CANCELLED = "cancelled"
    """The caller withdrew it before an answer, or hung up; or a server did."""
    CALLER_OFFLINE = "caller-offline"
    """The caller's device went offline before an answer."""
    REJECTED = "rejected"
    BUSY = "busy"
    """The last who was invited rejected it; with the status `busy`."""
    TIMEOUT = "timeout"
    """The last who was invited did not answer in time."""
    ENDED = "ended"
    """A user of an advanced call, or a server, ended it for all."""
    ABANDONED = "abandoned"
    """All had left an advanced call, and nobody came back."""
    TIME_LIMIT = "time-limit"
    """The time was over that the backend's TwiML gives it (`timeLimit`)."""
    UNKNOWN = "unknown"
    """What a newer relay says."""

    @classmethod
    def _missing_(cls, _value: object) -> "EndReason":
        return cls.UNKNOWN


class UserState(StrEnum):
    """One user's state in a call (spec §3, seed 001 "User states")."""

    INVITING = "Inviting"
    NOT_YET_RECEIVED = "NotYetReceived"
    RECEIVED = "Received"
    ACCEPTED = "Accepted"
    REJECTED = "Rejected"
    CANCELED = "Canceled"
    TIMEOUT = "Timeout"
    QUIT = "Quit"
    UNKNOWN = "Unknown"

    @classmethod
    def _missing_(cls, _value: object) -> "UserState":
        return cls.UNKNOWN

    @property
    def pending(self) -> bool:
        """Whether the user is invited and has not answered."""
        return self in _PENDING


_PENDING = frozenset({UserState.INVITING, UserState.NOT_YET_RECEIVED, UserState.RECEIVED})


Unreachable = Literal["unknown", "no_device", "forbidden"]
"""Why somebody could not be invited: nobody has this identity, it has no device, or the relay's call
policy does not let the caller ring it."""


NotCancelled = Literal["answered", "not_invited", "not_yours"]
"""Why somebody's invitation could not be cancelled: it was answered, there is none (any more), or others
have made it."""


class RejectStatus(StrEnum):
    """Why an invite was rejected (seed 002)."""

    REJECTED = "rejected"
    BUSY = "busy"


@dataclass(frozen=True)
class User:
    """One user of a call. `expires_at` ends the user's invitation; `main_device` is the device
    that made, accepted, rejected or joined the call for the identity, None where a server acted."""

    identity: Identity
    state: UserState
    expires_at: datetime
    main_device: DeviceId | None = None
    extended_data: str = ""
    reject_status: RejectStatus | None = None
    custom_parameters: dict[str, str] | None = None
    """Where they differ from the call's own, as TwiML allows for each `<Client>`."""
    invite_id: str = ""
    """The id of the event that carries the invite, empty for who was not invited."""
    invited_at: datetime | None = None
    invited_by: Identity | None = None
    """Who invited the user into a call under way, and so may cancel it; None where the call's own caller did,
    or a server."""
    attestation: Attestation | None = None
    """How sure the relay is of who invited the user; None where nobody in particular did."""
    check_at: datetime | None = None
    """When the user counts as not yet received, where delivery is checked and nobody confirmed."""
    own_attestation: Attestation | None = None
    """How sure the relay is that the user itself brought about its state; None where nobody did so in
    its name, or a relay did that tells nothing of it."""


@dataclass(frozen=True, slots=True)
class PushText:
    """What the backend gives for the notification that a push may show (seed 001, pushConfig)."""

    title: str | None = None
    content: str | None = None
    payload: str | None = None


@dataclass(frozen=True)
class Call:
    """One call. `caller` is None where a server calls on nobody's behalf; `unreachable` are those
    who could not be invited; `events` counts the events so far, from which their ids are made."""

    call_sid: CallSid
    caller: Identity | None
    users: tuple[User, ...]
    created_at: datetime
    timeout_s: float
    state: CallState = CallState.RINGING
    mode: Mode = Mode.COMMON
    call_type: CallType = CallType.AUDIO
    custom_parameters: dict[str, str] = field(default_factory=dict)
    extended_data: str = ""
    push: PushText = field(default_factory=PushText)
    unreachable: tuple[tuple[Identity, Unreachable], ...] = ()
    events: int = 0
    check_after_s: float | None = None
    """Seconds until an invitee who has not confirmed is NotYetReceived; None: not checked."""
    cancelled: bool = False
    """Whether it ended because its caller withdrew it, or went offline."""
    abandoned_until: datetime | None = None
    """An advanced call that nobody is in, or invited to, ends then unless somebody joins."""
    dial: Dial | None = None
    """The `<Dial>` of a backend that it was made by, where it asks for more than ringing."""
    answered_at: datetime | None = None
    """When the first other than the caller came into it. A relay of the version before kept neither
    this nor what follows."""
    answered_by: Identity | None = None
    ended_at: datetime | None = None
    end_reason: EndReason | None = None
    ended_by: Identity | None = None
    """Who ended it; None where time did, or a server in nobody's name."""
    ended_attestation: Attestation | None = None
    """How sure the relay is of `ended_by`."""

    def user(self, identity: Identity) -> User | None:
        """The user with this identity, or None."""
        return next((user for user in self.users if user.identity == identity), None)

    def with_user(self, changed: User) -> "Call":
        """The call with this user in place of the one of the same identity."""
        users = tuple(changed if u.identity == changed.identity else u for u in self.users)
        return replace(self, users=users)

    @property
    def pending(self) -> tuple[User, ...]:
        """The users who are invited and have not answered."""
        return tuple(user for user in self.users if user.state.pending)

    @property
    def accepted(self) -> tuple[User, ...]:
        """The users who are in the call."""
        return tuple(user for user in self.users if user.state is UserState.ACCEPTED)

    @property
    def here(self) -> tuple[User, ...]:
        """The users who are in the call, or invited to it."""
        return tuple(u for u in self.users if u.state.pending or u.state is UserState.ACCEPTED)

    @property
    def is_large(self) -> bool:
        """Whether it has so many users that not all of them hear of each other."""
        return self.mode is Mode.COMMON and len(self.users) > MAX_USERS

    def with_joined(self, user: User) -> "Call":
        """The call with one more user."""
        return replace(self, users=(*self.users, user))

    @property
    def invited(self) -> tuple[Identity, ...]:
        """Who was invited, so far."""
        return tuple(user.identity for user in self.users if user.invite_id)

    @property
    def attestation(self) -> Attestation | None:
        """How sure the relay is that `caller` calls; None where nobody in particular does."""
        if self.caller is None:
            return None
        first = (u.attestation for u in self.users if u.invite_id and u.invited_by is None)
        return next(first, None)

    @property
    def duration_s(self) -> float | None:
        """Seconds from the first answer to the end; None before the end, and where nobody answered."""
        if self.answered_at is None or self.ended_at is None:
            return None
        return max(0.0, (self.ended_at - self.answered_at).total_seconds())

    @property
    def next_deadline(self) -> datetime | None:
        """When time itself next moves this call: an invitation runs out, a delivery check is due,
        or it has been abandoned for too long. None where nothing is waited for."""
        if self.state is CallState.ENDED:
            return None
        moments = [user.expires_at for user in self.pending]
        moments += [
            user.check_at
            for user in self.users
            if user.state is UserState.INVITING and user.check_at is not None
        ]
        if self.abandoned_until is not None:
            moments.append(self.abandoned_until)
        if self.dial is not None and self.dial.ends_at is not None:
            moments.append(self.dial.ends_at)
        return min(moments, default=None)

    @property
    def expires_at(self) -> datetime:
        """When the last invitation of this call runs, or ran, out."""
        return max((u.expires_at for u in self.users if u.invite_id), default=self.created_at)
