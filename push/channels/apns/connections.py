"""aioapns' connection pool, mended: connections that are always warm, pushes that always end.

A pool holds its connections open from the start and replaces one before a push needs it. A push
that finds no room waits in line; by its deadline it is answered or has failed.
"""

import asyncio
import random
import ssl
from collections import deque
from functools import partial

import structlog
from aioapns.connection import (
    APNsBaseClientProtocol,
    APNsBaseConnectionPool,
    APNsTLSClientProtocol,
    AuthorizationHeaderProvider,
)

from bellwire.push.alarm import Sleep
from bellwire.push.channels.apns.connection import Answer, Connection, KeepAlive, Push
from bellwire.push.channels.apns.credentials import TlsSettings
from bellwire.push.channels.apns.reasons import REASONS, Meaning
from bellwire.push.channels.channel import ChannelAtFault, DeliveryFailed
from bellwire.signaling.errors import InvalidInput

log = structlog.get_logger(__name__)

_CONNECT_S = 5.0
_RECONNECT_FIRST_S = 0.1
_RECONNECT_LONGEST_S = 10.0
_GOODBYE_S = 0.5
_SHARED_WRITE = 8
"""Pushes of one moment that leave together over one connection, before the next takes over."""


class Pool(APNsBaseConnectionPool):
    """The connections of one app in one environment. Made on the loop; `run` must be running.

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

    connections: list[Connection]  # type: ignore[assignment] # ours alone, which aioapns cannot know

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
        super().__init__(topic, max_connections=size, use_sandbox=sandbox)
        host, port = self.protocol_class.APNS_SERVER, self.protocol_class.APNS_PORT
        if server is not None:
            host, _, port_text = server.rpartition(":")
            host, port = host.strip("[]"), int(port_text)
        self._host, self._port = host, port
        self._authority = host if port == APNsTLSClientProtocol.APNS_PORT else f"{host}:{port}"
        self._name = name
        self._topic = topic
        self._tls = tls
        self._provider = provider
        self._keep = keep
        self._sleep = sleep
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
                for _ in range(self.max_connections):
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
        if self.loop.time() >= push.deadline:
            raise DeliveryFailed("too late to send")
        push.timer = self.loop.call_at(push.deadline, self._expire, push)
        connection = None if self._waiting else self._with_room(len(push.body))
        if connection is not None:
            connection.start(push)
        elif self._at_fault and not self.connections:
            push.fail(self._no_connection())
        else:
            self._waiting.append(push)
        return await push.answer

    def refill(self) -> None:
        """Starts what waits, as far as there is room. A push whose time is over never starts."""
        waiting = self._waiting
        while waiting:
            push = waiting[0]
            if push.answer.done() or self.loop.time() >= push.deadline:
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
        self.loop.call_soon(self.refill)

    def retire(self, connection: Connection) -> None:
        """Lets a connection finish what is in flight, and no more. `_hold` opens another."""
        if connection in self.connections:
            self.connections.remove(connection)
            self._leaving.append(connection)
        connection.retire()

    def reopen(self) -> None:
        """Replaces all connections, so that new ones show the credentials of now."""
        for connection in tuple(self.connections):
            self.retire(connection)

    def close(self) -> None:
        """Closes all connections; what waits, fails."""
        for connection in (*self.connections, *self._leaving):
            connection.close()
        while self._waiting:
            self._waiting.popleft().fail(DeliveryFailed("the relay is stopping"))

    async def _say_goodbye(self) -> None:
        closing = (*self.connections, *self._leaving)
        self.close()
        try:
            async with asyncio.timeout(_GOODBYE_S):
                for connection in closing:
                    await connection.gone.wait()
        except TimeoutError:
            log.debug("apns does not say goodbye", app=self._name)
        finally:
            for connection in closing:
                connection.abort()

    def discard_connection(self, connection: APNsBaseClientProtocol) -> None:
        """Forgets a connection that was lost."""
        for kept in (self.connections, self._leaving):
            if connection in kept:
                kept.remove(connection)

    async def create_connection(self) -> Connection:
        """Opens a connection and waits for the server's settings: it takes pushes then.

        Raises:
            OSError: it cannot be opened; ssl.SSLError says that TLS failed.
            InvalidInput: a file that TLS needs is not what it should be.
        """
        context = await asyncio.to_thread(self._tls.context)
        factory = partial(
            Connection,
            self,
            self._authority,
            self._topic,
            self.loop,
            self.discard_connection,
            self._provider,
        )
        async with asyncio.timeout(_CONNECT_S):
            _, connection = await self.loop.create_connection(
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
                connection = await self.create_connection()
            except (OSError, InvalidInput) as error:
                self._note_trouble(error, "")
            else:
                self._trouble, self._at_fault = None, False
                self.connections.append(connection)
                self.refill()
                await connection.over.wait()
                if connection.proven:
                    failures = 0
                    continue
                self._note_trouble(connection.lost, connection.goaway_reason)
            wait_s = min(_RECONNECT_LONGEST_S, _RECONNECT_FIRST_S * 2 ** min(failures, 10))
            failures += 1
            await self._sleep(random.uniform(0.5, 1.0) * wait_s)  # noqa: S311 - jitter, no secret

    async def _watch(self) -> None:
        while True:
            await self._sleep(self._keep.look_every_s)
            for connection in (*self.connections, *self._leaving):
                connection.look(self._keep)

    def _with_room(self, size: int) -> Connection | None:
        """The connection for the next push: in turn, but pushes of one moment share a write."""
        current = self._current
        if current is not None and 0 < current.batch < _SHARED_WRITE and current.has_room(size):
            return current
        for _ in self.connections:
            self._turn += 1
            candidate = self.connections[self._turn % len(self.connections)]
            if candidate.has_room(size):
                self._current = candidate
                return candidate
        return None

    def _expire(self, push: Push) -> None:
        """Ends a push whose time is over."""
        connection = push.connection
        if connection is not None:
            connection.give_up(push)
            waited_s = self.loop.time() - push.started
            push.fail(DeliveryFailed(f"APNs did not answer within {waited_s:.1f} s"))
        elif not self.connections:
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
        if at_fault and not self.connections:
            while self._waiting:
                self._waiting.popleft().fail(self._no_connection())


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
