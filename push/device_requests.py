"""Devices over MQTT: their requests, answered on the response topic they name, and their presence.

The broker's rights make sure that a request on a device's topic is that device's; an answer goes
only to a topic of the same device, whatever the request names.
"""

import asyncio
from datetime import datetime

import structlog
from pydantic import ValidationError

from broker.session import Incoming, NotConnected, Session
from push.auth import Actor
from push.calls import Calls
from push.invites import invite_from_json
from push.metrics import Metrics
from push.problems import problem_of, problem_of_validation
from signaling.answers import CallAnswer, DeviceResponse, Problem
from signaling.calls import Call
from signaling.errors import InvalidInput, Refusal, TooLarge, Unauthenticated
from signaling.identifiers import CallSid, DeviceId
from signaling.presence import parse_presence
from signaling.requests import (
    DeviceAccept,
    DeviceCancel,
    DeviceInvite,
    DeviceOperation,
    DeviceQuit,
    DeviceReceived,
    DeviceReject,
    DeviceShow,
    parse_device_operation,
)
from signaling.rules import Accept, Cancel, Command, Quit, Received, Reject
from signaling.topics import PRESENCE_SHARED, REQUESTS_SHARED, device_of, response_topic

log = structlog.get_logger(__name__)

_LIMIT_BYTES = 16 * 1024
_AT_ONCE = 256


class DeviceRequests:
    """Serves what devices ask over MQTT."""

    def __init__(self, session: Session, calls: Calls, metrics: Metrics) -> None:
        self._session = session
        self._calls = calls
        self._metrics = metrics
        self._tasks: asyncio.TaskGroup | None = None
        self._room = asyncio.Semaphore(_AT_ONCE)
        session.subscribe(REQUESTS_SHARED, self._take_request)
        session.subscribe(PRESENCE_SHARED, self._take_presence)

    async def run(self) -> None:
        """Serves until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                await asyncio.Event().wait()
            finally:
                self._tasks = None

    def _take_request(self, message: Incoming) -> None:
        if self._tasks is not None:
            self._tasks.create_task(self._serve(message))

    def _take_presence(self, message: Incoming) -> None:
        if self._tasks is not None and message.payload and not message.retained:
            self._tasks.create_task(self._serve_presence(message))

    async def _serve(self, message: Incoming) -> None:
        async with self._room:
            operation, response = await self._answer(message)
        self._metrics.device_requests.labels(operation, response.status).inc()
        if message.response_topic is None:
            return
        device = device_of(message.topic)
        if message.response_topic != response_topic(device):
            log.warning("device named a foreign response topic", device_id=device)
            return
        try:
            await self._session.publish(
                message.response_topic,
                response.document(),
                expires_in_s=30,
                correlation=message.correlation,
            )
        except NotConnected as error:
            log.warning(
                "answer not sent, the device will ask again", device_id=device, error=str(error)
            )

    async def _answer(self, message: Incoming) -> tuple[str, DeviceResponse]:
        name = "unknown"
        try:
            if len(message.payload) > _LIMIT_BYTES:
                raise TooLarge(
                    f"a request of {len(message.payload)} bytes is over the limit of {_LIMIT_BYTES}"
                )
            operation = parse_device_operation(message.payload)
            name = operation.operation
            actor = await self._actor(device_of(message.topic))
            call = await self._carry_out(operation, actor)
        except ValidationError as error:
            return name, _refused(problem_of_validation(error))
        except Refusal as refusal:
            return name, _refused(problem_of(refusal))
        created = isinstance(operation, DeviceInvite)
        return name, DeviceResponse(status=201 if created else 200, call=CallAnswer.of(call))

    async def _actor(self, device: DeviceId) -> Actor:
        row = await self._calls.device_of(device)
        if row is None:
            raise Unauthenticated(f"the device {device} is not registered")
        return Actor(row.identity, device)

    async def _carry_out(self, operation: DeviceOperation, actor: Actor) -> Call:
        if isinstance(operation, DeviceShow):
            return await self._calls.show(CallSid(operation.call_sid), actor)
        if isinstance(operation, DeviceInvite):
            invite = invite_from_json(
                operation,
                actor,
                new_sid=self._calls.new_sid,
                at=self._calls.now(),
                idempotency_key=operation.idempotency_key,
            )
            return (await self._calls.create(invite)).call
        command = _command(operation, actor, self._calls.now())
        return await self._calls.carry_out(CallSid(operation.call_sid), command)

    async def _serve_presence(self, message: Incoming) -> None:
        try:
            device = device_of(message.topic)
            presence = parse_presence(message.payload)
        except (InvalidInput, ValidationError):
            log.warning("presence not understood", topic=message.topic)
            return
        log.info("device presence", device_id=device, online=presence.online)
        if presence.online:
            await self._calls.send_live_invites(device)


def _command(operation: DeviceOperation, actor: Actor, at: datetime) -> Command:
    identity, device = actor.acting_as(None, None)
    match operation:
        case DeviceReceived():
            return Received(identity, device, at)
        case DeviceAccept(extended_data=data):
            return Accept(identity, device, at, data)
        case DeviceReject(status=status, extended_data=data):
            return Reject(identity, device, at, status, data)
        case DeviceCancel(extended_data=data):
            return Cancel(identity, at, data)
        case DeviceQuit(extended_data=data):
            return Quit(identity, device, at, data)
        case _:
            raise InvalidInput(f"{operation.operation} moves no call")


def _refused(problem: Problem) -> DeviceResponse:
    return DeviceResponse(status=problem.status, problem=problem)
