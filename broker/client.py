"""aiomqtt's client, mended where it hides what the broker says: a publish that the broker refuses, or
that nobody hears (MQTT 5, reason code of PUBACK), counts there as confirmed."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiomqtt import Client as AiomqttClient
from aiomqtt import MqttError, ProtocolVersion, Will
from paho.mqtt.client import Client as PahoClient
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from broker.address import BrokerAddress

_KEEPALIVE_S = 20
_TIMEOUT_S = 5.0


_NO_MATCHING_SUBSCRIBERS = 0x10
"""MQTT 5, section 3.4.2.1: the message is accepted and there is nobody to have it."""


class PublishRefusedError(MqttError):
    """The broker has refused a message."""


class NobodyListensError(MqttError):
    """The broker has taken a message and thrown it away: nobody has subscribed to its topic."""


class Client(AiomqttClient):
    """See `aiomqtt.Client`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - handed on as they are
        super().__init__(*args, **kwargs)
        self._not_delivered: dict[int, MqttError] = {}

    def _on_publish(
        self,
        client: PahoClient,
        userdata: Any,  # noqa: ANN401 - paho's own signature
        mid: int,
        reason_code: ReasonCode,
        properties: Properties,
    ) -> None:
        if mid in self._pending_publishes:
            if reason_code.is_failure:
                self._not_delivered[mid] = PublishRefusedError(str(reason_code))
            elif reason_code.value == _NO_MATCHING_SUBSCRIBERS:
                self._not_delivered[mid] = NobodyListensError(str(reason_code))
        super()._on_publish(client, userdata, mid, reason_code, properties)

    @contextmanager
    def _pending_call(self, mid: int, value: Any, pending: dict[int, Any]) -> Iterator[None]:  # noqa: ANN401
        """As aiomqtt's, but without its count of all pending calls, which makes each call cost as
        much as there are."""
        if mid in pending:
            raise MqttError(f"there is a pending call for message {mid} already")
        pending[mid] = value
        try:
            yield
            if mid in self._not_delivered:
                raise self._not_delivered[mid]
        finally:
            pending.pop(mid, None)
            self._not_delivered.pop(mid, None)


def client_of(
    address: BrokerAddress, client_id: str, *, session_expiry_s: int = 0, will: Will | None = None
) -> Client:
    """An MQTT 5 client. With `session_expiry_s` 0 it begins anew and leaves nothing behind."""
    connect = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    connect.SessionExpiryInterval = session_expiry_s
    return Client(
        address.host,
        address.port,
        username=address.username,
        password=address.password,
        identifier=client_id,
        protocol=ProtocolVersion.V5,
        clean_start=session_expiry_s == 0,
        properties=connect,
        keepalive=_KEEPALIVE_S,
        will=will,
        tls_context=address.tls_context(),
        socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        timeout=_TIMEOUT_S,
    )
