"""Receipts of invites: over which channel a device got one first, and how long that took."""

from dataclasses import dataclass

from bellwire.push.store.engine.unit_of_work import Kept, UnitOfWork
from bellwire.push.store.rows.calls import to_ms
from bellwire.push.store.rows.deliveries import Confirmed
from bellwire.signaling.calls.calls import Call
from bellwire.signaling.calls.commands import Received
from bellwire.signaling.identifiers import ChannelKind


@dataclass(frozen=True, slots=True)
class Receipt:
    """A confirmation over a channel, and the time from the invite to it. `kept` alone tells, once its
    unit is written, whether it was the first."""

    kind: ChannelKind
    latency_s: float
    kept: Kept


def keep_receipt(unit: UnitOfWork, call: Call, command: Received) -> Receipt | None:
    """Keeps that a device got its invite, where it has not said so before; None where it says not over
    which of its channels."""
    user = call.user(command.identity)
    if command.channel is None or command.device is None or user is None:
        return None
    if user.invited_at is None:
        return None
    kept = unit.confirm(
        Confirmed(
            user.invite_id,
            command.identity,
            command.device,
            command.channel,
            command.app,
            call.call_sid,
            to_ms(command.at),
        )
    )
    waited_s = (command.at - user.invited_at).total_seconds()
    return Receipt(command.channel, max(0.0, waited_s), kept)
