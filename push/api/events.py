"""`WS /v1/events`: a device's events as they come, and its operations, over one WebSocket.

The first message gives the cursor; each event carries its own. A client that lost its connection
comes back with the cursor of the last event it has, and misses none and repeats none.
"""

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query, WebSocket

from bellwire.push.access.api_keys import API_KEY_PREFIX
from bellwire.push.access.tokens import Actor
from bellwire.push.api.query import refuse_unknown
from bellwire.push.api.who_asks import CALL_SCOPE, authenticate_by, settle_device
from bellwire.push.channels.websocket import STREAM
from bellwire.push.parts import Relay
from bellwire.push.problems import refusal_response
from bellwire.signaling.errors import Forbidden, InvalidInput, Refusal, Unauthenticated
from bellwire.signaling.identifiers import DeviceId, Identity, parse_device_id

router = APIRouter()


@router.websocket("/v1/events")
async def events(
    socket: WebSocket,
    token: Annotated[str | None, Query()] = None,
    device_id: Annotated[str | None, Query()] = None,
    cursor: Annotated[str | None, Query()] = None,
) -> None:
    """A device's stream. A browser, which cannot set headers, shows its access token as `token`."""
    relay: Relay = socket.app.state.relay
    try:
        refuse_unknown(socket.scope["query_string"], ("token", "device_id", "cursor"))
        actor, device = await _reader(relay, socket, token, device_id)
        stream = await relay.devices.connections.open_stream(device, _number(cursor))
    except Refusal as refusal:
        await socket.send_denial_response(refusal_response(refusal))
        return
    await socket.accept()
    await relay.devices.event_stream.serve(socket, actor, stream)


async def _reader(
    relay: Relay, socket: WebSocket, token: str | None, asked: str | None
) -> tuple[Actor, DeviceId]:
    """Who reads, and on which device: one of the reader's own, with the WebSocket channel."""
    if token is not None and token.startswith(API_KEY_PREFIX):
        raise relay.access.ended.counted(
            "api-key-in-url",
            Unauthenticated(
                "an API key is not taken from a URL, which proxies and browsers keep: show it in a"
                " header, or an access token here; and rotate this key"
            ),
        )
    actor = await authenticate_by(
        relay,
        socket.scope,
        CALL_SCOPE,
        authorization=socket.headers.get("authorization"),
        api_key=socket.headers.get("x-api-key"),
        bearer=token,
    )
    named = None if asked is None else parse_device_id(asked)
    if actor.device is not None and named not in (None, actor.device):
        raise Forbidden(f"this token is for the device {actor.device}, not for {named}")
    device = actor.device or named
    if device is None:
        raise InvalidInput("say for which device: give `device_id`, or a token that names one")
    row = await relay.devices.registered.get(device)
    if actor.identity not in (None, row.identity):
        raise Forbidden(f"{device} is not a device of {actor.identity}")
    if not any(channel.kind == STREAM for channel in row.channels):
        raise Forbidden(f"{device} has no `websocket` channel: register it with one")
    await settle_device(relay, actor, device)
    return replace(actor, identity=Identity(row.identity), device=device), device


def _number(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise InvalidInput("cursor must be a number that a stream has given")
    return int(cursor)
