"""What devices ask over their live connections, MQTT and WebSocket alike: each document is carried
out as the device that the connection belongs to."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog
from pydantic import ValidationError

from bellwire.push.access.tokens import AccessTokens, Actor
from bellwire.push.calls.calls import Calls
from bellwire.push.calls.ice_servers import IceServers
from bellwire.push.calls.invites import invite_from_json
from bellwire.push.calls.operations import carry_out
from bellwire.push.calls.rooms import Rooms
from bellwire.push.calls.routing import Routing
from bellwire.push.devices.door_reports import DoorReports
from bellwire.push.metrics import Metrics
from bellwire.push.problems import problem_of, problem_of_defect, problem_of_validation
from bellwire.push.store.rows.calls import CallFilter
from bellwire.signaling.errors import Refusal, TooLarge
from bellwire.signaling.identifiers import CallSid, ChannelKind
from bellwire.signaling.wire.answers import CallAnswer, DeviceResponse, MessageAnswer, Problem
from bellwire.signaling.wire.operations import (
    OPERATIONS,
    DeviceDoorLockedOut,
    DeviceDoorNotVerified,
    DeviceIceServers,
    DeviceInvite,
    DeviceKeys,
    DeviceList,
    DeviceOperation,
    DeviceRoom,
    DeviceShow,
    Who,
    parse_device_operation,
)

log = structlog.get_logger(__name__)

LIMIT_BYTES = 16 * 1024
"""Of one document."""


class DeviceOperations:
    """Carries out what devices ask.

    Args:
        calls: The relay's calls.
        routing: Makes new ones.
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
        routing: Routing,
        metrics: Metrics,
        tokens: AccessTokens,
        ice_servers: IceServers,
        rooms: Rooms,
        door_reports: DoorReports,
        *,
        check_after_s: float,
    ) -> None:
        self._calls = calls
        self._routing = routing
        self._metrics = metrics
        self._tokens = tokens
        self._ice_servers = ice_servers
        self._rooms = rooms
        self._door_reports = door_reports
        self._check_after_s = check_after_s
        self._beside: Mapping[
            type[DeviceOperation], Callable[[Any, Actor], Awaitable[DeviceResponse]]
        ] = {
            DeviceInvite: self._invite,
            DeviceShow: self._show,
            DeviceList: self._list,
            DeviceRoom: self._enter_room,
            DeviceIceServers: self._tell_ice_servers,
            DeviceKeys: self._tell_keys,
            DeviceDoorLockedOut: self._note_locked_out,
            DeviceDoorNotVerified: self._note_not_verified,
        }

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
        self, asked: DeviceOperation, actor: Actor, over: ChannelKind
    ) -> DeviceResponse:
        operation = OPERATIONS[type(asked)]
        sid: str | None = getattr(asked, "call_sid", None)
        if operation.who not in (Who.ANYBODY, Who.TOKEN_OR_KEY):
            actor.may_reach(sid)
        if sid is None or type(asked) in self._beside:
            return await self._beside[type(asked)](asked, actor)
        call = await carry_out(self._calls, operation, asked, actor, CallSid(sid), over=over)
        said = call.voice_event_sid if isinstance(call, MessageAnswer) else None
        return DeviceResponse(status=200, call=call, voice_event_sid=said)

    async def _invite(self, asked: DeviceInvite, actor: Actor) -> DeviceResponse:
        created = await self._routing.create(
            invite_from_json(
                asked,
                actor,
                new_sid=self._calls.new_sid,
                at=self._calls.now(),
                check_after_s=self._check_after_s,
                idempotency_key=asked.idempotency_key,
            )
        )
        return DeviceResponse(status=201, call=CallAnswer.of(created.call))

    async def _show(self, asked: DeviceShow, actor: Actor) -> DeviceResponse:
        call = await self._calls.show(CallSid(asked.call_sid), actor)
        return DeviceResponse(status=200, call=CallAnswer.of(call))

    async def _list(self, asked: DeviceList, actor: Actor) -> DeviceResponse:
        found, following = await self._calls.list_of(
            actor.identity,
            count=asked.count,
            before=asked.next,
            only=CallFilter(asked.state, asked.since, asked.until),
        )
        return DeviceResponse(status=200, calls=tuple(map(CallAnswer.of, found)), next=following)

    async def _enter_room(self, asked: DeviceRoom, actor: Actor) -> DeviceResponse:
        identity, device = actor.acting_as(None, None)
        sid = CallSid(asked.call_sid)
        sdp = await self._rooms.enter(sid, identity, device, asked.sdp, actor.attestation)
        return DeviceResponse(status=200, sdp=sdp)

    async def _tell_ice_servers(self, _: DeviceIceServers, actor: Actor) -> DeviceResponse:
        told = self._ice_servers.of(actor)
        return DeviceResponse(status=200, ice_servers=told.ice_servers, ttl=told.ttl)

    async def _tell_keys(self, _: DeviceKeys, __: Actor) -> DeviceResponse:
        key_set = await self._tokens.key_set()
        return DeviceResponse(status=200, keys=key_set.keys)

    async def _note_locked_out(self, asked: DeviceDoorLockedOut, actor: Actor) -> DeviceResponse:
        await self._door_reports.report(asked, actor)
        return DeviceResponse(status=200)

    async def _note_not_verified(
        self, asked: DeviceDoorNotVerified, actor: Actor
    ) -> DeviceResponse:
        await self._door_reports.report_not_verified(asked, actor)
        return DeviceResponse(status=200)


def _refused(problem: Problem) -> DeviceResponse:
    return DeviceResponse(status=problem.status, problem=problem)
