"""What a client may ask: the bodies of HTTP requests and the documents of MQTT requests."""

import json
import re
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from bellwire.signaling.calls.calls import MAX_USERS, CallType, Mode, RejectStatus
from bellwire.signaling.identifiers import ChannelKind, DeviceIdField, GroupNameField, IdentityField
from bellwire.signaling.tokens import Scope
from bellwire.signaling.twi_params import CustomParameters
from bellwire.signaling.wire.media import MEDIA_MESSAGE_TYPE, Sdp

DEFAULT_TIMEOUT_S = 60
EXTENDED_DATA_MAX_LENGTH = 4096

MESSAGE_LIMIT_BYTES = 4096
"""Of a message's content as JSON, so that its event fits every channel that carries it."""

MEDIA_LIMIT_BYTES = 8192
"""Of one of type `media`: room for a session description whose every character JSON escapes."""

_MESSAGE_MAX_DEPTH = 32
_APNS_TOKEN = re.compile(r"[0-9A-Fa-f]{32,200}")

MAX_GROUP_MEMBERS = 256
MAX_KEY_LIFE_S = 10 * 366 * 86_400

PUSH_KINDS = ("apns", "fcm")
"""Kinds of channels that name an app."""

App = Annotated[str, Field(max_length=256)]
Automatic = Annotated[
    bool | None, Field(description="whether a device does it by itself, without its user")
]
ExtendedData = Annotated[str, Field(max_length=EXTENDED_DATA_MAX_LENGTH)]
Timeout = Annotated[float, Field(strict=True, ge=1, le=600, description="seconds")]
VoiceEventSid = Annotated[
    str, Field(pattern="^KX[0-9a-f]{32}$", description="`KX` and 32 hex digits, made by the sender")
]


class FeedbackIssue(StrEnum):
    """What was wrong with a call (seed 003, postFeedback)."""

    DROPPED_CALL = "dropped-call"
    AUDIO_LATENCY = "audio-latency"
    ONE_WAY_AUDIO = "one-way-audio"
    CHOPPY_AUDIO = "choppy-audio"
    NOISY_CALL = "noisy-call"
    ECHO = "echo"


def _each_once(identities: list[str]) -> list[str]:
    if len(set(identities)) < len(identities):
        raise ValueError("an identity stands twice")
    return identities


class Request(BaseModel):
    """What every request has: no members that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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
        Annotated[list[IdentityField], Field(min_length=1, max_length=MAX_USERS), Tag("identities")]
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
        return _each_once(to) if isinstance(to, list) else to

    @model_validator(mode="after")
    def _refuse_oneself(self) -> Self:
        if isinstance(self.to, list) and self.from_ in self.to:
            raise ValueError(f"{self.from_} cannot call itself")
        return self


class _AsWhom(Request):
    """Who does the operation. A token's own identity and device may be left out; a server names them."""

    identity: IdentityField | None = None
    device_id: DeviceIdField | None = None


class OperationRequest(_AsWhom):
    """An operation on a call, and the data that it carries to those who learn of it."""

    extended_data: ExtendedData = ""


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


class RejectRequest(OperationRequest):
    """A rejection and its reason."""

    status: RejectStatus = RejectStatus.REJECTED
    automatic: Automatic = None


class InviteMoreFields(Request):
    """More invitees for a call in advanced mode, invited by a user who is in it."""

    to: Annotated[list[IdentityField], Field(min_length=1, max_length=MAX_USERS)]
    timeout: Timeout = DEFAULT_TIMEOUT_S

    @field_validator("to", mode="after")
    @classmethod
    def _refuse_repeats(cls, to: list[str]) -> list[str]:
        return _each_once(to)


class InviteMoreRequest(InviteMoreFields, _AsWhom):
    """See `InviteMoreFields`."""


def _depth(content: JsonValue) -> int:
    inner = content.values() if isinstance(content, dict) else content
    if isinstance(inner, str | int | float | None):
        return 0
    return 1 + max(map(_depth, inner), default=0)


class MessageFields(Request):
    """Something to tell the other parties of a call, or those of them in `to`. Repeated under one
    `voice_event_sid`, it is heard once."""

    message_type: Annotated[str, Field(min_length=1, max_length=64)] = "user-defined-message"
    content_type: Literal["application/json"] = "application/json"
    content: JsonValue
    to: Annotated[list[IdentityField], Field(min_length=1, max_length=MAX_USERS)] | None = None
    voice_event_sid: VoiceEventSid | None = None

    @field_validator("to", mode="after")
    @classmethod
    def _refuse_repeats(cls, to: list[str] | None) -> list[str] | None:
        return None if to is None else _each_once(to)

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


class MessageRequest(MessageFields, _AsWhom):
    """See `MessageFields`. A server that names no `identity` speaks for itself."""


class FeedbackFields(Request):
    """How good a call was, from 1 to 5, or None from who declines to say (seed 003, postFeedback)."""

    score: Annotated[int, Field(ge=1, le=5)] | None = None
    issue: FeedbackIssue | None = None


class FeedbackRequest(FeedbackFields, _AsWhom):
    """See `FeedbackFields`."""


class RoomFields(Request):
    """A user's sound for the room of a call, as an SDP offer with its candidates."""

    sdp: Sdp


class RoomRequest(RoomFields, _AsWhom):
    """See `RoomFields`."""


class GroupRequest(Request):
    """The members of a group, in place of those it had."""

    members: Annotated[list[IdentityField], Field(min_length=1, max_length=MAX_GROUP_MEMBERS)]

    @field_validator("members", mode="after")
    @classmethod
    def _refuse_repeats(cls, members: list[str]) -> list[str]:
        return _each_once(members)


class TokenRequest(Request):
    """An access token for one identity, and for one device of it where `device_id` is given."""

    identity: IdentityField
    device_id: DeviceIdField | None = None
    ttl: Annotated[int, Field(ge=1, le=86_400, description="seconds")] = 3_600


class RevokeTokensRequest(Request):
    """Whose access tokens are to end: all of one identity's; all that were made for one device, or have
    acted as it; or one, given as it is or by its claim `jti`. Exactly one of them is given."""

    identity: IdentityField | None = None
    device_id: DeviceIdField | None = None
    token: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    jti: Annotated[str, Field(min_length=1, max_length=64)] | None = None

    @model_validator(mode="after")
    def _name_one(self) -> Self:
        given = [value for value in (self.identity, self.device_id, self.token, self.jti) if value]
        if len(given) != 1:
            raise ValueError("give one of identity, device_id, token and jti")
        return self


KeyLife = Annotated[
    int, Field(ge=1, le=MAX_KEY_LIFE_S, description="seconds; absent: it does not expire")
]


class ApiKeyRequest(Request):
    """An API key: what it is called, what it may do, and how long."""

    name: GroupNameField
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=len(Scope))]
    expires_in: KeyLife | None = None


class RotateKeyRequest(Request):
    """How long the key that takes a key's place is good; absent: as long as that was made for."""

    expires_in: KeyLife | None = None


class ChannelRequest(Request):
    """One way to reach a device. A push channel (`apns`, `fcm`) names its app, which the relay's
    settings must hold, and the token that the push service gave this installation of it."""

    kind: ChannelKind
    token: Annotated[str, Field(max_length=4096)] | None = None
    app: App | None = None
    environment: Literal["production", "sandbox"] | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind not in PUSH_KINDS:
            return self
        if not self.token or not self.app:
            raise ValueError(f"a channel of kind {self.kind} needs its token and its app")
        if self.kind == "apns" and not _APNS_TOKEN.fullmatch(self.token):
            raise ValueError("an APNs token is written in hex digits, 32 to 200 of them")
        return self


class DeviceRequest(Request):
    """A device to be registered, replacing what was registered under its id."""

    identity: IdentityField
    channels: Annotated[list[ChannelRequest], Field(max_length=8)] = Field(default_factory=list)
    rotate_credentials: bool = False
    """Whether the broker password is made anew; a device's first registration always makes one."""

    @field_validator("channels", mode="after")
    @classmethod
    def _one_of_a_kind(cls, channels: list[ChannelRequest]) -> list[ChannelRequest]:
        ways = {(c.kind, c.app or "" if c.kind in PUSH_KINDS else "") for c in channels}
        if len(ways) < len(channels):
            raise ValueError("a kind of channel stands twice, for a push channel for one app")
        return channels
