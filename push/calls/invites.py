"""What somebody asks for, as a call to be made: from JSON over HTTP or MQTT, and from TwiML.

What parties of a call say to each other through the relay, as a command of the rules.
"""

import hashlib
import secrets
from collections.abc import Callable
from datetime import datetime

from bellwire.push.access.tokens import Actor
from bellwire.push.calls.calls import Invite
from bellwire.signaling.calls.calls import PushText
from bellwire.signaling.calls.commands import Invitee, InviteMore, NewCall, Say
from bellwire.signaling.errors import Forbidden, InvalidInput
from bellwire.signaling.identifiers import CallSid, DeviceId, Identity
from bellwire.signaling.twiml import TwimlDial
from bellwire.signaling.wire.requests import (
    DEFAULT_TIMEOUT_S,
    GroupReference,
    InviteMoreFields,
    InviteRequest,
    MessageFields,
)


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
        Forbidden: a token calls as somebody else.
        InvalidInput: a client stands twice.
    """
    identities = tuple(client.identity for client in dial.clients)
    parameters = {client.identity: client.custom_parameters for client in dial.clients}
    if len(parameters) < len(identities):
        raise InvalidInput("an identity stands in two <Client>s")
    first = dial.clients[0].custom_parameters
    shared = {
        name: value
        for name, value in first.items()
        if all(own.get(name) == value for own in parameters.values())
    }
    return Invite(
        request=NewCall(
            call_sid=new_sid(),
            caller=_caller(actor, dial.caller),
            invitees=(),
            at=at,
            timeout_s=dial.timeout_s or DEFAULT_TIMEOUT_S,
            device=actor.device,
            custom_parameters=shared,
            attestation=actor.attestation,
        ),
        to=identities,
        parameters=parameters,
        actor=actor,
        idempotency_key=idempotency_key,
        fingerprint=_fingerprint(repr(dial).encode()),
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
    )


def _voice_event_sid(actor: Actor, idempotency_key: str | None) -> str:
    if idempotency_key is None:
        return f"KX{secrets.token_hex(16)}"
    named = f"{actor.name}\n{idempotency_key}".encode()
    return f"KX{hashlib.sha256(named).hexdigest()[:32]}"
