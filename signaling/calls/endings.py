"""What a call's end is called: why it ended, and by whom. `rules` alone ends calls."""

from dataclasses import dataclass

from bellwire.signaling.calls.calls import (
    Attestation,
    Call,
    CallState,
    EndReason,
    Mode,
    RejectStatus,
)
from bellwire.signaling.calls.commands import Cancel, Command, End, Expire, GoOffline, Quit, Reject
from bellwire.signaling.identifiers import Identity


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a call ended; by whom, and how sure it is of that: None where time did, or a server."""

    reason: EndReason
    by: Identity | None = None
    attestation: Attestation | None = None


def ending_of(call: Call, command: Command | None) -> Ending:
    """What the end is called that a command makes of a call which goes on until then."""
    match command:
        case Cancel():
            return Ending(EndReason.CANCELLED, command.identity, command.attestation)
        case GoOffline():
            return Ending(EndReason.CALLER_OFFLINE, command.identity)
        case Expire():
            return Ending(_of_time(call, command))
        case Reject():
            return Ending(_of_rejection(call, command), command.identity, command.attestation)
        case Quit() | End():
            itself = None if command.identity is None else command.attestation
            return Ending(_of_leaving(call, command), command.identity, itself)
        case _:
            return Ending(EndReason.ENDED)


def _of_time(call: Call, command: Expire) -> EndReason:
    if call.abandoned_until is not None and call.abandoned_until <= command.at:
        return EndReason.ABANDONED
    limit = None if call.dial is None else call.dial.ends_at
    return EndReason.TIMEOUT if limit is None or limit > command.at else EndReason.TIME_LIMIT


def _of_rejection(call: Call, command: Reject) -> EndReason:
    if command.identity == call.caller:
        return EndReason.CANCELLED
    return EndReason.BUSY if command.status is RejectStatus.BUSY else EndReason.REJECTED


def _of_leaving(call: Call, command: Quit | End) -> EndReason:
    is_for_all = command.identity is None or call.mode is Mode.ADVANCED
    if isinstance(command, End) and is_for_all:
        return EndReason.ENDED
    if call.state is CallState.RINGING and command.identity == call.caller:
        return EndReason.CANCELLED
    return EndReason.HUNG_UP
