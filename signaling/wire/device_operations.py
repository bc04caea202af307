"""What a device asks over its live connection, MQTT or WebSocket: one document for each operation.

Who asks is known from the connection, so that no document names it.

What an operator may tell one device to do at once, and what the device answers.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from bellwire.signaling.calls.calls import RejectStatus
from bellwire.signaling.identifiers import CallSidField, IdentityField
from bellwire.signaling.wire.requests import (
    Automatic,
    ExtendedData,
    FeedbackFields,
    InviteMoreFields,
    InviteRequest,
    MessageFields,
    ReceivedFields,
    Request,
    RoomFields,
)

IdempotencyKey = Annotated[str, Field(min_length=1, max_length=255)]


class _OfCall(Request):
    call_sid: CallSidField


class _WithData(_OfCall):
    extended_data: ExtendedData = ""


class DeviceInvite(InviteRequest):
    """A device calls."""

    operation: Literal["invite"]
    idempotency_key: IdempotencyKey | None = None


class DeviceReceived(_OfCall, ReceivedFields):
    """A device confirms an invite. It arrived over this connection, unless `channel` names another
    (with `app`, for a push)."""

    operation: Literal["received"]


class DeviceAccept(_WithData):
    """A device accepts an invite."""

    operation: Literal["accept"]


class DeviceReject(_WithData):
    """A device rejects an invite."""

    operation: Literal["reject"]
    status: RejectStatus = RejectStatus.REJECTED
    automatic: Automatic = None


class DeviceIgnore(_OfCall):
    """A device falls silent by itself."""

    operation: Literal["ignore"]


class DeviceCancel(_WithData):
    """A calling device gives up."""

    operation: Literal["cancel"]


class DeviceInviteMore(_OfCall, InviteMoreFields):
    """A device in a call invites more."""

    operation: Literal["invite_more"]


class DeviceJoin(_WithData):
    """A device comes into a call, or takes it over from another of its identity."""

    operation: Literal["join"]


class DeviceQuit(_WithData):
    """A device hangs up."""

    operation: Literal["quit"]


class DeviceEnd(_WithData):
    """A device ends the call for all."""

    operation: Literal["end"]


class DeviceMessage(_OfCall, MessageFields):
    """A device tells the other parties something."""

    operation: Literal["message"]


class DeviceFeedback(_OfCall, FeedbackFields):
    """A device says how good the call was."""

    operation: Literal["feedback"]


class DeviceRoom(_OfCall, RoomFields):
    """A device brings its sound to the room of a call of more than five, in place of what it brought
    before; the answer is in `sdp`."""

    operation: Literal["room"]


class DeviceShow(_OfCall):
    """A device asks how a call stands."""

    operation: Literal["show"]


class DeviceList(Request):
    """A device asks for its identity's calls, newest first, from the cursor `next` on."""

    operation: Literal["list"]
    count: Annotated[int, Field(ge=1)] = 20
    next: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0


class DeviceIceServers(Request):
    """A device asks for the STUN and TURN servers to connect calls by."""

    operation: Literal["ice_servers"]


class DeviceKeys(Request):
    """A device asks for the relay's public keys, with which caller tokens are verified."""

    operation: Literal["keys"]


LOCK_OUTS_OF_A_CALL = 32
"""More are not told of: each is an event to backends."""


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


class DeviceDoorNotVerified(_OfCall):
    """A station says that it has not opened a door for `caller`, whom that door would let in if the relay
    vouched for them: a server has called, answered or spoken in their name (attestation B)."""

    operation: Literal["door_not_verified"]
    caller: IdentityField


CallOperation = (
    DeviceReceived
    | DeviceAccept
    | DeviceReject
    | DeviceIgnore
    | DeviceCancel
    | DeviceInviteMore
    | DeviceJoin
    | DeviceQuit
    | DeviceEnd
    | DeviceMessage
)
DeviceOperation = (
    CallOperation
    | DeviceInvite
    | DeviceFeedback
    | DeviceRoom
    | DeviceShow
    | DeviceList
    | DeviceIceServers
    | DeviceKeys
    | DeviceDoorLockedOut
    | DeviceDoorNotVerified
)
_OPERATION: TypeAdapter[DeviceOperation] = TypeAdapter(
    Annotated[DeviceOperation, Field(discriminator="operation")]
)


def parse_device_operation(document: bytes | str) -> DeviceOperation:
    """The operation in a device's request.

    Raises:
        pydantic.ValidationError: it is none.
    """
    return _OPERATION.validate_json(document)


COMMAND_LIFE_S = 10
"""MQTT 5 message expiry of a command: a device that was away does not ring an hour later."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class RingTest(_Document):
    """Ring for `duration_s` seconds, as for a call that nobody makes. `id` marks the answer."""

    command: Literal["ring_test"] = "ring_test"
    id: Annotated[str, Field(min_length=1, max_length=64)]
    duration_s: Annotated[float, Field(gt=0, le=10)] = 3.0


class CommandResult(_Document):
    """What has become of a command: `done`, or `refused` and why (a call is in progress)."""

    id: Annotated[str, Field(min_length=1, max_length=64)]
    result: Literal["done", "refused"]
    reason: Annotated[str, Field(max_length=512)] = ""
