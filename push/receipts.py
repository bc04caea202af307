"""Receipts of invites: over which channel a device got one first, and how long that took."""

from dataclasses import dataclass

from sqlalchemy import Connection

from push.store.call_rows import to_ms
from push.store.result_rows import Confirmed, put_received
from signaling.calls import Call
from signaling.commands import Received
from signaling.identifiers import ChannelKind


@dataclass(frozen=True, slots=True)
class Receipt:
    """The first confirmation over a channel, and the time from the invite to it."""

    kind: ChannelKind
    latency_s: float


def keep_receipt(connection: Connection, call: Call, command: Received) -> Receipt | None:
    """Keeps that a device got its invite; None where it says not over which of its channels, and
    where it has said so before."""
    user = call.user(command.identity)
    if command.channel is None or command.device is None or user is None:
        return None
    if user.invited_at is None:
        return None
    first = put_received(
        connection,
        Confirmed(
            user.invite_id,
            command.identity,
            command.device,
            command.channel,
            command.app,
            call.call_sid,
            to_ms(command.at),
        ),
    )
    waited_s = (command.at - user.invited_at).total_seconds()
    return Receipt(command.channel, max(0.0, waited_s)) if first else None
