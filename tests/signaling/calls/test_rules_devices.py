"""Several devices of one identity: who wins, who is told, who takes over; and repeats."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from bellwire.signaling.calls.calls import Call, CallState, Mode
from bellwire.signaling.calls.commands import Command
from bellwire.signaling.calls.events import CallCancelled, CallUserStateChanged
from bellwire.signaling.calls.rules import apply
from tests.signaling.calls_in_play import (
    DEADLINE,
    DEVICES,
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
    invite,
    join,
    offline,
    quit_,
    received,
    reject,
    ringing,
    say,
    states,
    told,
    user_of,
)

# The race of the devices.


def test_second_device_to_accept_is_told_it_was_answered_elsewhere() -> None:
    outcome = apply(ringing("bob"), accept("bob", "tablet"))
    assert told(outcome, CallCancelled) == {"bob/phone", "bob/desk"}
    assert [event.reason for event in events_of(outcome, CallCancelled)] == ["answered_elsewhere"]
    assert assert_refused(outcome.call, accept("bob", "phone")).state == "Accepted"


def test_other_devices_are_told_it_was_rejected_elsewhere() -> None:
    outcome = apply(ringing("bob", "carol"), reject("bob", "tablet"))
    assert told(outcome, CallCancelled) == {"bob/phone", "bob/desk"}
    assert [event.reason for event in events_of(outcome, CallCancelled)] == ["rejected_elsewhere"]
    assert assert_refused(outcome.call, accept("bob", "phone")).state == "Rejected"


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("winner", DEVICES)
def test_exactly_one_of_the_devices_that_accept_in_the_same_instant_wins(
    mode: Mode, winner: str
) -> None:
    call = after(ringing("bob", mode=mode), accept("bob", winner))
    for device in set(DEVICES) - {winner}:
        assert_refused(call, accept("bob", device))
        assert_refused(call, reject("bob", device))
    assert user_of(call, "bob").main_device == winner


def test_only_the_main_device_hears_of_changes_after_it_answered() -> None:
    call = after(ringing("bob", "carol"), accept("bob", "tablet"))
    heard = told(apply(call, accept("carol")), CallUserStateChanged, "carol")
    assert heard == {"alice/phone", "bob/tablet", "carol/phone"}


def test_invited_user_hears_of_changes_on_all_devices() -> None:
    call = after(ringing("bob", "carol"), received("bob", "tablet"))
    heard = told(apply(call, reject("carol")), CallUserStateChanged)
    assert heard == {"alice/phone"} | all_of("bob")


@pytest.mark.parametrize("answer", [accept, reject])
def test_answer_given_by_a_server_stops_every_device_of_the_user(
    answer: Callable[[str, None], Command],
) -> None:
    outcome = apply(ringing("bob", "carol"), answer("bob", None))
    assert told(outcome, CallCancelled) == all_of("bob")
    assert user_of(outcome.call, "bob").main_device is None


def test_user_for_whom_a_server_accepted_hears_of_the_call_on_all_devices() -> None:
    call = after(ringing("bob", "carol"), accept("bob", None))
    assert told(apply(call, reject("carol")), CallUserStateChanged) >= all_of("bob")


@pytest.mark.parametrize("device", ["tablet", None])
def test_device_in_the_call_is_told_when_a_server_hangs_up_for_its_user(device: str | None) -> None:
    call = after(ringing("bob", "carol"), accept("bob", "phone"))
    outcome = apply(call, replace(quit_("bob", device), by_server=True))
    assert states(outcome.call)["bob"] == "Quit"
    assert told(outcome, CallUserStateChanged, "bob") == {"alice/phone", "bob/phone"} | all_of(
        "carol"
    )


# Only the main device speaks for a user who is in the call.

SPEAKING: dict[str, Callable[[str | None], Command]] = {
    "quit": lambda device: quit_("bob", device),
    "end": lambda device: end("bob", device),
    "invite": lambda device: invite("bob", "zoe", device=device),
    "message": lambda device: say("bob", device=device),
}


@pytest.mark.parametrize("operation", SPEAKING)
def test_device_that_is_not_the_main_one_does_nothing_until_it_joins(operation: str) -> None:
    call = after(advanced("bob", "carol"), accept("bob", "phone"))
    asked = SPEAKING[operation]
    refusal = assert_refused(call, asked("tablet"))
    assert (refusal.operation, refusal.state) == (operation, "Accepted")
    assert (refusal.reason, refusal.code) == ("not-main-device", 31403)
    assert "phone" in refusal.detail
    assert "join" in refusal.detail
    taken_over = after(call, join("bob", "tablet"))
    assert apply(taken_over, asked("tablet")).notices
    assert assert_refused(taken_over, asked("phone")).reason == "not-main-device"


@pytest.mark.parametrize("operation", SPEAKING)
def test_who_names_no_device_does_nothing_for_a_user_with_a_main_one(operation: str) -> None:
    call = after(advanced("bob", "carol"), accept("bob", "phone"))
    by_token = replace(SPEAKING[operation](None), by_server=False)
    assert assert_refused(call, by_token).reason == "not-main-device"


@pytest.mark.parametrize("operation", SPEAKING)
@pytest.mark.parametrize("device", ["phone", "tablet", None])
def test_server_speaks_for_a_user_whatever_the_main_device_is(
    operation: str, device: str | None
) -> None:
    call = after(advanced("bob", "carol"), accept("bob", "phone"))
    assert apply(call, replace(SPEAKING[operation](device), by_server=True)).notices


@pytest.mark.parametrize("operation", SPEAKING)
def test_any_device_speaks_where_a_server_has_accepted_and_there_is_no_main_one(
    operation: str,
) -> None:
    call = after(advanced("bob", "carol"), accept("bob", None))
    assert apply(call, SPEAKING[operation]("tablet")).notices


def test_hang_up_of_another_device_leaves_the_call_of_two_as_it_is() -> None:
    call = after(ringing("bob"), accept("bob", "phone"))
    for who in ("alice", "bob"):
        assert assert_refused(call, quit_(who, "tablet")).reason == "not-main-device"
    assert call.state is CallState.OPEN


@pytest.mark.parametrize("device", DEVICES)
def test_any_device_of_the_caller_may_cancel(device: str) -> None:
    call = rings_from(device, Mode.COMMON)
    assert after(call, cancel()).state is CallState.ENDED


@pytest.mark.parametrize("mode", Mode)
def test_silence_on_one_device_leaves_the_call_ringing_on_the_others(mode: Mode) -> None:
    call = ringing("bob", mode=mode)
    assert_changes_nothing(call, ignore("bob", "phone"))
    assert states(after(call, ignore("bob", "phone"), accept("bob", "tablet")))["bob"] == "Accepted"


# Taking a call over.


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("who", ["alice", "bob"])
def test_device_that_joins_takes_the_call_over_unseen_by_the_other_users(
    mode: Mode, who: str
) -> None:
    call = after(ringing("bob", "carol", mode=mode), accept("bob", "phone"))
    outcome = apply(call, join(who, "desk"))
    assert told(outcome, CallCancelled) == {f"{who}/phone"}
    assert [event.reason for event in events_of(outcome, CallCancelled)] == ["joined_elsewhere"]
    assert len(outcome.notices) == 1
    assert user_of(outcome.call, who).main_device == "desk"
    assert states(outcome.call) == states(call)
    assert outcome.call.state is call.state


def test_device_that_took_the_call_over_hears_of_it_from_then_on() -> None:
    call = after(ringing("bob", "carol"), accept("bob", "phone"), join("bob", "desk"))
    heard = told(apply(call, reject("carol")), CallUserStateChanged)
    assert heard == {"alice/phone", "bob/desk"}


def test_device_may_take_the_call_back() -> None:
    call = after(ringing("bob"), accept("bob", "phone"), join("bob", "desk"))
    back = apply(call, join("bob", "phone"))
    assert told(back, CallCancelled) == {"bob/desk"}
    assert user_of(back.call, "bob").main_device == "phone"


@pytest.mark.parametrize("device", ["desk", None])
def test_join_by_the_main_device_or_by_a_server_changes_nothing(device: str | None) -> None:
    call = after(ringing("bob"), accept("bob", "desk"))
    assert_changes_nothing(call, join("bob", device))


def test_device_takes_over_from_all_where_a_server_had_accepted() -> None:
    call = after(ringing("bob", "carol"), accept("bob", None))
    outcome = apply(call, join("bob", "desk"))
    assert told(outcome, CallCancelled) == {"bob/phone", "bob/tablet"}


# A caller who goes offline.


def rings_from(device: str | None, mode: Mode) -> Call:
    return ringing("bob", "carol", device=device, mode=mode)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("last", [True, False])
def test_ringing_call_is_cancelled_when_the_calling_device_goes_offline(
    mode: Mode, last: bool
) -> None:
    call = after(rings_from("phone", mode), offline("alice", "phone", last=last))
    assert call.state is CallState.ENDED
    assert states(call) == {"alice": "Accepted", "bob": "Canceled", "carol": "Canceled"}


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("last", [True, False])
def test_other_device_of_the_caller_goes_offline_without_a_trace(mode: Mode, last: bool) -> None:
    assert_changes_nothing(rings_from("phone", mode), offline("alice", "tablet", last=last))


@pytest.mark.parametrize("mode", Mode)
def test_call_from_no_known_device_is_cancelled_with_the_callers_last_device(mode: Mode) -> None:
    call = rings_from(None, mode)
    assert_changes_nothing(call, offline("alice", "tablet", last=False))
    over = after(call, offline("alice", "tablet", last=True))
    assert (over.state, states(over)["bob"]) == (CallState.ENDED, "Canceled")


def test_ringing_call_follows_the_device_that_took_it_over() -> None:
    call = after(rings_from("phone", Mode.COMMON), join("alice", "desk"))
    assert_changes_nothing(call, offline("alice", "phone", last=False))
    assert after(call, offline("alice", "desk", last=False)).state is CallState.ENDED


@pytest.mark.parametrize("mode", Mode)
def test_open_call_outlives_the_connection_of_the_calling_device(mode: Mode) -> None:
    call = after(rings_from("phone", mode), accept("bob"))
    assert_changes_nothing(call, offline("alice", "phone", last=True))


@pytest.mark.parametrize("mode", Mode)
def test_call_on_nobodys_behalf_and_one_that_is_over_have_no_caller_to_lose(mode: Mode) -> None:
    assert_changes_nothing(
        ringing("bob", caller=None, mode=mode), offline("bob", "phone", last=True)
    )
    over = after(rings_from("phone", mode), offline("alice", last=True))
    assert_changes_nothing(over, offline("alice", last=True))


# Repeats: each from the same actor and device changes nothing and is no error.

REPEATS: dict[str, tuple[Mode, list[Command]]] = {
    "received": (Mode.COMMON, [received("bob")]),
    "accept": (Mode.COMMON, [accept("bob")]),
    "accept by a server": (Mode.COMMON, [accept("bob", None)]),
    "reject": (Mode.COMMON, [reject("bob")]),
    "reject that ends the call": (Mode.COMMON, [reject("carol"), reject("bob")]),
    "reject by a server": (Mode.COMMON, [reject("bob", None)]),
    "reject in an advanced call": (Mode.ADVANCED, [reject("bob")]),
    "cancel": (Mode.COMMON, [cancel()]),
    "cancel by a server": (Mode.COMMON, [cancel(None)]),
    "cancel of one": (Mode.COMMON, [cancel(to=("bob",))]),
    "cancel of one while others talk": (Mode.ADVANCED, [accept("carol"), cancel(to=("bob",))]),
    "cancel of all while others talk": (Mode.COMMON, [accept("carol"), cancel()]),
    "cancel after one rejected": (Mode.COMMON, [reject("bob"), cancel()]),
    "cancel of an advanced call": (Mode.ADVANCED, [cancel()]),
    "expire": (Mode.COMMON, [expire()]),
    "expire in an advanced call": (Mode.ADVANCED, [expire()]),
    "quit": (Mode.COMMON, [accept("bob"), quit_("bob")]),
    "quit by a server": (Mode.COMMON, [accept("bob"), quit_("bob", None)]),
    "quit that ends the call": (Mode.COMMON, [reject("carol"), accept("bob"), quit_("bob")]),
    "quit of the caller": (Mode.COMMON, [accept("bob"), quit_("alice")]),
    "quit of the caller while ringing": (Mode.COMMON, [quit_("alice")]),
    "quit of an advanced call": (Mode.ADVANCED, [accept("bob"), quit_("bob")]),
    "end of a common call": (Mode.COMMON, [accept("bob"), end("bob")]),
    "end of an advanced call": (Mode.ADVANCED, [accept("bob"), end("bob")]),
    "end by a server": (Mode.COMMON, [end(None)]),
    "invite": (Mode.ADVANCED, [invite("alice", "zoe")]),
    "invite of one who rejected": (Mode.ADVANCED, [reject("bob"), invite("alice", "bob")]),
    "join from outside": (Mode.ADVANCED, [join("zoe")]),
    "join after quitting": (Mode.ADVANCED, [accept("bob"), quit_("bob"), join("bob", "desk")]),
    "join by another device": (Mode.COMMON, [accept("bob"), join("bob", "desk")]),
    "offline": (Mode.COMMON, [offline("alice", last=True)]),
}


@pytest.mark.parametrize("name", REPEATS)
def test_repeat_of_an_operation_from_the_same_device_changes_nothing(name: str) -> None:
    mode, commands = REPEATS[name]
    fresh = ringing("bob", "carol", mode=mode)
    call = after(fresh, *commands)
    assert call != fresh
    assert_changes_nothing(call, commands[-1])
    assert_changes_nothing(call, replace(commands[-1], at=DEADLINE + timedelta(seconds=1)))


def test_confirmation_by_another_device_changes_nothing() -> None:
    assert_changes_nothing(after(ringing("bob"), received("bob")), received("bob", "tablet"))


def test_slow_device_that_confirms_what_another_has_accepted_changes_nothing() -> None:
    call = after(advanced("bob"), accept("bob", "phone"))
    assert_changes_nothing(call, received("bob", "tablet"))
