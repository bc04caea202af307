"""What can be asked of a call, as values: `rules` carries them out.

Each command carries the moment it happens at, and who does it: an identity and the device of it, if
one is known. An identity None is a server, which acts on nobody's behalf. `attestation` is how sure the
relay is that the identity itself does it; a server that does it in its name is `PARTIAL`. `by_server`
says that a server asks, whatever device it names: it need not be the user's main one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from pydantic import JsonValue

from bellwire.signaling.calls.calls import (
    DEFAULT_MAX_INVITEES,
    Attestation,
    CallType,
    Mode,
    PushText,
    RejectStatus,
    Unreachable,
)
from bellwire.signaling.calls.dials import Dial
from bellwire.signaling.identifiers import CallSid, ChannelKind, DeviceId, Identity


@dataclass(frozen=True, slots=True)
class Invitee:
    """Who is invited: the kinds of channels tried, and the parameters where they are its own."""

    identity: Identity
    channels: tuple[str, ...] = ()
    custom_parameters: Mapping[str, str] | None = None


@dataclass(slots=True, unsafe_hash=True)  # frozen, it is made eight times slower
class NewCall:
    """A call to be made. With `check_after_s`, who has not confirmed by then is NotYetReceived.
    `attestation` is how sure it is that `caller` calls; `max_invitees` bounds a common call."""

    call_sid: CallSid
    caller: Identity | None
    invitees: tuple[Invitee, ...]
    at: datetime
    timeout_s: float
    device: DeviceId | None = None
    mode: Mode = Mode.COMMON
    call_type: CallType = CallType.AUDIO
    custom_parameters: Mapping[str, str] = field(default_factory=dict)
    extended_data: str = ""
    push: PushText = field(default_factory=PushText)
    unreachable: tuple[tuple[Identity, Unreachable], ...] = ()
    check_after_s: float | None = None
    attestation: Attestation | None = None
    dial: Dial | None = None
    max_invitees: int = DEFAULT_MAX_INVITEES


@dataclass(frozen=True, slots=True)
class Received:
    """A device confirms that the invite arrived: over `channel` (of `app`, for a push), where it says so."""

    identity: Identity
    device: DeviceId | None
    at: datetime
    channel: ChannelKind | None = None
    app: str = ""
    attestation: Attestation | None = None


@dataclass(frozen=True, slots=True)
class Accept:
    """A device accepts for its identity and becomes the main device."""

    identity: Identity
    device: DeviceId | None
    at: datetime
    extended_data: str = ""
    attestation: Attestation | None = None


@dataclass(frozen=True, slots=True)
class Reject:
    """A device rejects for its identity: somebody's no, or `automatic`, what it does by itself."""

    identity: Identity
    device: DeviceId | None
    at: datetime
    status: RejectStatus = RejectStatus.REJECTED
    extended_data: str = ""
    attestation: Attestation | None = None
    automatic: bool = False


@dataclass(frozen=True, slots=True)
class Ignore:
    """A device falls silent by itself; the caller hears ringing on. It moves nothing."""

    identity: Identity
    device: DeviceId | None
    at: datetime


@dataclass(frozen=True, slots=True)
class Cancel:
    """Whoever has invited others withdraws invitations: the caller anybody's, who has invited somebody
    into the call theirs, a server (`identity` None) anybody's. `to` names whose; None: all that may be."""

    identity: Identity | None
    at: datetime
    extended_data: str = ""
    to: tuple[Identity, ...] | None = None
    attestation: Attestation | None = None


@dataclass(frozen=True, slots=True)
class GoOffline:
    """A device has gone. If its identity calls on it and nobody has accepted, the call is cancelled.
    `last` says that no other device of the identity is there."""

    identity: Identity
    device: DeviceId
    at: datetime
    last: bool


@dataclass(frozen=True, slots=True)
class Expire:
    """Time has passed: what was waited for until `at` comes true."""

    at: datetime


@dataclass(frozen=True, slots=True)
class InviteMore:
    """A user invites others into the call it is in. Who is in it or invited already stays as it is.
    `attestation` is how sure it is that the user does."""

    identity: Identity | None
    device: DeviceId | None
    invitees: tuple[Invitee, ...]
    at: datetime
    timeout_s: float
    unreachable: tuple[tuple[Identity, Unreachable], ...] = ()
    attestation: Attestation | None = None
    by_server: bool = False


@dataclass(frozen=True, slots=True)
class Join:
    """A device comes into the call uninvited, comes back, or takes it over from another of its identity."""

    identity: Identity
    device: DeviceId | None
    at: datetime
    extended_data: str = ""
    attestation: Attestation | None = None


@dataclass(frozen=True, slots=True)
class Quit:
    """A user hangs up: leaves the call, which goes on while others are in it."""

    identity: Identity
    device: DeviceId | None
    at: datetime
    extended_data: str = ""
    attestation: Attestation | None = None
    by_server: bool = False


@dataclass(frozen=True, slots=True)
class End:
    """The call ends for all, by a user in it or by a server. A common call is not one user's to
    end: there it is a hang-up."""

    identity: Identity | None
    device: DeviceId | None
    at: datetime
    extended_data: str = ""
    attestation: Attestation | None = None
    by_server: bool = False


@dataclass(frozen=True, slots=True)
class Say:
    """A party tells the others something; `to` names those who are meant, None means all."""

    identity: Identity | None
    device: DeviceId | None
    at: datetime
    voice_event_sid: str
    content: JsonValue
    message_type: str = "user-defined-message"
    content_type: str = "application/json"
    to: tuple[Identity, ...] | None = None
    attestation: Attestation | None = None
    by_server: bool = False


Command = (
    Received
    | Accept
    | Reject
    | Ignore
    | Cancel
    | GoOffline
    | Expire
    | InviteMore
    | Join
    | Quit
    | End
    | Say
)
