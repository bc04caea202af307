"""Every state of a user and every operation, in both modes, by name (spec §3, first table)."""

from dataclasses import replace
from itertools import product

import pytest

from bellwire.signaling.calls.calls import Call, CallState, Mode, UserState
from bellwire.signaling.calls.commands import Command
from bellwire.signaling.calls.rules import Move, apply
from bellwire.signaling.errors import Forbidden, InvalidInput, WhyRefused
from tests.signaling.calls_in_play import (
    accept,
    after,
    assert_changes_nothing,
    assert_refused,
    cancel,
    end,
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
    say,
    states,
    user_of,
)
from tests.signaling.tables import documented

CHECK_S = 5

COMMON, ADVANCED = (documented(f"guards-{mode}") for mode in Mode)
"""Bob is in the state of the column, by his phone where a device led there. `kept`: allowed, and his state
stays. `no`: refused."""

COMMANDS: dict[str, Command] = {
    "received": received("bob", "tablet"),
    "not_received": expire(CHECK_S),
    "accept": accept("bob", "tablet"),
    "reject": reject("bob", "tablet"),
    "ignore": ignore("bob", "tablet"),
    "cancel": cancel(),
    "cancel-one": cancel(to=("bob",)),
    "timeout": expire(),
    "invite": invite("bob", "zoe"),
    "invited-again": invite("alice", "bob"),
    "join": join("bob", "tablet"),
    "quit": quit_("bob"),
    "end": end("bob"),
    "message": say("bob"),
    "invite-elsewhere": invite("bob", "zoe", device="tablet"),
    "quit-elsewhere": quit_("bob", "tablet"),
    "end-elsewhere": end("bob", "tablet"),
    "message-elsewhere": say("bob", device="tablet"),
}
"""Bob's tablet answers and joins; once he is in the call, his phone speaks, and `elsewhere` his tablet."""

MAIN_AFTER = {"accept": "tablet", "reject": "tablet", "join": "tablet", "invited-again": None}
"""Bob's main device, where the operation was his to do and changes it."""

TOUCHES_CAROL = ("not_received", "cancel", "timeout")


def cells(table: str) -> dict[tuple[str, str], str]:
    head, *rows = (line.split() for line in table.strip().splitlines())
    return {
        (name, state): cell for name, *row in rows for state, cell in zip(head, row, strict=True)
    }


TABLE = {
    (mode, *place): cell
    for mode, table in ((Mode.COMMON, COMMON), (Mode.ADVANCED, ADVANCED))
    for place, cell in cells(table).items()
}


def bob_in(state: str, mode: Mode) -> Call:
    """Alice's call to Bob, who is in this state, and to Carol, who is still invited."""
    call = ringing("bob", "carol", mode=mode, check_s=CHECK_S)
    call = in_state(call, "bob", state)
    opened = state in ("Accepted", "Quit")
    return replace(call, state=CallState.OPEN) if opened else call


def test_tables_of_the_tests_name_every_operation_in_every_state() -> None:
    operations = {*(operation.value for operation in Move), *COMMANDS}
    assert {operation.value for operation in Move} <= set(COMMANDS)
    assert set(TABLE) == set(product(Mode, operations, (state.value for state in UserState)))


@pytest.mark.parametrize(("mode", "operation", "state"), TABLE)
def test_operation_moves_a_user_as_the_table_says_or_is_refused(
    mode: Mode, operation: str, state: str
) -> None:
    call, expected = bob_in(state, mode), TABLE[mode, operation, state]
    command = COMMANDS[operation]
    if expected == "no":
        refusal = assert_refused(call, command)
        asked = "invite" if operation == "invited-again" else operation.partition("-elsewhere")[0]
        assert refusal.operation == asked
        assert refusal.state == ("Accepted" if operation == "invited-again" else state)
        assert refusal.reason == why_refused(mode, operation, state)
        assert refusal.fields == {
            "operation": refusal.operation,
            "state": refusal.state,
            "reason": refusal.reason,
        }
        assert refusal.detail
        return
    moved = apply(call, command).call
    assert states(moved)["bob"] == (state if expected == "kept" else expected)
    assert user_of(moved, "bob").main_device == MAIN_AFTER.get(
        operation if expected != "kept" or operation == "join" else "",
        user_of(call, "bob").main_device,
    )
    others = {"alice": "Accepted"}
    if operation not in TOUCHES_CAROL:
        others["carol"] = "Inviting"
    assert others.items() <= states(moved).items()


def why_refused(mode: Mode, operation: str, state: str) -> WhyRefused:
    """Why the table refuses."""
    if state == "Accepted" and operation.endswith("-elsewhere"):
        needs_advanced = operation.startswith("invite") and mode is Mode.COMMON
        return WhyRefused.STATE if needs_advanced else WhyRefused.NOT_MAIN_DEVICE
    by_table = {"received", "accept", "reject", "ignore", "quit", "quit-elsewhere"}
    if mode is Mode.ADVANCED:
        by_table |= {"join"}
    else:
        by_table |= {"end", "end-elsewhere"}
    states = {"Canceled": WhyRefused.CANCELLED, "Timeout": WhyRefused.TIMED_OUT}
    return states.get(state, WhyRefused.STATE) if operation in by_table else WhyRefused.STATE


# What the table says of an ended call: all is over, and what was done stays done.

CANCELS, ENDS = ("cancel", "cancel-one"), ("end", "end-elsewhere")
ENDED_QUIETLY = {
    *product(Mode, ("not_received", "timeout"), (state.value for state in UserState)),
    *product(Mode, CANCELS, ("Canceled",)),  # that is the call which the caller cancelled
    *product(Mode, ("quit", "quit-elsewhere"), ("Quit",)),
    *product((Mode.COMMON,), ENDS, ("Quit",)),
    *product(
        (Mode.ADVANCED,), ENDS, ("Accepted",)
    ),  # who end a call in the same instant all succeed
}


@pytest.mark.parametrize(("mode", "operation", "state"), TABLE)
def test_call_that_has_ended_refuses_every_operation_that_is_no_repeat(
    mode: Mode, operation: str, state: str
) -> None:
    withdrawn = operation in CANCELS and state == "Canceled"
    call = replace(bob_in(state, mode), state=CallState.ENDED, cancelled=withdrawn)
    command = COMMANDS[operation]
    if (mode, operation, state) in ENDED_QUIETLY:
        assert_changes_nothing(call, command)
    else:
        refusal = assert_refused(call, command)
        assert refusal.state in ("ended", state)
        if refusal.state == "ended":
            asker_was_cancelled = state == "Canceled" and operation != "invited-again"
            cancelled = call.cancelled or asker_was_cancelled
            assert refusal.code == (31008 if cancelled else 31487)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("state", [state.value for state in UserState])
def test_end_by_a_server_ends_a_call_in_either_mode_and_leaves_all_states(
    mode: Mode, state: str
) -> None:
    call = bob_in(state, mode)
    ended = apply(call, end(None)).call
    assert ended.state is CallState.ENDED
    assert states(ended) == states(call)
    assert_changes_nothing(ended, end(None))
    assert ended.next_deadline is None


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("state", [state.value for state in UserState])
def test_user_whose_device_goes_offline_stays_in_its_state_unless_it_is_the_caller(
    mode: Mode, state: str, last: bool
) -> None:
    call = bob_in(state, mode)
    assert_changes_nothing(call, offline("bob", "phone", last=last))
    assert_changes_nothing(call, offline("bob", "tablet", last=last))


# Who may ask at all.

OUTSIDERS: dict[str, Command] = {
    "received": received("mallory"),
    "accept": accept("mallory"),
    "reject": reject("mallory"),
    "ignore": ignore("mallory"),
    "cancel": cancel("mallory"),
    "invite": invite("mallory", "zoe"),
    "quit": quit_("mallory"),
    "end": end("mallory"),
    "message": say("mallory"),
}


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("operation", OUTSIDERS)
def test_somebody_outside_the_call_is_forbidden_every_operation(mode: Mode, operation: str) -> None:
    call = ringing("bob", mode=mode)
    for state in (call, after(call, accept("bob")), after(call, cancel())):
        with pytest.raises(Forbidden, match="call"):
            apply(state, OUTSIDERS[operation])


def test_somebody_outside_a_common_call_may_not_join_it_and_an_advanced_call_only_while_it_lives() -> (
    None
):
    for state in (ringing("bob"), after(ringing("bob"), accept("bob"))):
        with pytest.raises(Forbidden, match="mallory"):
            apply(state, join("mallory"))
    with pytest.raises(Forbidden, match="mallory"):
        apply(after(ringing("bob"), cancel()), join("mallory"))
    over = after(ringing("bob", mode=Mode.ADVANCED), cancel())
    assert assert_refused(over, join("mallory")).state == "ended"


@pytest.mark.parametrize("mode", Mode)
def test_device_of_somebody_outside_that_goes_offline_changes_nothing(mode: Mode) -> None:
    assert_changes_nothing(ringing("bob", mode=mode), offline("mallory", last=True))


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("who", ["bob", "carol", "mallory"])
@pytest.mark.parametrize("to", [None, ("carol",)])
def test_who_has_invited_nobody_may_not_cancel(
    mode: Mode, who: str, to: tuple[str, ...] | None
) -> None:
    call = ringing("bob", "carol", mode=mode)
    for state in (call, after(call, accept("bob")), after(call, cancel())):
        with pytest.raises(Forbidden, match="caller"):
            apply(state, cancel(who, to=to))


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize(
    "command", [accept("alice"), reject("alice", "tablet"), accept("alice", "x"), ignore("alice")]
)
def test_caller_cannot_answer_the_own_call(mode: Mode, command: Command) -> None:
    assert assert_refused(ringing("bob", mode=mode), command).state == "Accepted"


def test_refusal_in_a_common_call_says_that_the_operation_needs_an_advanced_one() -> None:
    call = after(ringing("bob", "carol"), accept("bob"), quit_("bob"))
    for command in (invite("alice", "zoe"), invite(None, "zoe"), join("bob")):
        assert "advanced" in assert_refused(call, command).detail


@pytest.mark.parametrize(
    "command", [say("bob", "mallory"), say(None, "mallory"), say("alice", "bob", "mallory")]
)
def test_message_to_somebody_outside_the_call_is_forbidden(command: Command) -> None:
    with pytest.raises(Forbidden, match="mallory"):
        apply(ringing("bob", "carol"), command)


@pytest.mark.parametrize("timeout_s", [0.99, 600.5, float("nan")])
def test_timeout_of_a_later_invite_keeps_the_bounds_of_the_first(timeout_s: float) -> None:
    with pytest.raises(InvalidInput, match="1 to 600"):
        apply(bob_in("Accepted", Mode.ADVANCED), invite("bob", "zoe", timeout_s=timeout_s))
