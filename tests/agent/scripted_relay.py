"""The relay as a script: it says to one device what a test tells it to, and answers what the device
asks as the test wishes. Raw MQTT on a real broker, so that no code of the relay is in the way."""

import asyncio
import contextlib
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import aiomqtt
from aiomqtt import MqttError
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from bellwire.broker.session.address import BrokerAddress
from bellwire.signaling.calls.calls import CallState, CallType, Mode, UserState
from bellwire.signaling.calls.events import CallEvent, CallReceived, event_document
from bellwire.signaling.identifiers import DeviceId, new_call_sid
from bellwire.signaling.topics import call_topic, presence_topic, request_topic
from bellwire.signaling.wire.answers import CallAnswer, DeviceResponse, Problem, UserAnswer
from bellwire.signaling.wire.operations import parse_device_operation
from tests.broker.running import raw_client
from tests.system.scene import Record

Request = dict[str, Any]
Answer = Callable[[Request], DeviceResponse | None]
_numbers = itertools.count(1)


def fresh_sid() -> str:
    return new_call_sid(time.time_ns() // 1_000_000, secrets.token_bytes(10))


def about(sid: str) -> dict[str, Any]:
    """What every event carries."""
    return {"id": f"{sid}.{next(_numbers)}", "call_sid": sid, "at": datetime.now(UTC)}


def invite(sid: str, lasts_s: float = 30, **more: Any) -> CallReceived:  # noqa: ANN401
    return CallReceived(
        **about(sid),
        from_="client:lobby",
        to="client:desk",
        custom_parameters={"floor": "2 é"},
        expires_at=datetime.now(UTC) + timedelta(seconds=lasts_s),
    ).model_copy(update=more)


def call_answer(
    sid: str,
    state: CallState = CallState.OPEN,
    user: UserState = UserState.ACCEPTED,
    *,
    main_device: str | None = None,
    other: UserState = UserState.ACCEPTED,
) -> CallAnswer:
    now = datetime.now(UTC)
    return CallAnswer(
        call_sid=sid,
        state=state,
        mode=Mode.COMMON,
        call_type=CallType.AUDIO,
        from_="lobby",
        custom_parameters={},
        extended_data="",
        created_at=now,
        expires_at=now + timedelta(seconds=30),
        users=(
            UserAnswer(identity="desk", state=user, extended_data="", main_device=main_device),
            UserAnswer(identity="lobby", state=other, extended_data=""),
        ),
    )


def taken(request: Request) -> DeviceResponse:
    """Whatever it was, it is done."""
    return DeviceResponse(status=200, call=call_answer(request.get("call_sid") or fresh_sid()))


def still_rings(request: Request) -> DeviceResponse:
    """The call is as the device left it."""
    sid = request["call_sid"]
    return DeviceResponse(status=200, call=call_answer(sid, CallState.RINGING, UserState.RECEIVED))


def refused(status: int, detail: str) -> Answer:
    problem = Problem(type="about:blank", title="Refused", status=status, detail=detail)
    return lambda _: DeviceResponse(status=status, problem=problem)


def refused_in(state: UserState) -> Answer:
    problem = Problem(type="about:blank", title="Refused", status=409, detail="no", state=state)
    return lambda _: DeviceResponse(status=409, problem=problem)


class ScriptedRelay:
    """One device's relay.

    `answers` says how each operation is answered; what is not there is `taken`. An answer of None
    is none: the request stays open.
    """

    def __init__(self, address: BrokerAddress, device: DeviceId) -> None:
        self.answers: dict[str, Answer] = {"show": still_rings}
        self.requests = Record()
        self.presence = Record()
        self._address = address
        self._device = device
        self._client: aiomqtt.Client | None = None
        self._up = asyncio.Event()

    async def run(self) -> None:
        while True:
            with contextlib.suppress(MqttError):
                async with raw_client(self._address) as client:
                    self._client = client
                    await client.subscribe(request_topic(self._device), qos=1)
                    await client.subscribe(presence_topic(self._device), qos=1)
                    self._up.set()
                    async for message in client.messages:
                        await self._take(client, message)
            self._up.clear()
            await asyncio.sleep(0.02)

    async def wait_up(self) -> None:
        await self._up.wait()

    async def say(self, event: CallEvent, *, expires_in_s: int | None = None) -> float:
        """Sends an event; returns the `time.perf_counter` from before."""
        return await self.say_raw(event_document(event).encode(), expires_in_s=expires_in_s)

    async def say_raw(self, document: bytes, *, expires_in_s: int | None = None) -> float:
        assert self._client is not None
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if expires_in_s is not None:
            properties.MessageExpiryInterval = expires_in_s
        before = time.perf_counter()
        await self._client.publish(call_topic(self._device), document, qos=1, properties=properties)
        return before

    async def asked(self, operation: str, sid: str | None = None) -> Request:
        """Waits until the device has asked for this, and has been answered."""
        request: Request = await self.requests.until(
            lambda r: r["operation"] == operation and sid in (None, r.get("call_sid")), operation
        )
        return request

    def operations(self, sid: str | None = None) -> list[str]:
        """What the device has asked for so far, its looks at how the call stands left out."""
        return [
            r["operation"]
            for r in self.requests.noted
            if sid in (None, r.get("call_sid")) and r["operation"] != "show"
        ]

    async def _take(self, client: aiomqtt.Client, message: aiomqtt.Message) -> None:
        assert isinstance(message.payload, bytes)
        if message.topic.matches(presence_topic(self._device)):
            self.presence.note(message.payload)
            return
        operation = parse_device_operation(message.payload)
        request = operation.model_dump(mode="json", by_alias=True)
        response = self.answers.get(operation.operation, taken)(request)
        if response is not None:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.CorrelationData = message.properties.CorrelationData  # type: ignore[union-attr]
            to = message.properties.ResponseTopic  # type: ignore[union-attr]
            await client.publish(to, response.document(), qos=1, properties=properties, timeout=1)
        self.requests.note(request)


@asynccontextmanager
async def scripted_relay(address: BrokerAddress, device: DeviceId) -> AsyncIterator[ScriptedRelay]:
    relay = ScriptedRelay(address, device)
    running = asyncio.create_task(relay.run())
    try:
        await relay.wait_up()
        yield relay
    finally:
        # Python 3.11's wait_for, under aiomqtt's publish, can lose a cancellation: ask again.
        while not running.done():
            running.cancel()
            await asyncio.wait({running}, timeout=0.1)
        with contextlib.suppress(asyncio.CancelledError):
            running.result()
