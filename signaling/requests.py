"""What a client may ask: the bodies of HTTP requests and the documents of MQTT requests."""

from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    field_validator,
    model_validator,
)

from signaling.calls import MAX_USERS, CallType, Mode, RejectStatus
from signaling.identifiers import CallSidField, DeviceIdField, IdentityField
from signaling.params import CustomParameters

DEFAULT_TIMEOUT_S = 60
EXTENDED_DATA_MAX_LENGTH = 4096

ExtendedData = Annotated[str, Field(max_length=EXTENDED_DATA_MAX_LENGTH)]


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PushRequest(_Request):
    """The text that a push notification may show beside the call."""

    title: Annotated[str, Field(max_length=256)] | None = None
    content: Annotated[str, Field(max_length=1024)] | None = None
    payload: Annotated[str, Field(max_length=4096)] | None = None


class GroupReference(_Request):
    """All members of a named group but the caller."""

    group: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


def _kind_of_receiver(to: object) -> str:
    return "group" if isinstance(to, dict | GroupReference) else "identities"


class InviteRequest(_Request):
    """A call to be made. `from` is who calls: absent, a token's own identity, or nobody for an API key."""

    from_: IdentityField | None = Field(default=None, alias="from")
    to: Annotated[
        Annotated[list[IdentityField], Field(min_length=1, max_length=MAX_USERS), Tag("identities")]
        | Annotated[GroupReference, Tag("group")],
        Discriminator(_kind_of_receiver),
    ]
    mode: Mode = Mode.COMMON
    call_type: CallType = CallType.AUDIO
    timeout: Annotated[float, Field(strict=True, ge=1, le=600, description="seconds")] = (
        DEFAULT_TIMEOUT_S
    )
    custom_parameters: CustomParameters = Field(default_factory=dict)
    push: PushRequest = Field(default_factory=PushRequest)
    extended_data: ExtendedData = ""
    check_not_received: bool = False

    @field_validator("to", mode="after")
    @classmethod
    def _refuse_repeats(cls, to: list[str] | GroupReference) -> list[str] | GroupReference:
        if isinstance(to, list) and len(set(to)) < len(to):
            raise ValueError("an identity stands twice")
        return to

    @model_validator(mode="after")
    def _refuse_oneself(self) -> Self:
        if isinstance(self.to, list) and self.from_ in self.to:
            raise ValueError(f"{self.from_} cannot call itself")
        return self


class OperationRequest(_Request):
    """Who does the operation. A token's own identity and device may be left out; a server names them."""

    identity: IdentityField | None = None
    device_id: DeviceIdField | None = None
    extended_data: ExtendedData = ""


class RejectRequest(OperationRequest):
    """A rejection and its reason."""

    status: RejectStatus = RejectStatus.REJECTED


class TokenRequest(_Request):
    """An access token for one identity, and for one device of it where `device_id` is given."""

    identity: IdentityField
    device_id: DeviceIdField | None = None
    ttl: Annotated[int, Field(ge=1, le=86_400, description="seconds")] = 3_600


class ChannelRequest(_Request):
    """One way to reach a device. Only `mqtt` is served so far; the others are refused by name."""

    kind: Literal["apns", "fcm", "mqtt", "websocket"]
    token: Annotated[str, Field(max_length=4096)] | None = None
    app: Annotated[str, Field(max_length=256)] | None = None
    environment: Literal["production", "sandbox"] | None = None


class DeviceRequest(_Request):
    """A device to be registered, replacing what was registered under its id."""

    identity: IdentityField
    channels: Annotated[list[ChannelRequest], Field(max_length=8)] = Field(default_factory=list)
    rotate_credentials: bool = False
    """Whether the broker password is made anew; a device's first registration always makes one."""

    @field_validator("channels", mode="after")
    @classmethod
    def _one_of_a_kind(cls, channels: list[ChannelRequest]) -> list[ChannelRequest]:
        ways = {(c.kind, c.app or "" if c.kind in ("apns", "fcm") else "") for c in channels}
        if len(ways) < len(channels):
            raise ValueError("a kind of channel stands twice, for a push channel for one app")
        return channels


class _DeviceOperation(_Request):
    call_sid: CallSidField


class DeviceInvite(InviteRequest):
    """A device calls."""

    operation: Literal["invite"]
    idempotency_key: Annotated[str, Field(min_length=1, max_length=255)] | None = None


class DeviceReceived(_DeviceOperation):
    """A device confirms an invite."""

    operation: Literal["received"]


class DeviceAccept(_DeviceOperation):
    """A device accepts an invite."""

    operation: Literal["accept"]
    extended_data: ExtendedData = ""


class DeviceReject(_DeviceOperation):
    """A device rejects an invite."""

    operation: Literal["reject"]
    status: RejectStatus = RejectStatus.REJECTED
    extended_data: ExtendedData = ""


class DeviceCancel(_DeviceOperation):
    """A calling device gives up."""

    operation: Literal["cancel"]
    extended_data: ExtendedData = ""


class DeviceQuit(_DeviceOperation):
    """A device hangs up."""

    operation: Literal["quit"]
    extended_data: ExtendedData = ""


class DeviceShow(_DeviceOperation):
    """A device asks how a call stands."""

    operation: Literal["show"]


DeviceOperation = (
    DeviceInvite
    | DeviceReceived
    | DeviceAccept
    | DeviceReject
    | DeviceCancel
    | DeviceQuit
    | DeviceShow
)
_OPERATION: TypeAdapter[DeviceOperation] = TypeAdapter(
    Annotated[DeviceOperation, Field(discriminator="operation")]
)


def parse_device_operation(document: bytes) -> DeviceOperation:
    """The operation in an MQTT request.

    Raises:
        pydantic.ValidationError: it is none.
    """
    return _OPERATION.validate_json(document)
