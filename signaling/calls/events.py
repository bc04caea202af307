"""The events of a call as they travel (spec §3), the same over MQTT and WebSocket.

`id` is the call SID and a running number: the same event has the same id on every channel and at
every retry, so a reader can drop what it has seen.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    TypeAdapter,
)

from bellwire.signaling.calls.calls import (
    Attestation,
    CallType,
    EndReason,
    Mode,
    NotCancelled,
    RejectStatus,
    Unreachable,
    UserState,
)
from bellwire.signaling.identifiers import CallSidField, ChannelKind


def rfc3339(moment: datetime) -> str:
    """A moment in UTC with milliseconds, as RFC 3339 writes it."""
    return _written(moment.astimezone(UTC))


@lru_cache(256)
def _written(utc: datetime) -> str:
    """Kept, since a command's moment stands in each event and answer that it makes, and writing one
    takes 3 us."""
    return utc.isoformat(timespec="milliseconds").replace("+00:00", "Z")


Moment = Annotated[AwareDatetime, PlainSerializer(rfc3339, return_type=str, when_used="json")]


class _Document(BaseModel):
    """What travels as one JSON document."""

    model_config = ConfigDict(frozen=True, populate_by_name=True, extra="ignore")

    @cached_property
    def document(self) -> str:
        """The JSON document. Made once, as it goes to each device and webhook alike: 3 us for each."""
        return self.model_dump_json(by_alias=True, exclude_none=True)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """See `BaseModel.model_copy`, which would copy the document too."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("document", None)
        return copied


class _Event(_Document):
    id: str
    call_sid: CallSidField
    at: Moment


class TriedInvitee(BaseModel):
    """An invitee and the kinds of channels its devices are tried on."""

    model_config = ConfigDict(frozen=True)

    identity: str
    channels: tuple[str, ...]


class ErrorInvitee(BaseModel):
    """Somebody who cannot be called, and why: `unknown`, `no_device`, or `forbidden` by the relay's call
    policy. In the answer to a cancel that names whom, somebody whose invitation was not cancelled:
    `answered`, `not_invited` or `not_yours`."""

    model_config = ConfigDict(frozen=True)

    identity: str
    reason: Unreachable | NotCancelled


class CallCreated(_Event):
    """To the caller: the call's SID and, per invitee, what is tried. Where that would be too long for the
    channel it goes over, both lists are empty and the counts are there instead; `GET` of the call has who
    they are."""

    event: Literal["call.created"] = "call.created"
    invitees: tuple[TriedInvitee, ...]
    error_invitees: tuple[ErrorInvitee, ...] = ()
    invitees_count: int | None = None
    error_invitees_count: int | None = None

    def in_counts(self) -> "CallCreated":
        """The same event without its lists."""
        counts = {
            "invitees_count": len(self.invitees),
            "error_invitees_count": len(self.error_invitees),
        }
        return self.model_copy(update={"invitees": (), "error_invitees": (), **counts})


class CallerToken(BaseModel):
    """How sure the relay is of who calls: `A`, the caller's own token or connection said so; `B`, a
    server did. `token` is the relay's signature of it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    attestation: Attestation
    token: str | None = None


class CallReceived(_Event):
    """To each device of each invitee: the call invite. `from` is absent where nobody in particular
    calls; addresses are written as on Twilio's wire, `client:alice`. `caller_info` says how sure the
    relay is of `from`, with its signature (a JWT) over MQTT and WebSocket. There it also has the relay's
    `account_sid`, and the `connect_token` with which this device, as an app that was woken by a push,
    takes part in this call over HTTP and WebSocket; in a push they are `twi_account_sid` and
    `twi_bridge_token`."""

    event: Literal["call.received"] = "call.received"
    from_: str | None = Field(default=None, alias="from")
    to: str
    custom_parameters: dict[str, str]
    expires_at: Moment
    mode: Mode = Mode.COMMON
    call_type: CallType = CallType.AUDIO
    extended_data: str = ""
    title: str | None = None
    content: str | None = None
    payload: str | None = None
    caller_info: CallerToken | None = None
    account_sid: str | None = None
    connect_token: str | None = None


class CallUserStateChanged(_Event):
    """To the caller and to all who are invited or in the call: one user's new state. `attestation` is
    `A` where the user's own token or connection brought it about, `B` where a server did in its name;
    absent, nobody did, and nothing is known. `main_device` is there with `Accepted`, where the relay
    knows it. `automatic` is there, and true, where a device rejected by itself, without its user."""

    event: Literal["call.user_state_changed"] = "call.user_state_changed"
    identity: str
    state: UserState
    extended_data: str = ""
    reject_status: RejectStatus | None = None
    attestation: Attestation | None = None
    main_device: str | None = None
    automatic: bool | None = None


CancelReason = Literal["cancelled", "answered_elsewhere", "rejected_elsewhere", "joined_elsewhere"]


class CallCancelled(_Event):
    """To who need not answer any more: the caller withdrew, or another device of the identity
    answered; `joined_elsewhere` where another took over a call that this one was in. `extended_data` is
    what whoever did it said to it."""

    event: Literal["call.cancelled"] = "call.cancelled"
    reason: CancelReason = "cancelled"
    extended_data: str = ""


class CallTimeout(_Event):
    """To the invitee who did not answer in time."""

    event: Literal["call.timeout"] = "call.timeout"


class CallEnded(_Event):
    """To all who are invited or in the call: it is over. `reason` says what made an end of it, and
    `ended_by` who: absent where time did, or a server. `extended_data` is what whoever ended it said to it;
    absent where that is nothing, or time ended it."""

    event: Literal["call.ended"] = "call.ended"
    reason: EndReason | None = None
    ended_by: str | None = None
    extended_data: str | None = None


class CallMessage(_Event):
    """To the other parties: what one of them says to them through the relay (seed 003, "Call
    Message Events"). `from` is absent where a server says it for itself; `attestation` says how sure the
    relay is of `from`: `A`, its own token or connection said it, `B`, a server did in its name.
    `voice_event_sid` names the message. `to_backend` is there, and true, where the sender has named
    `backend` in `to`: it is for the backend, and for those in `recipients`, where there are any."""

    event: Literal["call.message"] = "call.message"
    from_: str | None = Field(default=None, alias="from")
    message_type: str
    content_type: str
    content: JsonValue
    voice_event_sid: str
    attestation: Attestation | None = None
    to_backend: Literal[True] | None = None


class DeviceChannelRemoved(_Document):
    """To the device's own stream, where it has one, and to webhooks: a push channel was removed, since
    the push service says that its token is dead. Register the device again, with a new one."""

    event: Literal["device.channel_removed"] = "device.channel_removed"
    id: str
    at: Moment
    device_id: str
    identity: str
    kind: Literal["apns", "fcm"]
    app: str
    reason: str


class Try(BaseModel):
    """One attempt to deliver an event: when it ended, how, and what the other side said."""

    model_config = ConfigDict(frozen=True)

    at: Moment
    result: Literal["sent", "refused", "failed"]
    answer: str


NeverArrived = Literal["expired", "failed", "refused"]


class InviteNotDelivered(_Document):
    """To webhooks: an invite never reached a device over one of its channels. `expired`: its time ran out.
    `failed`: the call was answered or withdrawn before an attempt succeeded. `refused`: the push service
    does not take it. `detail` is the reason of the last attempt, `tries` are those that failed before,
    the first and the last twenty. The device may have got the invite over another channel.
    `identity` is absent where the device is gone."""

    event: Literal["delivery.failed"] = "delivery.failed"
    id: str
    at: Moment
    call_sid: str
    event_id: str
    device_id: str
    identity: str | None = None
    channel: ChannelKind
    app: str | None = None
    state: NeverArrived
    detail: str
    tries: tuple[Try, ...] = ()


class CallFeedback(_Document):
    """To webhooks: what a user said of a call's quality, in place of what the same device said before.
    `device_id` is absent where a server said it in the user's name; `score` and `issue` where the user
    named none."""

    event: Literal["call.feedback"] = "call.feedback"
    id: str
    call_sid: CallSidField
    at: Moment
    identity: str
    device_id: str | None = None
    score: int | None = None
    issue: str | None = None
    attestation: Attestation | None = None


class CallInsight(_Document):
    """To webhooks: what a device told of a call, such as the codec, a quality warning or an error:
    `payload` is the device's own word. `at` is when the relay heard it, `timestamp` the device's time."""

    event: Literal["call.insight"] = "call.insight"
    id: str
    call_sid: CallSidField
    at: Moment
    identity: str
    device_id: str
    level: Literal["debug", "info", "warning", "error"]
    group: str
    name: str
    timestamp: Moment
    payload: dict[str, JsonValue]


class DoorLockedOut(_Document):
    """To webhooks: the station `device_id` says that `caller` has typed too many wrong door codes in a
    call, so that their digits open nothing `until` then. `caller` is absent where nobody knows who
    typed, in a call of more than five."""

    event: Literal["door.locked_out"] = "door.locked_out"
    id: str
    at: Moment
    call_sid: CallSidField
    device_id: str
    identity: str
    caller: str | None = None
    doors: tuple[str, ...]
    wrong_codes: int
    until: Moment


class BackendAnswerRefused(_Document):
    """To webhooks: a backend has answered the `action` of a call's `<Dial>` with something that the relay
    does not do, which `reason` names. The call is over all the same. `url` is without its query."""

    event: Literal["backend.answer_refused"] = "backend.answer_refused"
    id: str
    at: Moment
    call_sid: CallSidField
    url: str
    reason: str


CallEvent = (
    CallCreated
    | CallReceived
    | CallUserStateChanged
    | CallCancelled
    | CallTimeout
    | CallEnded
    | CallMessage
)
_EVENT: TypeAdapter[CallEvent] = TypeAdapter(Annotated[CallEvent, Field(discriminator="event")])


def parse_event(document: bytes | str) -> CallEvent:
    """The event in a JSON document.

    Raises:
        pydantic.ValidationError: it is no event of this version.
    """
    return _EVENT.validate_json(document)


def what_to_shorten(event: CallEvent) -> str:
    """The members that make an event as long as it is, for who must shorten it."""
    match event:
        case CallReceived():
            return "custom_parameters, extended_data or push.payload"
        case CallMessage():
            return "content"
        case _:
            return "extended_data"


def document_within(event: CallEvent, limit_bytes: int) -> str:
    """The event's document for a channel that carries so many bytes: `call.created` then gives counts where
    its lists are too long. Others are as long as they are."""
    if isinstance(event, CallCreated) and len(event.document.encode()) > limit_bytes:
        return event.in_counts().document
    return event.document


def event_document(event: CallEvent | DeviceChannelRemoved) -> str:
    """The event as its JSON document."""
    return event.document
