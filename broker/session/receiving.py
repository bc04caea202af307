"""A session that hears much does so over a connection of its own, which does little else.

paho-mqtt takes a tenth of a millisecond for each message that comes, before anybody can say that it is
not wanted: a device that floods would have a relay read for seconds what it then refuses, before what
all others ask. All else stays the session's.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog

from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.client import Client
from bellwire.broker.session.messages import Incoming
from bellwire.broker.session.publishing_connection import PublishingConnection, let_in
from bellwire.broker.session.receiving_connection import Admit, ReceivingConnection, Route
from bellwire.broker.session.session import Farewell, Handler, NotConnected, Session
from bellwire.config.waiting import Sleep

_CATCH_UP_S = 30.0
_ECHO_AGAIN_S = 2.0
_NO_PROPERTIES = b"\0"

log = structlog.get_logger(__name__)


class ReceivingSession(Session):
    """See `Session`. Where one of its connections is lost, all begin anew.

    Args:
        echo_topic: A topic that it may both publish and subscribe to, where `read_retained` is to wait
            until all has come.
    """

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        *,
        echo_topic: str | None = None,
        session_expiry_s: int = 0,
        farewell: Farewell | None = None,
        response_topic: str | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        super().__init__(
            address,
            client_id,
            session_expiry_s=session_expiry_s,
            farewell=farewell,
            response_topic=response_topic,
            sleep=sleep,
        )
        self._echo_topic = echo_topic
        self._routes: list[Route] = []
        self._received: list[tuple[str, bool]] = []
        self._in: ReceivingConnection | None = None
        self._echoes: dict[bytes, asyncio.Event] = {}
        if echo_topic is not None:
            self.receive(echo_topic, self._take_echo)

    def hear(self, topic_filter: str, handler: Handler, *, admit: Admit | None = None) -> None:
        """Has `handler` called on the loop with each message that comes on a filter; those of which
        `admit` says no by their topic alone are not read. Call before `run`."""
        self._routes.append(Route(topic_filter, handler, admit))

    def receive(
        self,
        topic_filter: str,
        handler: Handler,
        *,
        admit: Admit | None = None,
        retained: bool = True,
    ) -> None:
        """As `hear`, and subscribes at each connection, at QoS 1; without `retained` only what is
        published from then on comes by this. Call before `run`."""
        self.hear(topic_filter, handler, admit=admit)
        self._received.append((topic_filter, retained))

    async def catch_up(self) -> None:
        """Waits until all that the broker has sent so far to who hears it is here.

        Raises:
            NotConnected: the broker is not there, or was to send more than it keeps for one session.
        """
        if self._echo_topic is None:
            raise ValueError("this session has no echo topic")
        # What is said now on a topic that it hears comes back after all that was on its way.
        nonce, heard = secrets.token_bytes(12), asyncio.Event()
        self._echoes[nonce] = heard
        receiving = self._receiving()
        try:
            async with asyncio.timeout(_CATCH_UP_S):
                while not heard.is_set():
                    await receiving.publish(self._echo_topic, _NO_PROPERTIES, nonce)
                    # Where more was to come than the broker keeps, it has thrown the echo away, too.
                    with suppress(TimeoutError):
                        await asyncio.wait_for(heard.wait(), _ECHO_AGAIN_S)
        except TimeoutError as error:
            raise NotConnected("the broker did not send all that it keeps") from error
        finally:
            del self._echoes[nonce]

    async def read_retained(self, *topic_filters: str) -> None:
        """Has the broker send what is retained on filters once, to who hears their topics. Where the
        session has an echo topic it has then all come.

        Raises:
            NotConnected: as `catch_up`.
        """
        receiving = self._receiving()
        await receiving.subscribe(*topic_filters)
        if self._echo_topic is not None:
            await self.catch_up()
        lasting = {topic_filter for topic_filter, _ in self._received}
        if passing := [name for name in topic_filters if name not in lasting]:
            await receiving.unsubscribe(*passing)

    def _take_echo(self, message: Incoming) -> None:
        if (heard := self._echoes.get(message.payload)) is not None:
            heard.set()

    def _receiving(self) -> ReceivingConnection:
        if self._in is None:
            raise NotConnected(f"no connection to the broker {self.address.url}")
        return self._in

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Client]:
        loop = asyncio.get_running_loop()
        receiving = ReceivingConnection(
            self.address, f"{self.client_id}-in", loop, tuple(self._routes)
        )
        async with let_in(receiving):
            self._in = receiving
            try:
                async with super()._connection() as client, self._leaving_with(receiving, client):
                    yield client
            finally:
                self._in = None

    async def _set_up(self, client: Client) -> None:
        receiving = self._receiving()
        for topic_filter, retained in self._received:
            for refused in await receiving.subscribe(topic_filter, retained=retained):
                log.error("broker refused a subscription", topic=refused, client_id=self.client_id)
        await super()._set_up(client)

    @asynccontextmanager
    async def _leaving_with(
        self, connection: PublishingConnection, client: Client
    ) -> AsyncIterator[None]:
        """Has the session's other connection end with this one."""

        def leave(lost: asyncio.Future[str]) -> None:
            log.warning(
                "a connection was lost", client_id=connection.client_id, error=lost.result()
            )
            self._up.clear()
            client.leave()

        connection.lost.add_done_callback(leave)
        try:
            yield
        finally:
            connection.lost.remove_done_callback(leave)
