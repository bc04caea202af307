"""aiomqtt's client, mended where it hides what happened: a publish that the broker refuses, or that
nobody hears (MQTT 5, reason code of PUBACK), counts there as confirmed, and a cancellation that meets
the broker's answer is lost."""

import asyncio
import socket
from collections.abc import Awaitable
from typing import Any, TypeVar

from aiomqtt import Client as AiomqttClient
from aiomqtt import MqttError, ProtocolVersion, Will
from paho.mqtt.client import Client as PahoClient
from paho.mqtt.client import error_string
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from bellwire.broker.session.address import BrokerAddress
from bellwire.signaling.wire.station import KEEP_ALIVE_S

T = TypeVar("T")

_TIMEOUT_S = 5.0
_RECEIVE_MAXIMUM = 65_535
"""A broker counts what is on its way (mosquitto: 20) apart from what waits: with few on their way a
fleet's thousands of layers and presences would not fit into a short queue. It limits bytes besides."""


_NO_MATCHING_SUBSCRIBERS = 0x10
"""MQTT 5, section 3.4.2.1: the message is accepted and there is nobody to have it."""


class PublishRefusedError(MqttError):
    """The broker has refused a message."""


class NobodyListensError(MqttError):
    """The broker has taken a message and thrown it away: nobody has subscribed to its topic."""


class ConnectionGoneError(MqttError):
    """The connection is lost, and what runs it is about to learn so."""


class Client(AiomqttClient):
    """See `aiomqtt.Client`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - handed on as they are
        super().__init__(*args, **kwargs)
        self._unconfirmed: dict[int, asyncio.Future[None]] = {}

    def publish_confirmed(
        self, topic: str, payload: bytes, *, retain: bool, properties: Properties | None
    ) -> asyncio.Future[None]:
        """Publishes at QoS 1. What is returned is done once the broker has confirmed, or fails with
        what it says instead, or with the connection.

        Raises:
            ConnectionGoneError: the connection is lost, though its owner may not know yet.
            MqttError: it cannot be published for another reason.
        """
        sent = self._client.publish(topic, payload, 1, retain, properties)
        if sent.rc in (MQTTErrorCode.MQTT_ERR_NO_CONN, MQTTErrorCode.MQTT_ERR_CONN_LOST):
            raise ConnectionGoneError("the connection is lost")
        if sent.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise MqttError(f"not published: {error_string(sent.rc)}")
        confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unconfirmed[sent.mid] = confirmed
        return confirmed

    def give_up(self) -> None:
        """Fails all that the broker has not confirmed: its connection is lost."""
        unconfirmed, self._unconfirmed = self._unconfirmed, {}
        for confirmed in unconfirmed.values():
            if not confirmed.done():
                confirmed.set_exception(MqttError("the broker was lost before it confirmed"))
                confirmed.exception()  # Who waited no longer is not to be told.

    def leave(self) -> None:
        """Takes leave of the broker at once: `messages` ends with MqttError."""
        self._client.disconnect()

    async def _wait_for(self, fut: Awaitable[T], timeout: float | None) -> T:  # noqa: ASYNC109
        """As aiomqtt's, which takes asyncio.wait_for: until Python 3.12 that returns a result which
        comes together with a cancellation, so that who was to stop goes on for ever."""
        try:
            async with asyncio.timeout(self.timeout if timeout is None else timeout):
                return await fut
        except TimeoutError:
            raise MqttError("the broker did not answer in time") from None

    def _on_publish(
        self,
        client: PahoClient,
        userdata: Any,  # noqa: ANN401 - paho's own signature
        mid: int,
        reason_code: ReasonCode,
        properties: Properties,
    ) -> None:
        del client, userdata, properties
        confirmed = self._unconfirmed.pop(mid, None)
        if confirmed is None or confirmed.done():
            return
        if reason_code.is_failure:
            confirmed.set_exception(PublishRefusedError(str(reason_code)))
        elif reason_code.value == _NO_MATCHING_SUBSCRIBERS:
            confirmed.set_exception(NobodyListensError(str(reason_code)))
        else:
            confirmed.set_result(None)


def client_of(
    address: BrokerAddress, client_id: str, *, session_expiry_s: int = 0, will: Will | None = None
) -> Client:
    """An MQTT 5 client. With `session_expiry_s` 0 it begins anew and leaves nothing behind."""
    connect = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    connect.SessionExpiryInterval = session_expiry_s
    connect.ReceiveMaximum = _RECEIVE_MAXIMUM
    return Client(
        address.host,
        address.port,
        username=address.username,
        password=address.password,
        identifier=client_id,
        protocol=ProtocolVersion.V5,
        clean_start=session_expiry_s == 0,
        properties=connect,
        keepalive=KEEP_ALIVE_S,
        will=will,
        tls_context=address.tls_context(),
        socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        timeout=_TIMEOUT_S,
    )
