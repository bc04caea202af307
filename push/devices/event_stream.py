"""One device's stream while it is read here: its events out in order, its operations in."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from bellwire.config.waiting import Alarm, Sleep
from bellwire.push.access.revocation import Access
from bellwire.push.access.tokens import Actor
from bellwire.push.channels.websocket import StreamReaders
from bellwire.push.devices.connections import Connections, OpenStream
from bellwire.push.devices.operations import LIMIT_BYTES, DeviceOperations
from bellwire.push.devices.rate_limits import DeviceRateLimits
from bellwire.signaling.errors import Unavailable
from bellwire.signaling.wire.stream import (
    STREAM_EXPIRED,
    STREAM_REPLACED,
    StreamHeartbeat,
    StreamOpened,
    StreamRequest,
    StreamResponse,
    event_with_cursor,
    parse_stream_request,
)

log = structlog.get_logger(__name__)

HEARTBEAT_S = 15.0
_LOOK_EVERY_S = 5.0
_AT_ONCE = 100


class EventStream:
    """Serves the streams of this relay, one `serve` each.

    Args:
        connections: Who is there.
        streams: Says when a stream has grown.
        operations: Carries out what devices ask.
        access: Says when who reads may no longer.
        rate_limits: Says how often one may ask.
        now: Tells the time.
        sleep: Waits.
    """

    def __init__(
        self,
        connections: Connections,
        streams: StreamReaders,
        operations: DeviceOperations,
        access: Access,
        rate_limits: DeviceRateLimits,
        *,
        now: Callable[[], datetime],
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._connections = connections
        self._streams = streams
        self._operations = operations
        self._access = access
        self._reading: dict[Alarm, Actor] = {}
        access.on_change(self._wake_ended)
        self._rate_limits = rate_limits
        self._now = now
        self._sleep = sleep

    async def serve(self, socket: WebSocket, actor: Actor, stream: OpenStream) -> None:
        """Serves an accepted socket until it is closed, by whichever side."""
        alarm = Alarm(self._sleep)
        self._streams.attach(stream.device, alarm)
        self._reading[alarm] = actor
        log.info("stream opened", device_id=stream.device, cursor=stream.cursor)
        try:
            opened = StreamOpened(
                cursor=stream.cursor, device_id=stream.device, heartbeat_s=HEARTBEAT_S
            )
            await socket.send_text(opened.model_dump_json())
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(self._send(socket, actor, stream, alarm))
                try:
                    await self._receive(socket, actor, stream, alarm, sending)
                finally:
                    sending.cancel()
        except* WebSocketDisconnect:
            pass
        finally:
            self._streams.detach(stream.device, alarm)
            del self._reading[alarm]
            log.info("stream closed", device_id=stream.device)
            with suppress(Unavailable):  # the relay is stopping: it holds no stream any more
                await self._connections.close_stream(stream)

    async def _send(
        self, socket: WebSocket, actor: Actor, stream: OpenStream, alarm: Alarm
    ) -> None:
        sent, quiet_since = stream.cursor, self._now()
        while True:
            try:
                events = await self._connections.unread(stream, sent, _AT_ONCE)
            except Unavailable as error:
                log.warning("stream not read", device_id=stream.device, error=str(error))
                events = []
            if actor.until is not None and actor.until <= self._now():
                await socket.close(STREAM_EXPIRED, "the access token has expired")
                return
            if events is None:
                await socket.close(
                    STREAM_REPLACED, "another stream of this device was opened, or it was removed"
                )
                return
            if self._has_ended(actor):
                await socket.close(STREAM_EXPIRED, "the access token or API key was revoked")
                return
            for event in events:
                await socket.send_text(event_with_cursor(event.document, event.sequence))
                sent, quiet_since = event.sequence, self._now()
            if len(events) == _AT_ONCE:
                continue
            if (self._now() - quiet_since).total_seconds() >= HEARTBEAT_S:
                quiet_since = self._now()
                await socket.send_text(StreamHeartbeat(at=quiet_since).model_dump_json())
            await alarm.wait(_LOOK_EVERY_S)

    async def _receive(
        self,
        socket: WebSocket,
        actor: Actor,
        stream: OpenStream,
        alarm: Alarm,
        sending: asyncio.Task[None],
    ) -> None:
        while True:
            text = await _next_text(socket)
            if sending.done():
                return  # it is closed: what waits to be read would be kept for nothing
            if len(text) > LIMIT_BYTES:
                request = StreamRequest(document=text.encode(errors="replace"))
            else:
                request = parse_stream_request(text)
            await self._rate_limits.take_turn(stream.device, self._sleep)
            if request.ack is not None:
                with suppress(Unavailable):  # the next one covers it
                    await self._connections.acknowledge(stream, request.ack)
                continue
            if self._has_ended(actor) or not await self._is_open(stream):
                alarm.ring()  # and `_send` closes it: nothing is done for who is no longer there
                continue
            response = await self._operations.answer(request.document, actor, "websocket")
            answered = StreamResponse(
                **response.model_dump(exclude_none=True), request_id=request.request_id
            )
            absent = {name for name, value in answered if value is None}
            if socket.application_state is WebSocketState.CONNECTED:
                await socket.send_text(answered.model_dump_json(by_alias=True, exclude=absent))

    def _has_ended(self, actor: Actor) -> bool:
        if actor.key_hash is not None:
            return actor.key_hash not in self._access.keys
        if actor.token is None or actor.identity is None:
            return False
        return self._access.refusal(actor.token, actor.identity, actor.device) is not None

    def _wake_ended(self) -> None:
        """Has those closed that may read no longer, whatever else is new to them."""
        for alarm, actor in self._reading.items():
            if self._has_ended(actor):
                alarm.ring()

    async def _is_open(self, stream: OpenStream) -> bool:
        try:
            return await self._connections.is_open(stream)
        except Unavailable:
            return True  # the operation will say so


async def _next_text(socket: WebSocket) -> str:
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1006))
    text = message.get("text")
    return text if text is not None else (message.get("bytes") or b"").decode(errors="replace")
