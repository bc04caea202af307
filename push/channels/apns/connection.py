"""The connections of one app to APNs, and the pushes in flight on them.

By hand, because h2, which aioapns drives, refuses every frame after a GOAWAY: the answers of pushes in
flight are lost, and a push that is sent again for that rings twice. Here they are awaited, and only
what APNs says it has not done goes out again, under the same apns-id. Nor do aioapns' connections end
a push that is never answered, and they close after 10 s without one. What is aioapns' are the types of
request and result, Apple's servers, and who provides tokens; the frames are `http2`'s.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import cast

import structlog
from aioapns.common import PRIORITY_HIGH, NotificationRequest, NotificationResult, PushType
from aioapns.connection import (
    APNsDevelopmentClientProtocol,
    APNsProductionClientProtocol,
    AuthorizationHeaderProvider,
)

from bellwire.config.waiting import Sleep, backoff_s
from bellwire.push.channels.apns.credentials import TlsSettings
from bellwire.push.channels.apns.http2 import REFUSED_STREAM, Http2Client, Http2Error, PushHeaders
from bellwire.push.channels.apns.reasons import REASONS, Meaning, read_reason
from bellwire.push.channels.channel import ChannelAtFault, DeliveryFailed, DeliveryRefused
from bellwire.signaling.errors import InvalidInput

log = structlog.get_logger(__name__)

_CONNECT_S = 5.0
_RECONNECT_FIRST_S = 0.1
_RECONNECT_LONGEST_S = 10.0
_GOODBYE_S = 0.5
_SHARED_WRITE = 8
"""Pushes of one moment that leave together over one connection, before the next takes over."""

_UNANSWERED_IN_A_ROW = 3
_STARTS = 3
"""How often one push is started at most, where APNs has done nothing with it."""


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """When a connection is asked for a sign of life: after so long without one, sooner while a push
    waits for its answer; and how long that may take. Below any NAT's idle limit in use."""

    idle_s: float = 30.0
    suspect_s: float = 1.0
    answer_s: float = 2.0
    look_every_s: float = 0.5


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
        answer: asyncio.Future[Answer],
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

    def settle(self, answer: Answer) -> None:
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


class Pool:
    """The connections of one app in one environment: always warm, and replaced before a push needs it. A
    push that finds no room waits in line; by its deadline it is answered or has failed. Made on the
    loop; `run` must be running.

    Args:
        name: The app and environment, for the log.
        topic: `apns-topic`.
        size: How many connections are held.
        sandbox: Apple's development environment.
        server: HOST:PORT in place of Apple's.
        tls: Makes the TLS context of a connection.
        provider: Authorizes pushes, None where a certificate does.
        keep: When connections are asked for a sign of life.
        sleep: Waits.
    """

    def __init__(
        self,
        name: str,
        topic: str,
        *,
        size: int,
        sandbox: bool,
        server: str | None,
        tls: TlsSettings,
        provider: AuthorizationHeaderProvider | None,
        keep: KeepAlive,
        sleep: Sleep,
    ) -> None:
        apple = APNsDevelopmentClientProtocol if sandbox else APNsProductionClientProtocol
        host, port = apple.APNS_SERVER, apple.APNS_PORT
        if server is not None:
            host, _, port_text = server.rpartition(":")
            host, port = host.strip("[]"), int(port_text)
        self._host, self._port = host, port
        self._authority = host if port == apple.APNS_PORT else f"{host}:{port}"
        self._name = name
        self._topic = topic
        self._tls = tls
        self._provider = provider
        self._keep = keep
        self._sleep = sleep
        self._loop = asyncio.get_running_loop()
        self._size = size
        self._open: list[Connection] = []
        self._leaving: list[Connection] = []
        self._current: Connection | None = None
        self._turn = 0
        self._waiting: deque[Push] = deque()
        self._trouble: str | None = None
        self._at_fault = False
        self._stopped = False

    async def run(self) -> None:
        """Holds the connections until cancelled, then closes them."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(self._size):
                    tasks.create_task(self._hold())
                tasks.create_task(self._watch())
        finally:
            self._stopped = True
            await self._say_goodbye()

    async def send(self, push: Push) -> Answer:
        """Sends a push and returns what APNs says to it, at its deadline at the latest.

        Raises:
            DeliveryFailed: there was no answer; ChannelAtFault: APNs does not let this app connect.
        """
        if self._stopped:
            raise DeliveryFailed("the relay is stopping")
        if self._loop.time() >= push.deadline:
            raise DeliveryFailed("too late to send")
        push.timer = self._loop.call_at(push.deadline, self._expire, push)
        connection = None if self._waiting else self._with_room(len(push.body))
        if connection is not None:
            connection.start(push)
        elif self._at_fault and not self._open:
            push.fail(self._no_connection())
        else:
            self._waiting.append(push)
        return await push.answer

    def refill(self) -> None:
        """Starts what waits, as far as there is room. A push whose time is over never starts."""
        waiting = self._waiting
        while waiting:
            push = waiting[0]
            if push.answer.done() or self._loop.time() >= push.deadline:
                waiting.popleft()
                self._expire(push)
                continue
            connection = self._with_room(len(push.body))
            if connection is None:
                return
            waiting.popleft()
            connection.start(push)

    def again(self, push: Push) -> None:
        """Puts a push that APNs did nothing with in the front of the line."""
        push.connection = None
        self._waiting.appendleft(push)
        self._loop.call_soon(self.refill)

    def retire(self, connection: Connection) -> None:
        """Lets a connection finish what is in flight, and no more. `_hold` opens another."""
        if connection in self._open:
            self._open.remove(connection)
            self._leaving.append(connection)
        connection.retire()

    def reopen(self) -> None:
        """Replaces all connections, so that new ones show the credentials of now."""
        for connection in tuple(self._open):
            self.retire(connection)

    async def _say_goodbye(self) -> None:
        """Closes all connections; what waits, fails."""
        closing = (*self._open, *self._leaving)
        for connection in closing:
            connection.close()
        while self._waiting:
            self._waiting.popleft().fail(DeliveryFailed("the relay is stopping"))
        try:
            async with asyncio.timeout(_GOODBYE_S):
                for connection in closing:
                    await connection.gone.wait()
        except TimeoutError:
            log.debug("apns does not say goodbye", app=self._name)
        finally:
            for connection in closing:
                connection.abort()

    def lost(self, connection: Connection) -> None:
        """Forgets a connection that was lost."""
        for kept in (self._open, self._leaving):
            if connection in kept:
                kept.remove(connection)

    async def _connect(self) -> Connection:
        """Opens a connection and waits for the server's settings: it takes pushes then.

        Raises:
            OSError: it cannot be opened; ssl.SSLError says that TLS failed.
            InvalidInput: a file that TLS needs is not what it should be.
        """
        context = await asyncio.to_thread(self._tls.context)
        factory = partial(Connection, self, self._authority, self._topic, self._provider)
        async with asyncio.timeout(_CONNECT_S):
            _, connection = await self._loop.create_connection(
                factory, self._host, self._port, ssl=context
            )
            try:
                await connection.ready
            except BaseException:
                connection.abort()
                raise
        return connection

    async def _hold(self) -> None:
        """Keeps one connection open, by opening another whenever it is over."""
        failures = 0
        while True:
            try:
                connection = await self._connect()
            except (OSError, InvalidInput) as error:
                self._note_trouble(error, "")
            else:
                self._trouble, self._at_fault = None, False
                self._open.append(connection)
                self.refill()
                await connection.over.wait()
                if connection.proven:
                    failures = 0
                    continue
                self._note_trouble(connection.lost, connection.goaway_reason)
            wait_s = backoff_s(
                failures, first_s=_RECONNECT_FIRST_S, longest_s=_RECONNECT_LONGEST_S, least=0.5
            )
            failures += 1
            await self._sleep(wait_s)

    async def _watch(self) -> None:
        while True:
            await self._sleep(self._keep.look_every_s)
            for connection in (*self._open, *self._leaving):
                connection.look(self._keep)

    def _with_room(self, size: int) -> Connection | None:
        """The connection for the next push: in turn, but pushes of one moment share a write."""
        current = self._current
        if current is not None and 0 < current.batch < _SHARED_WRITE and current.has_room(size):
            return current
        for _ in self._open:
            self._turn += 1
            candidate = self._open[self._turn % len(self._open)]
            if candidate.has_room(size):
                self._current = candidate
                return candidate
        return None

    def _expire(self, push: Push) -> None:
        """Ends a push whose time is over."""
        connection = push.connection
        if connection is not None:
            connection.give_up(push)
            waited_s = self._loop.time() - push.started
            push.fail(DeliveryFailed(f"APNs did not answer within {waited_s:.1f} s"))
        elif not self._open:
            push.fail(self._no_connection())
        else:
            push.fail(DeliveryFailed("no connection to APNs had room in time: too late to send"))
        while self._waiting and self._waiting[0].answer.done():
            self._waiting.popleft()

    def _no_connection(self) -> DeliveryFailed:
        text = f"no connection to APNs in time, too late to send: {self._trouble or 'not yet open'}"
        return ChannelAtFault(text) if self._at_fault else DeliveryFailed(text)

    def _note_trouble(self, error: BaseException | None, goaway_reason: str) -> None:
        """Keeps why there is no connection, and whether an operator has to mend it."""
        text = goaway_reason or _why(error)
        at_fault = REASONS.get(goaway_reason) is Meaning.AT_FAULT or _are_credentials_refused(error)
        if text != self._trouble:
            log.warning("apns connection failed", app=self._name, reason=text)
        self._trouble, self._at_fault = text, at_fault
        if at_fault and not self._open:
            while self._waiting:
                self._waiting.popleft().fail(self._no_connection())


class Connection(asyncio.Protocol):
    """One connection. Retired, it ends with the last of its pushes.

    Args:
        pool: Told of what happens to it.
        authority: The server's name, as requests give it.
        topic: `apns-topic` of its pushes.
        provider: Authorizes pushes, None where the certificate does.
    """

    def __init__(
        self,
        pool: Pool,
        authority: str,
        topic: str,
        provider: AuthorizationHeaderProvider | None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self._loop.create_future()
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
        self._pool = pool
        self._provider = provider
        self._transport: asyncio.Transport | None = None
        self._http2 = Http2Client(self)
        self._headers = PushHeaders(authority, topic)
        self._pushes: dict[int, Push] = {}
        self._unanswered = 0
        self._paused = False
        self._flush_due = False
        self._heard = self._pinged = self._loop.time()
        self._ping_out = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TLS stands; speaks HTTP/2 if that is what was agreed on."""
        self._transport = cast("asyncio.Transport", transport)
        tls = transport.get_extra_info("ssl_object")
        if tls is None or tls.selected_alpn_protocol() != "h2":
            self.lost = ConnectionAbortedError("the server does not speak HTTP/2 (ALPN h2)")
            self._transport.abort()
            return
        self._heard = self._loop.time()
        self.flush()

    def has_room(self, size: int) -> bool:
        """Whether a push with a body of this size can go out on it now."""
        return not self._paused and not self.over.is_set() and self._http2.has_room(size)

    def start(self, push: Push) -> None:
        """Sends a push, for which there must be room. Those of one moment share a write."""
        provider = self._provider
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
        push.started = self._loop.time()
        push.starts += 1
        self._pushes[stream_id] = push
        self.batch += 1
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush_batch)
        if self._http2.used_up:
            self._pool.retire(self)

    def give_up(self, push: Push) -> None:
        """Forgets a push that was not answered in time. A connection that leaves several in a row
        unanswered is replaced."""
        del self._pushes[push.stream_id]
        self._http2.reset(push.stream_id)
        self._unanswered += 1
        if self._unanswered >= _UNANSWERED_IN_A_ROW:
            self._pool.retire(self)
        self.flush()
        self._end_if_done()
        self._pool.refill()

    def look(self, keep: KeepAlive) -> None:
        """Asks for a sign of life where it is time to, and ends a connection that gives none."""
        now = self._loop.time()
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
        if self._transport is not None and not self._transport.is_closing():
            self._http2.goaway()
            self.flush()
            self._transport.close()

    def abort(self) -> None:
        """Closes without waiting for a server that may be gone."""
        self.over.set()
        if self._transport is not None:
            self._transport.abort()

    def flush(self) -> None:
        """Writes what is to be sent."""
        if self._transport is not None and not self._transport.is_closing():
            data = self._http2.taken()
            if data:
                self._transport.write(data)

    def _flush_batch(self) -> None:
        self._flush_due = False
        self.batch = 0
        self.flush()

    def data_received(self, data: bytes) -> None:
        """Takes what came, and answers what is to be answered at once."""
        self._heard = self._loop.time()
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
        self._pool.refill()

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
        self._pool.lost(self)

    # What `Http2Client` tells, its `Http2Listener`.

    def on_ready(self) -> None:
        """See `Http2Listener.on_ready`."""
        if not self.ready.done():
            self.ready.set_result(None)

    def on_settings(self, header_table_size: int) -> None:
        """See `Http2Listener.on_settings`."""
        self._headers.resize_table(header_table_size)

    def on_response(
        self, stream_id: int, status: bytes, headers: dict[bytes, bytes], body: bytes
    ) -> None:
        """See `Http2Listener.on_response`."""
        self._unanswered = 0
        self.proven = True
        push = self._pushes.pop(stream_id)
        if status == b"200":
            push.settle(Answer(push.notification_id, "200"))
        else:
            reason, timestamp = read_reason(body)
            answer = Answer(push.notification_id, status.decode(), reason, timestamp, headers)
            push.settle(answer)
        self._pool.refill()

    def on_reset(self, stream_id: int, code: int) -> None:
        """See `Http2Listener.on_reset`."""
        push = self._pushes.pop(stream_id)
        if code == REFUSED_STREAM and push.starts < _STARTS:
            self._pool.again(push)
        else:
            push.fail(DeliveryFailed(f"APNs gave up on the request (RST_STREAM {code})"))
            self._pool.refill()

    def on_goaway(self, last_stream_id: int, text: bytes) -> None:
        """See `Http2Listener.on_goaway`."""
        self.goaway_reason = read_reason(text)[0]
        log.info("apns ends a connection", reason=self.goaway_reason or None)
        self.lost = self.lost or ConnectionResetError(f"APNs ended it {self.goaway_reason}".strip())
        self._pool.retire(self)
        undone = [id_ for id_ in self._pushes if id_ > last_stream_id]
        for stream_id in reversed(undone):
            push = self._pushes.pop(stream_id)
            if push.starts < _STARTS:
                self._pool.again(push)
            else:
                push.fail(DeliveryFailed(f"APNs ended the connection {_STARTS} times"))

    def on_room(self) -> None:
        """See `Http2Listener.on_room`."""
        self._pool.refill()

    def on_pong(self) -> None:
        """See `Http2Listener.on_pong`."""
        self._ping_out = False
        self.proven = True

    def _end_if_done(self) -> None:
        if self.over.is_set() and not self._pushes:
            self.close()


def _are_credentials_refused(error: BaseException | None) -> bool:
    """Whether it is for an operator to mend: a file of ours, or a certificate the server refuses."""
    if isinstance(error, ssl.SSLError):
        alert = error.reason or ""
        return "ALERT" in alert and ("CERTIFICATE" in alert or "UNKNOWN_CA" in alert)
    return isinstance(error, InvalidInput)


def _why(error: BaseException | None) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return f"TLS: {error.reason}"
    if isinstance(error, TimeoutError) and not str(error):
        return f"not open after {_CONNECT_S:g} s"
    return str(error or "closed by the server") or type(error).__name__
