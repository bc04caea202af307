"""Calls in common mode: cancelling, hanging up, and how the call settles (spec §3). Cancelling is
the same in both modes."""

from collections.abc import Callable

import pytest

from bellwire.signaling.calls.calls import CallState, Mode
from bellwire.signaling.calls.commands import Command
from bellwire.signaling.calls.events import CallCancelled, CallEnded
from bellwire.signaling.calls.rules import apply
from bellwire.signaling.errors import Forbidden
from bellwire.signaling.identifiers import Identity
from tests.signaling.calls_in_play import (
    accept,
    after,
    all_of,
    assert_refused,
    cancel,
    end,
    events_of,
    expire,
    in_state,
    quit_,
    received,
    reject,
    ringing,
    states,
    told,
)

# Cancelling.


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("who", ["alice", None])
def test_caller_or_a_server_may_cancel_while_nobody_has_accepted(
    mode: Mode, who: str | None
) -> None:
    call = after(ringing("bob", "carol", mode=mode), received("bob"), cancel(who))
    assert call.state is CallState.ENDED
    assert states(call) == {"alice": "Accepted", "bob": "Canceled", "carol": "Canceled"}


@pytest.mark.parametrize("mode", Mode)
def test_who_has_rejected_stays_rejected_when_the_caller_cancels(mode: Mode) -> None:
    call = after(ringing("bob", "carol", mode=mode), reject("bob"), cancel())
    assert states(call) == {"alice": "Accepted", "bob": "Rejected", "carol": "Canceled"}


@pytest.mark.parametrize("who", ["bob", "alice"])
def test_call_on_nobodys_behalf_is_cancelled_by_a_server_only(who: str) -> None:
    call = ringing("bob", caller=None)
    with pytest.raises(Forbidden, match="caller"):
        apply(call, cancel(who))
    assert states(after(call, cancel(None))) == {"bob": "Canceled"}


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("who", ["alice", None])
@pytest.mark.parametrize("to", [None, ("carol",), ("carol", "bob")])
def test_cancel_while_others_talk_withdraws_who_has_not_answered_and_the_call_goes_on(
    mode: Mode, who: str | None, to: tuple[str, ...] | None
) -> None:
    call = after(ringing("bob", "carol", mode=mode), accept("bob"))
    outcome = apply(call, cancel(who, to=to))
    assert outcome.call.state is CallState.OPEN
    assert states(outcome.call) == {"alice": "Accepted", "bob": "Accepted", "carol": "Canceled"}
    assert not outcome.call.cancelled
    assert told(outcome, CallCancelled) == all_of("carol")
    assert not events_of(outcome, CallEnded)


@pytest.mark.parametrize("mode", Mode)
def test_cancel_of_some_leaves_the_others_ringing(mode: Mode) -> None:
    call = after(ringing("bob", "carol", mode=mode), cancel(to=("bob",)))
    assert call.state is CallState.RINGING
    assert states(call) == {"alice": "Accepted", "bob": "Canceled", "carol": "Inviting"}
    assert after(call, accept("carol")).state is CallState.OPEN
    refusal = assert_refused(call, accept("bob"))
    assert (refusal.state, refusal.code, refusal.reason) == ("Canceled", 31008, "cancelled")


@pytest.mark.parametrize("mode", Mode)
def test_cancel_that_leaves_the_caller_alone_is_the_calls_end(mode: Mode) -> None:
    call = after(ringing("bob", "carol", mode=mode), cancel(to=("bob",)))
    outcome = apply(call, cancel(to=("carol",), data="never mind"))
    assert (outcome.call.state, outcome.call.cancelled) == (CallState.ENDED, True)
    assert [event.extended_data for event in events_of(outcome, CallEnded)] == ["never mind"]
    refusal = assert_refused(outcome.call, accept("bob"))
    assert (refusal.state, refusal.code) == ("ended", 31008)


@pytest.mark.parametrize("mode", Mode)
def test_cancel_after_the_only_other_has_quit_ends_the_call_too(mode: Mode) -> None:
    call = after(ringing("bob", "carol", mode=mode), accept("bob"), quit_("bob"), cancel())
    assert (call.state, call.cancelled) == (CallState.ENDED, True)


@pytest.mark.parametrize("mode", Mode)
def test_who_of_those_named_cannot_be_cancelled_is_told_with_the_reason(mode: Mode) -> None:
    users = ("accepted", "rejected", "quit", "late", "cancelled", "rings")
    call = ringing(*users, mode=mode)
    call = after(call, accept("accepted"), reject("rejected"), accept("quit"), quit_("quit"))
    call = in_state(in_state(call, "late", "Timeout"), "cancelled", "Canceled")
    outcome = apply(call, cancel(to=(*users, "alice", "nobody")))
    assert dict(outcome.not_cancelled) == {
        "accepted": "answered",
        "rejected": "answered",
        "quit": "answered",
        "late": "not_invited",
        "alice": "not_invited",
        "nobody": "not_invited",
    }
    assert states(outcome.call)["rings"] == "Canceled"


@pytest.mark.parametrize("mode", Mode)
def test_cancel_of_somebody_who_cannot_be_cancelled_changes_nothing(mode: Mode) -> None:
    call = after(ringing("bob", mode=mode), accept("bob"))
    outcome = apply(call, cancel(to=("bob",)))
    assert (outcome.call, outcome.notices) == (call, ())
    assert outcome.not_cancelled == ((Identity("bob"), "answered"),)


@pytest.mark.parametrize("mode", Mode)
def test_cancel_of_all_with_nobody_left_to_cancel_is_refused_while_others_talk(mode: Mode) -> None:
    call = after(ringing("bob", mode=mode), accept("bob"))
    refusal = assert_refused(call, cancel())
    assert (refusal.operation, refusal.state, refusal.reason) == ("cancel", "open", "state")


@pytest.mark.parametrize("over", [reject("bob"), expire(), end(None)])
def test_cancel_of_a_call_that_is_over_is_refused(over: Command) -> None:
    refusal = assert_refused(after(ringing("bob"), over), cancel())
    assert (refusal.operation, refusal.state) == ("cancel", "ended")
    assert (refusal.code, refusal.reason) == (31487, "ended")


# What whoever does it says to it.


@pytest.mark.parametrize(
    ("command", "ended"),
    [
        (end("alice", data="bye"), Mode.ADVANCED),
        (end(None, data="bye"), Mode.COMMON),
        (quit_("bob", data="bye"), Mode.COMMON),
        (end("bob", data="bye"), Mode.COMMON),
    ],
)
def test_end_of_a_call_carries_what_was_said_with_what_ended_it(
    command: Command, ended: Mode
) -> None:
    call = after(ringing("bob", mode=ended), accept("bob"))
    outcome = apply(call, command)
    assert [event.extended_data for event in events_of(outcome, CallEnded)] == ["bye"]


def test_rejection_that_ends_a_call_says_what_was_said_with_it() -> None:
    outcome = apply(ringing("bob"), reject("bob", data="not today"))
    assert [event.extended_data for event in events_of(outcome, CallEnded)] == ["not today"]


def test_end_that_nobody_has_brought_about_says_nothing() -> None:
    (ended,) = events_of(apply(ringing("bob"), expire()), CallEnded)
    assert ended.extended_data is None
    assert "extended_data" not in ended.document


@pytest.mark.parametrize("answer", [accept, reject])
def test_other_devices_of_who_answers_hear_what_was_said_with_the_answer(
    answer: Callable[..., Command],
) -> None:
    outcome = apply(ringing("bob", "carol"), answer("bob", "phone", data="coming"))
    assert [event.extended_data for event in events_of(outcome, CallCancelled)] == ["coming"]


def test_last_in_a_call_who_hangs_up_says_so_to_those_who_still_ring() -> None:
    outcome = apply(ringing("bob", "carol"), quit_("alice", data="too late"))
    said = [event.extended_data for event in events_of(outcome, CallCancelled)]
    assert said == ["too late", "too late"]


# Hanging up.


@pytest.mark.parametrize("hang_up", [quit_, end])
@pytest.mark.parametrize(("who", "other"), [("alice", "bob"), ("bob", "alice")])
def test_call_of_two_ends_when_either_hangs_up(
    hang_up: Callable[[str], Command], who: str, other: str
) -> None:
    call = after(ringing("bob"), accept("bob"))
    outcome = apply(call, hang_up(who))
    assert outcome.call.state is CallState.ENDED
    assert states(outcome.call) == {who: "Quit", other: "Accepted"}
    assert told(outcome, CallEnded) == {f"{other}/phone"}


@pytest.mark.parametrize("who", ["alice", "bob", "carol"])
def test_call_of_three_goes_on_for_two_and_ends_with_the_second_hang_up(who: str) -> None:
    call = after(ringing("bob", "carol"), accept("bob"), accept("carol"))
    first = apply(call, quit_(who))
    assert first.call.state is CallState.OPEN
    assert events_of(first, CallEnded) == []
    next_, last = sorted({"alice", "bob", "carol"} - {who})
    second = apply(first.call, quit_(next_))
    assert second.call.state is CallState.ENDED
    assert told(second, CallEnded) == {f"{last}/phone"}


def test_end_by_one_user_of_a_common_call_is_a_hang_up_and_the_others_talk_on() -> None:
    call = after(ringing("bob", "carol"), accept("bob"), accept("carol"), end("carol"))
    assert call.state is CallState.OPEN
    assert states(call) == {"alice": "Accepted", "bob": "Accepted", "carol": "Quit"}


def test_refused_end_names_the_operation_that_was_asked_for() -> None:
    assert assert_refused(ringing("bob"), end("bob")).operation == "end"


def test_caller_who_hangs_up_while_ringing_cancels_the_invites() -> None:
    outcome = apply(after(ringing("bob", "carol"), reject("carol")), quit_("alice"))
    assert outcome.call.state is CallState.ENDED
    assert states(outcome.call) == {"alice": "Quit", "bob": "Canceled", "carol": "Rejected"}
    assert told(outcome, CallCancelled) == all_of("bob")


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


# Settling.


def test_call_ends_when_the_last_invitee_rejects_and_nobody_accepted() -> None:
    call = after(ringing("bob", "carol"), reject("bob"))
    assert call.state is CallState.RINGING
    outcome = apply(call, reject("carol"))
    assert outcome.call.state is CallState.ENDED
    assert told(outcome, CallEnded) == {"alice/phone"}


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


@pytest.mark.parametrize("command", [reject("bob"), expire()])
def test_call_on_nobodys_behalf_ends_when_nobody_is_left_to_answer(command: Command) -> None:
    assert after(ringing("bob", caller=None), command).state is CallState.ENDED
