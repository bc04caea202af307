"""A new call: who is in which state, who is invited where, and what cannot be made."""

from dataclasses import replace
from typing import Any

import pytest

from bellwire.signaling.calls.calls import CallState, CallType, Mode, PushText
from bellwire.signaling.calls.commands import Invitee, NewCall
from bellwire.signaling.calls.events import CallCreated, CallReceived, ErrorInvitee, TriedInvitee
from bellwire.signaling.calls.rules import create_call, invite_event
from bellwire.signaling.errors import InvalidInput
from bellwire.signaling.identifiers import DeviceId, Identity
from tests.signaling.calls_in_play import (
    DEADLINE,
    SID,
    START,
    TIMEOUT_S,
    accept,
    after,
    all_of,
    events_of,
    new_call,
    reached,
    received,
    ringing,
    seconds,
    states,
    told,
    user_of,
)

ALICE, BOB, CAROL, ZOE = (Identity(name) for name in ("alice", "bob", "carol", "zoe"))


@pytest.mark.parametrize("mode", Mode)
def test_new_call_rings_with_the_caller_accepted_and_the_others_inviting(mode: Mode) -> None:
    call = ringing("bob", "carol", mode=mode)
    assert (call.state, call.mode) == (CallState.RINGING, mode)
    assert states(call) == {"alice": "Accepted", "bob": "Inviting", "carol": "Inviting"}
    assert call.next_deadline == call.expires_at == DEADLINE
    assert call.created_at == START
    assert call.abandoned_until is None


def test_common_mode_is_what_a_call_has_where_nothing_else_is_asked() -> None:
    new = NewCall(SID, ALICE, (Invitee(BOB),), START, TIMEOUT_S)
    assert create_call(new).call.mode is Mode.COMMON


def test_new_call_invites_every_device_of_each_invitee_with_its_own_address() -> None:
    outcome = new_call("bob", "carol")
    invites = {
        notice.event.to: reached(notice.recipients)
        for notice in outcome.notices
        if isinstance(notice.event, CallReceived)
    }
    assert invites == {"client:bob": all_of("bob"), "client:carol": all_of("carol")}


def test_invite_says_who_calls_until_when_and_what_came_with_the_call() -> None:
    new = NewCall(
        call_sid=SID,
        caller=ALICE,
        invitees=(Invitee(BOB), Invitee(CAROL, custom_parameters={"floor": "3"})),
        at=START,
        timeout_s=30,
        mode=Mode.ADVANCED,
        call_type=CallType.VIDEO,
        custom_parameters={"floor": "2"},
        extended_data="x",
        push=PushText("Door", "Bob is here", "{}"),
    )
    call = create_call(new).call
    to_bob, to_carol = events_of(create_call(new), CallReceived)
    assert (to_bob.from_, to_bob.to, to_bob.call_sid) == ("client:alice", "client:bob", SID)
    assert (to_bob.at, to_bob.expires_at) == (START, seconds(30))
    assert (to_bob.call_type, to_bob.extended_data, to_bob.mode) == ("video", "x", "advanced")
    assert (to_bob.title, to_bob.content, to_bob.payload) == ("Door", "Bob is here", "{}")
    assert to_bob.custom_parameters == {"floor": "2"}
    assert to_carol.custom_parameters == {"floor": "3"}
    assert invite_event(call, user_of(call, "bob")) == to_bob
    assert invite_event(call, user_of(call, "carol")) == to_carol


def test_invite_sent_again_later_is_the_same_event() -> None:
    outcome = new_call("bob", "carol")
    call = after(outcome.call, received("bob"), received("carol"), accept("carol"))
    first = next(event for event in events_of(outcome, CallReceived) if event.to == "client:bob")
    assert invite_event(call, user_of(call, "bob")) == first


def test_caller_alone_is_told_on_the_calling_device_what_is_tried_for_whom() -> None:
    outcome = create_call(
        NewCall(
            call_sid=SID,
            caller=ALICE,
            invitees=(Invitee(BOB, ("mqtt", "apns")),),
            at=START,
            timeout_s=TIMEOUT_S,
            device=DeviceId("tablet"),
            unreachable=((ZOE, "no_device"),),
        )
    )
    assert told(outcome, CallCreated) == {"alice/tablet"}
    (created,) = events_of(outcome, CallCreated)
    assert created.invitees == (TriedInvitee(identity="bob", channels=("mqtt", "apns")),)
    assert created.error_invitees == (ErrorInvitee(identity="zoe", reason="no_device"),)
    assert states(outcome.call) == {"alice": "Accepted", "bob": "Inviting"}
    assert outcome.call.unreachable == ((ZOE, "no_device"),)


def test_call_made_by_a_server_for_alice_tells_all_her_devices() -> None:
    assert told(new_call("bob", device=None), CallCreated) == all_of("alice")


def test_call_on_nobodys_behalf_has_no_caller_to_tell_and_no_from() -> None:
    outcome = new_call("bob", caller=None)
    assert len(events_of(outcome, CallCreated)) == 1  # webhooks hear of it
    assert told(outcome, CallCreated) == set()
    (invite,) = events_of(outcome, CallReceived)
    assert invite.from_ is None
    assert states(outcome.call) == {"bob": "Inviting"}


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"invitees": ()}, "at least one"),
        ({"invitees": (Invitee(BOB), Invitee(BOB))}, "twice"),
        ({"invitees": (Invitee(BOB), Invitee(ALICE))}, "alice"),
        ({"timeout_s": 0.99}, "1 to 600"),
        ({"timeout_s": 600.5}, "1 to 600"),
        ({"timeout_s": float("nan")}, "1 to 600"),
    ],
)
def test_call_that_cannot_be_made_is_refused_with_the_reason(
    mode: Mode, changes: dict[str, Any], named: str
) -> None:
    new = NewCall(SID, ALICE, (Invitee(BOB),), START, TIMEOUT_S, mode=mode)
    with pytest.raises(InvalidInput, match=named):
        create_call(replace(new, **changes))


@pytest.mark.parametrize(("caller", "invitees"), [("alice", 9), (None, 10)])
def test_advanced_call_of_ten_users_is_made_and_none_of_eleven(
    caller: str | None, invitees: int
) -> None:
    users = [f"u{i}" for i in range(invitees)]
    assert len(ringing(*users, caller=caller, mode=Mode.ADVANCED).users) == 10
    with pytest.raises(InvalidInput, match=r"10 users.*11"):
        ringing(*users, "more", caller=caller, mode=Mode.ADVANCED)


@pytest.mark.parametrize("caller", [ALICE, None])
@pytest.mark.parametrize("most", [1, 30, 100])
def test_common_call_has_as_many_invitees_as_its_relay_allows(
    caller: Identity | None, most: int
) -> None:
    everybody = tuple(Invitee(Identity(f"u{i}")) for i in range(most + 1))
    new = NewCall(SID, caller, everybody[:-1], START, TIMEOUT_S, max_invitees=most)
    assert len(create_call(new).call.pending) == most
    with pytest.raises(InvalidInput, match=f"at most {most} invitees, not {most + 1}"):
        create_call(replace(new, invitees=everybody))


@pytest.mark.parametrize("timeout_s", [1, 600])
def test_shortest_and_longest_timeout_are_taken(timeout_s: float) -> None:
    new = NewCall(SID, ALICE, (Invitee(BOB),), START, timeout_s)
    assert create_call(new).call.expires_at == seconds(timeout_s)
