"""The rules of a call: whatever moves a user's or a call's state lives here.

`apply` takes a call and a command and returns the changed call and the notices owed for it. It
knows no clock, no device but those named to it, and not on which side it runs: the relay stores
what it returns, the agent and the tests ask it the same questions.

A user's state moves by `TRANSITIONS` alone. Then `_settle` looks at the whole call: in common mode
a call whose invitations are over, with fewer than two parties left, has ended; and who is still
invited when the last party has gone is cancelled. Repeating an operation from the same device
changes nothing and is no error; everything else that the table does not hold is refused.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from signaling.calls import (
    MAX_USERS,
    Call,
    CallState,
    CallType,
    Mode,
    PushText,
    RejectStatus,
    Unreachable,
    User,
    UserState,
)
from signaling.errors import Forbidden, InvalidInput, OperationRefused
from signaling.events import (
    CallCancelled,
    CallCreated,
    CallEnded,
    CallEvent,
    CallReceived,
    CallTimeout,
    CallUserStateChanged,
    CancelReason,
    ErrorInvitee,
    TriedInvitee,
)
from signaling.identifiers import CallSid, DeviceId, Identity, wire_address


class Operation(StrEnum):
    """What can be done to a user's state in a call."""

    RECEIVED = "received"
    ACCEPT = "accept"
    REJECT = "reject"
    CANCEL = "cancel"
    TIMEOUT = "timeout"
    QUIT = "quit"
    END = "end"


_PENDING = (UserState.INVITING, UserState.NOT_YET_RECEIVED, UserState.RECEIVED)

TRANSITIONS: dict[tuple[Operation, UserState], UserState] = {
    **{(Operation.RECEIVED, state): UserState.RECEIVED for state in _PENDING},
    **{(Operation.ACCEPT, state): UserState.ACCEPTED for state in _PENDING},
    **{(Operation.REJECT, state): UserState.REJECTED for state in _PENDING},
    **{(Operation.CANCEL, state): UserState.CANCELED for state in _PENDING},
    **{(Operation.TIMEOUT, state): UserState.TIMEOUT for state in _PENDING},
    (Operation.QUIT, UserState.ACCEPTED): UserState.QUIT,
}
"""Operation and state of the user it is done to -> the user's new state. What is not here is refused."""


@dataclass(frozen=True, slots=True)
class Invitee:
    """Who is invited: the kinds of channels tried, and the parameters where they are its own."""

    identity: Identity
    channels: tuple[str, ...] = ()
    custom_parameters: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class NewCall:
    """A call to be made."""

    call_sid: CallSid
    caller: Identity | None
    invitees: tuple[Invitee, ...]
    at: datetime
    timeout_s: float
    device: DeviceId | None = None
    mode: Mode = Mode.COMMON
    call_type: CallType = CallType.AUDIO
    custom_parameters: Mapping[str, str] = field(default_factory=dict)
    extended_data: str = ""
    push: PushText = field(default_factory=PushText)
    unreachable: tuple[tuple[Identity, Unreachable], ...] = ()


@dataclass(frozen=True, slots=True)
class Received:
    """A device confirms that the invite arrived."""

    identity: Identity
    device: DeviceId | None
    at: datetime


@dataclass(frozen=True, slots=True)
class Accept:
    """A device accepts for its identity and becomes the main device."""

    identity: Identity
    device: DeviceId | None
    at: datetime
    extended_data: str = ""


@dataclass(frozen=True, slots=True)
class Reject:
    """A device rejects for its identity."""

    identity: Identity
    device: DeviceId | None
    at: datetime
    status: RejectStatus = RejectStatus.REJECTED
    extended_data: str = ""


@dataclass(frozen=True, slots=True)
class Cancel:
    """The caller withdraws the invitations; `identity` None where a server does."""

    identity: Identity | None
    at: datetime
    extended_data: str = ""


@dataclass(frozen=True, slots=True)
class Expire:
    """Time has passed: invitations that ran out until `at` time out."""

    at: datetime


@dataclass(frozen=True, slots=True)
class Quit:
    """A user hangs up: leaves the call, which goes on while others are in it."""

    identity: Identity
    device: DeviceId | None
    at: datetime
    extended_data: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """A user ends the call for all. A common call is not one user's to end: there it is a hang-up."""

    identity: Identity
    device: DeviceId | None
    at: datetime
    extended_data: str = ""


Command = Received | Accept | Reject | Cancel | Expire | Quit | End


@dataclass(frozen=True, slots=True)
class Recipient:
    """Devices of one identity: all of them, only one, or all but one."""

    identity: Identity
    only: DeviceId | None = None
    except_device: DeviceId | None = None

    def reaches(self, device: DeviceId) -> bool:
        """Whether this device of the identity is meant."""
        return device != self.except_device and self.only in (None, device)


@dataclass(frozen=True, slots=True)
class Notice:
    """An event and who is to receive it."""

    event: CallEvent
    recipients: tuple[Recipient, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A call after a command, and what is to be told. No notices: nothing has changed."""

    call: Call
    notices: tuple[Notice, ...] = ()


def create_call(new: NewCall) -> Outcome:
    """The call that a new invitation makes, and its invites.

    Raises:
        InvalidInput: no invitee, one twice, the caller among them, over 10 users, or a timeout
            outside 1 to 600 s.
    """
    _check(new)
    expires_at = new.at + timedelta(seconds=new.timeout_s)
    users = tuple(_invited(new, invitee, expires_at) for invitee in new.invitees)
    if new.caller is not None:
        users = (
            User(new.caller, UserState.ACCEPTED, expires_at, new.device, new.extended_data),
            *users,
        )
    change = _Change(
        Call(
            call_sid=new.call_sid,
            caller=new.caller,
            users=users,
            created_at=new.at,
            timeout_s=new.timeout_s,
            mode=new.mode,
            call_type=new.call_type,
            custom_parameters=dict(new.custom_parameters),
            extended_data=new.extended_data,
            push=new.push,
            unreachable=new.unreachable,
        ),
        new.at,
    )
    for user in change.call.pending:
        change.invite(user)
    change.tell(
        [_of(user) for user in change.call.accepted],
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


def invite_event(call: Call, user: User) -> CallReceived:
    """The invite of one user, the same each time it is sent."""
    own = user.custom_parameters
    return CallReceived(
        id=user.invite_id,
        call_sid=call.call_sid,
        at=call.created_at,
        from_=wire_address(call.caller) if call.caller is not None else None,
        to=wire_address(user.identity),
        custom_parameters=call.custom_parameters if own is None else own,
        expires_at=user.expires_at,
        mode=call.mode,
        call_type=call.call_type,
        extended_data=call.extended_data,
        title=call.push.title,
        content=call.push.content,
        payload=call.push.payload,
    )


def _check(new: NewCall) -> None:
    identities = [invitee.identity for invitee in new.invitees]
    users = len(identities) + (new.caller is not None)
    if not identities:
        raise InvalidInput("a call needs at least one invitee")
    if len(set(identities)) < len(identities):
        raise InvalidInput("an identity is invited twice")
    if new.caller in identities:
        raise InvalidInput(f"{new.caller} cannot call itself")
    if users > MAX_USERS:
        raise InvalidInput(f"a call has at most {MAX_USERS} users with the caller, not {users}")
    if not 1 <= new.timeout_s <= 600:
        raise InvalidInput(f"timeout must be 1 to 600 seconds, not {new.timeout_s:g}")


def _invited(new: NewCall, invitee: Invitee, expires_at: datetime) -> User:
    own = invitee.custom_parameters
    return User(
        invitee.identity,
        UserState.INVITING,
        expires_at,
        custom_parameters=None if own is None or own == new.custom_parameters else dict(own),
    )


def apply(call: Call, command: Command) -> Outcome:
    """The call after the command.

    Raises:
        OperationRefused: the state of the user or of the call does not allow it.
        Forbidden: the one who asks is not in the call, or is not its caller.
    """
    change = _Change(call, command.at)
    match command:
        case Expire(at=at):
            for user in [u for u in call.pending if u.expires_at <= at]:
                change.move(user, Operation.TIMEOUT)
        case Cancel():
            _cancel(change, command)
        case Received():
            _confirm(change, command)
        case Accept() | Reject():
            _answer(change, command)
        case Quit():
            _quit(change, command)
        case End():
            _end(change, command)
    _settle(change)
    return change.outcome()


def _cancel(change: "_Change", command: Cancel) -> None:
    call = change.call
    if command.identity is not None and command.identity != call.caller:
        raise Forbidden("only the caller may cancel a call")
    invitees = [user for user in call.users if user.identity != call.caller]
    if call.state is CallState.ENDED and any(u.state is UserState.CANCELED for u in invitees):
        return
    if call.state is not CallState.RINGING:
        raise OperationRefused(
            Operation.CANCEL, call.state, f"a call that is {call.state} cannot be cancelled"
        )
    for user in call.pending:
        change.move(user, Operation.CANCEL, extended_data=command.extended_data)


def _confirm(change: "_Change", command: Received) -> None:
    user = _member(change.call, command.identity)
    # A device may be slow: that another has answered meanwhile is told to it by call.cancelled.
    if (
        user.state in (UserState.RECEIVED, UserState.ACCEPTED)
        and change.call.state is not CallState.ENDED
    ):
        return
    _refuse_if_late(user, Operation.RECEIVED, command.at)
    change.move(user, Operation.RECEIVED)


def _answer(change: "_Change", command: Accept | Reject) -> None:
    user = _member(change.call, command.identity)
    operation = Operation.ACCEPT if isinstance(command, Accept) else Operation.REJECT
    answered = UserState.ACCEPTED if isinstance(command, Accept) else UserState.REJECTED
    if (
        user.state is answered
        and user.main_device == command.device
        and user.identity != change.call.caller
        and (change.call.state is not CallState.ENDED or answered is UserState.REJECTED)
    ):
        return
    _refuse_if_late(user, operation, command.at)
    change.move(
        user,
        operation,
        main_device=command.device,
        extended_data=command.extended_data,
        reject_status=command.status if isinstance(command, Reject) else None,
    )


def _refuse_if_late(user: User, operation: Operation, at: datetime) -> None:
    if user.state.pending and user.expires_at <= at:
        raise OperationRefused(operation, UserState.TIMEOUT, "the invitation has run out")


def _quit(change: "_Change", command: Quit | End) -> None:
    user = _member(change.call, command.identity)
    if user.state is UserState.QUIT and command.device in (None, user.main_device):
        return
    change.move(
        user,
        Operation.QUIT,
        asked=Operation.END if isinstance(command, End) else Operation.QUIT,
        # The device whose audio runs stays the main one, so that it hears of the hang-up.
        main_device=user.main_device or command.device,
        extended_data=command.extended_data,
    )


def _end(change: "_Change", command: End) -> None:
    if change.call.mode is Mode.COMMON:
        _quit(change, command)
        return
    user = _member(change.call, command.identity)
    if change.call.state is CallState.ENDED:
        return
    if user.state is not UserState.ACCEPTED:
        raise OperationRefused(
            Operation.END, user.state, f"{user.identity} is {user.state}, not in the call"
        )
    change.end()


def _settle(change: "_Change") -> None:
    call = change.call
    if call.state is CallState.ENDED or call.mode is not Mode.COMMON:
        return
    if call.caller is not None and not call.accepted:
        for user in call.pending:
            change.move(user, Operation.CANCEL)
    # A server that calls on nobody's behalf is a party that cannot hang up.
    parties = len(change.call.accepted) + (call.caller is None)
    if not change.call.pending and parties < 2:
        change.end()


def _member(call: Call, identity: Identity) -> User:
    user = call.user(identity)
    if user is None:
        raise Forbidden(f"{identity} is not in this call")
    return user


def _of(user: User) -> Recipient:
    """Who hears of the call for a user: its main device, or all while none has answered."""
    return Recipient(user.identity, only=None if user.state.pending else user.main_device)


class _Change:
    """A call on its way from one state to the next, collecting the notices owed."""

    def __init__(self, call: Call, at: datetime) -> None:
        self.call = call
        self._at = at
        self._notices: list[Notice] = []

    def outcome(self) -> Outcome:
        return Outcome(self.call, tuple(self._notices))

    def tell(self, recipients: Iterable[Recipient], event: Callable[[str], CallEvent]) -> None:
        recipients = tuple(recipients)
        if recipients:
            self._notices.append(Notice(event(self._next_id()), recipients))

    def _next_id(self) -> str:
        number = self.call.events + 1
        self.call = replace(self.call, events=number)
        return f"{self.call.call_sid}-{number}"

    def invite(self, user: User) -> None:
        """Sends the user its invite, under an id that stays the same for every time it is sent."""
        invited = replace(user, invite_id=self._next_id())
        self.call = self.call.with_user(invited)
        event = invite_event(self.call, invited)
        self._notices.append(Notice(event, (Recipient(user.identity),)))

    def move(
        self,
        user: User,
        operation: Operation,
        *,
        asked: Operation | None = None,
        main_device: DeviceId | None = None,
        extended_data: str = "",
        reject_status: RejectStatus | None = None,
    ) -> None:
        """Moves one user by the table, and tells all who are to know. `asked` names the operation
        in a refusal, where it is not this one."""
        state = TRANSITIONS.get((operation, user.state))
        if self.call.state is CallState.ENDED:
            raise OperationRefused(asked or operation, CallState.ENDED, "the call has ended")
        if state is None:
            operation = asked or operation
            raise OperationRefused(
                operation, user.state, f"{user.identity} is {user.state} and cannot {operation} now"
            )
        if state is user.state:
            return
        moved = replace(
            user,
            state=state,
            main_device=main_device or user.main_device,
            extended_data=extended_data or user.extended_data,
            reject_status=reject_status,
        )
        self.call = self.call.with_user(moved)
        if operation is Operation.ACCEPT:
            self.call = replace(self.call, state=CallState.OPEN)
        self._tell_devices(moved, operation, extended_data)
        self.tell(
            self._who_learns_of(moved),
            lambda id_: CallUserStateChanged(
                id=id_,
                call_sid=self.call.call_sid,
                at=self._at,
                identity=moved.identity,
                state=moved.state,
                extended_data=extended_data,
                reject_status=reject_status,
            ),
        )

    def end(self) -> None:
        """Ends the call; the states of its users stay."""
        self.call = replace(self.call, state=CallState.ENDED)
        self.tell(
            [
                _of(user)
                for user in self.call.users
                if user.state.pending or user in self.call.accepted
            ],
            lambda id_: CallEnded(id=id_, call_sid=self.call.call_sid, at=self._at),
        )

    def _tell_devices(self, user: User, operation: Operation, extended_data: str) -> None:
        """Tells a user's own devices that they need not ring any more."""
        reasons: dict[Operation, CancelReason] = {
            Operation.CANCEL: "cancelled",
            Operation.ACCEPT: "answered_elsewhere",
            Operation.REJECT: "rejected_elsewhere",
        }
        if operation in reasons:
            others = user.main_device if operation is not Operation.CANCEL else None
            self.tell(
                [Recipient(user.identity, except_device=others)],
                lambda id_: CallCancelled(
                    id=id_,
                    call_sid=self.call.call_sid,
                    at=self._at,
                    reason=reasons[operation],
                    extended_data=extended_data if operation is Operation.CANCEL else "",
                ),
            )
        elif operation is Operation.TIMEOUT:
            self.tell(
                [Recipient(user.identity)],
                lambda id_: CallTimeout(id=id_, call_sid=self.call.call_sid, at=self._at),
            )

    def _who_learns_of(self, moved: User) -> Iterator[Recipient]:
        for user in self.call.users:
            concerned = user.identity == self.call.caller or user.state.pending
            concerned |= user.state is UserState.ACCEPTED
            concerned |= user.state is UserState.QUIT and user.identity == moved.identity
            if concerned:
                yield _of(user)
