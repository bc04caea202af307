"""What devices ask over their live connections, MQTT and WebSocket alike: each document is carried
out as the device that the connection belongs to."""

from datetime import datetime

import structlog
from pydantic import ValidationError

from bellwire.push.access.tokens import AccessTokens, Actor
from bellwire.push.calls.calls import Calls
from bellwire.push.calls.ice_servers import IceServers
from bellwire.push.calls.invites import invite_from_json, invite_more_command, message_command
from bellwire.push.calls.rooms import Rooms
from bellwire.push.devices.door_reports import DoorReports
from bellwire.push.metrics import Metrics
from bellwire.push.problems import problem_of, problem_of_defect, problem_of_validation
from bellwire.signaling.calls.commands import (
    Accept,
    Cancel,
    Command,
    End,
    Ignore,
    Join,
    Quit,
    Received,
    Reject,
    Say,
)
from bellwire.signaling.errors import Refusal, TooLarge
from bellwire.signaling.identifiers import CallSid, ChannelKind
from bellwire.signaling.wire.answers import CallAnswer, DeviceResponse, Problem
from bellwire.signaling.wire.device_operations import (
    CallOperation,
    DeviceAccept,
    DeviceCancel,
    DeviceDoorLockedOut,
    DeviceDoorNotVerified,
    DeviceEnd,
    DeviceFeedback,
    DeviceIceServers,
    DeviceIgnore,
    DeviceInvite,
    DeviceInviteMore,
    DeviceJoin,
    DeviceKeys,
    DeviceList,
    DeviceMessage,
    DeviceOperation,
    DeviceQuit,
    DeviceReceived,
    DeviceReject,
    DeviceRoom,
    DeviceShow,
    parse_device_operation,
)

log = structlog.get_logger(__name__)


LIMIT_BYTES = 16 * 1024


class DeviceOperations:
    """Carries out what devices ask.

    Args:
        calls: The relay's calls.
        metrics: Counts the operations.
        tokens: Holds the relay's public keys.
        ice_servers: Tells the servers to connect calls by.
        rooms: Lets users into the rooms of their calls.
        door_reports: Counts what stations say of their doors, and tells backends.
        check_after_s: Seconds until an invite whose delivery is checked counts as not yet received.
    """

    def __init__(
        self,
        calls: Calls,
        metrics: Metrics,
        tokens: AccessTokens,
        ice_servers: IceServers,
        rooms: Rooms,
        door_reports: DoorReports,
        *,
        check_after_s: float,
    ) -> None:
        self._calls = calls
        self._metrics = metrics
        self._tokens = tokens
        self._ice_servers = ice_servers
        self._rooms = rooms
        self._door_reports = door_reports
        self._check_after_s = check_after_s

    async def answer(self, document: bytes, actor: Actor, over: ChannelKind) -> DeviceResponse:
        """The answer to one document, of whatever kind and quality, that came over a live connection."""
        name = "unknown"
        try:
            if len(document) > LIMIT_BYTES:
                raise TooLarge(
                    f"a request of {len(document)} bytes is over the limit of {LIMIT_BYTES}",
                    size=len(document),
                    limit=LIMIT_BYTES,
                )
            operation = parse_device_operation(document)
            name = operation.operation
            response = await self._carry_out(operation, actor, over)
        except ValidationError as error:
            response = _refused(problem_of_validation(error))
        except Refusal as refusal:
            response = _refused(problem_of(refusal))
        except Exception:  # a defect: one device's request must not take the relay with it
            log.exception("request failed", operation=name, device_id=actor.device)
            response = _refused(problem_of_defect())
        self._metrics.device_requests.labels(name, response.status).inc()
        return response

    async def _carry_out(
        self, operation: DeviceOperation, actor: Actor, over: ChannelKind
    ) -> DeviceResponse:
        command: Command | None = None
        match operation:
            case DeviceIceServers():  # of no call, and needed by who has a connect token for one
                told = self._ice_servers.of(actor)
                return DeviceResponse(status=200, ice_servers=told.ice_servers, ttl=told.ttl)
            case DeviceKeys():
                key_set = await self._tokens.key_set()
                return DeviceResponse(status=200, keys=key_set.keys)
        actor.may_reach(getattr(operation, "call_sid", None))
        match operation:
            case DeviceInvite():
                return await self._invite(operation, actor)
            case DeviceShow():
                call = await self._calls.show(CallSid(operation.call_sid), actor)
            case DeviceFeedback():
                identity, device = actor.acting_as(None, None)
                sid = CallSid(operation.call_sid)
                call = await self._calls.rate(sid, identity, device, operation)
            case DeviceRoom(call_sid=room_of, sdp=offer):
                identity, device = actor.acting_as(None, None)
                sid = CallSid(room_of)
                sdp = await self._rooms.enter(sid, identity, device, offer, actor.attestation)
                return DeviceResponse(status=200, sdp=sdp)
            case DeviceDoorLockedOut():
                await self._door_reports.report(operation, actor)
                return DeviceResponse(status=200)
            case DeviceDoorNotVerified():
                await self._door_reports.report_not_verified(operation, actor)
                return DeviceResponse(status=200)
            case DeviceList():
                return await self._list(operation, actor)
            case _:
                command = _command(operation, actor, self._calls.now(), over)
                call = await self._calls.carry_out(CallSid(operation.call_sid), command)
        said = command.voice_event_sid if isinstance(command, Say) else None
        return DeviceResponse(status=200, call=CallAnswer.of(call), voice_event_sid=said)

    async def _invite(self, operation: DeviceInvite, actor: Actor) -> DeviceResponse:
        created = await self._calls.create(
            invite_from_json(
                operation,
                actor,
                new_sid=self._calls.new_sid,
                at=self._calls.now(),
                check_after_s=self._check_after_s,
                idempotency_key=operation.idempotency_key,
            )
        )
        return DeviceResponse(status=201, call=CallAnswer.of(created.call))

    async def _list(self, operation: DeviceList, actor: Actor) -> DeviceResponse:
        found, following = await self._calls.list_of(
            actor.identity, count=operation.count, before=operation.next
        )
        return DeviceResponse(status=200, calls=tuple(map(CallAnswer.of, found)), next=following)


_WITH_DATA: dict[type[CallOperation], type[Accept | Join | Quit | End]] = {
    DeviceAccept: Accept,
    DeviceJoin: Join,
    DeviceQuit: Quit,
    DeviceEnd: End,
}


def _command(operation: CallOperation, actor: Actor, at: datetime, over: ChannelKind) -> Command:
    identity, device = actor.acting_as(None, None)
    match operation:
        case DeviceReceived(channel=channel, app=app):
            return Received(identity, device, at, channel or over, app or "", actor.attestation)
        case DeviceIgnore():
            return Ignore(identity, device, at)
        case DeviceReject(status=status, extended_data=data, automatic=automatic):
            return Reject(identity, device, at, status, data, actor.attestation, bool(automatic))
        case DeviceCancel(extended_data=data):
            return Cancel(identity, at, data)
        case DeviceInviteMore():
            return invite_more_command(operation, actor, identity, device, at=at)
        case DeviceMessage():
            return message_command(operation, actor, identity, device, at=at)
        case _:
            command = _WITH_DATA[type(operation)]
            return command(identity, device, at, operation.extended_data, actor.attestation)


def _refused(problem: Problem) -> DeviceResponse:
    return DeviceResponse(status=problem.status, problem=problem)
