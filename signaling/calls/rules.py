"""The rules of a call: who may do what in which state, what comes of it, and who wins a race.

States. A call is ringing until somebody answers, then open, and ends once. Each of its users has a
state of its own: Inviting, NotYetReceived and Received are *pending*, invited without an answer;
Accepted is in the call; Rejected, Canceled, Timeout and Quit are out of it.

What moves them. A command (`signaling.calls.commands`) says who does what, on which device, when.

    who                              may                               while
    somebody invited                 received, accept, reject, ignore  pending, and in time
    the caller                       cancel, of anybody                whoever is cancelled is pending
    who invited somebody             cancel, of whom they invited      the same
    somebody in the call             quit; message
    ... of an advanced call          invite, end
    anybody, of an advanced call     join                              it goes on
    a server, in nobody's name       cancel; end; message; invite      as above
    time                             not_received, timeout             pending

`TRANSITIONS`, below, says where each of these moves the user it is done to. What it does not hold is
refused and changes nothing. Doing again what the same device has done is no error and changes nothing.

Whose hand it is. The device that made, accepted or joined the call for a user is the user's *main device*,
and it alone says what `invite`, `quit`, `end` and `message` say while the user is in the call; another one
joins first. A server is no device and may do so in anybody's name, and where a server has acted there is
no main device, and any acts. What comes before a user is in the call, and `cancel`, any device does.

How many. An advanced call has ten users who are in it or invited (`MAX_USERS`); who has gone makes room. A
common call has as many invitees as its relay allows (`NewCall.max_invitees`). With more than ten users
a change of one is told to the caller, those in the call and the one who changed alone: told to all, a call
of a hundred would be ten thousand events.

What ends a call. After each command `_settle` looks at the whole of it. A common call has ended when
nobody is pending and fewer than two parties are left; when the last party has gone, who is pending
is cancelled first. An advanced call lives until somebody in it, or a server, ends it, and at most an
hour (`ABANDONED_AFTER`) after everybody has left. A cancel that leaves nobody invited and nobody but the
caller in the call ends either, and so does the caller's going offline while it rings: it is *cancelled*.
A call by TwiML may have a time limit, and be the first one's to answer (`dial_course`).

Who wins a race. Two devices of a user accept at once, or an accept meets a cancel or a time-out: the
first command wins. It has moved the state, from which the table holds no way for the second: that one
is refused, and its device is told `call.cancelled` (`answered_elsewhere`) or `call.timeout`. Here is
no tie to break, for `apply` sees one command at a time. Which is first, the database decides: the
relay settles a command in the transaction that holds the call's row (`push.store.engine.unit_of_work`;
`SELECT ... FOR UPDATE` in PostgreSQL, the only writer in SQLite), and those that share a transaction
in the order in which they came. A time-out need not come first: an answer after `expires_at` is too
late, whether or not the deadline has been carried out.

`apply` and `create_call` return the changed call and the notices owed for it. They know no clock, no
device but those named to them, and not on which side they run: the relay stores what they return,
the agent and the tests ask the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from bellwire.signaling.calls.calls import (
    MAX_KNOWN,
    MAX_USERS,
    Attestation,
    Call,
    CallState,
    Mode,
    NotCancelled,
    RejectStatus,
    Unreachable,
    User,
    UserState,
    replace,
)
from bellwire.signaling.calls.commands import (
    Accept,
    Cancel,
    Command,
    End,
    Expire,
    GoOffline,
    Ignore,
    Invitee,
    InviteMore,
    Join,
    NewCall,
    Quit,
    Received,
    Reject,
    Say,
)
from bellwire.signaling.calls.dial_course import DialNews, follow, takes_from_others
from bellwire.signaling.calls.endings import ending_of
from bellwire.signaling.calls.events import (
    CallCancelled,
    CallCreated,
    CallEnded,
    CallerToken,
    CallEvent,
    CallMessage,
    CallReceived,
    CallTimeout,
    CallUserStateChanged,
    CancelReason,
    ErrorInvitee,
    TriedInvitee,
)
from bellwire.signaling.errors import Forbidden, InvalidInput, OperationRefused, WhyRefused
from bellwire.signaling.identifiers import DeviceId, Identity, wire_address


class Move(StrEnum):
    """What moves a user's state, or is done to the call as a whole."""

    RECEIVED = "received"
    NOT_RECEIVED = "not_received"
    ACCEPT = "accept"
    REJECT = "reject"
    IGNORE = "ignore"
    CANCEL = "cancel"
    TIMEOUT = "timeout"
    INVITE = "invite"
    JOIN = "join"
    QUIT = "quit"
    END = "end"
    MESSAGE = "message"


_PENDING = (UserState.INVITING, UserState.NOT_YET_RECEIVED, UserState.RECEIVED)
_GONE = (UserState.REJECTED, UserState.CANCELED, UserState.TIMEOUT, UserState.QUIT)
_ANSWERED = (UserState.ACCEPTED, UserState.REJECTED, UserState.QUIT)

TRANSITIONS: dict[tuple[Move, UserState], UserState] = {
    **{(Move.RECEIVED, state): UserState.RECEIVED for state in _PENDING},
    (Move.NOT_RECEIVED, UserState.INVITING): UserState.NOT_YET_RECEIVED,
    **{(Move.ACCEPT, state): UserState.ACCEPTED for state in _PENDING},
    **{(Move.REJECT, state): UserState.REJECTED for state in _PENDING},
    **{(Move.CANCEL, state): UserState.CANCELED for state in _PENDING},
    **{(Move.TIMEOUT, state): UserState.TIMEOUT for state in _PENDING},
    **{(Move.INVITE, state): UserState.INVITING for state in _GONE},
    (Move.JOIN, UserState.QUIT): UserState.ACCEPTED,
    (Move.QUIT, UserState.ACCEPTED): UserState.QUIT,
}
"""Move and state of the user it is done to -> the user's new state. What is not here is refused."""

BACKEND = Identity("backend")
"""Whom a message names that is for the backend alone: it goes to webhooks, and to no device. Where a user of
the call has this name, it is that user who is meant."""

ABANDONED_AFTER = timedelta(hours=1)
"""How long an advanced call that everybody has left waits for somebody to join it again."""


@dataclass(slots=True, unsafe_hash=True)  # frozen, it is made eight times slower
class Recipient:
    """Devices of one identity: all of them, only one, or all but one."""

    identity: Identity
    only: DeviceId | None = None
    except_device: DeviceId | None = None

    def reaches(self, device: DeviceId) -> bool:
        """Whether this device of the identity is meant."""
        return device != self.except_device and self.only in (None, device)


@dataclass(slots=True, unsafe_hash=True)  # frozen, it is made eight times slower
class Notice:
    """An event and who is to receive it."""

    event: CallEvent
    recipients: tuple[Recipient, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A call after a command, what is to be told, and whose invitations a cancel that named them has left
    as they were. An unchanged call without notices: nothing was done. `dial_news` is for the backend that
    had the call made by TwiML."""

    call: Call
    notices: tuple[Notice, ...] = ()
    not_cancelled: tuple[tuple[Identity, NotCancelled], ...] = ()
    dial_news: tuple[DialNews, ...] = ()


def apply(call: Call, command: Command) -> Outcome:
    """The call after the command.

    Raises:
        OperationRefused: the state of the user or of the call does not allow it, or another device is the
            user's main one.
        Forbidden: the one who asks is not in the call, or has invited nobody whom it could cancel.
        InvalidInput: it asks for what no call can have, such as an eleventh user.
    """
    said = command.extended_data if isinstance(command, _SAYING) else ""
    change = _Change(call, command.at, command, said)
    _RULES[type(command)](change, command)
    _settle(change)
    return _with_dial(call, change)


def create_call(new: NewCall) -> Outcome:
    """The call that a new invitation makes, and its invites.

    Raises:
        InvalidInput: no invitee, one twice, the caller among them, more users than the mode allows, or
            a timeout outside 1 to 600 s.
    """
    _check_new(new)
    timeout = timedelta(seconds=new.timeout_s)
    change = _Change(
        Call(
            call_sid=new.call_sid,
            caller=new.caller,
            users=_caller(new),
            created_at=new.at,
            timeout_s=new.timeout_s,
            mode=new.mode,
            call_type=new.call_type,
            custom_parameters=dict(new.custom_parameters),
            extended_data=new.extended_data,
            push=new.push,
            unreachable=new.unreachable,
            check_after_s=new.check_after_s,
            dial=new.dial,
        ),
        new.at,
    )
    attestation = new.attestation
    if new.dial is not None and new.dial.caller_id not in (None, new.caller):
        attestation = Attestation.PARTIAL  # who is shown as the caller, only the backend says
    for invitee in new.invitees:
        change.invite(_invited(change.call, invitee, attestation), timeout)
    change.tell(
        [_devices_of(user) for user in change.call.accepted],
        lambda id_: CallCreated(
            id=id_,
            call_sid=new.call_sid,
            at=new.at,
            invitees=tuple(
                TriedInvitee(identity=i.identity, channels=i.channels) for i in new.invitees
            ),
            error_invitees=tuple(
                ErrorInvitee(identity=identity, reason=reason)
                for identity, reason in new.unreachable
            ),
        ),
    )
    return _with_dial(None, change)


def _with_dial(before: Call | None, change: _Change) -> Outcome:
    outcome = change.outcome()
    if outcome.call.dial is None:
        return outcome
    call, news = follow(before, outcome.call, change.at)
    return Outcome(call, outcome.notices, outcome.not_cancelled, news)


def check_inviter(call: Call, command: InviteMore) -> None:
    """Lets only who is in a call in advanced mode, or a server, invite more.

    Raises:
        Forbidden: the inviter is nobody of the call.
        OperationRefused: the call is in common mode or over, the inviter is not in it, or another device
            is the inviter's main one.
    """
    inviter = None if command.identity is None else _member(call, command.identity)
    _refuse_unless_advanced(call, Move.INVITE, inviter)
    if inviter is not None and inviter.state is not UserState.ACCEPTED:
        raise OperationRefused(Move.INVITE, inviter.state, f"{inviter.identity} is not in the call")
    if inviter is not None:
        check_main_device(inviter, Move.INVITE, command.device, by_server=command.by_server)


def check_main_device(
    user: User, operation: str, device: DeviceId | None, *, by_server: bool
) -> None:
    """Lets a user's main device, where there is one, speak for the user who is in the call, and no other.

    Raises:
        OperationRefused: it is another, or none is named; not of a server, which may.
    """
    if user.main_device in (None, device) or by_server:
        return
    asking = "no device is named" if device is None else f"{device} is not it"
    raise OperationRefused(
        operation,
        user.state,
        f"{user.identity} is in the call on {user.main_device}, and {asking}: `join` on this one first",
        WhyRefused.NOT_MAIN_DEVICE,
    )


def invite_event(call: Call, user: User) -> CallReceived:
    """The invite of one user, the same each time it is sent."""
    own = user.custom_parameters
    shown = None if call.dial is None else call.dial.caller_id
    inviter = user.invited_by or shown or call.caller
    return CallReceived(
        id=user.invite_id,
        call_sid=call.call_sid,
        at=user.invited_at or call.created_at,
        from_=None if inviter is None else wire_address(inviter),
        to=wire_address(user.identity),
        custom_parameters=call.custom_parameters if own is None else own,
        expires_at=user.expires_at,
        mode=call.mode,
        call_type=call.call_type,
        extended_data=call.extended_data,
        title=call.push.title,
        content=call.push.content,
        payload=call.push.payload,
        caller_info=(
            None
            if inviter is None or user.attestation is None
            else CallerToken(attestation=user.attestation)
        ),
    )


def _confirm(change: _Change, command: Received) -> None:
    user = _member(change.call, command.identity)
    # A device may be slow: that another has answered meanwhile is told to it by call.cancelled.
    if (
        user.state in (UserState.RECEIVED, UserState.ACCEPTED)
        and change.call.state is not CallState.ENDED
    ):
        return
    _refuse_if_late(change.call, user, Move.RECEIVED, command)
    change.move(user, Move.RECEIVED, attestation=command.attestation)


def _answer(change: _Change, command: Accept | Reject) -> None:
    """Accepts or rejects. The first device to do so wins: another finds the state moved, and is
    refused by the table. The same one again moves nothing."""
    user = _member(change.call, command.identity)
    move = Move.ACCEPT if isinstance(command, Accept) else Move.REJECT
    answered = UserState.ACCEPTED if isinstance(command, Accept) else UserState.REJECTED
    if (
        user.state is answered
        and user.main_device == command.device
        and user.invite_id
        and (change.call.state is not CallState.ENDED or answered is UserState.REJECTED)
    ):
        return
    _refuse_if_late(change.call, user, move, command)
    change.move(
        user,
        move,
        main_device=command.device,
        extended_data=command.extended_data,
        reject_status=command.status if isinstance(command, Reject) else None,
        attestation=command.attestation,
        automatic=isinstance(command, Reject) and command.automatic,
    )


def _ignore(change: _Change, command: Ignore) -> None:
    user = _member(change.call, command.identity)
    _refuse_if_late(change.call, user, Move.IGNORE, command)
    # What may be silenced is what may be refused; silencing moves nothing.
    change.next_state(user, Move.REJECT, asked=Move.IGNORE)


def _refuse_if_late(
    call: Call, user: User, move: Move, command: Received | Accept | Reject | Ignore
) -> None:
    """Lets no answer pass after its invitation's end, which may not have been carried out yet."""
    is_open = call.state is not CallState.ENDED
    if is_open and user.state.pending and user.expires_at <= command.at:
        raise OperationRefused(
            move, UserState.TIMEOUT, "the invitation has run out", WhyRefused.TIMED_OUT
        )


def _cancel(change: _Change, command: Cancel) -> None:
    """Withdraws invitations. Too late for who has answered: that answer has won."""
    call = change.call
    _refuse_who_invited_nobody(call, command.identity)
    if command.to is not None:
        change.not_cancelled = tuple(_not_cancelled(call, command.identity, command.to))
    if call.state is CallState.ENDED:
        if call.cancelled:
            return
        raise _too_late(Move.CANCEL, call)
    theirs = [user for user in call.users if _may_cancel(call, command.identity, user)]
    meant = [user for user in theirs if command.to is None or user.identity in command.to]
    pending = [user for user in meant if user.state.pending]
    for user in pending:
        change.move(user, Move.CANCEL, extended_data=command.extended_data)
    may_end = bool(pending) or (command.to is None and command.identity in (None, call.caller))
    if may_end and all(user.identity == call.caller for user in change.call.here):
        change.withdraw()
    elif not pending and command.to is None and not any(_is_cancelled(user) for user in theirs):
        raise OperationRefused(Move.CANCEL, call.state, "nobody is left who could be cancelled")


def _refuse_who_invited_nobody(call: Call, who: Identity | None) -> None:
    if who in (None, call.caller) or any(user.invited_by == who for user in call.users):
        return
    raise Forbidden("only the caller of a call, and who has invited somebody into it, may cancel")


def _may_cancel(call: Call, who: Identity | None, user: User) -> bool:
    return bool(user.invite_id) and (who in (None, call.caller) or user.invited_by == who)


def _is_cancelled(user: User) -> bool:
    return user.state is UserState.CANCELED


def _not_cancelled(
    call: Call, who: Identity | None, to: Iterable[Identity]
) -> Iterator[tuple[Identity, NotCancelled]]:
    """Whose invitations a cancel leaves as they are, and why. Who is cancelled already is none of them."""
    for identity in to:
        user = call.user(identity)
        if user is None or not user.invite_id:
            yield identity, "not_invited"
        elif not _may_cancel(call, who, user):
            yield identity, "not_yours"
        elif user.state in _ANSWERED:
            yield identity, "answered"
        elif not user.state.pending and not _is_cancelled(user):
            yield identity, "not_invited"


def _go_offline(change: _Change, command: GoOffline) -> None:
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
        for user in call.pending:
            change.move(user, Move.CANCEL)
        change.withdraw()


def _expire(change: _Change, command: Expire) -> None:
    """Time passes. Who has answered before is no longer pending, and keeps the answer."""
    call = change.call
    if call.state is CallState.ENDED:
        return
    for user in call.pending:
        if user.expires_at <= command.at:
            change.move(user, Move.TIMEOUT)
        elif user.state is UserState.INVITING and user.check_at and user.check_at <= command.at:
            change.move(user, Move.NOT_RECEIVED)
    limits = (call.abandoned_until, None if call.dial is None else call.dial.ends_at)
    if any(limit is not None and limit <= command.at for limit in limits):
        change.end()


def _invite_more(change: _Change, command: InviteMore) -> None:
    """Invites those who are neither in the call nor invited.

    Raises:
        Forbidden, OperationRefused: as `check_inviter`.
        InvalidInput: there is no room for so many.
    """
    check_inviter(change.call, command)
    call = change.call
    asked = [invitee.identity for invitee in command.invitees]
    _check_listed(asked)
    here = {user.identity for user in call.here}
    rung = [identity for identity in asked if identity not in here]
    if rung:
        _check_room(call, rung)
    _check_timeout(command.timeout_s)
    change.call = replace(call, unreachable=_unreachable(call, command))
    for invitee in command.invitees:
        user = change.call.user(invitee.identity)
        if user is None or (Move.INVITE, user.state) in TRANSITIONS:
            invited = change.invite(
                replace(_invited(call, invitee, command.attestation), invited_by=command.identity),
                timedelta(seconds=command.timeout_s),
            )
            change.tell_state_of(invited)


def _unreachable(call: Call, command: InviteMore) -> tuple[tuple[Identity, Unreachable], ...]:
    """Who could not be invited, so far: who now can be is no longer among them."""
    reached = {invitee.identity for invitee in command.invitees}
    found = {**dict(call.unreachable), **dict(command.unreachable)}
    return tuple((identity, why) for identity, why in found.items() if identity not in reached)


def _join(change: _Change, command: Join) -> None:
    call = change.call
    user = call.user(command.identity)
    if user is not None and user.state is UserState.ACCEPTED and call.state is not CallState.ENDED:
        if _takes_over(user, command):
            change.hand_over(user, command)
        return
    if user is None and call.mode is Mode.COMMON:
        raise Forbidden(f"{command.identity} is not in this call")
    _refuse_unless_advanced(call, Move.JOIN, user)
    if user is not None:
        change.next_state(user, Move.JOIN, Move.JOIN)
    _check_room(call, [command.identity])
    if user is not None:
        change.move(
            replace(user, main_device=None),  # it comes back on another, or on none that is named
            Move.JOIN,
            main_device=command.device,
            extended_data=command.extended_data,
            attestation=command.attestation,
        )
        return
    joined = User(
        command.identity,
        UserState.ACCEPTED,
        command.at,
        command.device,
        command.extended_data,
        own_attestation=command.attestation,
    )
    change.add(joined, Move.JOIN)


def _takes_over(user: User, command: Join) -> bool:
    """Whether a join moves a user who is in the call: to another device, or to itself, where a server
    had put it into the call. A server that names the device that is there already moves nothing."""
    if command.device != user.main_device:
        return command.device is not None
    itself = command.attestation is Attestation.FULL
    return itself and user.own_attestation is not Attestation.FULL


def _quit(change: _Change, command: Quit | End) -> None:
    user = _member(change.call, command.identity)
    if user.state is UserState.QUIT:
        return
    asked = Move.END if isinstance(command, End) else Move.QUIT
    change.next_state(user, Move.QUIT, asked)
    check_main_device(user, asked, command.device, by_server=command.by_server)
    change.move(
        user,
        Move.QUIT,
        asked=asked,
        # The device whose audio runs stays the main one, so that it hears of the hang-up.
        main_device=user.main_device or command.device,
        extended_data=command.extended_data,
        attestation=command.attestation,
    )


def _end(change: _Change, command: End) -> None:
    if command.identity is None:
        if change.call.state is not CallState.ENDED:
            change.end()
        return
    if change.call.mode is Mode.COMMON:
        _quit(change, command)
        return
    user = _member(change.call, command.identity)
    if user.state is not UserState.ACCEPTED:
        raise OperationRefused(
            Move.END, user.state, f"{user.identity} is {user.state}, not in the call"
        )
    if change.call.state is not CallState.ENDED:
        check_main_device(user, Move.END, command.device, by_server=command.by_server)
        change.end()


def _say(change: _Change, command: Say) -> None:
    call = change.call
    sender = None if command.identity is None else _member(change.call, command.identity)
    to_backend = BACKEND in (command.to or ()) and call.user(BACKEND) is None
    meant = (
        None
        if command.to is None
        else [_member(call, one) for one in command.to if not (to_backend and one == BACKEND)]
    )
    if call.state is CallState.ENDED:
        raise _too_late(Move.MESSAGE, call, sender)
    parties = [*call.pending, *call.accepted]
    if sender is not None and sender not in parties:
        raise OperationRefused(
            Move.MESSAGE, sender.state, f"{sender.identity} is {sender.state}, not in the call"
        )
    if sender is not None and sender.state is UserState.ACCEPTED:
        check_main_device(sender, Move.MESSAGE, command.device, by_server=command.by_server)
    listeners = [u for u in (parties if meant is None else meant) if u in parties and u != sender]
    if not listeners and not to_backend:
        raise OperationRefused(Move.MESSAGE, call.state, "nobody is there to hear it")
    change.tell_as_it_is(
        tuple(_devices_of(user) for user in listeners),
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
            to_backend=to_backend or None,
        ),
    )


_SAYING = Accept | Reject | Cancel | Join | Quit | End
"""The commands that carry something to those who hear of what comes of them."""

_RULES: dict[type[Command], Callable[[_Change, Any], None]] = {
    Expire: _expire,
    Cancel: _cancel,
    GoOffline: _go_offline,
    Received: _confirm,
    Accept: _answer,
    Reject: _answer,
    Ignore: _ignore,
    InviteMore: _invite_more,
    Join: _join,
    Quit: _quit,
    End: _end,
    Say: _say,
}


def _settle(change: _Change) -> None:
    call = change.call
    if call.state is CallState.ENDED:
        return
    for user in takes_from_others(call):
        change.move(user, Move.CANCEL)
    if call.mode is Mode.ADVANCED:
        _watch_over(change)
        return
    if call.caller is not None and not call.accepted:
        for user in call.pending:
            change.move(user, Move.CANCEL, extended_data=change.said)
    # A server that calls on nobody's behalf is a party that cannot hang up.
    parties = len(change.call.accepted) + (call.caller is None)
    if not change.call.pending and parties < 2:
        change.end()


def _watch_over(change: _Change) -> None:
    """Sees to it that an advanced call which everybody has left ends some day."""
    call = change.call
    until = None
    if not call.pending and not call.accepted:
        until = call.abandoned_until or change.at + ABANDONED_AFTER
    if until != call.abandoned_until:
        change.call = replace(call, abandoned_until=until)


def _member(call: Call, identity: Identity | None) -> User:
    """The user who asks, or is named.

    Raises:
        Forbidden: nobody in this call has the identity.
    """
    user = None if identity is None else call.user(identity)
    if user is None:
        raise Forbidden(f"{identity} is not in this call")
    return user


def _refuse_unless_advanced(call: Call, move: Move, user: User | None) -> None:
    """Lets only calls in advanced mode that go on pass.

    Raises:
        OperationRefused: it is another.
    """
    if call.state is CallState.ENDED:
        raise _too_late(move, call, user)
    if call.mode is not Mode.ADVANCED:
        state = call.state if user is None else user.state
        raise OperationRefused(move, state, f"to {move} needs a call in advanced mode")


def _too_late(move: Move, call: Call, user: User | None = None) -> OperationRefused:
    """The refusal of what comes to a call that is over."""
    if call.cancelled or (user is not None and _is_cancelled(user)):
        return OperationRefused(
            move, CallState.ENDED, "the call was cancelled", WhyRefused.CANCELLED
        )
    return OperationRefused(move, CallState.ENDED, "the call has ended", WhyRefused.ENDED)


_WHY = {UserState.CANCELED: WhyRefused.CANCELLED, UserState.TIMEOUT: WhyRefused.TIMED_OUT}


def _check_new(new: NewCall) -> None:
    identities = [invitee.identity for invitee in new.invitees]
    if new.caller in identities or any(new.caller == missed for missed, _ in new.unreachable):
        raise InvalidInput(f"{new.caller} cannot call itself")
    _check_listed(identities)
    if new.mode is Mode.ADVANCED:
        _refuse_over_ten(len(identities) + (new.caller is not None))
    elif len(identities) > new.max_invitees:
        raise InvalidInput(
            f"a call in common mode has at most {new.max_invitees} invitees, not {len(identities)}"
        )
    _check_timeout(new.timeout_s)


def _check_listed(identities: list[Identity]) -> None:
    """Refuses nobody, and one twice.

    Raises:
        InvalidInput: it is so.
    """
    if not identities:
        raise InvalidInput("a call needs at least one invitee")
    if len(set(identities)) < len(identities):
        raise InvalidInput("an identity is invited twice")


def _check_room(call: Call, coming: list[Identity]) -> None:
    """Refuses more than an advanced call has room for; who has gone takes none.

    Raises:
        InvalidInput: too many would be in it or invited, or have ever been.
    """
    _refuse_over_ten(len(call.here) + len(coming))
    known = len({*coming, *(user.identity for user in call.users)})
    if known > MAX_KNOWN:
        raise InvalidInput(
            f"a call remembers at most {MAX_KNOWN} users, those who have left it too, and here are {known}:"
            " make a new one"
        )


def _refuse_over_ten(users: int) -> None:
    if users > MAX_USERS:
        raise InvalidInput(
            f"a call in advanced mode has at most {MAX_USERS} users with the caller, not {users}"
        )


def _check_timeout(timeout_s: float) -> None:
    if not 1 <= timeout_s <= 600:
        raise InvalidInput(f"timeout must be 1 to 600 seconds, not {timeout_s:g}")


def _caller(new: NewCall) -> tuple[User, ...]:
    if new.caller is None:
        return ()
    expires_at = new.at + timedelta(seconds=new.timeout_s)
    caller = User(
        new.caller,
        UserState.ACCEPTED,
        expires_at,
        new.device,
        new.extended_data,
        own_attestation=new.attestation,
    )
    return (caller,)


def _invited(call: Call, invitee: Invitee, attestation: Attestation | None) -> User:
    own = invitee.custom_parameters
    return User(
        invitee.identity,
        UserState.INVITING,
        call.created_at,
        custom_parameters=None if own is None or own == call.custom_parameters else dict(own),
        attestation=attestation,
    )


def _devices_of(user: User) -> Recipient:
    """Who hears of the call for a user: its main device, or all while none has answered."""
    return Recipient(user.identity, only=None if user.state.pending else user.main_device)


class _Change:
    """A call on its way from one state to the next, and the notices owed for it: who hears of each
    move, on which devices, under which event id."""

    def __init__(
        self, call: Call, at: datetime, command: Command | None = None, said: str = ""
    ) -> None:
        self.call = call
        self.at = at
        self._command = command
        self.said = said
        """What whoever changes it says to it (`extended_data`)."""
        self.not_cancelled: tuple[tuple[Identity, NotCancelled], ...] = ()
        self._notices: list[Notice] = []
        self._events = call.events

    def outcome(self) -> Outcome:
        """What came of it."""
        if self._events != self.call.events:
            self.call = replace(self.call, events=self._events)
        return Outcome(self.call, tuple(self._notices), self.not_cancelled)

    def tell(self, recipients: Iterable[Recipient], event: Callable[[str], CallEvent]) -> None:
        """Owes an event to some, or to no device at all: webhooks hear of it all the same. `event`
        makes it under the call's next event id."""
        self._notices.append(Notice(event(self._next_id()), tuple(recipients)))

    def tell_as_it_is(self, recipients: tuple[Recipient, ...], event: CallEvent) -> None:
        """Owes an event that has an id of its own and moves nothing."""
        self._notices.append(Notice(event, recipients))

    def invite(self, user: User, timeout: timedelta) -> User:
        """Sends the user its invite, under an id that stays the same for every time it is sent."""
        check_s = self.call.check_after_s
        invited = replace(
            user,
            state=UserState.INVITING,
            expires_at=self.at + timeout,
            invited_at=self.at,
            check_at=None if check_s is None else self.at + timedelta(seconds=check_s),
            invite_id=self._next_id(),
            own_attestation=None,
        )
        if self.call.user(user.identity) is None:
            self.call = self.call.with_joined(invited)
        else:
            self.call = self.call.with_user(invited)
        self.tell_as_it_is((Recipient(user.identity),), invite_event(self.call, invited))
        return invited

    def move(
        self,
        user: User,
        move: Move,
        *,
        asked: Move | None = None,
        main_device: DeviceId | None = None,
        extended_data: str = "",
        reject_status: RejectStatus | None = None,
        attestation: Attestation | None = None,
        automatic: bool = False,
    ) -> None:
        """Moves one user by the table, and tells all who are to know. `asked` names what was asked for
        in a refusal, where it is not this one; `attestation` is None where it is not the user's own.

        Raises:
            OperationRefused: the table does not hold it, or the call has ended.
        """
        state = self.next_state(user, move, asked or move)
        if state is user.state:
            return
        moved = replace(
            user,
            state=state,
            main_device=main_device or user.main_device,
            extended_data=extended_data or user.extended_data,
            reject_status=reject_status,
            own_attestation=attestation,
        )
        self.call = self.call.with_user(moved)
        self._open_by(moved, move)
        self._tell_devices(moved, move, extended_data)
        self.tell_state_of(moved, extended_data, automatic=automatic)

    def next_state(self, user: User, move: Move, asked: Move) -> UserState:
        """Where a move takes a user.

        Raises:
            OperationRefused: nowhere.
        """
        if self.call.state is CallState.ENDED:
            raise _too_late(asked, self.call, user)
        state = TRANSITIONS.get((move, user.state))
        if state is None:
            raise OperationRefused(
                asked,
                user.state,
                f"{user.identity} is {user.state} and cannot {asked} now",
                _WHY.get(user.state, WhyRefused.STATE),
            )
        return state

    def add(self, user: User, move: Move) -> None:
        """Takes in a user who was not in the call, and tells all."""
        self.call = self.call.with_joined(user)
        self._open_by(user, move)
        self.tell_state_of(user, user.extended_data)

    def hand_over(self, user: User, command: Join) -> None:
        """Makes another device of a user in the call its main one, unseen by the other users, who are
        told only where the relay is now more or less sure that it is the user."""
        device, attestation = command.device, command.attestation
        taken = replace(user, main_device=device, own_attestation=attestation)
        self.call = self.call.with_user(taken)
        if device != user.main_device:
            self.tell(
                [Recipient(user.identity, only=user.main_device, except_device=device)],
                lambda id_: CallCancelled(
                    id=id_,
                    call_sid=self.call.call_sid,
                    at=self.at,
                    reason="joined_elsewhere",
                    extended_data=command.extended_data,
                ),
            )
        if attestation is not user.own_attestation:
            self.tell_state_of(taken)

    def tell_state_of(
        self, user: User, extended_data: str = "", *, automatic: bool = False
    ) -> None:
        """Tells a user's state to all who are to know it."""
        in_call = user.state is UserState.ACCEPTED
        self.tell(
            self._who_learns_of(user),
            lambda id_: CallUserStateChanged(
                id=id_,
                call_sid=self.call.call_sid,
                at=self.at,
                identity=user.identity,
                state=user.state,
                extended_data=extended_data,
                reject_status=user.reject_status,
                attestation=user.own_attestation,
                main_device=user.main_device if in_call else None,
                automatic=automatic or None,
            ),
        )

    def end(self) -> None:
        """Ends the call; the states of its users stay."""
        ending = ending_of(self.call, self._command)
        self.call = replace(
            self.call,
            state=CallState.ENDED,
            abandoned_until=None,
            ended_at=self.at,
            end_reason=ending.reason,
            ended_by=ending.by,
            ended_attestation=ending.attestation,
        )
        self.tell(
            [_devices_of(user) for user in self.call.here],
            lambda id_: CallEnded(
                id=id_,
                call_sid=self.call.call_sid,
                at=self.at,
                reason=ending.reason,
                ended_by=ending.by,
                extended_data=self.said or None,
            ),
        )

    def withdraw(self) -> None:
        """Ends the call as one that its caller has withdrawn."""
        self.call = replace(self.call, cancelled=True)
        self.end()

    def _next_id(self) -> str:
        self._events += 1
        return f"{self.call.call_sid}-{self._events}"

    def _open_by(self, user: User, move: Move) -> None:
        if move not in (Move.ACCEPT, Move.JOIN):
            return
        if self._is_first_answer(user):
            self.call = replace(
                self.call, state=CallState.OPEN, answered_at=self.at, answered_by=user.identity
            )
        else:
            self.call = replace(self.call, state=CallState.OPEN)

    def _is_first_answer(self, by: User) -> bool:
        """Whether nobody else has been in the call with its caller."""
        return by.identity != self.call.caller and not any(
            user.state in (UserState.ACCEPTED, UserState.QUIT)
            for user in self.call.users
            if user.identity not in (by.identity, self.call.caller)
        )

    def _tell_devices(self, user: User, move: Move, extended_data: str) -> None:
        """Tells a user's own devices that they need not ring any more."""
        reasons: dict[Move, CancelReason] = {
            Move.CANCEL: "cancelled",
            Move.ACCEPT: "answered_elsewhere",
            Move.REJECT: "rejected_elsewhere",
        }
        if move in reasons:
            others = user.main_device if move is not Move.CANCEL else None
            self.tell(
                [Recipient(user.identity, except_device=others)],
                lambda id_: CallCancelled(
                    id=id_,
                    call_sid=self.call.call_sid,
                    at=self.at,
                    reason=reasons[move],
                    extended_data=extended_data,
                ),
            )
        elif move is Move.TIMEOUT:
            self.tell(
                [Recipient(user.identity)],
                lambda id_: CallTimeout(id=id_, call_sid=self.call.call_sid, at=self.at),
            )

    def _who_learns_of(self, moved: User) -> Iterator[Recipient]:
        all_hear = not self.call.is_large
        for user in self.call.users:
            state, itself = user.state, user.identity == moved.identity
            if (
                state is UserState.ACCEPTED
                or user.identity == self.call.caller
                or (state.pending and (all_hear or itself))
                or (state is UserState.QUIT and itself)
            ):
                yield _devices_of(user)
