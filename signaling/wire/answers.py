"""What the relay answers, over HTTP and MQTT alike. Clients must ignore members they do not know."""

from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from bellwire.signaling.calls.calls import (
    Attestation,
    Call,
    CallState,
    CallType,
    EndReason,
    Mode,
    NotCancelled,
    RejectStatus,
    Unreachable,
    UserState,
)
from bellwire.signaling.calls.events import ErrorInvitee, Moment, Try
from bellwire.signaling.identifiers import ChannelKind, Identity
from bellwire.signaling.tokens import Jwk, Scope


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


def failed(
    reasons: Iterable[tuple[Identity, Unreachable | NotCancelled]],
) -> tuple[ErrorInvitee, ...]:
    """Those for whom something failed, and why, as an answer tells them."""
    return tuple(ErrorInvitee(identity=identity, reason=reason) for identity, reason in reasons)


class UserAnswer(_Answer):
    """One user of a call. `attestation` is `A` where the user's own token or connection brought its
    state about, `B` where a server did in its name, null where nobody did. `reject_status` is there
    with `Rejected`."""

    identity: str
    state: UserState
    extended_data: str
    main_device: str | None = None
    attestation: Attestation | None = None
    reject_status: RejectStatus | None = None


class CallAnswer(_Answer):
    """A call as it stands. `state` is the call's own; `to` are those who were invited, `error_invitees`
    could not be, or, in the answer to a `cancel` that names whom, could not be cancelled. `attestation` says
    how sure the relay is of `from`: `A`, the caller's own token or connection; `B`, a server said so.
    `answered_at` and `answered_by` tell the first answer, `duration_s` the seconds from it to the end;
    `ended_by` is null where time ended the call, or a server. What is not yet so is null, and what a relay
    of an older version has not kept."""

    call_sid: str
    state: CallState
    mode: Mode
    call_type: CallType
    from_: str | None = Field(default=None, alias="from")
    custom_parameters: dict[str, str]
    extended_data: str
    created_at: Moment
    expires_at: Moment
    users: tuple[UserAnswer, ...]
    error_invitees: tuple[ErrorInvitee, ...] = ()
    to: tuple[str, ...] = ()
    attestation: Attestation | None = None
    answered_at: Moment | None = None
    answered_by: str | None = None
    ended_at: Moment | None = None
    end_reason: EndReason | None = None
    ended_by: str | None = None
    ended_attestation: Attestation | None = None
    duration_s: float | None = None

    @classmethod
    def of(
        cls, call: Call, *, error_invitees: tuple[ErrorInvitee, ...] | None = None, **more: str
    ) -> Self:
        """The answer that shows this call, and what else it says. `error_invitees` are, unless told, those
        who could not be invited."""
        return cls(
            **more,
            call_sid=call.call_sid,
            state=call.state,
            mode=call.mode,
            call_type=call.call_type,
            from_=call.caller,
            custom_parameters=call.custom_parameters,
            extended_data=call.extended_data,
            created_at=call.created_at,
            expires_at=call.expires_at,
            users=tuple(
                UserAnswer(
                    identity=user.identity,
                    state=user.state,
                    extended_data=user.extended_data,
                    main_device=user.main_device,
                    attestation=user.own_attestation,
                    reject_status=user.reject_status,
                )
                for user in call.users
            ),
            error_invitees=(failed(call.unreachable) if error_invitees is None else error_invitees),
            to=call.invited,
            attestation=call.attestation,
            answered_at=call.answered_at,
            answered_by=call.answered_by,
            ended_at=call.ended_at,
            end_reason=call.end_reason,
            ended_by=call.ended_by,
            ended_attestation=call.ended_attestation,
            duration_s=call.duration_s,
        )

    def told(self) -> dict[str, Any]:
        """It as an event to webhooks carries it: without its SID, which the event has, and without
        what users said, which goes with the event that says it."""
        dumped: dict[str, Any] = self.model_dump(
            mode="json",
            by_alias=True,
            exclude_none=True,
            exclude={"call_sid": True, "users": {"__all__": {"extended_data"}}},
        )
        return dumped


class MessageAnswer(CallAnswer):
    """The call that a message was said in, and the message's SID, which its event carries too."""

    voice_event_sid: str


class CallListAnswer(_Answer):
    """Calls, newest first. `next` is the cursor of the next page, 0 at the end."""

    calls: tuple[CallAnswer, ...]
    next: int


class TokenAnswer(_Answer):
    """An access token."""

    token: str
    expires_at: Moment


class RevokedTokensAnswer(_Answer):
    """Whose access tokens have ended: all of one identity's or device's, or the one of this `jti`. Those
    that are issued from now on are good."""

    identity: str | None = None
    device_id: str | None = None
    jti: str | None = None


class ApiKeyAnswer(_Answer):
    """An API key, without the key itself. `expires_at` is null where it does not expire, `last_used_at`,
    known to the minute, where it was never used."""

    name: str
    scopes: tuple[Scope, ...]
    created_at: Moment
    expires_at: Moment | None = None
    last_used_at: Moment | None = None


class NewApiKeyAnswer(ApiKeyAnswer):
    """See `ApiKeyAnswer`. `key` is shown this once: the relay keeps its hash alone."""

    key: str


class ApiKeyListAnswer(_Answer):
    """All API keys, by name."""

    keys: tuple[ApiKeyAnswer, ...]


class KeySetAnswer(_Answer):
    """The relay's public keys, as a JSON Web Key Set (RFC 7517)."""

    keys: tuple[Jwk, ...]


class IceServerAnswer(_Answer):
    """A STUN or TURN server, as W3C's `RTCIceServer`; a TURN server has credentials."""

    urls: tuple[str, ...]
    username: str | None = None
    credential: str | None = Field(default=None, repr=False)

    @model_serializer(mode="wrap")
    def _without_nulls(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A browser reads `null` as the user name "null" (Web IDL)."""
        members: dict[str, Any] = serialize(self)
        return {name: value for name, value in members.items() if value is not None}


class RoomAnswer(_Answer):
    """The room's SDP answer, with its candidates."""

    sdp: str


class IceServersAnswer(_Answer):
    """The servers to connect calls by, none where the relay's settings name none, and how many seconds
    their credentials are good for."""

    ice_servers: tuple[IceServerAnswer, ...]
    ttl: int


class BrokerAccess(_Answer):
    """How a device reaches the broker, and the only client id that it may connect with. The password is
    shown once, when it is made. A relay of the version before says no
    `client_id`, and takes any."""

    url: str
    username: str
    password: str
    client_id: str | None = None


class ChannelAnswer(_Answer):
    """One way to reach a device; tokens are not shown."""

    kind: ChannelKind
    app: str | None = None
    environment: str | None = None


class DeviceAnswer(_Answer):
    """A registered device. `mqtt` is there only where a broker password has just been made."""

    device_id: str
    identity: str
    channels: tuple[ChannelAnswer, ...]
    mqtt: BrokerAccess | None = None


class DeviceListAnswer(_Answer):
    """All registered devices, by id. `broker_url` is where those with the MQTT channel find their broker."""

    devices: tuple[DeviceAnswer, ...]
    broker_url: str | None = None


DeliveryState = Literal["owed", "sent", "refused", "expired", "failed", "received"]


class DeliveryAnswer(_Answer):
    """What became of one event on its way to one device over one of its channels. `owed`: it is tried
    again until it expires; `detail` is why the last attempt failed, `attempts` how many have.
    `sent`: the channel took it over, and calls it `detail`. `refused`, `expired`, `failed`: `detail` is
    why; its time ran out, or the call was over before an attempt succeeded.
    `received`: the device has confirmed it, `latency_ms` after it was invited. `event` is `call.received`
    where it is an invite. `tries` are the attempts in their order, of many the first and the last."""

    device_id: str
    identity: str | None = None
    channel: ChannelKind
    app: str | None = None
    event_id: str
    state: DeliveryState
    detail: str = ""
    attempts: int | None = None
    at: Moment | None = None
    received_at: Moment | None = None
    latency_ms: int | None = None
    event: str | None = None
    tries: tuple[Try, ...] = ()


class CallDeliveriesAnswer(_Answer):
    """What became of a call's deliveries, by device and channel: of pushes always; over the other
    channels those that are owed, failed or were confirmed. A device that was
    deleted, or given to somebody else, has no `identity`."""

    call_sid: str
    deliveries: tuple[DeliveryAnswer, ...]


class FeedbackAnswer(_Answer):
    """What one user said of a call, on one device: `device_id` is null where a server said it."""

    identity: str
    device_id: str | None = None
    score: int | None = None
    issue: str | None = None
    at: Moment


class CallFeedbackAnswer(_Answer):
    """What was said of a call's quality, oldest first."""

    call_sid: str
    feedback: tuple[FeedbackAnswer, ...]


class InsightAnswer(_Answer):
    """What a device told of a call. `at` is when the relay heard it, `timestamp` the device's own time;
    `payload` is the device's own word."""

    identity: str
    device_id: str
    at: Moment
    level: Literal["debug", "info", "warning", "error"]
    group: str
    name: str
    timestamp: Moment
    payload: dict[str, JsonValue]


class CallInsightsAnswer(_Answer):
    """What devices told of a call, in the order in which it was heard: of the last 30 days, at most 200 of
    one device."""

    call_sid: str
    insights: tuple[InsightAnswer, ...]


class GroupAnswer(_Answer):
    """A named group, and its members in their order."""

    name: str
    members: tuple[str, ...]


class GroupListAnswer(_Answer):
    """All groups, by name."""

    groups: tuple[GroupAnswer, ...]


class Problem(BaseModel):
    """Why a request was refused (RFC 9457). `code` is Twilio's where one fits, and `explanation`, `causes`
    and `solutions` are what `docs/errors.md` says of it; `operation`, `state` and `reason` are there for a
    refused operation."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: int | None = None
    explanation: str | None = None
    causes: tuple[str, ...] | None = None
    solutions: tuple[str, ...] | None = None
    operation: str | None = None
    state: str | None = None
    reason: str | None = None


class DeviceResponse(_Answer):
    """The answer to a device's request over MQTT or WebSocket: an HTTP status, and the call, the
    list of calls, the ICE servers, the keys, the room's answer (`sdp`), or the problem.
    `voice_event_sid` names the message that was said."""

    status: int
    call: CallAnswer | None = None
    calls: tuple[CallAnswer, ...] | None = None
    next: int | None = None
    voice_event_sid: str | None = None
    ice_servers: tuple[IceServerAnswer, ...] | None = None
    ttl: int | None = None
    keys: tuple[Jwk, ...] | None = None
    sdp: str | None = None
    problem: Problem | None = None

    def document(self) -> bytes:
        """The response as it travels."""
        seldom = ("ice_servers", "ttl", "keys", "sdp")
        absent = {name for name in seldom if getattr(self, name) is None}
        return self.model_dump_json(by_alias=True, exclude=absent).encode()
