"""The rules of a call: whatever moves a user's or a call's state lives here.

`apply` takes a call and a command and returns the changed call and the notices owed for it. It
knows no clock, no device but those named to it, and not on which side it runs: the relay stores
what it returns, the agent and the tests ask it the same questions.

A user's state moves by `TRANSITIONS` alone. Then `_settle` looks at the whole call: in common mode
a call whose invitations are over, with fewer than two parties left, has ended; and who is still
invited when the last party has gone is cancelled. An advanced call lives until somebody in it ends
it. Repeating an operation from the same device changes nothing and is no error; everything else
that the table does not hold is refused.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from signaling.calls import Attestation, Call, CallState, Mode, User, UserState, replace
from signaling.change import (
    TRANSITIONS,
    Change,
    Notice,
    Operation,
    Outcome,
    Recipient,
    devices_of,
    invite_event,
)
from signaling.commands import (
    Accept,
    Cancel,
    Command,
    End,
    Expire,
    GoOffline,
    Ignore,
    InviteMore,
    Join,
    Quit,
    Received,
    Reject,
    Say,
)
from signaling.errors import Forbidden, OperationRefused
from signaling.events import CallMessage
from signaling.identifiers import wire_address
from signaling.invite import check_room, create_call, invite_more

__all__ = [
    "ABANDONED_AFTER",
    "TRANSITIONS",
    "Notice",
    "Operation",
    "Outcome",
    "Recipient",
    "apply",
    "create_call",
    "invite_event",
]

ABANDONED_AFTER = timedelta(hours=1)
"""How long an advanced call that everybody has left waits for somebody to join it again."""


def apply(call: Call, command: Command) -> Outcome:
    """The call after the command.

    Raises:
        OperationRefused: the state of the user or of the call does not allow it.
        Forbidden: the one who asks is not in the call, or is not its caller.
        InvalidInput: it asks for what no call can have, such as an eleventh user.
    """
    change = Change(call, command.at)
    _RULES[type(command)](change, command)
    _settle(change)
    return change.outcome()


def _expire(change: Change, command: Expire) -> None:
    call = change.call
    if call.state is CallState.ENDED:
        return
    for user in call.pending:
        if user.expires_at <= command.at:
            change.move(user, Operation.TIMEOUT)
        elif user.state is UserState.INVITING and user.check_at and user.check_at <= command.at:
            change.move(user, Operation.NOT_RECEIVED)
    if call.abandoned_until is not None and call.abandoned_until <= command.at:
        change.end()


def _cancel(change: Change, command: Cancel) -> None:
    call = change.call
    if command.identity is not None and command.identity != call.caller:
        raise Forbidden("only the caller may cancel a call")
    if call.cancelled:
        return
    if call.state is not CallState.RINGING:
        raise OperationRefused(
            Operation.CANCEL, call.state, f"a call that is {call.state} cannot be cancelled"
        )
    _withdraw(change, command.extended_data)


def _go_offline(change: Change, command: GoOffline) -> None:
    call = change.call
    caller = None if call.caller is None else call.user(call.caller)
    if (
        call.state is not CallState.RINGING
        or caller is None
        or caller.identity != command.identity
        or caller.state is not UserState.ACCEPTED
    ):
        return
    if caller.main_device == command.device or (caller.main_device is None and command.last):
        _withdraw(change, "")


def _withdraw(change: Change, extended_data: str) -> None:
    for user in change.call.pending:
        change.move(user, Operation.CANCEL, extended_data=extended_data)
    change.call = replace(change.call, cancelled=True)
    change.end()


def _confirm(change: Change, command: Received) -> None:
    user = change.member(command.identity)
    # A device may be slow: that another has answered meanwhile is told to it by call.cancelled.
    if (
        user.state in (UserState.RECEIVED, UserState.ACCEPTED)
        and change.call.state is not CallState.ENDED
    ):
        return
    _refuse_if_late(change.call, user, Operation.RECEIVED, command)
    change.move(user, Operation.RECEIVED, attestation=command.attestation)


def _answer(change: Change, command: Accept | Reject) -> None:
    user = change.member(command.identity)
    operation = Operation.ACCEPT if isinstance(command, Accept) else Operation.REJECT
    answered = UserState.ACCEPTED if isinstance(command, Accept) else UserState.REJECTED
    if (
        user.state is answered
        and user.main_device == command.device
        and user.invite_id
        and (change.call.state is not CallState.ENDED or answered is UserState.REJECTED)
    ):
        return
    _refuse_if_late(change.call, user, operation, command)
    change.move(
        user,
        operation,
        main_device=command.device,
        extended_data=command.extended_data,
        reject_status=command.status if isinstance(command, Reject) else None,
        attestation=command.attestation,
        automatic=isinstance(command, Reject) and command.automatic,
    )


def _ignore(change: Change, command: Ignore) -> None:
    user = change.member(command.identity)
    _refuse_if_late(change.call, user, Operation.IGNORE, command)
    # What may be silenced is what may be refused; silencing moves nothing.
    change.next_state(user, Operation.REJECT, asked=Operation.IGNORE)


def _refuse_if_late(
    call: Call, user: User, operation: Operation, command: Received | Accept | Reject | Ignore
) -> None:
    is_open = call.state is not CallState.ENDED
    if is_open and user.state.pending and user.expires_at <= command.at:
        raise OperationRefused(operation, UserState.TIMEOUT, "the invitation has run out")


def _join(change: Change, command: Join) -> None:
    call = change.call
    user = call.user(command.identity)
    if user is not None and user.state is UserState.ACCEPTED and call.state is not CallState.ENDED:
        if _takes_over(user, command):
            change.hand_over(user, command.device, command.attestation)
        return
    if user is None and call.mode is Mode.COMMON:
        raise Forbidden(f"{command.identity} is not in this call")
    change.refuse_unless_advanced(Operation.JOIN, user)
    if user is not None:
        change.move(
            replace(user, main_device=None),  # it comes back on another, or on none that is named
            Operation.JOIN,
            main_device=command.device,
            extended_data=command.extended_data,
            attestation=command.attestation,
        )
        return
    check_room([command.identity], others=len(call.users))
    joined = User(
        command.identity,
        UserState.ACCEPTED,
        command.at,
        command.device,
        command.extended_data,
        own_attestation=command.attestation,
    )
    change.add(joined, Operation.JOIN)


def _takes_over(user: User, command: Join) -> bool:
    """Whether a join moves a user who is in the call: to another device, or to itself, where a server
    had put it into the call. A server that names the device that is there already moves nothing."""
    if command.device != user.main_device:
        return command.device is not None
    itself = command.attestation is Attestation.FULL
    return itself and user.own_attestation is not Attestation.FULL


def _quit(change: Change, command: Quit | End) -> None:
    user = change.member(command.identity)
    if user.state is UserState.QUIT:
        return
    change.move(
        user,
        Operation.QUIT,
        asked=Operation.END if isinstance(command, End) else Operation.QUIT,
        # The device whose audio runs stays the main one, so that it hears of the hang-up.
        main_device=user.main_device or command.device,
        extended_data=command.extended_data,
        attestation=command.attestation,
    )


def _end(change: Change, command: End) -> None:
    if command.identity is None:
        if change.call.state is not CallState.ENDED:
            change.end()
        return
    if change.call.mode is Mode.COMMON:
        _quit(change, command)
        return
    user = change.member(command.identity)
    if user.state is not UserState.ACCEPTED:
        raise OperationRefused(
            Operation.END, user.state, f"{user.identity} is {user.state}, not in the call"
        )
    if change.call.state is not CallState.ENDED:
        change.end()


def _say(change: Change, command: Say) -> None:
    call = change.call
    sender = None if command.identity is None else change.member(command.identity)
    meant = None if command.to is None else [change.member(identity) for identity in command.to]
    if call.state is CallState.ENDED:
        raise OperationRefused(Operation.MESSAGE, CallState.ENDED, "the call has ended")
    parties = [*call.pending, *call.accepted]
    if sender is not None and sender not in parties:
        raise OperationRefused(
            Operation.MESSAGE, sender.state, f"{sender.identity} is {sender.state}, not in the call"
        )
    listeners = [u for u in (parties if meant is None else meant) if u in parties and u != sender]
    if not listeners:
        raise OperationRefused(Operation.MESSAGE, call.state, "nobody is there to hear it")
    change.tell_as_it_is(
        tuple(devices_of(user) for user in listeners),
        CallMessage(
            id=f"{call.call_sid}-{command.voice_event_sid}",
            call_sid=call.call_sid,
            at=command.at,
            from_=None if sender is None else wire_address(sender.identity),
            message_type=command.message_type,
            content_type=command.content_type,
            content=command.content,
            voice_event_sid=command.voice_event_sid,
            attestation=None if sender is None else command.attestation,
        ),
    )


_RULES: dict[type[Command], Callable[[Change, Any], None]] = {
    Expire: _expire,
    Cancel: _cancel,
    GoOffline: _go_offline,
    Received: _confirm,
    Accept: _answer,
    Reject: _answer,
    Ignore: _ignore,
    InviteMore: invite_more,
    Join: _join,
    Quit: _quit,
    End: _end,
    Say: _say,
}


def _settle(change: Change) -> None:
    call = change.call
    if call.state is CallState.ENDED:
        return
    if call.mode is Mode.ADVANCED:
        _watch_over(change)
        return
    if call.caller is not None and not call.accepted:
        for user in call.pending:
            change.move(user, Operation.CANCEL)
    # A server that calls on nobody's behalf is a party that cannot hang up.
    parties = len(change.call.accepted) + (call.caller is None)
    if not change.call.pending and parties < 2:
        change.end()


def _watch_over(change: Change) -> None:
    """Sees to it that an advanced call which everybody has left ends some day."""
    call = change.call
    until = None
    if not call.pending and not call.accepted:
        until = call.abandoned_until or change.at + ABANDONED_AFTER
    if until != call.abandoned_until:
        change.call = replace(call, abandoned_until=until)
