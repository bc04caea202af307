"""Invitations: what somebody asks for, as a call to be made (from JSON over HTTP or MQTT, and from TwiML) or
as a command of the rules, and who of those they want can be called, on which devices."""

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection

from bellwire.push.access.tokens import Actor
from bellwire.push.calls.policy import not_let_ring
from bellwire.push.store.engine.unit_of_work import UnitOfWork
from bellwire.push.store.rows.devices import DeviceRow
from bellwire.push.store.rows.groups import members_of
from bellwire.signaling.calls.calls import Call, PushText, Unreachable
from bellwire.signaling.calls.commands import Invitee, InviteMore, NewCall, Say
from bellwire.signaling.calls.dials import Dial, Leg
from bellwire.signaling.errors import Forbidden, InvalidInput, NobodyToCall, NotFound
from bellwire.signaling.identifiers import CallSid, DeviceId, Identity
from bellwire.signaling.twiml import DEFAULT_TIMEOUT_S as TWIML_TIMEOUT_S
from bellwire.signaling.twiml import TwimlDial
from bellwire.signaling.wire.operations import (
    GroupReference,
    InviteMoreFields,
    InviteRequest,
    MessageFields,
)


@dataclass(frozen=True, slots=True)
class Invite:
    """A call that somebody asks for, to identities or to a group. `parameters` are an invitee's
    own, where they are not the call's. `routed`: the backend has said whom to ring."""

    request: NewCall
    to: tuple[Identity, ...] | str
    parameters: Mapping[Identity, Mapping[str, str]]
    actor: Actor
    idempotency_key: str | None = None
    fingerprint: str = ""
    routed: bool = False


def invite_from_json(
    request: InviteRequest,
    actor: Actor,
    *,
    new_sid: Callable[[], CallSid],
    at: datetime,
    check_after_s: float,
    idempotency_key: str | None = None,
) -> Invite:
    """The invite that a JSON body asks for; `check_after_s` is when delivery is checked, if it is.

    Raises:
        Forbidden: a token or device calls as somebody else.
    """
    return Invite(
        request=NewCall(
            call_sid=new_sid(),
            caller=_caller(actor, request.from_),
            invitees=(),
            at=at,
            timeout_s=request.timeout,
            device=actor.device,
            mode=request.mode,
            call_type=request.call_type,
            custom_parameters=request.custom_parameters,
            extended_data=request.extended_data,
            push=PushText(request.push.title, request.push.content, request.push.payload),
            check_after_s=check_after_s if request.check_not_received else None,
            attestation=actor.attestation,
        ),
        to=(
            request.to.group
            if isinstance(request.to, GroupReference)
            else tuple(Identity(identity) for identity in request.to)
        ),
        parameters={},
        actor=actor,
        idempotency_key=idempotency_key,
        fingerprint=(
            "" if idempotency_key is None else _fingerprint(request.model_dump_json().encode())
        ),
    )


def invite_from_twiml(
    dial: TwimlDial,
    actor: Actor,
    *,
    new_sid: Callable[[], CallSid],
    at: datetime,
    idempotency_key: str | None = None,
) -> Invite:
    """The invite that a TwiML document asks for. What all `<Client>`s are given alike are the
    call's own parameters; where they differ, each keeps its own.

    Raises:
        Forbidden: a token calls as somebody else, or asks for what a backend alone may.
        InvalidInput: a client stands twice.
    """
    if dial.asks_backend and not actor.is_server:
        raise Forbidden(
            "`action` and `statusCallback` are a backend's to ask for: post it with an API key"
        )
    shared, parameters = _parameters_of(dial)
    asks_more = dial.asks_backend or dial.time_limit_s is not None
    return Invite(
        request=NewCall(
            call_sid=new_sid(),
            caller=_caller(actor, dial.caller),
            invitees=(),
            at=at,
            timeout_s=dial.timeout_s or TWIML_TIMEOUT_S,
            device=actor.device,
            custom_parameters=shared,
            attestation=actor.attestation,
            dial=_dial_of(dial) if asks_more else None,
        ),
        to=tuple(parameters),
        parameters=parameters,
        actor=actor,
        idempotency_key=idempotency_key,
        fingerprint=_fingerprint(repr(dial).encode()),
    )


def routed_invite(invite: Invite, dial: TwimlDial, asked_to: str, *, at: datetime) -> Invite:
    """The invite that a backend has made of another, to those whom its TwiML names: with their parameters,
    its time-out, and whom it shows as the caller. The first to answer has the call to themselves.

    Raises:
        InvalidInput: a client stands twice.
    """
    shared, parameters = _parameters_of(dial)
    asked = invite.request
    caller_id = None if dial.caller == asked.caller else dial.caller
    return replace(
        invite,
        request=replace(
            asked,
            at=at,
            timeout_s=dial.timeout_s or TWIML_TIMEOUT_S,
            custom_parameters=shared,
            dial=replace(
                _dial_of(dial), first_takes_it=True, caller_id=caller_id, asked_to=asked_to
            ),
        ),
        to=tuple(parameters),
        parameters=parameters,
        routed=True,
    )


def _parameters_of(
    dial: TwimlDial,
) -> tuple[dict[str, str], dict[Identity, Mapping[str, str]]]:
    """The parameters that all `<Client>`s are given alike, and those of each."""
    parameters: dict[Identity, Mapping[str, str]] = {
        client.identity: client.custom_parameters for client in dial.clients
    }
    if len(parameters) < len(dial.clients):
        raise InvalidInput("an identity stands in two <Client>s")
    shared = {
        name: value
        for name, value in dial.clients[0].custom_parameters.items()
        if all(own.get(name) == value for own in parameters.values())
    }
    return shared, parameters


def _dial_of(dial: TwimlDial) -> Dial:
    return Dial(
        legs=tuple(
            Leg(client.identity, client.status_callback, client.events) for client in dial.clients
        ),
        action=dial.action,
        time_limit_s=dial.time_limit_s,
    )


def _caller(actor: Actor, asked: str | None) -> Identity | None:
    if actor.identity is None:
        return None if asked is None else Identity(asked)
    if asked not in (None, actor.identity):
        raise Forbidden(f"{actor.identity} cannot call as {asked}")
    return actor.identity


def invite_more_command(
    fields: InviteMoreFields,
    actor: Actor,
    identity: Identity | None,
    device: DeviceId | None,
    *,
    at: datetime,
) -> InviteMore:
    """The command that invites more into a call; who of them can be called is looked up with it."""
    return InviteMore(
        identity,
        device,
        tuple(Invitee(Identity(invitee)) for invitee in fields.to),
        at,
        fields.timeout,
        attestation=actor.attestation,
        by_server=actor.is_server,
    )


def _fingerprint(request: bytes) -> str:
    return hashlib.sha256(request).hexdigest()


def message_command(
    fields: MessageFields,
    actor: Actor,
    identity: Identity | None,
    device: DeviceId | None,
    *,
    at: datetime,
    idempotency_key: str | None = None,
) -> Say:
    """The command that says it. A message repeated under one `voice_event_sid`, or under one
    Idempotency-Key of the same actor, carries the same event id and so is heard once."""
    return Say(
        identity,
        device,
        at,
        fields.voice_event_sid or _voice_event_sid(actor, idempotency_key),
        fields.content,
        fields.message_type,
        fields.content_type,
        None if fields.to is None else tuple(Identity(identity) for identity in fields.to),
        actor.attestation,
        actor.is_server,
    )


def _voice_event_sid(actor: Actor, idempotency_key: str | None) -> str:
    if idempotency_key is None:
        return f"KX{secrets.token_hex(16)}"
    named = f"{actor.name}\n{idempotency_key}".encode()
    return f"KX{hashlib.sha256(named).hexdigest()[:32]}"


Denied = Callable[[Sequence[Identity]], frozenset[Identity]]
"""Which of some identities whoever calls may not ring."""


def nobody(_: Sequence[Identity]) -> frozenset[Identity]:
    """Denies nobody."""
    return frozenset()


@dataclass(frozen=True, slots=True)
class Reachable:
    """Who can be called, who cannot and why, and the devices of all concerned."""

    invitees: tuple[Invitee, ...]
    unreachable: tuple[tuple[Identity, Unreachable], ...]
    devices: tuple[DeviceRow, ...]

    def must_reach_somebody(self, caller: Identity | None) -> None:
        """Refuses to go on where nobody can be called by whoever asks.

        Raises:
            Forbidden: none of them may be.
            NobodyToCall: nobody can.
        """
        denied = [identity for identity, reason in self.unreachable if reason == "forbidden"]
        if not self.invitees and denied and len(denied) == len(self.unreachable):
            raise not_let_ring(caller, denied)
        if not self.invitees:
            raise NobodyToCall(
                "none of the invitees has a device: register one with `PUT /v1/devices/{id}`",
                error_invitees=[
                    {"identity": i, "reason": reason} for i, reason in self.unreachable
                ],
            )


def find_reach(
    unit: UnitOfWork,
    to: tuple[Identity, ...] | str,
    caller: Identity | None,
    parameters: Mapping[Identity, Mapping[str, str]],
    denied: Denied = nobody,
) -> Reachable:
    """Looks up identities, or the members of a group but the caller. Of those who are denied nothing
    else is said, such as whether there is anybody of that name.

    Raises:
        NotFound: there is no such group.
    """
    identities = _members(unit.connection, to, caller) if isinstance(to, str) else to
    forbidden = denied(identities)
    wanted = [identity for identity in identities if identity not in forbidden]
    devices = unit.devices_of([*wanted, *([caller] if caller is not None else [])])
    channels: dict[Identity, set[str]] = {}
    for device in devices:
        kinds = channels.setdefault(device.identity, set())
        kinds.update(channel.kind for channel in device.channels)
    return Reachable(
        invitees=tuple(
            Invitee(identity, tuple(sorted(channels[identity])), parameters.get(identity))
            for identity in wanted
            if channels.get(identity)
        ),
        unreachable=tuple(
            (identity, _why_not(identity, forbidden, channels))
            for identity in identities
            if identity in forbidden or not channels.get(identity)
        ),
        devices=tuple(devices),
    )


def _why_not(
    identity: Identity, forbidden: frozenset[Identity], channels: Mapping[Identity, set[str]]
) -> Unreachable:
    if identity in forbidden:
        return "forbidden"
    return "no_device" if identity in channels else "unknown"


def _members(connection: Connection, name: str, caller: Identity | None) -> tuple[Identity, ...]:
    members = members_of(connection, name)
    if members is None:
        raise NotFound(f"there is no group {name}: make it with `PUT /v1/groups/{name}`")
    return tuple(member for member in members if member != caller)


def with_reach(
    unit: UnitOfWork, call: Call, command: InviteMore, denied: Denied
) -> tuple[InviteMore, list[DeviceRow]]:
    """The command with who of the invited can be called, and the devices that are to ring. Who is in
    the call, or invited, already needs no device, and is not rung."""
    wanted = tuple(invitee.identity for invitee in command.invitees)
    here = {user.identity for user in (*call.pending, *call.accepted)}
    reach = find_reach(
        unit, wanted, None, {}, lambda all_: denied([i for i in all_ if i not in here])
    )
    unreachable = tuple(pair for pair in reach.unreachable if pair[0] not in here)
    known = {identity for identity, _ in reach.unreachable} - {pair[0] for pair in unreachable}
    if not known:
        reach.must_reach_somebody(command.identity)
    invitees = (*reach.invitees, *(i for i in command.invitees if i.identity in known))
    return (
        replace(command, invitees=invitees, unreachable=unreachable),
        [device for device in reach.devices if device.identity not in here],
    )
