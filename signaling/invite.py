"""Invitations: the call that a first one makes, and who is invited into a call under way."""

from datetime import timedelta

from signaling.calls import MAX_USERS, Attestation, Call, Unreachable, User, UserState, replace
from signaling.change import TRANSITIONS, Change, Operation, Outcome, devices_of
from signaling.commands import Invitee, InviteMore, NewCall
from signaling.errors import InvalidInput, OperationRefused
from signaling.events import CallCreated, ErrorInvitee, TriedInvitee
from signaling.identifiers import Identity


def create_call(new: NewCall) -> Outcome:
    """The call that a new invitation makes, and its invites.

    Raises:
        InvalidInput: no invitee, one twice, the caller among them, over 10 users, or a timeout
            outside 1 to 600 s.
    """
    _check(new)
    timeout = timedelta(seconds=new.timeout_s)
    change = Change(
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
        [devices_of(user) for user in change.call.accepted],
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


def _check(new: NewCall) -> None:
    identities = [invitee.identity for invitee in new.invitees]
    if new.caller in identities or any(new.caller == missed for missed, _ in new.unreachable):
        raise InvalidInput(f"{new.caller} cannot call itself")
    check_room(identities, others=int(new.caller is not None))
    _check_timeout(new.timeout_s)


def check_room(identities: list[Identity], *, others: int) -> None:
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


def check_inviter(change: Change, command: InviteMore) -> None:
    """Lets only who is in a call in advanced mode, or a server, invite more.

    Raises:
        Forbidden: the inviter is nobody of the call.
        OperationRefused: the call is in common mode or over, or the inviter is not in it.
    """
    inviter = None if command.identity is None else change.member(command.identity)
    change.refuse_unless_advanced(Operation.INVITE, inviter)
    if inviter is not None and inviter.state is not UserState.ACCEPTED:
        raise OperationRefused(
            Operation.INVITE, inviter.state, f"{inviter.identity} is not in the call"
        )


def invite_more(change: Change, command: InviteMore) -> None:
    """Invites those who are neither in the call nor invited.

    Raises:
        Forbidden, OperationRefused: as `check_inviter`.
        InvalidInput: there is no room for so many.
    """
    check_inviter(change, command)
    call = change.call
    known = {user.identity for user in call.users}
    new = [i.identity for i in command.invitees if i.identity not in known]
    check_room([i.identity for i in command.invitees], others=0)
    if new:
        check_room(new, others=len(known))
    _check_timeout(command.timeout_s)
    change.call = replace(call, unreachable=_unreachable(call, command))
    for invitee in command.invitees:
        user = change.call.user(invitee.identity)
        if user is None or (Operation.INVITE, user.state) in TRANSITIONS:
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
