"""The one way to hold an MQTT 5 session: connect, reconnect with backoff and jitter, resume,
publish, request and response.

A session is run by its owner's TaskGroup and ends only by cancellation. The broker keeps its
subscriptions and queued messages while it is away (`session_expiry_s`); what was being published
when the connection broke fails with `NotConnected`, and its owner sends it again under the same id.
"""

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
from aiomqtt import Message, MqttCodeError, MqttError, Will
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.client import (
    Client,
    ConnectionGoneError,
    NobodyListensError,
    PublishRefusedError,
    client_of,
)
from bellwire.broker.session.messages import Incoming, Outgoing, incoming_of, publish_properties
from bellwire.config.waiting import Sleep, backoff_s
from bellwire.signaling.errors import Unauthenticated

log = structlog.get_logger(__name__)

BACKOFF_LONGEST_S = 30.0
"""How long a session that finds no broker waits at most before it looks again."""
_PUBLISH_TIMEOUT_S = 10.0
_FAREWELL_S = 0.5
REFUSED_CREDENTIALS = (4, 5, 0x86, 0x87)
"""MQTT 3.1.1 and MQTT 5: bad user name or password, not authorized."""


class NotConnected(ConnectionError):
    """The broker could not be reached, or was lost before it confirmed."""


class CredentialsRefused(NotConnected):
    """The broker is there and does not take these credentials now."""


class PublishRefused(NotConnected):
    """The broker is there and does not take this message: there is no right to its topic."""


class NobodyListens(NotConnected):
    """The broker is there and whom the message is for is not, nor is it kept for them."""


class NotAuthorized(Unauthenticated):
    """The broker does not take these credentials, and never has since this session began."""


class RequestTimeout(TimeoutError):
    """Nobody answered a request in time."""


@dataclass(frozen=True, slots=True)
class Farewell:
    """What the broker publishes, retained, when the session is lost, and the session itself when it ends."""

    topic: str
    payload: bytes
    delay_s: int = 0


Handler = Callable[[Incoming], None]
Hook = Callable[[], Awaitable[None]]
Topics = Callable[[], Iterable[str]]
"""Names the topics that matter now."""


class Session:
    """An MQTT 5 session.

    Args:
        address: The broker.
        client_id: The session's name: who comes back under it resumes it.
        session_expiry_s: How long the broker keeps the session while it is away.
        farewell: Published by the broker if the connection is lost, and by the session when it ends.
        sleep: Waits between attempts; a test injects its own.
    """

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        *,
        session_expiry_s: int = 0,
        farewell: Farewell | None = None,
        response_topic: str | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.address = address
        self.client_id = client_id
        self._session_expiry_s = session_expiry_s
        self._farewell = farewell
        self._response_topic = response_topic
        self._sleep = sleep
        self._subscriptions: dict[str, tuple[Handler, ...]] = {}
        self._narrowed: dict[str, Topics] = {}
        self._may_be_refused: set[str] = set()
        self._narrowly_held: dict[str, frozenset[str]] = {}
        self._hooks: list[Hook] = []
        self._lost_hooks: list[Callable[[], None]] = []
        self._unreached_hooks: list[Callable[[BaseException], None]] = []
        self._client: Client | None = None
        self._up = asyncio.Event()
        self._was_connected = False
        self._way_s: float | None = None
        self._requests: dict[bytes, asyncio.Future[bytes]] = {}
        if response_topic is not None:
            self.subscribe(response_topic, self._take_response)

    @property
    def connected(self) -> bool:
        """Whether the broker is there now."""
        return self._up.is_set()

    async def wait_connected(self) -> None:
        """Waits until the session is connected and subscribed."""
        await self._up.wait()

    def subscribe(
        self,
        topic_filter: str,
        handler: Handler,
        *,
        narrowed_to: Topics | None = None,
        may_be_refused: bool = False,
    ) -> None:
        """Has `handler` called on the loop with each message; subscribes again on each connection.
        Call before `run`. QoS 1. Where only some topics of a filter matter, `narrowed_to` names them: what
        others write on the rest then takes no room in the queue that the broker keeps for this session.
        `may_be_refused` is for what an older version gives no right to, and nothing is wrong then.
        """
        if may_be_refused:
            self._may_be_refused.add(topic_filter)
        self._subscriptions[topic_filter] = (*self._subscriptions.get(topic_filter, ()), handler)
        if narrowed_to is not None:
            self._narrowed[topic_filter] = narrowed_to

    def on_connected(self, hook: Hook) -> None:
        """Has `hook` awaited after each connection, once the subscriptions stand."""
        self._hooks.append(hook)

    def on_disconnected(self, hook: Callable[[], None]) -> None:
        """Has `hook` called after each loss of the connection."""
        self._lost_hooks.append(hook)

    def on_unreached(self, hook: Callable[[BaseException], None]) -> None:
        """Has `hook` called with what went wrong, each time that a connection failed or was lost."""
        self._unreached_hooks.append(hook)

    def give_way(self, wait_s: float) -> None:
        """Has the session wait so many seconds once it loses the connection that it has now: another
        process has come under its client id, and each ends the other's connection."""
        self._way_s = wait_s

    async def run(self) -> None:
        """Holds the session until cancelled.

        Raises:
            NotAuthorized: the broker refuses the credentials of a session that was never connected;
                one that was goes on trying.
        """
        attempt = 0
        while True:
            lost: BaseExceptionGroup[BaseException] | None = None
            try:
                async with self._connection() as client:
                    attempt = 0
                    await self._consume(client)
            except* (MqttError, NotConnected, OSError) as errors:
                lost = errors
            if lost is None:
                continue
            if not self._was_connected and is_refused(lost.exceptions[0]):
                raise NotAuthorized(
                    f"the broker {self.address.url} refuses the credentials of"
                    f" {self.address.username or self.client_id}: give it new ones"
                )
            wait_s = self._way_s
            if wait_s is None:
                wait_s = backoff_s(attempt, longest_s=BACKOFF_LONGEST_S)
            self._way_s = None
            attempt += 1
            for hook in self._unreached_hooks:
                hook(lost.exceptions[0])
            log.warning(
                "broker not reached",
                broker=self.address.url,
                client_id=self.client_id,
                error=str(lost.exceptions[0]),
                next_attempt_in_s=round(wait_s, 2),
            )
            await self._sleep(wait_s)

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        expires_in_s: float | None = None,
        response_topic: str | None = None,
        correlation: bytes | None = None,
        to_somebody: bool = False,
    ) -> None:
        """Publishes at QoS 1 and returns when the broker has confirmed it. `to_somebody` says that a
        message that nobody hears has failed.

        Raises:
            NobodyListens: nobody has subscribed to the topic, and `to_somebody` is set.
            NotConnected: the broker is not there, or was lost before it confirmed.
            PublishRefused: the broker does not take it.
        """
        expiry_s = None if expires_in_s is None else max(1, math.ceil(expires_in_s))
        message = Outgoing(topic, payload, retain, expiry_s, response_topic, correlation)
        try:
            await self._publish(message)
        except NobodyListens:
            if to_somebody:
                raise

    async def _publish(self, message: Outgoing) -> None:
        """Publishes at QoS 1; raises NobodyListens where nobody does."""
        client = self._client
        if client is None:
            raise NotConnected(f"no connection to the broker {self.address.url}")
        topic = message.topic
        properties = publish_properties(
            message.expiry_s, message.response_topic, message.correlation
        )
        try:
            async with asyncio.timeout(_PUBLISH_TIMEOUT_S):
                await client.publish_confirmed(
                    topic, message.payload, retain=message.retain, properties=properties
                )
        except TimeoutError as error:
            raise NotConnected(
                f"the broker did not confirm within {_PUBLISH_TIMEOUT_S:g} s"
            ) from error
        except PublishRefusedError as error:
            raise PublishRefused(f"the broker refuses a message on {topic}: {error}") from error
        except NobodyListensError as error:
            raise NobodyListens(f"nobody listens on {topic}") from error
        except ConnectionGoneError as error:
            # Who tries again once it is connected must not think that it is, nor keep the loop from
            # those that will find out.
            self._up.clear()
            await asyncio.sleep(0)
            raise NotConnected(f"no connection to the broker {self.address.url}") from error
        except MqttError as error:
            raise NotConnected(f"the broker did not confirm: {error}") from error

    async def request(self, topic: str, payload: bytes, *, timeout_s: float = 5.0) -> bytes:
        """Publishes a request and returns its answer, matched by correlation data.

        Raises:
            NotConnected: the broker is not there.
            RequestTimeout: no answer within `timeout_s` seconds.
        """
        if self._response_topic is None:
            raise ValueError("this session has no response topic")
        correlation = secrets.token_bytes(12)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._requests[correlation] = answer
        try:
            async with asyncio.timeout(timeout_s):
                await self.publish(
                    topic,
                    payload,
                    expires_in_s=timeout_s,
                    response_topic=self._response_topic,
                    correlation=correlation,
                )
                return await answer
        except TimeoutError as error:
            raise RequestTimeout(f"no answer on {topic} within {timeout_s:g} s") from error
        finally:
            del self._requests[correlation]

    async def ask_retained_again(self, topic_filter: str) -> None:
        """Has the broker send the retained messages of a filter that `subscribe` was called with, as
        it does after each connection. It stays subscribed; one that is narrowed to the topics that matter
        by then.

        Raises:
            NotConnected: the broker is not there.
        """
        client = self._client
        if client is None:
            raise NotConnected(f"no connection to the broker {self.address.url}")
        try:
            await self._subscribe(client, topic_filter)
        except MqttError as error:
            raise NotConnected(f"the broker did not confirm: {error}") from error

    async def _subscribe(self, client: Client, topic_filter: str) -> None:
        narrowed_to = self._narrowed.get(topic_filter)
        if narrowed_to is None:
            await self._subscribe_all(client, topic_filter)
            return
        topics = frozenset(narrowed_to())
        for topic in sorted(topics):
            if not await _is_subscribed(client, topic):
                # The account's rights are of a version that knew the whole filter alone.
                topics = frozenset({topic_filter})
                await self._subscribe_all(client, topic_filter)
                break
        # A session that was begun before it was narrowed holds the whole filter.
        left = self._narrowly_held.get(topic_filter, frozenset({topic_filter})) - topics
        self._narrowly_held[topic_filter] = topics
        for topic in sorted(left):
            await client.unsubscribe(topic)

    async def _subscribe_all(self, client: Client, topic_filter: str) -> None:
        is_subscribed = await _is_subscribed(client, topic_filter)
        if not is_subscribed and topic_filter not in self._may_be_refused:
            log.error("broker refused a subscription", topic=topic_filter, client_id=self.client_id)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Client]:
        client = client_of(
            self.address,
            self.client_id,
            session_expiry_s=self._session_expiry_s,
            will=self._will(),
        )
        async with client:
            self._was_connected = True
            self._client = client
            try:
                yield client
            except asyncio.CancelledError:
                await self._say_farewell()
                raise
            finally:
                self._up.clear()
                self._client = None
                client.give_up()
                for hook in self._lost_hooks:
                    hook()

    async def _consume(self, client: Client) -> None:
        """Takes messages until the connection is lost. The subscriptions are made while messages
        are taken already, since a resumed session delivers at once."""
        async with asyncio.TaskGroup() as tasks:
            setting_up = tasks.create_task(self._set_up(client))
            try:
                async for message in client.messages:
                    self._dispatch(message)
            except MqttError:
                setting_up.cancel()
                error = MqttError("the connection broke")
            else:
                error = MqttError("the broker closed the connection")
        raise error

    async def _set_up(self, client: Client) -> None:
        self._narrowly_held.clear()
        for topic_filter in self._subscriptions:
            await self._subscribe(client, topic_filter)
        self._up.set()
        log.info("broker connected", broker=self.address.url, client_id=self.client_id)
        for hook in self._hooks:
            await hook()

    def _dispatch(self, message: Message) -> None:
        incoming = incoming_of(message)
        for topic_filter, handlers in self._subscriptions.items():
            if message.topic.matches(topic_filter):
                for handler in handlers:
                    handler(incoming)

    def _take_response(self, message: Incoming) -> None:
        answer = self._requests.get(message.correlation or b"")
        if answer is not None and not answer.done():
            answer.set_result(message.payload)

    async def _say_farewell(self) -> None:
        if self._farewell is None:
            return
        try:
            async with asyncio.timeout(_FAREWELL_S):
                await self.publish(self._farewell.topic, self._farewell.payload, retain=True)
        except (NotConnected, TimeoutError) as error:
            log.info("farewell not sent", error=str(error))

    def _will(self) -> Will | None:
        if self._farewell is None:
            return None
        properties = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]
        properties.WillDelayInterval = self._farewell.delay_s
        return Will(
            self._farewell.topic, self._farewell.payload, qos=1, retain=True, properties=properties
        )


async def _is_subscribed(client: Client, topic_filter: str) -> bool:
    """Subscribes, and says whether the broker has taken it."""
    codes = await client.subscribe(topic_filter, options=SubscribeOptions(qos=1))
    return not any(getattr(code, "is_failure", False) for code in codes)


def is_refused(error: BaseException) -> bool:
    """Whether the broker has answered a connection with "bad user name or password" or "not authorized"."""
    if isinstance(error, CredentialsRefused):
        return True
    if not isinstance(error, MqttCodeError):
        return False
    code = getattr(error.rc, "value", error.rc)
    return code in REFUSED_CREDENTIALS
