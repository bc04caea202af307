"""What travels on a device's stream (`WS /v1/events`) beside the events themselves.

From the relay: first `stream.opened`, then events, each with its `cursor`; a `stream.heartbeat`
where there is nothing else to say; a `stream.response` for each request. From the device: its
operations, each with a `request_id` of its choice, and `{"ack": cursor}` for what it has read.
"""

import json
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, TypeAdapter, ValidationError

from bellwire.signaling.calls.events import Moment
from bellwire.signaling.wire.answers import DeviceResponse

STREAM_REPLACED = 4001
"""WebSocket close code: the device has opened another stream, or was removed."""

STREAM_EXPIRED = 4002
"""WebSocket close code: the access token has expired; come back with another."""

REQUEST_ID_MAX_LENGTH = 64


class StreamOpened(BaseModel):
    """The first message: events after `cursor` follow. With nothing else to say the relay sends a
    heartbeat each `heartbeat_s` seconds; a client that hears nothing for twice as long comes back."""

    model_config = ConfigDict(frozen=True)

    event: Literal["stream.opened"] = "stream.opened"
    cursor: int
    device_id: str
    heartbeat_s: float


class StreamHeartbeat(BaseModel):
    """The stream is open."""

    model_config = ConfigDict(frozen=True)

    event: Literal["stream.heartbeat"] = "stream.heartbeat"
    at: Moment


class StreamResponse(DeviceResponse):
    """The answer to the request of this id."""

    event: Literal["stream.response"] = "stream.response"
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """What a device sends: an operation as its document, or what it has read."""

    request_id: str | None = None
    document: bytes = b""
    ack: int | None = None


_ACK: TypeAdapter[int] = TypeAdapter(NonNegativeInt)


def parse_stream_request(text: str) -> StreamRequest:
    """What a device has sent. What is no JSON object is handed on as it is, to be refused there."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return StreamRequest(document=text.encode(errors="replace"))
    if not isinstance(message, dict):
        return StreamRequest(document=text.encode(errors="replace"))
    if message.keys() == {"ack"}:
        try:
            return StreamRequest(ack=_ACK.validate_python(message["ack"], strict=True))
        except ValidationError:
            pass
    request_id = message.pop("request_id", None)
    if request_id is not None:
        request_id = str(request_id)[:REQUEST_ID_MAX_LENGTH]
    return StreamRequest(request_id, json.dumps(message).encode())


def event_with_cursor(document: str, cursor: int) -> str:
    """An event's JSON document, with its place in the stream as its first member."""
    return f'{{"cursor":{cursor},{document[1:]}'
