"""A call on its way from one state to the next, and the notices that are owed for it.

`rules` decides which moves are made; here stands what each move means: who hears of it, on which
devices, and under which event id.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from signaling.calls import (
    Attestation,
    Call,
    CallState,
    Mode,
    RejectStatus,
    User,
    UserState,
    replace,
)
from signaling.errors import Forbidden, OperationRefused
from signaling.events import (
    CallCancelled,
    CallEnded,
    CallerToken,
    CallEvent,
    CallReceived,
    CallTimeout,
    CallUserStateChanged,
    CancelReason,
)
from signaling.identifiers import DeviceId, Identity, wire_address


class Operation(StrEnum):
    """What can be done to a call, or to a user's state in it."""

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

TRANSITIONS: dict[tuple[Operation, UserState], UserState] = {
    **{(Operation.RECEIVED, state): UserState.RECEIVED for state in _PENDING},
    (Operation.NOT_RECEIVED, UserState.INVITING): UserState.NOT_YET_RECEIVED,
    **{(Operation.ACCEPT, state): UserState.ACCEPTED for state in _PENDING},
    **{(Operation.REJECT, state): UserState.REJECTED for state in _PENDING},
    **{(Operation.CANCEL, state): UserState.CANCELED for state in _PENDING},
    **{(Operation.TIMEOUT, state): UserState.TIMEOUT for state in _PENDING},
    **{(Operation.INVITE, state): UserState.INVITING for state in _GONE},
    (Operation.JOIN, UserState.QUIT): UserState.ACCEPTED,
    (Operation.QUIT, UserState.ACCEPTED): UserState.QUIT,
}
"""Operation and state of the user it is done to -> the user's new state. What is not here is refused."""


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


def devices_of(user: User) -> Recipient:
    """Who hears of the call for a user: its main device, or all while none has answered."""
    return Recipient(user.identity, only=None if user.state.pending else user.main_device)


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


class Change:
    """A call being changed, collecting the notices owed."""

    def __init__(self, call: Call, at: datetime) -> None:
        self.call = call
        self.at = at
        self._notices: list[Notice] = []
        self._events = call.events

    def outcome(self) -> Outcome:
        """What came of it."""
        if self._events != self.call.events:
            self.call = replace(self.call, events=self._events)
        return Outcome(self.call, tuple(self._notices))

    def member(self, identity: Identity | None) -> User:
        """The user who asks.

        Raises:
            Forbidden: nobody in this call has the identity.
        """
        user = None if identity is None else self.call.user(identity)
        if user is None:
            raise Forbidden(f"{identity} is not in this call")
        return user

    def refuse_unless_advanced(self, operation: Operation, user: User | None) -> None:
        """Lets only calls in advanced mode that go on pass.

        Raises:
            OperationRefused: it is another.
        """
        if self.call.state is CallState.ENDED:
            raise OperationRefused(operation, CallState.ENDED, "the call has ended")
        if self.call.mode is not Mode.ADVANCED:
            state = self.call.state if user is None else user.state
            raise OperationRefused(
                operation, state, f"to {operation} needs a call in advanced mode"
            )

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
        operation: Operation,
        *,
        asked: Operation | None = None,
        main_device: DeviceId | None = None,
        extended_data: str = "",
        reject_status: RejectStatus | None = None,
        attestation: Attestation | None = None,
        automatic: bool = False,
    ) -> None:
        """Moves one user by the table, and tells all who are to know. `asked` names the operation
        in a refusal, where it is not this one; `attestation` is None where it is not the user's own.

        Raises:
            OperationRefused: the table does not hold it, or the call has ended.
        """
        state = self.next_state(user, operation, asked or operation)
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
        self._open_by(operation)
        self._tell_devices(moved, operation, extended_data)
        self.tell_state_of(moved, extended_data, automatic=automatic)

    def next_state(self, user: User, operation: Operation, asked: Operation) -> UserState:
        """Where an operation moves a user.

        Raises:
            OperationRefused: nowhere.
        """
        if self.call.state is CallState.ENDED:
            raise OperationRefused(asked, CallState.ENDED, "the call has ended")
        state = TRANSITIONS.get((operation, user.state))
        if state is None:
            raise OperationRefused(
                asked, user.state, f"{user.identity} is {user.state} and cannot {asked} now"
            )
        return state

    def add(self, user: User, operation: Operation) -> None:
        """Takes in a user who was not in the call, and tells all."""
        self.call = self.call.with_joined(user)
        self._open_by(operation)
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
        self.call = replace(self.call, state=CallState.ENDED, abandoned_until=None)
        self.tell(
            [
                devices_of(user)
                for user in self.call.users
                if user.state.pending or user.state is UserState.ACCEPTED
            ],
            lambda id_: CallEnded(id=id_, call_sid=self.call.call_sid, at=self.at),
        )

    def _next_id(self) -> str:
        self._events += 1
        return f"{self.call.call_sid}-{self._events}"

    def _open_by(self, operation: Operation) -> None:
        if operation in (Operation.ACCEPT, Operation.JOIN):
            self.call = replace(self.call, state=CallState.OPEN)

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
                    at=self.at,
                    reason=reasons[operation],
                    extended_data=extended_data if operation is Operation.CANCEL else "",
                ),
            )
        elif operation is Operation.TIMEOUT:
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
                yield devices_of(user)
