"""What clients ask of calls, each operation once: what it takes from a device over its live connection (MQTT,
WebSocket) and over HTTP, who may ask for it, what it answers, and which command of the rules it is.

`OPERATIONS` holds them. HTTP routes, OpenAPI, what is understood of devices and the tables in `docs/` follow
from it; how each is carried out stands in `push.calls.operations`. A new one is written in these two places.
"""

import functools
import json
import operator
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import (
    AwareDatetime,
    BaseModel,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
)

from bellwire.signaling.calls import commands
from bellwire.signaling.calls.calls import (
    MAX_INVITEES,
    MAX_KNOWN,
    MAX_USERS,
    CallState,
    CallType,
    Mode,
    RejectStatus,
)
from bellwire.signaling.calls.commands import Command
from bellwire.signaling.identifiers import (
    CallSidField,
    ChannelKind,
    DeviceIdField,
    GroupNameField,
    IdentityField,
)
from bellwire.signaling.twi_params import CustomParameters
from bellwire.signaling.wire.answers import (
    CallAnswer,
    CallListAnswer,
    IceServersAnswer,
    KeySetAnswer,
    MessageAnswer,
    RoomAnswer,
)
from bellwire.signaling.wire.media import MEDIA_MESSAGE_TYPE, Sdp
from bellwire.signaling.wire.requests import PUSH_KINDS, App, Request, each_once

DEFAULT_TIMEOUT_S = 60
EXTENDED_DATA_MAX_LENGTH = 4096

MESSAGE_LIMIT_BYTES = 4096
"""Of a message's content as JSON, so that its event fits every channel that carries it."""

MEDIA_LIMIT_BYTES = 8192
"""Of one of type `media`: room for a session description whose every character JSON escapes."""

LOCK_OUTS_OF_A_CALL = 32
"""More are not told of: each is an event to backends."""

_MESSAGE_MAX_DEPTH = 32

Automatic = Annotated[
    bool | None, Field(description="whether a device does it by itself, without its user")
]
ExtendedData = Annotated[str, Field(max_length=EXTENDED_DATA_MAX_LENGTH)]
IdempotencyKey = Annotated[str, Field(min_length=1, max_length=255)]
Timeout = Annotated[float, Field(strict=True, ge=1, le=600, description="seconds")]
VoiceEventSid = Annotated[
    str, Field(pattern="^KX[0-9a-f]{32}$", description="`KX` and 32 hex digits, made by the sender")
]


class Who(StrEnum):
    """Who may ask for an operation. What is of a call is refused to a connect token of another call."""

    USER = "a user; a server in a user's name"
    USER_OR_SERVER = "a user; a server, also in nobody's name"
    TOKEN_OR_KEY = "who shows any token or API key"  # noqa: S105 - no password
    ANYBODY = "anybody, over HTTP without credentials"
    STATION = "a device"


class AsWhom(Request):
    """Who does the operation. A token's own identity and device may be left out; a server names them."""

    identity: IdentityField | None = None
    device_id: DeviceIdField | None = None


class DeviceOperation(Request):
    """What a device sends over its live connection. Who asks is known from that, so that it names nobody.
    Its docstring says what the operation does, also in the OpenAPI document."""

    if TYPE_CHECKING:  # each has it in its own place, as it travels
        operation: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    Args:
        document: What a device sends; its tag is the operation's name.
        method: Of HTTP.
        path: Of HTTP; None where only devices ask for it.
        body: What it takes over HTTP; None where that is no JSON alone, or nothing.
        body_required: Whether the body may not be left out.
        takes_idempotency_key: Whether it takes the header `Idempotency-Key`.
        answer: What it answers over HTTP; over a live connection a `DeviceResponse` carries the same.
        command: Which command of the rules it is; None where it moves no user.
        who: Who may ask for it.
    """

    document: type[DeviceOperation]
    method: str
    path: str | None
    body: type[AsWhom] | None
    body_required: bool
    takes_idempotency_key: bool
    answer: type[BaseModel]
    command: type[Command] | None
    who: Who

    @property
    def name(self) -> str:
        """What a device calls it."""
        (name,) = get_args(self.document.model_fields["operation"].annotation)
        return str(name)

    @property
    def meaning(self) -> str:
        """What it does."""
        return "\n".join(line.strip() for line in (self.document.__doc__ or "").splitlines())


OPERATIONS: dict[type[DeviceOperation], Operation] = {}
"""Each operation, by what a device sends."""

_CALL = "/v1/calls/{call_sid}"
_Document = TypeVar("_Document", bound=DeviceOperation)


def _operation(
    path: str | None = None,
    body: type[AsWhom] | None = None,
    command: type[Command] | None = None,
    *,
    method: str = "POST",
    body_required: bool = False,
    takes_idempotency_key: bool = False,
    answer: type[BaseModel] = CallAnswer,
    who: Who = Who.USER,
) -> Callable[[type[_Document]], type[_Document]]:
    def keep(document: type[_Document]) -> type[_Document]:
        OPERATIONS[document] = Operation(
            document,
            method,
            path,
            body,
            body_required,
            takes_idempotency_key,
            answer,
            command,
            who,
        )
        return document

    return keep


class _OfCall(DeviceOperation):
    call_sid: CallSidField


# What is done to a call


class DataFields(Request):
    """What an operation carries to those who learn of it."""

    extended_data: ExtendedData = ""


class OperationRequest(DataFields, AsWhom):
    """An operation on a call, and the data that it carries to those who learn of it."""


class ReceivedFields(Request):
    """Which of the device's channels the invite arrived over; a push channel (`apns`, `fcm`) names
    its app too. It tells how long invites take."""

    channel: ChannelKind | None = None
    app: App | None = None

    @model_validator(mode="after")
    def _name_one_channel(self) -> Self:
        if self.channel in PUSH_KINDS and not self.app:
            raise ValueError(f"a channel of kind {self.channel} needs its app")
        if self.channel not in PUSH_KINDS and self.app is not None:
            raise ValueError("an app is named with a channel of kind apns or fcm")
        return self


class ReceivedRequest(ReceivedFields, OperationRequest):
    """See `ReceivedFields`."""


@_operation(f"{_CALL}/received", ReceivedRequest, commands.Received)
class DeviceReceived(_OfCall, ReceivedFields):
    """A device confirms that the invite arrived; the first to name its channel tells how long it took."""

    operation: Literal["received"]


@_operation(f"{_CALL}/accept", OperationRequest, commands.Accept)
class DeviceAccept(DataFields, _OfCall):
    """Accepts for an identity; the first of its devices to answer becomes its main device."""

    operation: Literal["accept"]


class RejectionStatus(StrEnum):
    """What a rejection says (seed 002). With `cancelled` it is the caller's, and a cancel."""

    REJECTED = RejectStatus.REJECTED.value
    BUSY = RejectStatus.BUSY.value
    CANCELLED = "cancelled"


class RejectRequest(OperationRequest):
    """A rejection and its reason; `cancelled` is the caller's word for a cancel."""

    status: RejectionStatus = RejectionStatus.REJECTED
    automatic: Automatic = None


@_operation(f"{_CALL}/reject", RejectRequest, commands.Reject)
class DeviceReject(DataFields, _OfCall):
    """Rejects for an identity, with status `rejected` or `busy`. By the caller, with status `cancelled`, it
    is a `cancel` of all."""

    operation: Literal["reject"]
    status: RejectionStatus = RejectionStatus.REJECTED
    automatic: Automatic = None


@_operation(f"{_CALL}/ignore", OperationRequest, commands.Ignore)
class DeviceIgnore(_OfCall):
    """One device falls silent; the caller hears ringing on and the others ring on."""

    operation: Literal["ignore"]


class CancelFields(DataFields):
    """Whose invitations are withdrawn: of those in `to`, absent of all whom the one who asks may cancel."""

    to: Annotated[list[IdentityField], Field(min_length=1, max_length=MAX_INVITEES)] | None = None

    @field_validator("to", mode="after")
    @classmethod
    def _refuse_repeats(cls, to: list[str] | None) -> list[str] | None:
        return None if to is None else each_once(to)


class CancelRequest(CancelFields, AsWhom):
    """See `CancelFields`."""


@_operation(f"{_CALL}/cancel", CancelRequest, commands.Cancel, who=Who.USER_OR_SERVER)
class DeviceCancel(CancelFields, _OfCall):
    """Withdraws invitations of some or all who have not answered: the caller anybody's, who has invited
    somebody theirs, and a server. `error_invitees` of the answer says who of `to` was not cancelled."""

    operation: Literal["cancel"]


class InviteMoreFields(Request):
    """More invitees for a call in advanced mode, invited by a user who is in it."""

    to: Annotated[list[IdentityField], Field(min_length=1, max_length=MAX_USERS)]
    timeout: Timeout = DEFAULT_TIMEOUT_S

    @field_validator("to", mode="after")
    @classmethod
    def _refuse_repeats(cls, to: list[str]) -> list[str]:
        return each_once(to)


class InviteMoreRequest(InviteMoreFields, AsWhom):
    """See `InviteMoreFields`."""


@_operation(
    f"{_CALL}/invite",
    InviteMoreRequest,
    commands.InviteMore,
    body_required=True,
    who=Who.USER_OR_SERVER,
)
class DeviceInviteMore(_OfCall, InviteMoreFields):
    """Invites more users into a call in advanced mode: who is in it may, and a server."""

    operation: Literal["invite_more"]


@_operation(f"{_CALL}/join", OperationRequest, commands.Join)
class DeviceJoin(DataFields, _OfCall):
    """Comes into a call in advanced mode uninvited, comes back, or takes it over on another device."""

    operation: Literal["join"]


@_operation(f"{_CALL}/quit", OperationRequest, commands.Quit)
class DeviceQuit(DataFields, _OfCall):
    """Hangs up: the user leaves the call. With fewer than two left, the call has ended."""

    operation: Literal["quit"]


@_operation(f"{_CALL}/end", OperationRequest, commands.End, who=Who.USER_OR_SERVER)
class DeviceEnd(DataFields, _OfCall):
    """Ends the call: in advanced mode for all, in common mode it hangs up, as `quit` does. A server
    that names no identity ends either for all."""

    operation: Literal["end"]


def _depth(content: JsonValue) -> int:
    inner = content.values() if isinstance(content, dict) else content
    if isinstance(inner, str | int | float | None):
        return 0
    return 1 + max(map(_depth, inner), default=0)


class MessageFields(Request):
    """Something to tell the other parties of a call, or those of them in `to`; `backend` in `to` is the
    backend, which webhooks tell. Repeated under one `voice_event_sid`, it is heard once."""

    message_type: Annotated[str, Field(min_length=1, max_length=64)] = "user-defined-message"
    content_type: Literal["application/json"] = "application/json"
    content: JsonValue
    to: Annotated[list[IdentityField], Field(min_length=1, max_length=MAX_KNOWN)] | None = None
    voice_event_sid: VoiceEventSid | None = None

    @field_validator("to", mode="after")
    @classmethod
    def _refuse_repeats(cls, to: list[str] | None) -> list[str] | None:
        return None if to is None else each_once(to)

    @field_validator("content", mode="after")
    @classmethod
    def _bound(cls, content: JsonValue, info: ValidationInfo) -> JsonValue:
        if content is None:
            raise ValueError("a message without content says nothing")
        if _depth(content) > _MESSAGE_MAX_DEPTH:
            raise ValueError(f"nested over {_MESSAGE_MAX_DEPTH} deep")
        size = len(json.dumps(content, ensure_ascii=False, allow_nan=False).encode())
        is_media = info.data.get("message_type") == MEDIA_MESSAGE_TYPE
        limit = MEDIA_LIMIT_BYTES if is_media else MESSAGE_LIMIT_BYTES
        if size > limit:
            raise ValueError(f"{size} bytes of JSON are over the limit of {limit}")
        return content


class MessageRequest(MessageFields, AsWhom):
    """See `MessageFields`. A server that names no `identity` speaks for itself."""


@_operation(
    f"{_CALL}/messages",
    MessageRequest,
    commands.Say,
    body_required=True,
    takes_idempotency_key=True,
    answer=MessageAnswer,
    who=Who.USER_OR_SERVER,
)
class DeviceMessage(_OfCall, MessageFields):
    """Tells the other parties something; a server that names no identity tells all."""

    operation: Literal["message"]


# How a call begins


class PushRequest(Request):
    """The text that a push notification may show beside the call."""

    title: Annotated[str, Field(max_length=256)] | None = None
    content: Annotated[str, Field(max_length=1024)] | None = None
    payload: Annotated[str, Field(max_length=4096)] | None = None


class GroupReference(Request):
    """All members of a named group but the caller."""

    group: GroupNameField


def _kind_of_receiver(to: object) -> str:
    return "group" if isinstance(to, dict | GroupReference) else "identities"


class InviteRequest(Request):
    """A call to be made. `from` is who calls: absent, a token's own identity, or nobody for an API key."""

    from_: IdentityField | None = Field(default=None, alias="from")
    to: Annotated[
        Annotated[
            list[IdentityField], Field(min_length=1, max_length=MAX_INVITEES), Tag("identities")
        ]
        | Annotated[GroupReference, Tag("group")],
        Discriminator(_kind_of_receiver),
    ]
    mode: Mode = Mode.COMMON
    call_type: CallType = CallType.AUDIO
    timeout: Timeout = DEFAULT_TIMEOUT_S
    custom_parameters: CustomParameters = Field(default_factory=dict)
    push: PushRequest = Field(default_factory=PushRequest)
    extended_data: ExtendedData = ""
    check_not_received: Annotated[
        bool, Field(description="tell which invitees have not got the invite within seconds")
    ] = False

    @field_validator("to", mode="after")
    @classmethod
    def _refuse_repeats(cls, to: list[str] | GroupReference) -> list[str] | GroupReference:
        return each_once(to) if isinstance(to, list) else to

    @model_validator(mode="after")
    def _refuse_oneself(self) -> Self:
        if isinstance(self.to, list) and self.from_ in self.to:
            raise ValueError(f"{self.from_} cannot call itself")
        return self


@_operation("/v1/calls", takes_idempotency_key=True, who=Who.USER_OR_SERVER)
class DeviceInvite(InviteRequest, DeviceOperation):
    """Makes a call and rings every device of the invitees."""

    operation: Literal["invite"]
    idempotency_key: IdempotencyKey | None = None


# What goes on beside its states


class FeedbackIssue(StrEnum):
    """What was wrong with a call (seed 003, postFeedback)."""

    DROPPED_CALL = "dropped-call"
    AUDIO_LATENCY = "audio-latency"
    ONE_WAY_AUDIO = "one-way-audio"
    CHOPPY_AUDIO = "choppy-audio"
    NOISY_CALL = "noisy-call"
    ECHO = "echo"


class FeedbackFields(Request):
    """How good a call was, from 1 to 5, or None from who declines to say (seed 003, postFeedback)."""

    score: Annotated[int, Field(ge=1, le=5)] | None = None
    issue: FeedbackIssue | None = None


class FeedbackRequest(FeedbackFields, AsWhom):
    """See `FeedbackFields`."""


@_operation(f"{_CALL}/feedback", FeedbackRequest, body_required=True)
class DeviceFeedback(_OfCall, FeedbackFields):
    """Says how good the call was, in place of what the same device said before."""

    operation: Literal["feedback"]


class RoomFields(Request):
    """A user's sound for the room of a call, as an SDP offer with its candidates."""

    sdp: Sdp


class RoomRequest(RoomFields, AsWhom):
    """See `RoomFields`."""


@_operation(f"{_CALL}/room", RoomRequest, body_required=True, answer=RoomAnswer)
class DeviceRoom(_OfCall, RoomFields):
    """Brings a user's sound to the room of a call of more than five, in place of what it brought
    before. Offer audio alone, with its candidates: none are taken later."""

    operation: Literal["room"]


@_operation(_CALL, method="GET", who=Who.USER_OR_SERVER)
class DeviceShow(_OfCall):
    """A call as it stands."""

    operation: Literal["show"]


@_operation("/v1/calls", method="GET", answer=CallListAnswer, who=Who.USER_OR_SERVER)
class DeviceList(DeviceOperation):
    """Calls, newest first, from the cursor `next` on. A user sees those of their identity."""

    operation: Literal["list"]
    count: Annotated[int, Field(ge=1)] = 20
    next: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    state: CallState | None = None
    since: Annotated[AwareDatetime | None, Field(description="those made then or later")] = None
    until: Annotated[AwareDatetime | None, Field(description="those made before then")] = None


@_operation("/v1/ice-servers", method="GET", answer=IceServersAnswer, who=Who.TOKEN_OR_KEY)
class DeviceIceServers(DeviceOperation):
    """The STUN and TURN servers to connect calls by, ready for `new RTCPeerConnection`. A TURN server
    asks for the credentials when it is first used: ask again for each call, and before ICE restarts."""

    operation: Literal["ice_servers"]


@_operation("/.well-known/jwks.json", method="GET", answer=KeySetAnswer, who=Who.ANYBODY)
class DeviceKeys(DeviceOperation):
    """The keys that sign access tokens and caller tokens, as a JSON Web Key Set (RFC 7517)."""

    operation: Literal["keys"]


@_operation(who=Who.STATION)
class DeviceDoorLockedOut(_OfCall):
    """A station says that somebody in a call has typed too many wrong door codes, so that their digits
    are ignored for `locked_for_s`. `caller` is absent where nobody knows who typed; `doors` are those
    that they could have opened; `lock_out` counts the lock-outs of the call."""

    operation: Literal["door_locked_out"]
    caller: IdentityField | None = None
    doors: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")], ...],
        Field(max_length=8),
    ] = ()
    wrong_codes: Annotated[int, Field(ge=1, le=1000)]
    locked_for_s: Annotated[float, Field(ge=1, le=86_400)]
    lock_out: Annotated[int, Field(ge=1, le=LOCK_OUTS_OF_A_CALL)] = 1


@_operation(who=Who.STATION)
class DeviceDoorNotVerified(_OfCall):
    """A station says that it has not opened a door for `caller`, whom that door would let in if the relay
    vouched for them: a server has called, answered or spoken in their name (attestation B)."""

    operation: Literal["door_not_verified"]
    caller: IdentityField


_UNDERSTOOD: Any = functools.reduce(operator.or_, OPERATIONS)
_OPERATION: TypeAdapter[DeviceOperation] = TypeAdapter(
    Annotated[_UNDERSTOOD, Field(discriminator="operation")]
)


def parse_device_operation(document: bytes | str) -> DeviceOperation:
    """The operation in a device's request.

    Raises:
        pydantic.ValidationError: it is none.
    """
    return _OPERATION.validate_json(document)
