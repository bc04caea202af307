"""The rules of a call (spec §3, common mode): who may do what in which state, and who hears of it.

The last part plays random calls against a second, smaller model, written from the specification's
tables and not from the code: sets of identities, and for each event who must and who may hear it.
"""

import copy
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from signaling.calls import Call, CallState, CallType, Mode, PushText, RejectStatus, UserState
from signaling.errors import Forbidden, InvalidInput, OperationRefused, Refusal
from signaling.events import CallEvent, CallReceived, ErrorInvitee, TriedInvitee
from signaling.rules import (
    Accept,
    Cancel,
    Command,
    End,
    Expire,
    Invitee,
    NewCall,
    Notice,
    Operation,
    Outcome,
    Quit,
    Received,
    Recipient,
    Reject,
    apply,
    create_call,
    invite_event,
)

SID = "CA0123456789abcdef0123456789abcdef"
START = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)
TIMEOUT_S = 60
DEADLINE = START + timedelta(seconds=TIMEOUT_S)
SOON = START + timedelta(seconds=3)
DEVICES = ("phone", "tablet", "desk")


def new_call(*invitees: str, caller: str | None = "alice", device: str | None = "phone") -> Outcome:
    return create_call(
        NewCall(
            call_sid=SID,
            caller=caller,
            invitees=tuple(Invitee(identity, ("mqtt",)) for identity in invitees),
            at=START,
            timeout_s=TIMEOUT_S,
            device=device if caller is not None else None,
        )
    )


def ringing(*invitees: str, caller: str | None = "alice", device: str | None = "phone") -> Call:
    return new_call(*invitees, caller=caller, device=device).call


def after(call: Call, *commands: Command) -> Call:
    for command in commands:
        call = apply(call, command).call
    return call


def accept(who: str, device: str | None = "phone", at: datetime = SOON) -> Accept:
    return Accept(who, device, at)


def reject(who: str, device: str | None = "phone", at: datetime = SOON) -> Reject:
    return Reject(who, device, at)


def received(who: str, device: str | None = "phone", at: datetime = SOON) -> Received:
    return Received(who, device, at)


def quit_(who: str, device: str | None = "phone", at: datetime = SOON) -> Quit:
    return Quit(who, device, at)


def cancel(who: str | None = "alice", at: datetime = SOON) -> Cancel:
    return Cancel(who, at)


def reached(recipients: Iterable[Recipient]) -> set[str]:
    """The devices meant, as `bob/phone`, where everybody has the same three."""
    return {f"{r.identity}/{d}" for r in recipients for d in DEVICES if r.reaches(d)}


def all_of(*identities: str) -> set[str]:
    return {f"{identity}/{device}" for identity in identities for device in DEVICES}


def told(outcome: Outcome, event: str, about: str | None = None) -> set[str]:
    """The devices that get an event, or the state changes of one user."""
    heard: set[str] = set()
    for notice in outcome.notices:
        if notice.event.event == event and about in (None, getattr(notice.event, "identity", None)):
            heard |= reached(notice.recipients)
    return heard


def events_of(outcome: Outcome, event: str) -> list[CallEvent]:
    return [notice.event for notice in outcome.notices if notice.event.event == event]


def states(call: Call) -> dict[str, str]:
    return {user.identity: user.state.value for user in call.users}


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


# The table of states and operations.

REFUSED = "refused"
KEPT = "kept"
"""The operation is allowed on the call, and this user's state is not touched by it."""

PENDING = ("Inviting", "NotYetReceived", "Received")
OVER = ("Rejected", "Canceled", "Timeout", "Quit", "Unknown")

TABLE: dict[tuple[str, str], str] = {
    **{("received", state): "Received" for state in PENDING},
    ("received", "Accepted"): KEPT,  # a slow device confirms what another has accepted
    **{("received", state): REFUSED for state in OVER},
    **{("accept", state): "Accepted" for state in PENDING},
    **{("accept", state): REFUSED for state in ("Accepted", *OVER)},
    **{("reject", state): "Rejected" for state in PENDING},
    **{("reject", state): REFUSED for state in ("Accepted", *OVER)},
    **{("cancel", state): "Canceled" for state in PENDING},
    **{("cancel", state): KEPT for state in ("Rejected", "Canceled", "Timeout", "Unknown")},
    **{("cancel", state): REFUSED for state in ("Accepted", "Quit")},
    **{("timeout", state): "Timeout" for state in PENDING},
    **{("timeout", state): KEPT for state in ("Accepted", *OVER)},
    **{("quit", state): REFUSED for state in (*PENDING, *OVER)},
    ("quit", "Accepted"): "Quit",
    **{("end", state): REFUSED for state in (*PENDING, *OVER)},
    ("end", "Accepted"): "Quit",  # a common call is not one user's to end: it is a hang-up
}


def bob_in(state: str) -> Call:
    """Alice's call to Bob, who is in this state by his phone, and to Carol, who is still invited."""
    call = ringing("bob", "carol")
    bob = call.user("bob")
    assert bob is not None
    by_phone = state in ("Accepted", "Rejected", "Quit")
    bob = replace(bob, state=UserState(state), main_device="phone" if by_phone else None)
    opened = state in ("Accepted", "Quit")
    return replace(call.with_user(bob), state=CallState.OPEN if opened else CallState.RINGING)


def command_for(operation: str) -> Command:
    """The operation, asked for by Bob's tablet where he is the one who asks."""
    return {
        "received": received("bob", "tablet"),
        "accept": accept("bob", "tablet"),
        "reject": reject("bob", "tablet"),
        "cancel": cancel(),
        "timeout": Expire(DEADLINE),
        "quit": quit_("bob", "tablet"),
        "end": End("bob", "tablet", SOON),
    }[operation]


def test_table_of_the_tests_names_every_operation_and_state() -> None:
    assert set(TABLE) == {(o.value, s.value) for o, s in product(Operation, UserState)}


@pytest.mark.parametrize(("operation", "state", "expected"), [(*k, v) for k, v in TABLE.items()])
def test_operation_moves_a_user_as_the_specification_says_or_is_refused(
    operation: str, state: str, expected: str
) -> None:
    call = bob_in(state)
    if expected == REFUSED:
        refusal = assert_refused(call, command_for(operation))
        assert refusal.operation in (operation, "quit" if operation == "end" else operation)
        assert refusal.state == ("open" if operation == "cancel" else state)
        assert refusal.fields == {"operation": refusal.operation, "state": refusal.state}
    else:
        outcome = apply(call, command_for(operation))
        assert states(outcome.call)["bob"] == (state if expected == KEPT else expected)


def test_refused_end_names_the_operation_that_was_asked_for() -> None:
    assert assert_refused(ringing("bob"), End("bob", "phone", SOON)).operation == "end"


@pytest.mark.parametrize(
    "command",
    [
        received("mallory"),
        accept("mallory"),
        reject("mallory"),
        quit_("mallory"),
        End("mallory", "phone", SOON),
        cancel("mallory"),
    ],
    ids=lambda command: type(command).__name__,
)
def test_somebody_outside_the_call_is_forbidden_every_operation(command: Command) -> None:
    call = ringing("bob")
    with pytest.raises(Forbidden, match="call"):
        apply(call, command)
    with pytest.raises(Forbidden, match="call"):
        apply(after(call, cancel()), command)


@pytest.mark.parametrize(
    "command", [accept("alice"), reject("alice", "tablet"), accept("alice", "x")]
)
def test_caller_cannot_answer_the_own_call(command: Command) -> None:
    assert assert_refused(ringing("bob"), command).state == "Accepted"


# A new call.


def test_new_call_rings_with_the_caller_accepted_and_the_others_inviting() -> None:
    call = ringing("bob", "carol")
    assert call.state is CallState.RINGING
    assert states(call) == {"alice": "Accepted", "bob": "Inviting", "carol": "Inviting"}
    assert call.next_deadline == call.expires_at == DEADLINE
    assert call.created_at == START


def test_new_call_invites_every_device_of_each_invitee_with_its_own_address() -> None:
    outcome = new_call("bob", "carol")
    assert told(outcome, "call.received") == all_of("bob", "carol")
    invites = {
        notice.event.to: reached(notice.recipients)
        for notice in outcome.notices
        if isinstance(notice.event, CallReceived)
    }
    assert invites == {"client:bob": all_of("bob"), "client:carol": all_of("carol")}


def test_invite_says_who_calls_until_when_and_what_came_with_the_call() -> None:
    new = NewCall(
        call_sid=SID,
        caller="alice",
        invitees=(Invitee("bob"), Invitee("carol", custom_parameters={"floor": "3"})),
        at=START,
        timeout_s=30,
        call_type=CallType.VIDEO,
        custom_parameters={"floor": "2"},
        extended_data="x",
        push=PushText("Door", "Bob is here", "{}"),
    )
    call = create_call(new).call
    to_bob, to_carol = (e for e in events_of(create_call(new), "call.received"))
    assert isinstance(to_bob, CallReceived)
    assert isinstance(to_carol, CallReceived)
    assert (to_bob.from_, to_bob.to, to_bob.call_sid) == ("client:alice", "client:bob", SID)
    assert (to_bob.at, to_bob.expires_at) == (START, START + timedelta(seconds=30))
    assert (to_bob.call_type, to_bob.extended_data, to_bob.mode) == ("video", "x", "common")
    assert (to_bob.title, to_bob.content, to_bob.payload) == ("Door", "Bob is here", "{}")
    assert to_bob.custom_parameters == {"floor": "2"}
    assert to_carol.custom_parameters == {"floor": "3"}
    users = {user.identity: user for user in call.users}
    assert invite_event(call, users["bob"]) == to_bob
    assert invite_event(call, users["carol"]) == to_carol


def test_invite_sent_again_later_is_the_same_event() -> None:
    outcome = new_call("bob", "carol")
    call = after(outcome.call, received("bob"), received("carol"), accept("carol"))
    bob = call.user("bob")
    assert bob is not None
    first = next(e for e in events_of(outcome, "call.received") if e.to == "client:bob")
    assert invite_event(call, bob) == first


def test_caller_alone_is_told_on_the_calling_device_what_is_tried_for_whom() -> None:
    outcome = create_call(
        NewCall(
            call_sid=SID,
            caller="alice",
            invitees=(Invitee("bob", ("mqtt", "apns")),),
            at=START,
            timeout_s=TIMEOUT_S,
            device="tablet",
            unreachable=(("zoe", "no_device"),),
        )
    )
    assert told(outcome, "call.created") == {"alice/tablet"}
    (created,) = events_of(outcome, "call.created")
    assert created.invitees == (TriedInvitee(identity="bob", channels=("mqtt", "apns")),)
    assert created.error_invitees == (ErrorInvitee(identity="zoe", reason="no_device"),)


def test_call_made_by_a_server_for_alice_tells_all_her_devices() -> None:
    assert told(new_call("bob", device=None), "call.created") == all_of("alice")


def test_call_on_nobodys_behalf_has_no_caller_to_tell_and_no_from() -> None:
    outcome = new_call("bob", caller=None)
    assert events_of(outcome, "call.created") == []
    (invite,) = events_of(outcome, "call.received")
    assert isinstance(invite, CallReceived)
    assert invite.from_ is None
    assert states(outcome.call) == {"bob": "Inviting"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"invitees": ()}, "at least one"),
        ({"invitees": (Invitee("bob"), Invitee("bob"))}, "twice"),
        ({"invitees": (Invitee("bob"), Invitee("alice"))}, "alice"),
        ({"invitees": tuple(Invitee(f"u{i}") for i in range(10))}, "10 users.*11"),
        ({"caller": None, "invitees": tuple(Invitee(f"u{i}") for i in range(11))}, "10 users.*11"),
        ({"timeout_s": 0.99}, "1 to 600"),
        ({"timeout_s": 600.5}, "1 to 600"),
        ({"timeout_s": float("nan")}, "1 to 600"),
    ],
)
def test_call_that_cannot_be_made_is_refused_with_the_reason(
    changes: dict[str, object], named: str
) -> None:
    new = NewCall(SID, "alice", (Invitee("bob"),), START, TIMEOUT_S)
    with pytest.raises(InvalidInput, match=named):
        create_call(replace(new, **changes))


@pytest.mark.parametrize(("caller", "invitees"), [("alice", 9), (None, 10)])
def test_call_of_ten_users_is_made(caller: str | None, invitees: int) -> None:
    assert len(ringing(*(f"u{i}" for i in range(invitees)), caller=caller).users) == 10


@pytest.mark.parametrize("timeout_s", [1, 600])
def test_shortest_and_longest_timeout_are_taken(timeout_s: float) -> None:
    new = NewCall(SID, "alice", (Invitee("bob"),), START, timeout_s)
    assert create_call(new).call.expires_at == START + timedelta(seconds=timeout_s)


# Every event and who receives it.


def party() -> Call:
    """Alice calls five: Bob still Inviting, Carol Received, Dave Accepted on his tablet, Erin
    Rejected, Frank has Quit by his phone."""
    return after(
        ringing("bob", "carol", "dave", "erin", "frank"),
        received("carol"),
        accept("dave", "tablet"),
        reject("erin"),
        accept("frank"),
        quit_("frank"),
    )


IN_PARTY = {"alice/phone", "dave/tablet"} | all_of("bob", "carol")
"""The devices of the caller and of all users of `party` who are invited or in the call."""


def test_confirmed_invite_is_told_to_the_caller_and_all_who_are_invited_or_in_the_call() -> None:
    outcome = apply(party(), received("bob"))
    assert told(outcome, "call.user_state_changed", "bob") == IN_PARTY
    (change,) = events_of(outcome, "call.user_state_changed")
    assert (change.identity, change.state) == ("bob", "Received")
    assert len(outcome.notices) == 1


def test_acceptance_is_told_to_the_accepting_device_and_all_who_are_invited_or_in_the_call() -> (
    None
):
    outcome = apply(party(), Accept("bob", "desk", SOON, "floor 2"))
    expected = {"alice/phone", "dave/tablet", "bob/desk"} | all_of("carol")
    assert told(outcome, "call.user_state_changed", "bob") == expected
    (change,) = events_of(outcome, "call.user_state_changed")
    assert (change.state, change.extended_data) == ("Accepted", "floor 2")
    assert told(outcome, "call.cancelled") == {"bob/phone", "bob/tablet"}
    assert len(outcome.notices) == 2


def test_rejection_is_told_to_all_but_who_rejected() -> None:
    outcome = apply(party(), Reject("bob", "desk", SOON, RejectStatus.BUSY, "in a meeting"))
    assert told(outcome, "call.user_state_changed", "bob") == IN_PARTY - all_of("bob")
    (change,) = events_of(outcome, "call.user_state_changed")
    assert (change.state, change.reject_status) == ("Rejected", "busy")
    assert change.extended_data == "in a meeting"
    assert told(outcome, "call.cancelled") == {"bob/phone", "bob/tablet"}
    assert len(outcome.notices) == 2


def test_hang_up_is_told_to_the_others_and_to_who_hung_up() -> None:
    outcome = apply(party(), Quit("dave", "tablet", SOON, "bye"))
    assert told(outcome, "call.user_state_changed", "dave") == IN_PARTY
    (change,) = events_of(outcome, "call.user_state_changed")
    assert (change.state, change.extended_data) == ("Quit", "bye")
    assert len(outcome.notices) == 1


def test_timeout_is_told_to_who_did_not_answer_and_as_a_state_change_to_the_others() -> None:
    call = after(ringing("bob", "dave"), accept("dave", "tablet"))
    outcome = apply(call, Expire(DEADLINE))
    assert told(outcome, "call.timeout") == all_of("bob")
    assert told(outcome, "call.user_state_changed", "bob") == {"alice/phone", "dave/tablet"}
    assert len(outcome.notices) == 2


def test_withdrawal_is_told_to_all_who_were_still_invited_and_the_end_to_the_caller() -> None:
    call = after(ringing("bob", "carol", "erin"), received("carol"), reject("erin"))
    outcome = apply(call, Cancel("alice", SOON, "sorry"))
    assert told(outcome, "call.cancelled") == all_of("bob", "carol")
    assert all(
        (event.reason, event.extended_data) == ("cancelled", "sorry")
        for event in events_of(outcome, "call.cancelled")
    )
    assert told(outcome, "call.ended") == {"alice/phone"}
    assert "alice/phone" in told(outcome, "call.user_state_changed", "bob")
    assert "alice/phone" in told(outcome, "call.user_state_changed", "carol")
    assert not told(outcome, "call.user_state_changed") & all_of("erin")


def test_end_is_told_to_all_who_are_still_in_the_call() -> None:
    call = after(ringing("dave", "erin"), accept("dave", "tablet"), reject("erin"))
    outcome = apply(call, quit_("alice"))
    assert outcome.call.state is CallState.ENDED
    assert told(outcome, "call.ended") == {"dave/tablet"}


def test_nothing_is_told_to_users_who_have_left_refused_or_missed_the_call() -> None:
    call = party()
    for command in (received("bob"), accept("bob"), reject("bob"), Expire(DEADLINE), quit_("dave")):
        outcome = apply(call, command)
        assert outcome.notices
        heard = set().union(*(reached(notice.recipients) for notice in outcome.notices))
        assert not heard & all_of("erin", "frank")


def test_every_event_carries_the_call_and_the_moment_of_its_command() -> None:
    for notice in apply(party(), accept("bob")).notices:
        assert notice.event.call_sid == SID
        assert notice.event.at == SOON


# Several devices.


def test_second_device_to_accept_is_told_it_was_answered_elsewhere() -> None:
    outcome = apply(ringing("bob"), accept("bob", "tablet"))
    assert told(outcome, "call.cancelled") == {"bob/phone", "bob/desk"}
    (cancelled,) = events_of(outcome, "call.cancelled")
    assert cancelled.reason == "answered_elsewhere"
    assert assert_refused(outcome.call, accept("bob", "phone")).state == "Accepted"


def test_other_devices_are_told_it_was_rejected_elsewhere() -> None:
    outcome = apply(ringing("bob", "carol"), reject("bob", "tablet"))
    assert told(outcome, "call.cancelled") == {"bob/phone", "bob/desk"}
    (cancelled,) = events_of(outcome, "call.cancelled")
    assert cancelled.reason == "rejected_elsewhere"
    assert assert_refused(outcome.call, accept("bob", "phone")).state == "Rejected"


@pytest.mark.parametrize("winner", DEVICES)
def test_exactly_one_of_the_devices_that_accept_in_the_same_instant_wins(winner: str) -> None:
    call = after(ringing("bob"), accept("bob", winner))
    for device in set(DEVICES) - {winner}:
        assert_refused(call, accept("bob", device))
        assert_refused(call, reject("bob", device))
    bob = call.user("bob")
    assert bob is not None
    assert bob.main_device == winner


def test_only_the_main_device_hears_of_changes_after_it_answered() -> None:
    call = after(ringing("bob", "carol"), accept("bob", "tablet"))
    outcome = apply(call, accept("carol"))
    heard = told(outcome, "call.user_state_changed", "carol")
    assert heard == {"alice/phone", "bob/tablet", "carol/phone"}


def test_invited_user_hears_of_changes_on_all_devices() -> None:
    call = after(ringing("bob", "carol"), received("bob", "tablet"))
    heard = told(apply(call, reject("carol")), "call.user_state_changed")
    assert heard == {"alice/phone"} | all_of("bob")


def test_answer_given_by_a_server_stops_every_device_of_the_user() -> None:
    outcome = apply(ringing("bob"), accept("bob", None))
    assert told(outcome, "call.cancelled") == all_of("bob")
    assert states(outcome.call)["bob"] == "Accepted"


def test_device_in_the_call_is_told_when_another_device_of_its_user_hangs_up() -> None:
    call = after(ringing("bob", "carol"), accept("bob", "phone"))
    try:
        outcome = apply(call, quit_("bob", "tablet"))
    except Refusal:
        return
    assert "bob/phone" in told(outcome, "call.user_state_changed", "bob")


# Repeats: each from the same actor and device changes nothing and is no error.


@pytest.mark.parametrize(
    ("invitees", "commands"),
    [
        (("bob",), [received("bob")]),
        (("bob",), [accept("bob")]),
        (("bob",), [accept("bob", None)]),
        (("bob",), [reject("bob")]),
        (("bob", "carol"), [reject("bob")]),
        (("bob",), [reject("bob", None)]),
        (("bob",), [cancel()]),
        (("bob",), [cancel(None)]),
        (("bob", "carol"), [cancel()]),
        (("bob", "carol"), [reject("bob"), cancel()]),
        (("bob", "carol"), [Expire(DEADLINE)]),
        (("bob",), [accept("bob"), quit_("bob")]),
        (("bob", "carol"), [accept("bob"), quit_("bob")]),
        (("bob", "carol"), [accept("bob"), quit_("bob", None)]),
        (("bob",), [accept("bob"), quit_("alice")]),
        (("bob",), [quit_("alice")]),
        (("bob", "carol"), [accept("bob"), End("bob", "phone", SOON)]),
    ],
    ids=[
        "received", "accept", "accept by a server", "reject that ends the call", "reject",
        "reject by a server", "cancel", "cancel by a server", "cancel of two",
        "cancel after one rejected", "expire", "quit that ends the call", "quit",
        "quit by a server", "quit of the caller", "quit of the caller while ringing", "end",
    ],
)  # fmt: skip
def test_repeat_of_an_operation_from_the_same_device_changes_nothing(
    invitees: tuple[str, ...], commands: list[Command]
) -> None:
    call = after(ringing(*invitees), *commands)
    assert call != ringing(*invitees)
    repeat = commands[-1]
    assert_changes_nothing(call, repeat)
    assert_changes_nothing(call, replace(repeat, at=DEADLINE + timedelta(days=1)))


def test_confirmation_by_another_device_changes_nothing() -> None:
    assert_changes_nothing(after(ringing("bob"), received("bob")), received("bob", "tablet"))


def test_time_that_passes_before_the_deadline_changes_nothing() -> None:
    assert_changes_nothing(ringing("bob"), Expire(DEADLINE - timedelta(microseconds=1)))


# Deadlines.


@pytest.mark.parametrize("late_s", [0, 0.000001, 3600])
@pytest.mark.parametrize("command", [accept("bob"), reject("bob")])
def test_answer_from_the_deadline_on_is_refused_as_timed_out(
    command: Command, late_s: float
) -> None:
    at = DEADLINE + timedelta(seconds=late_s)
    refusal = assert_refused(ringing("bob"), replace(command, at=at))
    assert refusal.state == "Timeout"
    assert refusal.operation == type(command).__name__.lower()


@pytest.mark.parametrize("command", [accept("bob"), reject("bob")])
def test_answer_in_the_last_instant_counts(command: Command) -> None:
    at = DEADLINE - timedelta(microseconds=1)
    assert states(after(ringing("bob"), replace(command, at=at)))["bob"] != "Inviting"


def test_call_that_nobody_answers_ends_at_the_deadline() -> None:
    call = after(ringing("bob", "carol"), received("bob"), Expire(DEADLINE))
    assert call.state is CallState.ENDED
    assert states(call) == {"alice": "Accepted", "bob": "Timeout", "carol": "Timeout"}
    assert call.next_deadline is None


def test_timeout_of_the_others_leaves_those_who_accepted_talking() -> None:
    call = after(ringing("bob", "carol"), accept("bob"), Expire(DEADLINE))
    assert call.state is CallState.OPEN
    assert states(call) == {"alice": "Accepted", "bob": "Accepted", "carol": "Timeout"}


# Cancelling.


@pytest.mark.parametrize("who", ["alice", None])
def test_caller_or_a_server_may_cancel_while_nobody_has_accepted(who: str | None) -> None:
    call = after(ringing("bob", "carol"), received("bob"), cancel(who))
    assert call.state is CallState.ENDED
    assert states(call) == {"alice": "Accepted", "bob": "Canceled", "carol": "Canceled"}


def test_who_has_rejected_stays_rejected_when_the_caller_cancels() -> None:
    call = after(ringing("bob", "carol"), reject("bob"), cancel())
    assert states(call) == {"alice": "Accepted", "bob": "Rejected", "carol": "Canceled"}


@pytest.mark.parametrize("who", ["bob", "carol", "mallory"])
def test_nobody_but_the_caller_may_cancel(who: str) -> None:
    call = ringing("bob", "carol")
    for state in (call, after(call, accept("bob")), after(call, cancel())):
        with pytest.raises(Forbidden, match="caller"):
            apply(state, cancel(who))


@pytest.mark.parametrize("who", ["bob", "alice"])
def test_call_on_nobodys_behalf_is_cancelled_by_a_server_only(who: str) -> None:
    call = ringing("bob", caller=None)
    with pytest.raises(Forbidden, match="caller"):
        apply(call, cancel(who))
    assert states(after(call, cancel(None))) == {"bob": "Canceled"}


@pytest.mark.parametrize("more", [[], [quit_("bob")]])
def test_cancel_is_refused_once_somebody_has_accepted(more: list[Command]) -> None:
    call = after(ringing("bob", "carol"), accept("bob"), *more)
    refusal = assert_refused(call, cancel())
    assert (refusal.operation, refusal.state) == ("cancel", "open")


@pytest.mark.parametrize("over", [reject("bob"), Expire(DEADLINE)])
def test_cancel_of_a_call_that_is_over_is_refused(over: Command) -> None:
    refusal = assert_refused(after(ringing("bob"), over), cancel())
    assert (refusal.operation, refusal.state) == ("cancel", "ended")


# Hanging up, and how a common call settles.


@pytest.mark.parametrize(("who", "other"), [("alice", "bob"), ("bob", "alice")])
def test_call_of_two_ends_when_either_hangs_up(who: str, other: str) -> None:
    call = after(ringing("bob"), accept("bob"))
    outcome = apply(call, quit_(who))
    assert outcome.call.state is CallState.ENDED
    assert states(outcome.call) == {who: "Quit", other: "Accepted"}
    assert told(outcome, "call.ended") == {f"{other}/phone"}


@pytest.mark.parametrize("who", ["alice", "bob", "carol"])
def test_call_of_three_goes_on_for_two_and_ends_with_the_second_hang_up(who: str) -> None:
    call = after(ringing("bob", "carol"), accept("bob"), accept("carol"))
    first = apply(call, quit_(who))
    assert first.call.state is CallState.OPEN
    assert events_of(first, "call.ended") == []
    next_, last = sorted({"alice", "bob", "carol"} - {who})
    second = apply(first.call, quit_(next_))
    assert second.call.state is CallState.ENDED
    assert told(second, "call.ended") == {f"{last}/phone"}


def test_caller_who_hangs_up_while_ringing_cancels_the_invites() -> None:
    outcome = apply(after(ringing("bob", "carol"), reject("carol")), quit_("alice"))
    assert outcome.call.state is CallState.ENDED
    assert states(outcome.call) == {"alice": "Quit", "bob": "Canceled", "carol": "Rejected"}
    assert told(outcome, "call.cancelled") == all_of("bob")


def test_caller_who_hangs_up_leaves_the_one_who_accepted_waiting_for_the_invited() -> None:
    call = after(ringing("bob", "carol"), accept("bob"), quit_("alice"))
    assert call.state is CallState.OPEN
    assert states(call) == {"alice": "Quit", "bob": "Accepted", "carol": "Inviting"}
    assert after(call, accept("carol")).state is CallState.OPEN
    assert after(call, reject("carol")).state is CallState.ENDED


def test_last_in_the_call_who_hangs_up_cancels_who_is_still_invited() -> None:
    call = after(ringing("bob", "carol"), accept("bob"), quit_("alice"), quit_("bob"))
    assert call.state is CallState.ENDED
    assert states(call)["carol"] == "Canceled"


def test_call_ends_when_the_last_invitee_rejects_and_nobody_accepted() -> None:
    call = after(ringing("bob", "carol"), reject("bob"))
    assert call.state is CallState.RINGING
    outcome = apply(call, reject("carol"))
    assert outcome.call.state is CallState.ENDED
    assert told(outcome, "call.ended") == {"alice/phone"}


def test_call_opens_with_the_first_acceptance_while_others_still_ring() -> None:
    call = after(ringing("bob", "carol"), accept("bob"))
    assert call.state is CallState.OPEN
    assert states(call)["carol"] == "Inviting"


def test_call_on_nobodys_behalf_lives_while_anybody_is_in_it_or_invited() -> None:
    call = after(ringing("bob", "carol", caller=None), accept("bob"))
    assert call.state is CallState.OPEN
    alone = after(call, quit_("bob"))
    assert alone.state is CallState.OPEN
    assert states(alone)["carol"] == "Inviting"
    assert after(call, reject("carol")).state is CallState.OPEN
    assert after(call, reject("carol"), quit_("bob")).state is CallState.ENDED


@pytest.mark.parametrize("command", [reject("bob"), Expire(DEADLINE)])
def test_call_on_nobodys_behalf_ends_when_nobody_is_left_to_answer(command: Command) -> None:
    assert after(ringing("bob", caller=None), command).state is CallState.ENDED


@pytest.mark.parametrize(
    "command", [received("bob"), accept("bob", "tablet"), reject("bob"), quit_("bob")]
)
def test_call_that_has_ended_takes_no_further_operation(command: Command) -> None:
    refusal = assert_refused(after(ringing("bob"), cancel()), command)
    assert refusal.operation == type(command).__name__.lower()
    assert refusal.state in ("ended", "Canceled")


# Random calls against an independent model.

ALICE = "alice"
INVITEES = [f"user{i}" for i in range(9)]
TERMINAL = ("Rejected", "Canceled", "Timeout", "Quit")


class Model:
    """Spec §3 for a common call, as sets of identities."""

    def __init__(self, invitees: list[str], caller: str | None) -> None:
        self.caller = caller
        self.of: dict[str, set[str]] = {state.value: set() for state in UserState}
        self.of["Inviting"] = set(invitees)
        self.of["Accepted"] = {caller} if caller else set()
        self.main: dict[str, str] = {caller: "phone"} if caller else {}
        self.answered = False
        self.ended = False

    @property
    def invited(self) -> set[str]:
        return self.of["Inviting"] | self.of["Received"]

    def state_of(self, who: str) -> str:
        return next(state for state, users in self.of.items() if who in users)

    def move(self, who: Iterable[str], state: str) -> None:
        for one in set(who):
            self.of[self.state_of(one)].discard(one)
            self.of[state].add(one)

    def settle(self) -> None:
        if self.caller and not self.of["Accepted"]:
            self.move(self.invited, "Canceled")
        parties = len(self.of["Accepted"]) + (not self.caller)
        if not self.invited and parties < 2:
            self.ended = True

    def devices(self, who: Iterable[str]) -> set[str]:
        """Where these users hear of the call: on the main device, on all while none has answered."""
        heard: set[str] = set()
        for one in who:
            heard |= all_of(one) if one in self.invited else {f"{one}/{self.main[one]}"}
        return heard

    def concerned(self) -> set[str]:
        return self.invited | self.of["Accepted"]


def number_of(event: CallEvent) -> int:
    sid, _, number = event.id.rpartition("-")
    assert sid == SID
    return int(number)


class RandomCalls(RuleBasedStateMachine):
    """One call, its users and their devices doing anything in any order."""

    call: Call
    model: Model
    now: datetime
    last_id: int
    over: dict[str, str]

    @initialize(count=st.integers(1, 9), caller=st.sampled_from([ALICE, ALICE, None]))
    def make_call(self, count: int, caller: str | None) -> None:
        outcome = new_call(*INVITEES[:count], caller=caller)
        self.call, self.now, self.last_id, self.over = outcome.call, START, 0, {}
        self.model = Model(INVITEES[:count], caller)
        self.check_ids(outcome.notices)
        assert told(outcome, "call.received") == all_of(*INVITEES[:count])
        assert told(outcome, "call.created") == ({"alice/phone"} if caller else set())

    def check_ids(self, notices: Iterable[Notice]) -> None:
        for notice in notices:
            assert number_of(notice.event) > self.last_id
            self.last_id = number_of(notice.event)

    def changes_nothing(self, command: Command, *, refused: bool | None) -> None:
        """The command is refused, or (`refused` None) may as well do nothing."""
        before = copy.deepcopy(self.call)
        try:
            outcome = apply(self.call, command)
        except OperationRefused as refusal:
            assert refused is not False, f"refused, though it is a repeat: {refusal}"
            assert refusal.operation
            assert refusal.state
        else:
            assert refused is not True, f"{command} was not refused"
            assert outcome == Outcome(before, ())
        assert self.call == before

    def does(self, command: Command, who: Iterable[str], state: str) -> None:
        """The command moves these users, and each event goes to whom the table says."""
        model, before, concerned = self.model, dict(states(self.call)), self.model.concerned()
        heard_before = {one: model.devices([one]) for one in concerned}
        model.move(who, state)
        model.settle()
        outcome = apply(self.call, command)
        assert outcome.call != self.call
        self.call = outcome.call
        self.check_ids(outcome.notices)

        moved = {one for one, old in before.items() if model.state_of(one) != old}
        changes = events_of(outcome, "call.user_state_changed")
        for one in moved:
            now_in = model.state_of(one)
            # Who is invited or in the call must hear; who was until this very command, may.
            must = model.devices(model.concerned() | ({one} if now_in == "Quit" else set()))
            if model.caller and model.state_of(model.caller) == "Accepted":
                must |= model.devices([model.caller])
            may = must.union(*(heard_before[other] for other in concerned - {one}))
            may |= {"alice/phone"} if model.caller else set()
            heard = told(outcome, "call.user_state_changed", one)
            assert must <= heard <= may, (one, now_in, heard)
            if heard:
                assert [c.state for c in changes if c.identity == one] == [now_in]
        assert {change.identity for change in changes} <= moved

        canceled = {one for one in moved if model.state_of(one) == "Canceled"}
        elsewhere = {
            f"{one}/{device}"
            for one in moved
            if model.state_of(one) in ("Accepted", "Rejected")
            for device in set(DEVICES) - {model.main[one]}
        }
        assert told(outcome, "call.cancelled") == all_of(*canceled) | elsewhere
        timed_out = {one for one in moved if model.state_of(one) == "Timeout"}
        assert told(outcome, "call.timeout") == all_of(*timed_out)
        ended = model.devices(model.concerned()) if model.ended else set()
        assert told(outcome, "call.ended") == ended
        assert not events_of(outcome, "call.received") + events_of(outcome, "call.created")

    who = st.sampled_from([*INVITEES[:3], *INVITEES])
    device = st.sampled_from(DEVICES)

    def in_call(self, who: str) -> bool:
        return self.call.user(who) is not None

    @rule(who=who, device=device)
    def confirms(self, who: str, device: str) -> None:
        command, model = Received(who, device, self.now), self.model
        if not self.in_call(who):
            self.is_forbidden(command)
        elif who in model.of["Inviting"] and self.now < DEADLINE:
            self.does(command, [who], "Received")
        elif who in model.of["Received"]:
            self.changes_nothing(command, refused=None if self.now >= DEADLINE else False)
        elif who not in model.invited:
            self.changes_nothing(command, refused=None)

    @rule(who=who | st.just(ALICE), device=device, accepts=st.booleans())
    def answers(self, who: str, device: str, accepts: bool) -> None:
        model = self.model
        command = (Accept if accepts else Reject)(who, device, self.now)
        state = "Accepted" if accepts else "Rejected"
        if not self.in_call(who):
            self.is_forbidden(command)
        elif who in model.invited and self.now < DEADLINE:
            model.main[who] = device
            model.answered |= accepts
            self.does(command, [who], state)
        elif model.state_of(who) == state and model.main[who] == device and who != model.caller:
            # Whether a repeat still counts once the call is over is not the specification's.
            self.changes_nothing(command, refused=None if model.ended and accepts else False)
        else:
            self.changes_nothing(command, refused=True)

    @rule(who=st.sampled_from([ALICE, None]) | who)
    def cancels(self, who: str | None) -> None:
        command, model = Cancel(who, self.now), self.model
        if who is not None and who != model.caller:
            self.is_forbidden(command)
        elif model.ended and model.of["Canceled"] and not model.answered:
            self.changes_nothing(command, refused=None)
        elif model.ended or model.answered:
            self.changes_nothing(command, refused=True)
        else:
            self.does(command, model.invited, "Canceled")

    @rule(seconds=st.sampled_from([1, 5, 30, 59, 60]))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule()
    def deadline_fires(self) -> None:
        command, model = Expire(self.now), self.model
        if self.now >= DEADLINE and model.invited:
            self.does(command, model.invited, "Timeout")
        else:
            self.changes_nothing(command, refused=False)

    @rule(who=who | st.just(ALICE), ends=st.booleans())
    def hangs_up(self, who: str, ends: bool) -> None:
        model = self.model
        command = (End if ends else Quit)(who, model.main.get(who, "phone"), self.now)
        if not self.in_call(who):
            self.is_forbidden(command)
        elif model.state_of(who) == "Accepted" and not model.ended:
            self.does(command, [who], "Quit")
        elif model.state_of(who) == "Quit":
            self.changes_nothing(command, refused=False)
        else:
            self.changes_nothing(command, refused=True)

    def is_forbidden(self, command: Command) -> None:
        before = copy.deepcopy(self.call)
        with pytest.raises(Forbidden):
            apply(self.call, command)
        assert self.call == before

    @invariant()
    def call_is_as_the_model_says(self) -> None:
        assert states(self.call) == {
            one: state for state, users in self.model.of.items() for one in users
        }
        expected = "ended" if self.model.ended else "open" if self.model.answered else "ringing"
        assert self.call.state == expected

    @invariant()
    def ended_call_has_nobody_invited_and_no_deadline(self) -> None:
        if self.call.state is CallState.ENDED:
            assert self.call.pending == ()
            assert self.call.next_deadline is None

    @invariant()
    def what_is_over_stays_over(self) -> None:
        now = states(self.call)
        for one, state in self.over.items():
            assert now.get(one, self.call.state.value) == state
        self.over |= {one: state for one, state in now.items() if state in TERMINAL}
        if self.call.state is CallState.ENDED:
            self.over["the call"] = "ended"


TestRandomCalls = RandomCalls.TestCase
TestRandomCalls.settings = settings(
    max_examples=150,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_common_mode_is_what_a_call_has_where_nothing_else_is_asked() -> None:
    assert ringing("bob").mode is Mode.COMMON
