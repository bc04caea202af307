"""What this device says and hears on its topics: call events in, requests out, presence always."""

import asyncio
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from importlib.metadata import version

import structlog
from pydantic import ValidationError

from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.messages import Incoming
from bellwire.broker.session.session import (
    Farewell,
    NotConnected,
    PublishRefused,
    RequestTimeout,
    Session,
    is_refused,
)
from bellwire.config.waiting import Sleep
from bellwire.signaling.calls.events import CallEvent, parse_event
from bellwire.signaling.errors import CallError
from bellwire.signaling.identifiers import DeviceId, mqtt_client_id
from bellwire.signaling.topics import (
    call_topic,
    insights_topic,
    presence_topic,
    request_topic,
    response_topic,
)
from bellwire.signaling.wire.answers import (
    CallAnswer,
    DeviceResponse,
    IceServersAnswer,
    KeySetAnswer,
    Problem,
)
from bellwire.signaling.wire.operations import DeviceIceServers, DeviceKeys, DeviceOperation
from bellwire.signaling.wire.station import (
    CONFIRM_EVERY_S,
    PRESENCE_LIFE_S,
    Presence,
    presence_document,
)

SOFTWARE = version("bellwire")
"""Which version of Bellwire this agent is. Read once: each look searches the whole import path, and
importlib keeps what it saw there."""

log = structlog.get_logger(__name__)

_SESSION_EXPIRY_S = 24 * 3600
_WILL_DELAY_S = 3
_REQUEST_TIMEOUT_S = 3.0
_ASK_AGAIN_S = 0.5
_UNAVAILABLE = 503
_EVENTS_REMEMBERED = 512
_KEYS_WITHIN = timedelta(seconds=10)


class RequestRefused(Exception):
    """The relay refused a request; `problem` says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


EventListener = Callable[[CallEvent, Incoming], None]


class Link:
    """This device's session with the relay, through the broker.

    Args:
        address: The broker, with this device's credentials.
        device: This device.
        sleep: Waits for a broker that is away; a test injects its own.
        confirm_every_s: How often this device says that it is there.
        presence_life_s: How long the broker is to believe it, in whole seconds.
    """

    def __init__(
        self,
        address: BrokerAddress,
        device: DeviceId,
        *,
        sleep: Sleep = asyncio.sleep,
        confirm_every_s: float = CONFIRM_EVERY_S,
        presence_life_s: int = PRESENCE_LIFE_S,
    ) -> None:
        if address.is_in_clear:
            log.warning(
                "the broker is reached without TLS: whoever listens on the network reads this device's"
                " password; use mqtts://",
                broker=address.url,
            )
        self._device = device
        self._confirm_every_s = confirm_every_s
        self._presence_life_s = presence_life_s
        self._came_at: datetime | None = None
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._listeners: list[EventListener] = []
        self._session = Session(
            address,
            mqtt_client_id(device, address.password or ""),
            session_expiry_s=_SESSION_EXPIRY_S,
            response_topic=response_topic(device),
            farewell=Farewell(
                presence_topic(device),
                presence_document(Presence(online=False)),
                delay_s=_WILL_DELAY_S,
            ),
            sleep=sleep,
        )
        self._session.subscribe(call_topic(device), self._take_event)
        self._session.on_connected(self._say_online)

    @property
    def session(self) -> Session:
        """The MQTT session, for what is no call: configuration and health."""
        return self._session

    @property
    def connected(self) -> bool:
        """Whether the broker is there."""
        return self._session.connected

    async def wait_connected(self) -> None:
        """Waits until the broker is there."""
        await self._session.wait_connected()

    def listen(self, listener: EventListener) -> None:
        """Has `listener` called on the loop with each event, once, however often it is delivered."""
        self._listeners.append(listener)

    def on_connected(self, hook: Callable[[], Awaitable[None]]) -> None:
        """Has `hook` awaited after each connection."""
        self._session.on_connected(hook)

    def on_disconnected(self, hook: Callable[[], None]) -> None:
        """Has `hook` called after each loss of the connection."""
        self._session.on_disconnected(hook)

    def on_unreached(self, listener: Callable[[CallError], None]) -> None:
        """Has `listener` called with why, each time that the broker cannot be reached or is lost: 31530,
        its name is unknown; 20151, it refuses this device's credentials; 31005, anything else."""
        self._session.on_unreached(lambda error: listener(_connection_error(error)))

    async def run(self) -> None:
        """Holds the session until cancelled; then says that this device is away."""
        confirming = asyncio.create_task(self._go_on_saying_online())
        try:
            await self._session.run()
        finally:
            confirming.cancel()

    async def ask(self, operation: DeviceOperation, *, within: timedelta) -> CallAnswer:
        """Asks the relay, again and again while no answer comes, or only that it cannot now, for a while.

        Every operation is idempotent for the same device, so that asking twice does nothing twice.

        Raises:
            RequestRefused: the relay refused.
            CallError: 31009, it could not be sent in time; 31408, no answer came in time; 31502, it is
                not understood; 31201, the broker does not let this device ask.
        """
        response = await self.request(operation, within=within)
        if response.call is None:
            raise CallError(31502, "the relay's answer holds neither a call nor a problem")
        return response.call

    async def request(self, operation: DeviceOperation, *, within: timedelta) -> DeviceResponse:
        """See `ask`, for an answer that is no call."""
        document = operation.model_dump_json(by_alias=True, exclude_none=True).encode()
        loop = asyncio.get_running_loop()
        until = loop.time() + within.total_seconds()
        failure: CallError | RequestRefused = CallError(
            31009, f"{operation.operation}: there is no connection to the relay"
        )
        while (left_s := until - loop.time()) > 0:
            try:
                async with asyncio.timeout(left_s):
                    await self._session.wait_connected()
                    answer = await self._session.request(
                        request_topic(self._device), document, timeout_s=_REQUEST_TIMEOUT_S
                    )
            except PublishRefused as error:
                raise CallError(31201, str(error)) from error
            except (NotConnected, RequestTimeout, TimeoutError) as error:
                if self._session.connected:
                    failure = CallError(
                        31408, f"{operation.operation}: the relay did not answer in time"
                    )
                log.warning("request not answered", operation=operation.operation, error=str(error))
                continue
            try:
                return _response_in(answer)
            except RequestRefused as refused:
                if refused.problem.status != _UNAVAILABLE:
                    raise
                failure = refused
            # That relay is stopping, or its database is moving to another server: soon one is there.
            log.warning("relay not available", operation=operation.operation, error=str(failure))
            await asyncio.sleep(min(_ASK_AGAIN_S, max(0.0, until - loop.time())))
        raise failure

    async def keys(self) -> KeySetAnswer:
        """The relay's public keys.

        Raises:
            CallError: it does not tell them (in time).
        """
        operation = DeviceKeys(operation="keys")
        try:
            response = await self.request(operation, within=_KEYS_WITHIN)
        except RequestRefused as refused:
            raise CallError(31502, str(refused)) from refused
        return KeySetAnswer(keys=response.keys or ())

    async def ice_servers(self, *, within: timedelta) -> IceServersAnswer:
        """The STUN and TURN servers to connect a call by; ask for each call anew.

        Raises:
            RequestRefused, CallError: as `ask`.
        """
        operation = DeviceIceServers(operation="ice_servers")
        response = await self.request(operation, within=within)
        return IceServersAnswer(ice_servers=response.ice_servers or (), ttl=response.ttl or 0)

    async def publish_insight(self, document: str) -> None:
        """Tells what has been learnt of a call. While the broker is away it is let go."""
        try:
            await self._session.publish(insights_topic(self._device), document.encode())
        except NotConnected as error:
            log.info("insight not published", error=str(error))

    async def _say_online(self) -> None:
        self._came_at = datetime.now(UTC)
        await self._confirm_online(self._came_at)

    async def _go_on_saying_online(self) -> None:
        while True:
            await asyncio.sleep(self._confirm_every_s)
            if self._came_at is None or not self._session.connected:
                continue  # It is said once there is a broker.
            try:
                await self._confirm_online(self._came_at)
            except NotConnected as error:
                log.info("presence not confirmed", error=str(error))

    async def _confirm_online(self, since: datetime) -> None:
        """Says that this device is there: to the letter the same each time, so that a relay knows at a
        glance that there is nothing new."""
        presence = Presence(online=True, software=SOFTWARE, since=since)
        await self._session.publish(
            presence_topic(self._device),
            presence_document(presence),
            retain=True,
            expires_in_s=self._presence_life_s,
        )

    def _take_event(self, message: Incoming) -> None:
        try:
            event = parse_event(message.payload)
        except ValidationError as error:
            log.error("event not understood", problems=error.error_count(), topic=message.topic)
            return
        if event.id in self._seen:
            return
        self._seen[event.id] = None
        if len(self._seen) > _EVENTS_REMEMBERED:
            self._seen.popitem(last=False)
        for listener in self._listeners:
            listener(event, message)


def _response_in(answer: bytes) -> DeviceResponse:
    try:
        response = DeviceResponse.model_validate_json(answer)
    except ValidationError as error:
        raise CallError(31502, "the relay's answer is not understood", str(error)) from error
    if response.problem is not None:
        raise RequestRefused(response.problem)
    return response


def _connection_error(error: BaseException) -> CallError:
    """Why the broker was not reached, by Twilio's codes."""
    if is_refused(error):
        return CallError(20151, str(error), repr(error))
    # aiomqtt keeps what the system said as the context of its own error.
    unknown = isinstance(error.__context__, socket.gaierror)
    return CallError(31530 if unknown else 31005, str(error), repr(error))
