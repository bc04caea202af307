"""The rules of a call: who may do what in which state, what comes of it, and who wins a race.

States. A call is ringing until somebody answers, then open, and ends once. Each of its users has a
state of its own: Inviting, NotYetReceived and Received are *pending*, invited without an answer;
Accepted is in the call; Rejected, Canceled, Timeout and Quit are out of it.

What moves them. A command (`signaling.calls.commands`) says who does what, on which device, when.

    who                              may                               while
    somebody invited                 received, accept, reject, ignore  pending, and in time
    the caller, or a server for it   cancel                            the call rings
    somebody in the call             quit; message
    ... of an advanced call          invite, end
    anybody, of an advanced call     join                              it goes on
    a server, in nobody's name       cancel; end; message; invite      as above
    time                             not_received, timeout             pending

`TRANSITIONS`, below, says where each of these moves the user it is done to. What it does not hold is
refused and changes nothing. Doing again what the same device has done is no error and changes nothing.

What ends a call. After each command `_settle` looks at the whole of it. A common call has ended when
nobody is pending and fewer than two parties are left; when the last party has gone, who is pending
is cancelled first. An advanced call lives until somebody in it, or a server, ends it, and at most an
hour (`ABANDONED_AFTER`) after everybody has left. A cancel, or the caller's going offline while it
rings, ends either.

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
    MAX_USERS,
    Attestation,
    Call,
    CallState,
    Mode,
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
from bellwire.signaling.errors import Forbidden, InvalidInput, OperationRefused
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
    """A call after a command, and what is to be told. An unchanged call without notices: nothing
    was done."""

    call: Call
    notices: tuple[Notice, ...] = ()


def apply(call: Call, command: Command) -> Outcome:
    """The call after the command.

    Raises:
        OperationRefused: the state of the user or of the call does not allow it.
        Forbidden: the one who asks is not in the call, or is not its caller.
        InvalidInput: it asks for what no call can have, such as an eleventh user.
    """
    change = _Change(call, command.at, command)
    _RULES[type(command)](change, command)
    _settle(change)
    return change.outcome()


def create_call(new: NewCall) -> Outcome:
    """The call that a new invitation makes, and its invites.

    Raises:
        InvalidInput: no invitee, one twice, the caller among them, over 10 users, or a timeout
            outside 1 to 600 s.
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
        ),
        new.at,
    )
    for invitee in new.invitees:
        change.invite(_invited(change.call, invitee, new.attestation), timeout)
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
    return change.outcome()


def check_inviter(call: Call, command: InviteMore) -> None:
    """Lets only who is in a call in advanced mode, or a server, invite more.

    Raises:
        Forbidden: the inviter is nobody of the call.
        OperationRefused: the call is in common mode or over, or the inviter is not in it.
    """
    inviter = None if command.identity is None else _member(call, command.identity)
    _refuse_unless_advanced(call, Move.INVITE, inviter)
    if inviter is not None and inviter.state is not UserState.ACCEPTED:
        raise OperationRefused(Move.INVITE, inviter.state, f"{inviter.identity} is not in the call")


def invite_event(call: Call, user: User) -> CallReceived:
    """The invite of one user, the same each time it is sent."""
    own = user.custom_parameters
    inviter = user.invited_by or call.caller
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
        raise OperationRefused(move, UserState.TIMEOUT, "the invitation has run out")


def _cancel(change: _Change, command: Cancel) -> None:
    """The caller withdraws. Too late once somebody has answered: that answer has won."""
    call = change.call
    if command.identity is not None and command.identity != call.caller:
        raise Forbidden("only the caller may cancel a call")
    if call.cancelled:
        return
    if call.state is not CallState.RINGING:
        raise OperationRefused(
            Move.CANCEL, call.state, f"a call that is {call.state} cannot be cancelled"
        )
    _withdraw(change, command.extended_data)


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
        _withdraw(change, "")


def _withdraw(change: _Change, extended_data: str) -> None:
    for user in change.call.pending:
        change.move(user, Move.CANCEL, extended_data=extended_data)
    change.call = replace(change.call, cancelled=True)
    change.end()


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
    if call.abandoned_until is not None and call.abandoned_until <= command.at:
        change.end()


def _invite_more(change: _Change, command: InviteMore) -> None:
    """Invites those who are neither in the call nor invited.

    Raises:
        Forbidden, OperationRefused: as `check_inviter`.
        InvalidInput: there is no room for so many.
    """
    check_inviter(change.call, command)
    call = change.call
    known = {user.identity for user in call.users}
    new = [i.identity for i in command.invitees if i.identity not in known]
    _check_room([i.identity for i in command.invitees], others=0)
    if new:
        _check_room(new, others=len(known))
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
            change.hand_over(user, command.device, command.attestation)
        return
    if user is None and call.mode is Mode.COMMON:
        raise Forbidden(f"{command.identity} is not in this call")
    _refuse_unless_advanced(call, Move.JOIN, user)
    if user is not None:
        change.move(
            replace(user, main_device=None),  # it comes back on another, or on none that is named
            Move.JOIN,
            main_device=command.device,
            extended_data=command.extended_data,
            attestation=command.attestation,
        )
        return
    _check_room([command.identity], others=len(call.users))
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
    change.move(
        user,
        Move.QUIT,
        asked=Move.END if isinstance(command, End) else Move.QUIT,
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
        change.end()


def _say(change: _Change, command: Say) -> None:
    call = change.call
    sender = None if command.identity is None else _member(change.call, command.identity)
    meant = (
        None if command.to is None else [_member(change.call, identity) for identity in command.to]
    )
    if call.state is CallState.ENDED:
        raise OperationRefused(Move.MESSAGE, CallState.ENDED, "the call has ended")
    parties = [*call.pending, *call.accepted]
    if sender is not None and sender not in parties:
        raise OperationRefused(
            Move.MESSAGE, sender.state, f"{sender.identity} is {sender.state}, not in the call"
        )
    listeners = [u for u in (parties if meant is None else meant) if u in parties and u != sender]
    if not listeners:
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
        ),
    )


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
    if call.mode is Mode.ADVANCED:
        _watch_over(change)
        return
    if call.caller is not None and not call.accepted:
        for user in call.pending:
            change.move(user, Move.CANCEL)
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
        raise OperationRefused(move, CallState.ENDED, "the call has ended")
    if call.mode is not Mode.ADVANCED:
        state = call.state if user is None else user.state
        raise OperationRefused(move, state, f"to {move} needs a call in advanced mode")


def _check_new(new: NewCall) -> None:
    identities = [invitee.identity for invitee in new.invitees]
    if new.caller in identities or any(new.caller == missed for missed, _ in new.unreachable):
        raise InvalidInput(f"{new.caller} cannot call itself")
    _check_room(identities, others=int(new.caller is not None))
    _check_timeout(new.timeout_s)


def _check_room(identities: list[Identity], *, others: int) -> None:
    """Refuses more users than a call has room for beside `others`, nobody, and one twice.

    Raises:
        InvalidInput: it is so.
    """
    if not identities:
        raise InvalidInput("a call needs at least one invitee")
    if len(set(identities)) < len(identities):
        raise InvalidInput("an identity is invited twice")
    users = len(identities) + others
    if users > MAX_USERS:
        raise InvalidInput(f"a call has at most {MAX_USERS} users with the caller, not {users}")


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

    def __init__(self, call: Call, at: datetime, command: Command | None = None) -> None:
        self.call = call
        self.at = at
        self._command = command
        self._notices: list[Notice] = []
        self._events = call.events

    def outcome(self) -> Outcome:
        """What came of it."""
        if self._events != self.call.events:
            self.call = replace(self.call, events=self._events)
        return Outcome(self.call, tuple(self._notices))

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
            raise OperationRefused(asked, CallState.ENDED, "the call has ended")
        state = TRANSITIONS.get((move, user.state))
        if state is None:
            raise OperationRefused(
                asked, user.state, f"{user.identity} is {user.state} and cannot {asked} now"
            )
        return state

    def add(self, user: User, move: Move) -> None:
        """Takes in a user who was not in the call, and tells all."""
        self.call = self.call.with_joined(user)
        self._open_by(user, move)
        self.tell_state_of(user, user.extended_data)

    def hand_over(
        self, user: User, device: DeviceId | None, attestation: Attestation | None
    ) -> None:
        """Makes another device of a user in the call its main one, unseen by the other users, who are
        told only where the relay is now more or less sure that it is the user."""
        taken = replace(user, main_device=device, own_attestation=attestation)
        self.call = self.call.with_user(taken)
        if device != user.main_device:
            self.tell(
                [Recipient(user.identity, only=user.main_device, except_device=device)],
                lambda id_: CallCancelled(
                    id=id_, call_sid=self.call.call_sid, at=self.at, reason="joined_elsewhere"
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
            [
                _devices_of(user)
                for user in self.call.users
                if user.state.pending or user.state is UserState.ACCEPTED
            ],
            lambda id_: CallEnded(
                id=id_,
                call_sid=self.call.call_sid,
                at=self.at,
                reason=ending.reason,
                ended_by=ending.by,
            ),
        )

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
                    extended_data=extended_data if move is Move.CANCEL else "",
                ),
            )
        elif move is Move.TIMEOUT:
            self.tell(
                [Recipient(user.identity)],
                lambda id_: CallTimeout(id=id_, call_sid=self.call.call_sid, at=self.at),
            )

    def _who_learns_of(self, moved: User) -> Iterator[Recipient]:
        for user in self.call.users:
            concerned = user.identity == self.call.caller or user.state.pending
            concerned |= user.state is UserState.ACCEPTED
            concerned |= user.state is UserState.QUIT and user.identity == moved.identity
            if concerned:
                yield _devices_of(user)
