"""What time alone does to a call: invitations that run out, delivery that nobody confirms, and
advanced calls that everybody has left."""

from dataclasses import replace
from datetime import timedelta

import pytest

from bellwire.signaling.calls.calls import Call, CallState, Mode
from bellwire.signaling.calls.commands import Accept, Cancel, Command, End, Ignore, Received, Reject
from bellwire.signaling.calls.events import CallEnded, CallTimeout, CallUserStateChanged
from bellwire.signaling.calls.rules import apply
from tests.signaling.calls_in_play import (
    DEADLINE,
    PENDING,
    accept,
    advanced,
    after,
    all_of,
    assert_changes_nothing,
    assert_refused,
    cancel,
    end,
    events_of,
    expire,
    ignore,
    in_state,
    invite,
    join,
    offline,
    quit_,
    received,
    reject,
    ringing,
    seconds,
    states,
    told,
)

MOMENT = timedelta(microseconds=1)
HOUR_S = 3600

# Invitations.


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("state", PENDING)
@pytest.mark.parametrize("late_s", [0, 0.000001, 3600])
@pytest.mark.parametrize("command", [accept("bob"), reject("bob"), ignore("bob")])
def test_answer_from_the_deadline_on_is_refused_as_timed_out(
    mode: Mode, state: str, command: Accept | Reject | Ignore, late_s: float
) -> None:
    at = DEADLINE + timedelta(seconds=late_s)
    refusal = assert_refused(
        in_state(ringing("bob", mode=mode), "bob", state), replace(command, at=at)
    )
    assert (refusal.state, refusal.reason, refusal.code) == ("Timeout", "timed-out", 31487)
    assert refusal.operation == type(command).__name__.lower()


@pytest.mark.parametrize("command", [accept("bob"), reject("bob"), received("bob")])
def test_answer_in_the_last_instant_counts(command: Accept | Reject | Received) -> None:
    at = DEADLINE - MOMENT
    assert states(after(ringing("bob"), replace(command, at=at)))["bob"] != "Inviting"


@pytest.mark.parametrize("mode", Mode)
def test_time_that_passes_before_the_deadline_changes_nothing(mode: Mode) -> None:
    call = ringing("bob", mode=mode)
    assert_changes_nothing(call, replace(expire(), at=DEADLINE - MOMENT))


def test_common_call_that_nobody_answers_ends_at_the_deadline() -> None:
    outcome = apply(after(ringing("bob", "carol"), received("bob")), expire())
    assert outcome.call.state is CallState.ENDED
    assert states(outcome.call) == {"alice": "Accepted", "bob": "Timeout", "carol": "Timeout"}
    assert told(outcome, CallTimeout) == all_of("bob", "carol")
    assert told(outcome, CallEnded) == {"alice/phone"}
    assert outcome.call.next_deadline is None


def test_advanced_call_that_nobody_answers_lives_while_the_caller_is_in_it() -> None:
    outcome = apply(advanced("bob", "carol"), expire())
    assert outcome.call.state is CallState.RINGING
    assert states(outcome.call) == {"alice": "Accepted", "bob": "Timeout", "carol": "Timeout"}
    assert not events_of(outcome, CallEnded)
    assert outcome.call.next_deadline is None


@pytest.mark.parametrize("mode", Mode)
def test_timeout_of_the_others_leaves_those_who_accepted_talking(mode: Mode) -> None:
    call = after(ringing("bob", "carol", mode=mode), accept("bob"), expire())
    assert call.state is CallState.OPEN
    assert states(call) == {"alice": "Accepted", "bob": "Accepted", "carol": "Timeout"}


def test_invitations_made_at_different_times_run_out_at_their_own() -> None:
    call = after(advanced("bob"), invite("alice", "carol", at=seconds(30), timeout_s=20))
    assert call.next_deadline == seconds(50)
    assert call.expires_at == DEADLINE
    call = after(call, expire(50))
    assert states(call) == {"alice": "Accepted", "bob": "Inviting", "carol": "Timeout"}
    assert call.next_deadline == DEADLINE
    assert states(after(call, expire()))["bob"] == "Timeout"


def test_restarted_clock_that_fires_late_times_out_all_that_ran_out_meanwhile() -> None:
    call = after(advanced("bob", check_s=5), invite("alice", "carol", at=seconds(1)))
    outcome = apply(call, expire(1000))
    assert states(outcome.call) == {"alice": "Accepted", "bob": "Timeout", "carol": "Timeout"}
    assert {event.state for event in events_of(outcome, CallUserStateChanged)} == {"Timeout"}


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("over", [cancel(), end(None)])
def test_ended_call_waits_for_nothing_and_time_changes_nothing(
    mode: Mode, over: Cancel | End
) -> None:
    call = after(ringing("bob", "carol", mode=mode, check_s=5), over)
    assert call.next_deadline is None
    for after_start_s in (5, 60, 10 * HOUR_S):
        assert_changes_nothing(call, expire(after_start_s))


# Delivery checks.


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("check_s", [3, 4, 5])
def test_invitee_whom_no_device_confirms_in_time_is_not_yet_received(
    mode: Mode, check_s: float
) -> None:
    call = ringing("bob", "carol", mode=mode, check_s=check_s)
    call = after(call, received("carol"))
    assert call.next_deadline == seconds(check_s)
    assert_changes_nothing(call, replace(expire(), at=seconds(check_s) - MOMENT))
    outcome = apply(call, expire(check_s))
    assert states(outcome.call) == {
        "alice": "Accepted",
        "bob": "NotYetReceived",
        "carol": "Received",
    }
    (change,) = events_of(outcome, CallUserStateChanged)
    assert (change.identity, change.state) == ("bob", "NotYetReceived")
    assert outcome.call.next_deadline == DEADLINE
    assert_changes_nothing(outcome.call, expire(check_s))


def test_delivery_is_not_checked_where_nobody_asks_for_it() -> None:
    call = ringing("bob")
    assert call.next_deadline == DEADLINE
    assert_changes_nothing(call, expire(10))


@pytest.mark.parametrize(
    ("command", "state"),
    [
        (received("bob", at=seconds(40)), "Received"),
        (accept("bob", at=seconds(40)), "Accepted"),
        (reject("bob", at=seconds(40)), "Rejected"),
    ],
)
def test_invitee_who_comes_online_in_time_receives_and_answers_as_any_other(
    command: Received | Accept | Reject, state: str
) -> None:
    call = after(ringing("bob", "carol", check_s=5), expire(5), command)
    assert states(call)["bob"] == state


def test_invitee_who_was_never_reached_times_out_at_the_deadline() -> None:
    call = after(ringing("bob", check_s=5), expire(5), expire())
    assert states(call)["bob"] == "Timeout"
    assert call.state is CallState.ENDED


def test_check_that_is_due_with_the_deadline_is_a_timeout() -> None:
    outcome = apply(ringing("bob", check_s=60), expire())
    assert [event.state for event in events_of(outcome, CallUserStateChanged)] == ["Timeout"]


def test_who_is_invited_later_is_checked_after_its_own_seconds() -> None:
    call = after(advanced("bob", check_s=5), received("bob"), invite("alice", "carol"))
    assert call.next_deadline == seconds(3 + 5)
    assert states(after(call, expire(8)))["carol"] == "NotYetReceived"


# Advanced calls that everybody has left.


def abandoned() -> Call:
    return after(advanced("bob"), reject("bob", at=seconds(10)), quit_("alice", at=seconds(20)))


def test_advanced_call_that_everybody_has_left_ends_an_hour_later() -> None:
    call = abandoned()
    assert call.state is CallState.RINGING
    assert call.next_deadline == call.abandoned_until == seconds(20 + HOUR_S)
    assert_changes_nothing(call, replace(expire(), at=seconds(20 + HOUR_S) - MOMENT))
    outcome = apply(call, expire(20 + HOUR_S))
    assert outcome.call.state is CallState.ENDED
    assert outcome.call.next_deadline is None
    (ended,) = outcome.notices  # for webhooks alone
    assert (type(ended.event), ended.recipients) == (CallEnded, ())


@pytest.mark.parametrize(
    ("command", "state"),
    [
        (join("alice", at=seconds(1000)), "open"),
        (join("zoe", at=seconds(1000)), "open"),
        (invite(None, "bob", at=seconds(1000)), "ringing"),
    ],
    ids=["one who quit joins again", "an outsider joins", "a server invites again"],
)
def test_abandoned_call_lives_on_once_somebody_is_there_again(command: Command, state: str) -> None:
    call = after(abandoned(), command)
    assert call.state == state
    assert call.abandoned_until is None
    assert after(call, expire(20 + HOUR_S)).state is not CallState.ENDED


def test_hour_of_an_abandoned_call_begins_when_the_last_invitation_runs_out() -> None:
    call = after(advanced("bob"), quit_("alice", at=seconds(20)))
    assert call.abandoned_until is None
    assert after(call, expire()).abandoned_until == seconds(60 + HOUR_S)


def test_hour_begins_anew_when_the_call_is_left_again() -> None:
    call = after(abandoned(), join("alice", at=seconds(1000)), quit_("alice", at=seconds(2000)))
    assert call.abandoned_until == seconds(2000 + HOUR_S)


def test_nothing_but_a_person_or_a_server_keeps_an_abandoned_call_alive() -> None:
    call = abandoned()
    assert_changes_nothing(call, expire(1000))
    assert_changes_nothing(call, offline("alice", at=seconds(1000), last=True))
    assert_changes_nothing(call, quit_("alice", at=seconds(1000)))
