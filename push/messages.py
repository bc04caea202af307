"""What parties of a call say to each other through the relay, as a command of the rules."""

import hashlib
import secrets
from datetime import datetime

from push.auth import Actor
from signaling.commands import Say
from signaling.identifiers import DeviceId, Identity
from signaling.requests import MessageFields


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
