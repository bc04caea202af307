"""Calls, commands and questions that the tests of the rules share. Everybody has the same three
devices, so that `bob/tablet` says who hears what and where."""

import copy
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import pytest

from bellwire.signaling.calls.calls import Call, Mode, RejectStatus, Unreachable, User, UserState
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
from bellwire.signaling.calls.events import CallEvent, CallUserStateChanged
from bellwire.signaling.calls.rules import Outcome, Recipient, apply, create_call
from bellwire.signaling.errors import OperationRefused
from bellwire.signaling.identifiers import CallSid, DeviceId, Identity

SID = CallSid("CA0123456789abcdef0123456789abcdef")
START = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)
TIMEOUT_S = 60
DEADLINE = START + timedelta(seconds=TIMEOUT_S)
SOON = START + timedelta(seconds=3)
DEVICES = ("phone", "tablet", "desk")
KX = "KX0123456789abcdef0123456789abcdef"

PENDING = ("Inviting", "NotYetReceived", "Received")
OVER = ("Rejected", "Canceled", "Timeout", "Quit", "Unknown")

Event = TypeVar("Event", bound=CallEvent)


def _identity(name: str | None) -> Identity | None:
    return None if name is None else Identity(name)


def _device(name: str | None) -> DeviceId | None:
    return None if name is None else DeviceId(name)


def seconds(after_start: float) -> datetime:
    return START + timedelta(seconds=after_start)


# Commands.


def accept(who: str, device: str | None = "phone", at: datetime = SOON, data: str = "") -> Accept:
    return Accept(Identity(who), _device(device), at, data)


def reject(
    who: str,
    device: str | None = "phone",
    at: datetime = SOON,
    data: str = "",
    status: RejectStatus = RejectStatus.REJECTED,
) -> Reject:
    return Reject(Identity(who), _device(device), at, status, data)


def received(who: str, device: str | None = "phone", at: datetime = SOON) -> Received:
    return Received(Identity(who), _device(device), at)


def ignore(who: str, device: str | None = "phone", at: datetime = SOON) -> Ignore:
    return Ignore(Identity(who), _device(device), at)


def cancel(
    who: str | None = "alice",
    at: datetime = SOON,
    data: str = "",
    to: tuple[str, ...] | None = None,
) -> Cancel:
    meant = None if to is None else tuple(Identity(one) for one in to)
    return Cancel(_identity(who), at, data, meant)


def quit_(who: str, device: str | None = "phone", at: datetime = SOON, data: str = "") -> Quit:
    """Without a device, a server hangs up."""
    return Quit(Identity(who), _device(device), at, data, by_server=device is None)


def end(who: str | None, device: str | None = "phone", at: datetime = SOON, data: str = "") -> End:
    """Without a device, a server ends it."""
    asking = _device(device) if who is not None else None
    return End(_identity(who), asking, at, data, by_server=asking is None)


def join(who: str, device: str | None = "phone", at: datetime = SOON, data: str = "") -> Join:
    return Join(Identity(who), _device(device), at, data)


def invite(
    who: str | None,
    *invitees: str,
    at: datetime = SOON,
    timeout_s: float = TIMEOUT_S,
    unreachable: tuple[tuple[Identity, Unreachable], ...] = (),
    device: str | None = "phone",
) -> InviteMore:
    """Without a device, a server invites."""
    more = tuple(Invitee(Identity(one), ("mqtt",)) for one in invitees)
    asking = None if who is None else _device(device)
    return InviteMore(
        _identity(who), asking, more, at, timeout_s, unreachable, by_server=asking is None
    )


def say(
    who: str | None,
    *to: str,
    at: datetime = SOON,
    content: object = "hello",
    device: str | None = "phone",
) -> Say:
    """A message to these, or to all others. Without a device, a server says it."""
    meant = tuple(Identity(one) for one in to) or None
    asking = None if who is None else _device(device)
    said = {"text": str(content)}
    return Say(_identity(who), asking, at, KX, said, to=meant, by_server=asking is None)


def offline(who: str, device: str = "phone", at: datetime = SOON, *, last: bool) -> GoOffline:
    return GoOffline(Identity(who), DeviceId(device), at, last)


def expire(after_start_s: float = TIMEOUT_S) -> Expire:
    return Expire(seconds(after_start_s))


# Calls.


def new_call(
    *invitees: str,
    caller: str | None = "alice",
    device: str | None = "phone",
    mode: Mode = Mode.COMMON,
    check_s: float | None = None,
) -> Outcome:
    return create_call(
        NewCall(
            call_sid=SID,
            caller=_identity(caller),
            invitees=tuple(Invitee(Identity(one), ("mqtt",)) for one in invitees),
            at=START,
            timeout_s=TIMEOUT_S,
            device=_device(device) if caller is not None else None,
            mode=mode,
            check_after_s=check_s,
        )
    )


def ringing(
    *invitees: str,
    caller: str | None = "alice",
    device: str | None = "phone",
    mode: Mode = Mode.COMMON,
    check_s: float | None = None,
) -> Call:
    return new_call(*invitees, caller=caller, device=device, mode=mode, check_s=check_s).call


def advanced(*invitees: str, caller: str | None = "alice", check_s: float | None = None) -> Call:
    return ringing(*invitees, caller=caller, mode=Mode.ADVANCED, check_s=check_s)


def after(call: Call, *commands: Command) -> Call:
    for command in commands:
        call = apply(call, command).call
    return call


def in_state(call: Call, who: str, state: str, device: str = "phone") -> Call:
    """The call with one user put into a state, by this device where a device leads there."""
    by_device = state in ("Accepted", "Rejected", "Quit")
    return call.with_user(
        replace(
            user_of(call, who),
            state=UserState(state),
            main_device=DeviceId(device) if by_device else None,
        )
    )


# Questions.


def user_of(call: Call, who: str) -> User:
    user = call.user(Identity(who))
    assert user is not None
    return user


def states(call: Call) -> dict[str, str]:
    return {user.identity: user.state.value for user in call.users}


def reached(recipients: Iterable[Recipient]) -> set[str]:
    """The devices meant, as `bob/phone`."""
    return {
        f"{recipient.identity}/{device}"
        for recipient in recipients
        for device in DEVICES
        if recipient.reaches(DeviceId(device))
    }


def all_of(*identities: str) -> set[str]:
    return {f"{identity}/{device}" for identity in identities for device in DEVICES}


def told(outcome: Outcome, kind: type[CallEvent], about: str | None = None) -> set[str]:
    """The devices that get a kind of event, or the state changes of one user."""
    heard: set[str] = set()
    for notice in outcome.notices:
        event = notice.event
        if not isinstance(event, kind):
            continue
        if about is None or (isinstance(event, CallUserStateChanged) and event.identity == about):
            heard |= reached(notice.recipients)
    return heard


def events_of(outcome: Outcome, kind: type[Event]) -> list[Event]:
    return [notice.event for notice in outcome.notices if isinstance(notice.event, kind)]


def assert_refused(call: Call, command: Command) -> OperationRefused:
    before = copy.deepcopy(call)
    with pytest.raises(OperationRefused) as refused:
        apply(call, command)
    assert call == before
    return refused.value


def assert_changes_nothing(call: Call, command: Command) -> None:
    outcome = apply(call, command)
    assert outcome.call == call
    assert outcome.notices == ()
