"""One connection to APNs: aioapns' protocol on frames of our own, and the pushes in flight on it.

The headers of a push as an HPACK block (RFC 7541): what is alike in all pushes of a connection
takes a byte each from the second push on, what differs goes as it is.

One push and what APNs says to it: aioapns' request and result, with what they leave out.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, cast

import structlog
from aioapns.common import PRIORITY_HIGH, NotificationRequest, NotificationResult, PushType
from aioapns.connection import (
    APNsBaseClientProtocol,
    APNsTLSClientProtocol,
    AuthorizationHeaderProvider,
)
from hpack import Encoder
from hpack.hpack import encode_integer

from bellwire.push.channels.apns.http2 import REFUSED_STREAM, Http2Client, Http2Error
from bellwire.push.channels.apns.reasons import read_reason
from bellwire.push.channels.channel import DeliveryFailed, DeliveryRefused


class Push(NotificationRequest):
    """A VoIP push on its way, with what aioapns' request leaves out: `body` goes out as it is,
    `expiration` is the header's value, and `deadline`, by the loop's clock, ends the attempt."""

    __slots__ = (
        "answer",
        "authorization",
        "body",
        "connection",
        "deadline",
        "expiration",
        "started",
        "starts",
        "stream_id",
        "timer",
    )

    def __init__(
        self,
        device_token: str,
        body: bytes,
        *,
        apns_id: str,
        topic: str,
        expiration: str,
        collapse_id: str,
        deadline: float,
        answer: "asyncio.Future[Answer]",
    ) -> None:
        super().__init__(
            device_token,
            {},
            apns_id,
            priority=int(PRIORITY_HIGH),
            collapse_key=collapse_id,
            push_type=PushType.VOIP,
            apns_topic=topic,
        )
        self.body = body
        self.expiration = expiration
        self.deadline = deadline
        self.answer = answer
        self.timer: asyncio.TimerHandle | None = None
        self.connection: Connection | None = None
        self.stream_id = 0
        self.started = 0.0
        self.starts = 0
        self.authorization: str | None = None

    def settle(self, answer: "Answer") -> None:
        """Ends it with what APNs said. Who waited may have gone."""
        self._end()
        if not self.answer.done():
            self.answer.set_result(answer)

    def fail(self, error: DeliveryFailed | DeliveryRefused) -> None:
        """Ends it without an answer."""
        self._end()
        if not self.answer.done():
            self.answer.set_exception(error)

    def _end(self) -> None:
        self.connection = None
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Answer(NotificationResult):
    """What APNs said to a push. `description` is the reason, "" for none."""

    __slots__ = ("headers",)

    def __init__(
        self,
        apns_id: str,
        status: str,
        description: str = "",
        timestamp: int | None = None,
        headers: dict[bytes, bytes] | None = None,
    ) -> None:
        super().__init__(apns_id, status, description, timestamp)
        self.headers = headers or {}


_TABLE_NEEDED = 2048
"""Bytes: the fields kept, with 32 for each (section 4.1), take about 700."""
_TABLE = 4096

_PATH = b"\x04"  # Literal without indexing, its name the static table's fourth.
_APNS_ID = b"\x00\x07apns-id"
_EXPIRATION = b"\x00\x0fapns-expiration"
_COLLAPSE_ID = b"\x00\x10apns-collapse-id"


class PushHeaders:
    """Writes the header blocks of one connection, in the order in which they are sent.

    Args:
        authority: The server, `:authority`.
        topic: `apns-topic`.
    """

    def __init__(self, authority: str, topic: str) -> None:
        self._head = [(":method", "POST"), (":scheme", "https"), (":authority", authority)]
        self._fields = [("apns-topic", topic), ("apns-push-type", "voip"), ("apns-priority", "10")]
        self._encoder = Encoder()
        self._indexed = True
        self._authorization: str | None = ""
        self._ends = (b"", b"")

    def resize_table(self, size: int) -> None:
        """The server keeps this many bytes of fields."""
        size = min(size, _TABLE)
        if size != self._encoder.header_table_size:
            self._encoder.header_table_size = size
        self._indexed = size >= _TABLE_NEEDED
        self._authorization = ""

    def block(
        self, path: str, apns_id: str, expiration: str, collapse_id: str, authorization: str | None
    ) -> bytes:
        """The block of the next push. `authorization` None: a certificate speaks for it."""
        if authorization == self._authorization:
            head, tail = self._ends
        else:
            head, tail = self._begin(authorization)
        return b"".join(
            (
                head,
                _PATH,
                _text(path),
                tail,
                _APNS_ID,
                _text(apns_id),
                _EXPIRATION,
                _text(expiration),
                _COLLAPSE_ID,
                _text(collapse_id),
            )
        )

    def _begin(self, authorization: str | None) -> tuple[bytes, bytes]:
        """The block's ends with a new authorization. Written twice with the table emptied before:
        first they enter the fields into it, from then on they point to them. Where the server's table
        is too small for that, they go as they are."""
        self._authorization = authorization
        if self._indexed:
            size = self._encoder.header_table_size
            self._encoder.header_table_size = 0
            self._encoder.header_table_size = size
        first = self._write(authorization)
        self._ends = self._write(authorization)
        return first

    def _write(self, authorization: str | None) -> tuple[bytes, bytes]:
        fields = self._fields
        if authorization is not None:
            fields = [*fields, ("authorization", authorization)]
        return (
            self._encoder.encode(self._kept(self._head), huffman=False),
            self._encoder.encode(self._kept(fields), huffman=False),
        )

    def _kept(self, fields: list[tuple[str, str]]) -> list[tuple[str, str, bool]]:
        return [(name, value, not self._indexed) for name, value in fields]


def _text(text: str) -> bytes:
    raw = text.encode()
    size = len(raw)
    return (bytes((size,)) if size < 127 else bytes(encode_integer(size, 7))) + raw


log = structlog.get_logger(__name__)

_UNANSWERED_IN_A_ROW = 3
_STARTS = 3


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """When a connection is asked for a sign of life: after so long without one, sooner while a push
    waits for its answer; and how long that may take. Below any NAT's idle limit in use."""

    idle_s: float = 30.0
    suspect_s: float = 1.0
    answer_s: float = 2.0
    look_every_s: float = 0.5


class Owner(Protocol):
    """What a connection tells its pool."""

    def refill(self) -> None:
        """The connection may have room for a push that waits."""

    def again(self, push: Push) -> None:
        """APNs has done nothing with a push, and says so: it may go out again."""

    def retire(self, connection: "Connection") -> None:
        """The connection takes no more pushes: another is needed."""


class Connection(APNsTLSClientProtocol):
    """One connection. Retired, it ends with the last of its pushes.

    Args:
        owner: The pool.
        authority: The server's name, as requests give it.
        topic: `apns-topic` of its pushes.
        discard: Called when it is lost.
        provider: Authorizes pushes, None where the certificate does.
    """

    def __init__(
        self,
        owner: Owner,
        authority: str,
        topic: str,
        loop: asyncio.AbstractEventLoop,
        discard: Callable[[APNsBaseClientProtocol], None],
        provider: AuthorizationHeaderProvider | None,
    ) -> None:
        super().__init__(
            topic, loop, cast("Callable[[APNsBaseClientProtocol], NoReturn]", discard), provider
        )
        self.ready: asyncio.Future[None] = loop.create_future()
        self.over = asyncio.Event()
        """Set once it takes no more pushes."""
        self.gone = asyncio.Event()
        """Set once it is closed."""
        self.goaway_reason = ""
        self.proven = False
        """Whether it was ever of use: a server may accept connections only to close them."""
        self.lost: Exception | None = None
        self.batch = 0
        """Pushes that leave with the next write."""
        self._owner = owner
        self._http2 = Http2Client(self)
        self._headers = PushHeaders(authority, topic)
        self._pushes: dict[int, Push] = {}
        self._unanswered = 0
        self._paused = False
        self._flush_due = False
        self._heard = self._pinged = loop.time()
        self._ping_out = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TLS stands; speaks HTTP/2 if that is what was agreed on."""
        self.transport = cast("asyncio.Transport", transport)
        tls = transport.get_extra_info("ssl_object")
        if tls is None or tls.selected_alpn_protocol() != "h2":
            self.lost = ConnectionAbortedError("the server does not speak HTTP/2 (ALPN h2)")
            self.transport.abort()
            return
        self._heard = self.loop.time()
        self.flush()

    def has_room(self, size: int) -> bool:
        """Whether a push with a body of this size can go out on it now."""
        return not self._paused and not self.over.is_set() and self._http2.has_room(size)

    def start(self, push: Push) -> None:
        """Sends a push, for which there must be room. Those of one moment share a write."""
        provider = self.auth_provider
        push.authorization = None if provider is None else provider.get_header()
        block = self._headers.block(
            f"/3/device/{push.device_token}",
            push.notification_id,
            push.expiration,
            push.collapse_key or "",
            push.authorization,
        )
        push.stream_id = stream_id = self._http2.request(block, push.body)
        push.connection = self
        push.started = self.loop.time()
        push.starts += 1
        self._pushes[stream_id] = push
        self.batch += 1
        if not self._flush_due:
            self._flush_due = True
            self.loop.call_soon(self._flush_batch)
        if self._http2.used_up:
            self._owner.retire(self)

    def give_up(self, push: Push) -> None:
        """Forgets a push that was not answered in time. A connection that leaves several in a row
        unanswered is replaced."""
        del self._pushes[push.stream_id]
        self._http2.reset(push.stream_id)
        self._unanswered += 1
        if self._unanswered >= _UNANSWERED_IN_A_ROW:
            self._owner.retire(self)
        self.flush()
        self._end_if_done()
        self._owner.refill()

    def look(self, keep: KeepAlive) -> None:
        """Asks for a sign of life where it is time to, and ends a connection that gives none."""
        now = self.loop.time()
        if self._ping_out and self._heard < self._pinged:
            if now - self._pinged >= keep.answer_s:
                self.lost = TimeoutError(f"no answer to a PING in {keep.answer_s:g} s")
                self.abort()
            return
        waiting_since = next((push.started for push in self._pushes.values()), now)
        suspect = now - max(waiting_since, self._heard, self._pinged) >= keep.suspect_s
        if suspect or now - self._heard >= keep.idle_s:
            self._ping_out, self._pinged = True, now
            self._http2.ping()
            self.flush()

    def retire(self) -> None:
        """Takes no more pushes, and ends once those in flight are answered."""
        self.over.set()
        self._end_if_done()

    def close(self) -> None:
        """Says goodbye and closes."""
        self.over.set()
        if self.transport is not None and not self.transport.is_closing():
            self._http2.goaway()
            self.flush()
            self.transport.close()

    def abort(self) -> None:
        """Closes without waiting for a server that may be gone."""
        self.over.set()
        if self.transport is not None:
            self.transport.abort()

    def flush(self) -> None:
        """Writes what is to be sent."""
        if self.transport is not None and not self.transport.is_closing():
            data = self._http2.taken()
            if data:
                self.transport.write(data)

    def _flush_batch(self) -> None:
        self._flush_due = False
        self.batch = 0
        self.flush()

    def data_received(self, data: bytes) -> None:
        """Takes what came, and answers what is to be answered at once."""
        self._heard = self.loop.time()
        try:
            self._http2.receive(data)
        except Http2Error as error:
            self.lost = error
            self._http2.goaway(error.code)
            self.flush()
            self.abort()
            return
        if not self._flush_due:
            self.flush()
        if self.over.is_set():
            self._end_if_done()

    def pause_writing(self) -> None:
        """The network takes no more: what waits here could leave too late."""
        self._paused = True

    def resume_writing(self) -> None:
        """The network takes more."""
        self._paused = False
        self._owner.refill()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fails what was in flight: whether APNs took it is not known."""
        self.lost = self.lost or exc
        self.over.set()
        self.gone.set()
        if not self.ready.done():
            why = self.lost or "closed at once"
            self.ready.set_exception(
                why if isinstance(why, OSError) else ConnectionResetError(str(why))
            )
            self.ready.exception()  # Nobody may be waiting any more.
        reason = f": {self.lost}" if self.lost else ""
        pushes, self._pushes = self._pushes, {}
        for push in pushes.values():
            push.fail(DeliveryFailed(f"the connection to APNs was lost{reason}"))
        if self.on_connection_lost is not None:
            self.on_connection_lost(self)

    # What `Http2Client` tells, its `Listener`.

    def on_ready(self) -> None:
        """See `Listener.on_ready`."""
        if not self.ready.done():
            self.ready.set_result(None)

    def on_settings(self, header_table_size: int) -> None:
        """See `Listener.on_settings`."""
        self._headers.resize_table(header_table_size)

    def on_response(
        self, stream_id: int, status: bytes, headers: dict[bytes, bytes], body: bytes
    ) -> None:
        """See `Listener.on_response`."""
        self._unanswered = 0
        self.proven = True
        push = self._pushes.pop(stream_id)
        if status == b"200":
            push.settle(Answer(push.notification_id, "200"))
        else:
            reason, timestamp = read_reason(body)
            answer = Answer(push.notification_id, status.decode(), reason, timestamp, headers)
            push.settle(answer)
        self._owner.refill()

    def on_reset(self, stream_id: int, code: int) -> None:
        """See `Listener.on_reset`."""
        push = self._pushes.pop(stream_id)
        if code == REFUSED_STREAM and push.starts < _STARTS:
            self._owner.again(push)
        else:
            push.fail(DeliveryFailed(f"APNs gave up on the request (RST_STREAM {code})"))
            self._owner.refill()

    def on_goaway(self, last_stream_id: int, text: bytes) -> None:
        """See `Listener.on_goaway`."""
        self.goaway_reason = read_reason(text)[0]
        log.info("apns ends a connection", reason=self.goaway_reason or None)
        self.lost = self.lost or ConnectionResetError(f"APNs ended it {self.goaway_reason}".strip())
        self._owner.retire(self)
        undone = [id_ for id_ in self._pushes if id_ > last_stream_id]
        for stream_id in reversed(undone):
            push = self._pushes.pop(stream_id)
            if push.starts < _STARTS:
                self._owner.again(push)
            else:
                push.fail(DeliveryFailed(f"APNs ended the connection {_STARTS} times"))

    def on_room(self) -> None:
        """See `Listener.on_room`."""
        self._owner.refill()

    def on_pong(self) -> None:
        """See `Listener.on_pong`."""
        self._ping_out = False
        self.proven = True

    def _end_if_done(self) -> None:
        if self.over.is_set() and not self._pushes:
            self.close()

    def refresh_inactivity_timer(self) -> None:
        """aioapns closes after 10 s without a push: then each push would cost a handshake."""

    def on_response_received(self, headers: dict[bytes, bytes]) -> None:
        """Of aioapns' own frames, which are not in use here."""
        raise NotImplementedError

    async def send_notification(self, request: Any) -> NoReturn:  # noqa: ANN401 - aioapns' own
        """The pool starts pushes, by `start`."""
        raise NotImplementedError
