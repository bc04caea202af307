"""What a connection may cost before anybody has shown a key: the length of a request's head, the time
for its head and for its body, what waits to be answered, and what waits to be read.

uvicorn bounds none of these. A clock that looks at every connection once a second costs less than a timer
for each request, and a deadline may be met a second late.

Each answer leaves in one write. uvicorn writes an answer's head and its body one after the other,
and uvloop sends what it is given at once: a second system call, and a second packet, per request.
"""

import asyncio
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from bellwire.push.api.server.admission import HEALTH_PATHS, Admission, Place, farewell, written
from bellwire.signaling.errors import HeadTooLarge, Refusal, TooManyRequests, TooSlow

_GATHERED_AT_MOST_BYTES = 16 * 1024


class _Gathering:
    """A transport that sends what was written in one turn of the loop together. All else is the real
    one's."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []
        self._gathered_bytes = 0

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the transport's own
        self.flush()  # whatever else is asked for comes after what was written
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """See `asyncio.BaseTransport.is_closing`."""
        return self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """See `asyncio.WriteTransport.write`."""
        if len(data) > _GATHERED_AT_MOST_BYTES:
            self.flush()
            if not self._transport.is_closing():
                self._transport.write(data)  # not a copy: many may be sent the same
            return
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(data)
        self._gathered_bytes += len(data)
        if self._gathered_bytes > _GATHERED_AT_MOST_BYTES:
            self.flush()  # who sends much is to be slowed down by the transport

    def flush(self) -> None:
        """Sends what was written."""
        if self._parts:
            parts, self._parts, self._gathered_bytes = self._parts, [], 0
            if not self._transport.is_closing():
                self._transport.write(b"".join(parts))


class OneWriteProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol over a transport that gathers."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        """See `asyncio.Protocol.connection_made`."""
        super().connection_made(cast("asyncio.Transport", _Gathering(transport, self.loop)))


if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveEvent
    from uvicorn.config import Config
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
    from uvicorn.server import ServerState

HEAD_BYTES = 16 * 1024
HEAD_FIELDS = 100
HEAD_S = 10.0
BODY_S = 30.0
STALLED_S = 30.0
PIPELINED = 16
_FRAMING_BYTES = 64 * 1024
"""Of a body's chunks: their sizes, extensions and trailers."""
_UNREAD_BYTES = 1024 * 1024
"""How much of a body that nobody reads any more is taken, so that its sender comes to read why."""
_SLICE_BYTES = 16 * 1024
_STREAM_PART_BYTES = 1024
_LAST_WORDS_BYTES = 64 * 1024
_LINGER_S = 2.0
_CLOSING_S = 5.0


class _Phase(IntEnum):
    IDLE = 0
    HEAD = 1
    BODY = 2


class GuardedProtocol(OneWriteProtocol):
    """uvicorn's HTTP protocol, with bounds. `guarded_by` gives it its admission."""

    admission: ClassVar[Admission]

    place: Place
    _phase = _Phase.HEAD
    _until: float | None = None
    """When what is being received must be whole."""
    _taken = 0
    """Bytes of a head so far, or of a body's framing."""
    _unread = 0
    _deaf = False
    """Whether what comes is thrown away, since the connection ends with what is owed."""
    _last_words: bytes | None = None
    _refused_upgrade: tuple[Refusal, str] | None = None
    _stalled_since: float | None = None
    _closing_since: float | None = None

    def connection_made(self, transport: "asyncio.Transport") -> None:  # type: ignore[override] # as uvicorn's
        """See `asyncio.Protocol.connection_made`."""
        super().connection_made(transport)
        self.headers = []
        self._until = self.admission.clock() + HEAD_S
        self.place = self.admission.enter(self.client[0] if self.client else None, self)
        self.app_state = {**self.app_state, "place": self.place}

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol.connection_lost`."""
        super().connection_lost(exc)
        self.place.leave()

    def pause_writing(self) -> None:
        """See `asyncio.BaseProtocol.pause_writing`."""
        super().pause_writing()
        self._stalled_since = self.admission.clock()

    def resume_writing(self) -> None:
        """See `asyncio.BaseProtocol.resume_writing`."""
        super().resume_writing()
        self._stalled_since = None

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol.data_received`."""
        if self._phase is _Phase.IDLE:
            self._begin_head()
        if len(data) <= _SLICE_BYTES:
            self._feed(data)
            return
        for start in range(0, len(data), _SLICE_BYTES):
            if self.transport.is_closing() or self.transport.get_protocol() is not self:
                return
            self._feed(data[start : start + _SLICE_BYTES])

    def _feed(self, data: bytes) -> None:
        if self._deaf:
            self._leave_unread(len(data))
            return
        self._taken += len(data)
        super().data_received(data)
        self._weigh()

    def _weigh(self) -> None:
        if self._deaf or self._phase is _Phase.IDLE:
            return
        limit = HEAD_BYTES if self._phase is _Phase.HEAD else _FRAMING_BYTES
        if self._taken > limit or len(self.headers) > HEAD_FIELDS:
            self._refuse(_head_too_large(), "head-too-large")

    # The parser's callbacks

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        if self._phase is not _Phase.HEAD:  # one that was sent before the last was answered
            self._begin_head()

    def on_headers_complete(self) -> None:
        """A request's head is whole."""
        if self._deaf:
            return
        refused = self._refused_by_its_head()
        self._phase = _Phase.BODY
        self._taken = self._unread = 0
        self._until = self.admission.clock() + BODY_S
        if refused is None:
            super().on_headers_complete()
            if self.place.is_at_door and self._path() in HEALTH_PATHS:
                self.cycle.keep_alive = False
            return
        if self.parser.should_upgrade() and self._should_upgrade():
            self._refused_upgrade = refused
            return
        refusal, reason = refused
        self.admission.refused(reason)
        served, self.app = self.app, self.admission.shown(farewell(refusal))
        try:
            super().on_headers_complete()  # its turn comes after what was asked before
        finally:
            self.app = served
        self._deaf = True
        self._until = None

    def on_body(self, body: bytes) -> None:
        """A part of a body."""
        if self._deaf:
            return
        self._taken -= len(body)
        super().on_body(body)
        if self._is_answered():
            self._leave_unread(len(body))

    def on_message_complete(self) -> None:
        """A request is whole."""
        if self._deaf:
            return
        self._phase, self._until, self._taken = _Phase.IDLE, None, 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """A request is answered."""
        super().on_response_complete()
        if self.cycle.body and self.cycle.response_complete:
            self.cycle.body = (
                bytearray()
            )  # which nobody read: the next request may be long in coming
        self.admission.forget_client(self.place)
        if self.place.is_at_door:
            self.transport.close()
        elif self._last_words is not None and not self.pipeline:
            self._end_with(self._last_words)

    def handle_websocket_upgrade(self) -> None:
        """Gives the connection to a WebSocket."""
        if self._refused_upgrade is not None:
            self._refuse(*self._refused_upgrade)
            return
        self._phase, self._until = _Phase.IDLE, None
        super().handle_websocket_upgrade()

    # Bounds

    def _begin_head(self) -> None:
        self._phase, self._taken = _Phase.HEAD, 0
        self._until = self.admission.clock() + HEAD_S

    def _refused_by_its_head(self) -> tuple[Refusal, str] | None:
        headers, place = self.headers, self.place
        if len(headers) > HEAD_FIELDS or (self._taken > HEAD_BYTES and self._is_head_too_large()):
            return _head_too_large(), "head-too-large"
        if len(self.pipeline) >= PIPELINED:
            return TooManyRequests(
                f"{PIPELINED} requests of this connection wait to be answered: read the answers first"
            ), "pipeline"
        if place.address is None:
            forwarded = [value for name, value in headers if name == b"x-forwarded-for"]
            refusal = self.admission.take_client(place, forwarded) if forwarded else None
            if refusal is not None:
                return refusal, "too-many-connections"
        if place.is_at_door:
            refusal = self.admission.serve_at_door(
                place,
                health=self._path() in HEALTH_PATHS,
                credentials=self._shows_credentials(),
            )
            if refusal is not None:
                return refusal, "too-many-connections"
        return None

    def _is_head_too_large(self) -> bool:
        # What was taken may have been a part of the body too.
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        return size > HEAD_BYTES

    def _path(self) -> bytes:
        return self.url.partition(b"?")[0]

    def _shows_credentials(self) -> bool:
        """Whether it shows something that is looked at before its body is read."""
        path = self._path()  # as it was sent: none of ours needs a `%`
        if not path.startswith(b"/v1/") or path.startswith(b"/v1/twilio/") or b"%" in path:
            return False
        shown = (b"authorization", b"x-api-key")
        return b"token=" in self.url or any(name in shown for name, _ in self.headers)

    def _is_answered(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        return cycle is None or cycle.response_complete

    def _leave_unread(self, size: int) -> None:
        self._unread += size
        if self._unread > _UNREAD_BYTES and not self.transport.is_closing():
            self.transport.abort()

    def _refuse(self, refusal: Refusal, reason: str) -> None:
        """Refuses what is being received, as soon as what was asked before is answered."""
        self.admission.refused(reason)
        self._deaf = True
        self._unread = 0
        is_answered = self._is_answered()
        if self._phase is _Phase.BODY and not is_answered:
            cycle = self.cycle
            if cycle.response_started or self.pipeline:
                self.transport.abort()  # nothing that can be said would be understood
                return
            cycle.disconnected = True  # for who waits for the body
            cycle.message_event.set()
            is_answered = True
        if is_answered:
            self._end_with(written(refusal))
        else:
            self._last_words, self._until = written(refusal), None

    def _end_with(self, answer: bytes) -> None:
        """Answers, and closes once the other side has, which it does when it has read the answer."""
        self._last_words = None
        if self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        self.transport.write(answer)
        self.transport.write_eof()
        self._until = self.admission.clock() + _LINGER_S

    def turn_away(self, answer: bytes) -> None:
        """See `Holder.turn_away`."""
        self._deaf = True
        if not self.transport.is_closing():
            self.transport.write(answer)
            self.transport.close()

    def look(self, now: float) -> None:
        """See `Holder.look`."""
        if self.transport.is_closing():
            self._closing_since = self._closing_since or now
            if now - self._closing_since >= _CLOSING_S:
                self.transport.abort()
        elif self._stalled_since is not None and now - self._stalled_since >= STALLED_S:
            self.admission.refused("answer-not-read")
            self.transport.abort()
        elif self._until is None or now < self._until:
            return
        elif self._deaf:
            self.transport.abort()
        elif self.flow.read_paused:
            self._until = now + HEAD_S  # it is not the other side that is slow
        elif self._phase is _Phase.HEAD:
            self._end_slow_head()
        else:
            self._end_slow_body()

    def _end_slow_head(self) -> None:
        if self._taken:
            slow = TooSlow(
                f"a request's head must come within {HEAD_S:g} s: send it whole, at once"
            )
            self._refuse(slow, "head-too-slow")
        else:
            self.admission.refused("head-too-slow")
            self.transport.close()

    def _end_slow_body(self) -> None:
        if self._is_answered():
            self.admission.refused("body-too-slow")
            self.transport.abort()
        else:
            slow = TooSlow(f"a request's body must come within {BODY_S:g} s: send it again")
            self._refuse(slow, "body-too-slow")


class GuardedStream(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, which takes over a connection's place and reads on only as long as
    what it writes is read. What comes at once is taken in small parts, each when the messages of the one
    before are read: of 6 bytes, which are an empty message, uvicorn makes 400."""

    def __init__(
        self,
        config: "Config",
        server_state: "ServerState",
        app_state: "dict[str, Any]",
        _loop: "asyncio.AbstractEventLoop | None" = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.place: Place = app_state["place"]
        self.place.holder = self
        self._admission: Admission = self.place.admission
        self._stalled_since: float | None = None
        self._closing_since: float | None = None
        self._untaken = bytearray()
        self._after_close = 0

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol.data_received`."""
        if self.close_sent:  # all is thrown away until the other side closes too, and read for that
            self._after_close += len(data)
            if self._after_close > _LAST_WORDS_BYTES:
                self._untaken.clear()
                self.transport.abort()
                return
        self._untaken += data
        self._take_parts()

    async def receive(self) -> "ASGIReceiveEvent":
        """See `WebSocketsSansIOProtocol.receive`. What was said before the connection was lost comes before
        that."""
        message = await super().receive()
        while message["type"] == "websocket.disconnect" and self._untaken:
            self.read_paused = False
            self._take_parts()
            self.queue.put_nowait(message)
            message = await super().receive()
        self._take_parts()
        return message

    def _take_parts(self) -> None:
        while self._untaken and not self.read_paused:
            part = bytes(self._untaken[:_STREAM_PART_BYTES])
            del self._untaken[:_STREAM_PART_BYTES]
            super().data_received(part)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol.connection_lost`."""
        del self._untaken[_LAST_WORDS_BYTES:]
        super().connection_lost(exc)
        self.place.leave()

    def pause_writing(self) -> None:
        """See `asyncio.BaseProtocol.pause_writing`."""
        super().pause_writing()
        self._stalled_since = self._admission.clock()

    def resume_writing(self) -> None:
        """See `asyncio.BaseProtocol.resume_writing`."""
        super().resume_writing()
        self._stalled_since = None

    def handle_ping(self) -> None:
        """Answers a ping, but not while answers are not read: they would gather."""
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()

    def turn_away(self, answer: bytes) -> None:
        """See `Holder.turn_away`."""
        del answer  # a stream is no place for it
        self.transport.abort()

    def look(self, now: float) -> None:
        """See `Holder.look`."""
        if self.transport.is_closing():
            self._closing_since = self._closing_since or now
            if now - self._closing_since >= _CLOSING_S:
                self.transport.abort()
        elif self._stalled_since is not None and now - self._stalled_since >= STALLED_S:
            self._admission.refused("answer-not-read")
            self.transport.abort()


def guarded_by(admission: Admission) -> type[GuardedProtocol]:
    """The protocol of connections that this admission gives their places."""
    given = admission

    class Guarded(GuardedProtocol):
        admission = given

    return Guarded


def _head_too_large() -> HeadTooLarge:
    return HeadTooLarge(
        f"a request's head is at most {HEAD_BYTES} bytes and {HEAD_FIELDS} fields: send fewer, or shorter",
        limit=HEAD_BYTES,
    )
