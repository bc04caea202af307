"""Calls in advanced mode: inviting more, joining, quitting and ending (spec §3)."""

import pytest

from bellwire.signaling.calls.calls import Call, CallState
from bellwire.signaling.calls.commands import Command
from bellwire.signaling.calls.events import (
    CallCreated,
    CallEnded,
    CallReceived,
    CallUserStateChanged,
)
from bellwire.signaling.calls.rules import apply
from bellwire.signaling.errors import Forbidden, InvalidInput
from bellwire.signaling.identifiers import Identity
from tests.signaling.calls_in_play import (
    PENDING,
    TIMEOUT_S,
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
    in_state,
    invite,
    join,
    offline,
    quit_,
    received,
    reject,
    seconds,
    states,
    told,
    user_of,
)

GONE: dict[str, Command] = {
    "Rejected": reject("bob"),
    "Timeout": expire(),
    "Quit": quit_("bob"),
}


def gone(state: str) -> Call:
    """Alice's call, which Carol is in and Bob has left in this state."""
    before = [accept("bob")] if state == "Quit" else []
    call = after(advanced("bob", "carol"), accept("carol"), *before, GONE[state])
    assert states(call)["bob"] == state
    return call


# Inviting more.


@pytest.mark.parametrize("who", ["alice", "bob", None])
def test_who_is_in_the_call_or_a_server_may_invite_more(who: str | None) -> None:
    call = after(advanced("bob"), accept("bob"))
    outcome = apply(call, invite(who, "zoe", "yan", at=seconds(10), timeout_s=20))
    assert states(outcome.call) == {
        "alice": "Accepted",
        "bob": "Accepted",
        "zoe": "Inviting",
        "yan": "Inviting",
    }
    assert told(outcome, CallReceived) == all_of("zoe", "yan")
    assert [event.expires_at for event in events_of(outcome, CallReceived)] == [seconds(30)] * 2
    for one in ("zoe", "yan"):
        heard = told(outcome, CallUserStateChanged, one)
        assert heard >= {"alice/phone", "bob/phone"} | all_of(one)
    assert not events_of(outcome, CallCreated)


def test_caller_may_invite_more_while_nobody_has_answered() -> None:
    call = after(advanced("bob"), invite("alice", "zoe"))
    assert call.state is CallState.RINGING
    assert states(call) == {"alice": "Accepted", "bob": "Inviting", "zoe": "Inviting"}


def test_who_is_invited_later_answers_as_any_other() -> None:
    call = after(advanced("bob"), invite("alice", "zoe"), received("zoe"), accept("zoe", "desk"))
    assert (states(call)["zoe"], user_of(call, "zoe").main_device) == ("Accepted", "desk")
    assert states(after(call, invite("zoe", "yan", device="desk")))["yan"] == "Inviting"


@pytest.mark.parametrize("state", GONE)
def test_who_has_gone_is_invited_again_with_a_new_deadline_and_rings_everywhere(state: str) -> None:
    outcome = apply(gone(state), invite("alice", "bob", at=seconds(100), timeout_s=30))
    bob = user_of(outcome.call, "bob")
    assert (bob.state, bob.expires_at) == ("Inviting", seconds(130))
    assert (bob.main_device, bob.reject_status, bob.extended_data) == (None, None, "")
    assert told(outcome, CallReceived) == all_of("bob")
    again = after(outcome.call, accept("bob", "desk", at=seconds(120)))
    assert (states(again)["bob"], user_of(again, "bob").main_device) == ("Accepted", "desk")


@pytest.mark.parametrize("state", GONE)
def test_invite_that_is_made_again_is_a_new_event(state: str) -> None:
    call = gone(state)
    (invited,) = events_of(apply(call, invite("alice", "bob")), CallReceived)
    assert invited.id != user_of(call, "bob").invite_id


@pytest.mark.parametrize("state", [*PENDING, "Accepted"])
def test_who_is_in_the_call_or_invited_already_stays_as_it_is(state: str) -> None:
    call = in_state(advanced("bob"), "bob", state)
    assert_changes_nothing(call, invite("alice", "bob"))
    outcome = apply(call, invite("alice", "bob", "zoe"))
    assert user_of(outcome.call, "bob") == user_of(call, "bob")
    assert [event.to for event in events_of(outcome, CallReceived)] == ["client:zoe"]


def test_invite_of_more_that_is_repeated_changes_nothing() -> None:
    command = invite("alice", "zoe", "yan")
    assert_changes_nothing(after(advanced("bob"), command), command)


def test_who_cannot_be_invited_later_is_listed_with_the_call() -> None:
    zoe = Identity("zoe")
    call = after(advanced("bob"), invite("alice", "yan", unreachable=((zoe, "no_device"),)))
    assert call.unreachable == ((zoe, "no_device"),)
    assert "zoe" not in states(call)


def test_call_holds_ten_users_and_refuses_an_eleventh_who_is_invited_or_joins() -> None:
    full = after(advanced("bob"), accept("bob"), invite("bob", *(f"u{i}" for i in range(8))))
    assert len(full.users) == 10
    for command in (invite("bob", "zoe"), invite(None, "zoe"), join("zoe")):
        with pytest.raises(InvalidInput, match=r"10 users.*11"):
            apply(full, command)


def test_who_has_left_makes_room_for_others() -> None:
    call = advanced(*(f"u{i}" for i in range(9)))
    call = after(call, reject("u0"), accept("u1"), quit_("u1"))
    full = after(call, invite("alice", "zoe", "yan"))
    assert len(full.users) == 12
    for command in (invite("alice", "u0"), invite("alice", "xia"), join("u1"), join("xia")):
        with pytest.raises(InvalidInput, match=r"10 users.*11"):
            apply(full, command)
    again = after(full, cancel(to=("zoe",)))
    assert states(after(again, join("u1")))["u1"] == "Accepted"
    assert states(after(again, invite("alice", "u0")))["u0"] == "Inviting"


def test_call_remembers_a_hundred_and_one_users_and_no_more() -> None:
    call = advanced("u0")
    for number in range(1, 100):
        call = after(call, reject(f"u{number - 1}"), invite("alice", f"u{number}"))
    assert len(call.users) == 101
    call = after(call, reject("u99"))
    with pytest.raises(InvalidInput, match="101 users"):
        apply(call, invite("alice", "u100"))
    assert states(after(call, invite("alice", "u0")))["u0"] == "Inviting"


@pytest.mark.parametrize(
    ("invitees", "named"), [((), "at least one"), (("zoe", "zoe"), "twice")], ids=["none", "twice"]
)
def test_invite_of_nobody_or_of_one_twice_is_refused(invitees: tuple[str, ...], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        apply(advanced("bob"), invite("alice", *invitees))


# Joining.


def test_outsider_who_joins_opens_the_call() -> None:
    call = after(advanced("bob"), join("zoe", "desk", data="hi"))
    assert call.state is CallState.OPEN
    zoe = user_of(call, "zoe")
    assert (zoe.state, zoe.main_device, zoe.extended_data) == ("Accepted", "desk", "hi")
    assert states(call)["bob"] == "Inviting"
    assert_changes_nothing(call, join("zoe", "desk", data="hi"))
    assert states(after(call, cancel())) == {
        "alice": "Accepted",
        "bob": "Canceled",
        "zoe": "Accepted",
    }


@pytest.mark.parametrize("command", [invite("zoe", "yan"), quit_("zoe"), end("zoe")])
def test_who_joined_may_do_what_who_accepted_may(command: Command) -> None:
    call = after(advanced("bob"), join("zoe"))
    assert apply(call, command).call != call


def test_user_who_quit_joins_again_by_any_device_which_becomes_the_main_one() -> None:
    outcome = apply(gone("Quit"), join("bob", "desk"))
    assert states(outcome.call)["bob"] == "Accepted"
    assert user_of(outcome.call, "bob").main_device == "desk"
    heard = {"alice/phone", "carol/phone", "bob/desk"}
    assert told(outcome, CallUserStateChanged, "bob") == heard
    assert len(outcome.notices) == 1


@pytest.mark.parametrize("state", ["Rejected", "Timeout"])
def test_who_rejected_or_missed_the_call_may_not_join_but_may_be_invited(state: str) -> None:
    assert assert_refused(gone(state), join("bob")).operation == "join"
    assert states(after(gone(state), invite("carol", "bob")))["bob"] == "Inviting"


# Quitting and ending.


def test_call_goes_on_for_who_stays_even_for_one_alone() -> None:
    outcome = apply(after(advanced("bob"), accept("bob")), quit_("alice"))
    assert outcome.call.state is CallState.OPEN
    assert states(outcome.call) == {"alice": "Quit", "bob": "Accepted"}
    assert not events_of(outcome, CallEnded)
    assert outcome.call.next_deadline is None


def test_caller_who_quits_while_ringing_leaves_the_invites_alive() -> None:
    call = after(advanced("bob", "carol"), quit_("alice"))
    assert call.state is CallState.RINGING
    assert states(call) == {"alice": "Quit", "bob": "Inviting", "carol": "Inviting"}
    assert states(after(call, accept("bob")))["bob"] == "Accepted"


def test_caller_who_has_quit_may_still_cancel_while_nobody_has_accepted() -> None:
    call = after(advanced("bob"), quit_("alice"), cancel())
    assert call.state is CallState.ENDED
    assert states(call) == {"alice": "Quit", "bob": "Canceled"}


def test_device_of_a_caller_who_has_quit_goes_offline_without_a_trace() -> None:
    assert_changes_nothing(after(advanced("bob"), quit_("alice")), offline("alice", last=True))


@pytest.mark.parametrize("who", ["alice", "bob", None])
def test_end_by_who_is_in_the_call_or_a_server_ends_it_for_all_and_leaves_the_states(
    who: str | None,
) -> None:
    call = after(advanced("bob", "carol", "dave"), accept("bob"), reject("carol"))
    outcome = apply(call, end(who))
    assert outcome.call.state is CallState.ENDED
    assert states(outcome.call) == states(call)
    assert told(outcome, CallEnded) == {"alice/phone", "bob/phone"} | all_of("dave")
    assert len(outcome.notices) == 1


@pytest.mark.parametrize(
    "command",
    [accept("dave"), reject("dave"), received("dave"), invite("alice", "zoe"), join("zoe")],
)
def test_ended_call_is_never_opened_again(command: Command) -> None:
    over = after(advanced("bob", "dave"), accept("bob"), end("bob"))
    assert assert_refused(over, command).state == "ended"


def test_caller_may_end_the_call_before_anybody_has_answered() -> None:
    call = after(advanced("bob"), end("alice"))
    assert (call.state, states(call)["bob"]) == (CallState.ENDED, "Inviting")


def test_call_on_nobodys_behalf_may_be_joined_and_ended_by_who_is_in_it() -> None:
    call = after(advanced("bob", caller=None), join("zoe"))
    assert states(call) == {"bob": "Inviting", "zoe": "Accepted"}
    assert after(call, end("zoe")).state is CallState.ENDED


def test_who_was_invited_later_may_not_cancel() -> None:
    with pytest.raises(Forbidden, match="caller"):
        apply(after(advanced("bob"), invite("alice", "zoe")), cancel("zoe"))


def test_who_has_invited_somebody_may_cancel_them_and_nobody_else() -> None:
    call = after(advanced("bob", "carol"), accept("bob"), invite("bob", "zoe", "yan"))
    outcome = apply(call, cancel("bob", to=("zoe", "carol", "nobody")))
    assert states(outcome.call) == {
        "alice": "Accepted",
        "bob": "Accepted",
        "carol": "Inviting",
        "zoe": "Canceled",
        "yan": "Inviting",
    }
    assert outcome.not_cancelled == (
        (Identity("carol"), "not_yours"),
        (Identity("nobody"), "not_invited"),
    )
    all_his = after(outcome.call, cancel("bob"))
    assert {one for one, state in states(all_his).items() if state == "Inviting"} == {"carol"}
    assert_changes_nothing(all_his, cancel("bob"))
    assert states(after(all_his, cancel()))["carol"] == "Canceled"


def test_caller_may_cancel_whom_others_have_invited() -> None:
    call = after(advanced("bob"), accept("bob"), invite("bob", "zoe"), cancel("alice", to=("zoe",)))
    assert (call.state, states(call)["zoe"]) == (CallState.OPEN, "Canceled")


def test_who_was_cancelled_may_be_invited_again() -> None:
    call = after(advanced("bob", "carol"), cancel(to=("bob",)), invite("alice", "bob"))
    assert states(call)["bob"] == "Inviting"


def test_cancel_withdraws_the_later_invites_too() -> None:
    call = after(advanced("bob"), invite("alice", "zoe", timeout_s=TIMEOUT_S * 2), cancel())
    assert states(call) == {"alice": "Accepted", "bob": "Canceled", "zoe": "Canceled"}
