"""Who hears of what: every event of a call and every state that a user of it can be in (spec §3,
second table), in both modes.

The users of the call are named for their states. Whoever acted for a user did so on its tablet.
"""

from dataclasses import replace
from itertools import product

import pytest

from bellwire.signaling.calls.calls import Call, CallState, Mode, RejectStatus, UserState
from bellwire.signaling.calls.commands import Command
from bellwire.signaling.calls.events import (
    CallCancelled,
    CallCreated,
    CallEnded,
    CallEvent,
    CallMessage,
    CallReceived,
    CallTimeout,
    CallUserStateChanged,
)
from bellwire.signaling.calls.rules import apply
from bellwire.signaling.identifiers import Identity
from tests.signaling.calls_in_play import (
    DEADLINE,
    DEVICES,
    KX,
    SID,
    SOON,
    accept,
    after,
    all_of,
    assert_refused,
    cancel,
    end,
    events_of,
    expire,
    in_state,
    invite,
    join,
    new_call,
    offline,
    quit_,
    received,
    reject,
    ringing,
    say,
    seconds,
    states,
    told,
    user_of,
)
from tests.signaling.tables import documented

CHECK_S = 5
STATES = tuple(state.value for state in UserState)
COLUMNS = ("caller", *STATES)

TABLE, ADVANCED_TABLE, LARGE_TABLE = (
    documented(f"recipients-{kind}") for kind in ("both", "advanced", "large")
)
"""`all`: each of the recipient's devices. `main`: its tablet alone. `rest`: all but its tablet."""

ACTIONS: dict[str, Command] = {
    "Inviting confirms": received("Inviting", "tablet"),
    "Inviting is not reached": expire(CHECK_S),
    "NotYetReceived confirms": received("NotYetReceived", "tablet"),
    "Inviting accepts": accept("Inviting", "tablet"),
    "Received accepts": accept("Received", "tablet"),
    "NotYetReceived rejects": reject("NotYetReceived", "tablet"),
    "Received runs out": expire(CHECK_S - 1),
    "caller cancels Received": cancel("caller", to=("Received",)),
    "Accepted quits": quit_("Accepted", "tablet"),
    "caller quits": quit_("caller", "tablet"),
    "Accepted switches to the desk": join("Accepted", "desk"),
    "caller says": say("caller", device="tablet"),
    "Accepted says": say("Accepted", device="tablet"),
    "Received says": say("Received"),
    "server says": say(None),
    "Received says to Inviting and caller": say("Received", "Inviting", "caller"),
    "server says to Accepted and Quit": say(None, "Accepted", "Quit"),
    "server ends": end(None),
    "Accepted ends": end("Accepted", "tablet"),
    "caller ends": end("caller", "tablet"),
    "Rejected is invited again": invite("caller", "Rejected", device="tablet"),
    "Timeout is invited again": invite("Accepted", "Timeout", device="tablet"),
    "Quit is invited again": invite(None, "Quit"),
    "Received is invited again": invite("caller", "Received", device="tablet"),
    "Quit joins": join("Quit", "tablet"),
}

KINDS: dict[str, type[CallEvent]] = {
    "created": CallCreated,
    "received": CallReceived,
    "user_state_changed": CallUserStateChanged,
    "cancelled": CallCancelled,
    "timeout": CallTimeout,
    "ended": CallEnded,
    "message": CallMessage,
}


def read(table: str) -> dict[tuple[str, str], dict[str, str]]:
    """Action and recipient -> what the recipient hears of each event."""
    head, *lines = table.strip("\n").splitlines()
    cells: dict[tuple[str, str], dict[str, str]] = {}
    action = ""
    for line in lines:
        if not line.startswith(" "):
            action = line
            cells |= {(action, recipient): {} for recipient in COLUMNS}
            continue
        event, *row = line.split()
        for recipient, cell in zip(head.split(), row, strict=True):
            if cell != "-":
                cells[action, recipient][event] = cell
    return cells


MODES = {"common": Mode.COMMON, "advanced": Mode.ADVANCED, "large": Mode.COMMON}
"""A large call is one of more than ten users, in common mode."""

CELLS = {
    (kind, *place): heard
    for kind, cells in (
        ("common", read(TABLE)),
        ("advanced", read(TABLE) | read(ADVANCED_TABLE)),
        ("large", read(TABLE) | read(LARGE_TABLE)),
    )
    for place, heard in cells.items()
}


def party(mode: Mode = Mode.COMMON, *left_out: str) -> Call:
    """A call of ten, one user in each state beside the caller."""
    invitees = [state for state in STATES if state not in left_out]
    call = ringing(*invitees, caller="caller", device="tablet", mode=mode, check_s=CHECK_S)
    for state in invitees:
        call = in_state(call, state, state, "tablet")
    opened = "Accepted" in invitees
    return replace(call, state=CallState.OPEN if opened else CallState.RINGING)


def large_party() -> Call:
    """The same call with two more, who have rejected it."""
    call = party()
    for one in ("u1", "u2"):
        gone = replace(user_of(call, "Rejected"), identity=Identity(one))
        call = call.with_joined(gone)
    assert call.is_large
    return call


def ready_for(action: str, kind: str) -> Call:
    call = large_party() if kind == "large" else party(MODES[kind])
    if action == "Received runs out":  # it alone, and before anything else is due
        early = replace(user_of(call, "Received"), expires_at=seconds(CHECK_S - 1))
        return call.with_user(early)
    return call


def devices(recipient: str, cell: str) -> set[str]:
    return {
        f"{recipient}/{device}"
        for device in DEVICES
        if cell == "all" or (cell == "main") is (device == "tablet")
    }


def test_tables_of_the_tests_name_every_action_and_every_recipient() -> None:
    assert {action for _, action, _ in CELLS} == set(ACTIONS)
    assert {(action, who) for _, action, who in CELLS} == set(product(ACTIONS, COLUMNS))
    assert {event for heard in CELLS.values() for event in heard} == set(KINDS) - {"created"}


@pytest.mark.parametrize(("kind", "action", "recipient"), CELLS)
def test_recipient_hears_of_an_event_on_the_devices_that_its_state_calls_for(
    kind: str, action: str, recipient: str
) -> None:
    outcome = apply(ready_for(action, kind), ACTIONS[action])
    expected = CELLS[kind, action, recipient]
    for event, model in KINDS.items():
        heard = {device for device in told(outcome, model) if device.startswith(f"{recipient}/")}
        assert heard == (devices(recipient, expected[event]) if event in expected else set())


# A call that nobody has accepted yet: what the caller's withdrawal tells whom.


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize(
    "command",
    [cancel("caller"), cancel(None), offline("caller", "tablet", last=False)],
    ids=["caller", "server", "caller offline"],
)
def test_withdrawal_is_told_to_all_who_were_still_invited_and_the_end_to_the_caller(
    mode: Mode, command: Command
) -> None:
    outcome = apply(party(mode, "Accepted", "Quit"), command)
    invited = ("Inviting", "NotYetReceived", "Received")
    assert {states(outcome.call)[one] for one in invited} == {"Canceled"}
    assert told(outcome, CallCancelled) == all_of(*invited)
    assert {event.reason for event in events_of(outcome, CallCancelled)} == {"cancelled"}
    assert told(outcome, CallEnded) == {"caller/tablet"}
    for one in invited:
        assert "caller/tablet" in told(outcome, CallUserStateChanged, one)
    heard = set().union(*(told(outcome, kind) for kind in KINDS.values()))
    assert heard == all_of(*invited) | {"caller/tablet"}


def test_withdrawal_carries_what_the_caller_says_to_it() -> None:
    outcome = apply(ringing("bob"), cancel(data="sorry"))
    assert [event.extended_data for event in events_of(outcome, CallCancelled)] == ["sorry"]
    (change,) = events_of(outcome, CallUserStateChanged)
    assert (change.identity, change.state, change.extended_data) == ("bob", "Canceled", "sorry")


def test_joining_from_outside_is_told_to_all_in_the_call_and_to_the_joining_device() -> None:
    outcome = apply(party(Mode.ADVANCED, "Unknown"), join("zoe", "desk", data="hi"))
    invited = all_of("Inviting", "NotYetReceived", "Received")
    main = {"caller/tablet", "Accepted/tablet", "zoe/desk"}
    assert told(outcome, CallUserStateChanged) == invited | main
    (change,) = events_of(outcome, CallUserStateChanged)
    assert (change.identity, change.state, change.extended_data) == ("zoe", "Accepted", "hi")
    assert len(outcome.notices) == 1


@pytest.mark.parametrize("mode", Mode)
def test_caller_who_has_quit_still_hears_how_the_invited_answer_but_nothing_else(
    mode: Mode,
) -> None:
    call = after(party(mode), quit_("caller", "tablet"))
    answered = apply(call, accept("Inviting", "tablet"))
    assert "caller/tablet" in told(answered, CallUserStateChanged, "Inviting")
    said = say("Accepted", device="tablet")
    assert not told(apply(call, said), CallMessage) & all_of("caller")
    assert not told(apply(call, end(None)), CallEnded) & all_of("caller")


# What the events carry.


def test_acceptance_carries_the_data_given_with_it() -> None:
    outcome = apply(ringing("bob"), accept("bob", "desk", data="floor 2"))
    (change,) = events_of(outcome, CallUserStateChanged)
    assert (change.identity, change.state, change.extended_data) == ("bob", "Accepted", "floor 2")


def test_rejection_carries_its_status_and_data() -> None:
    outcome = apply(
        ringing("bob", "carol"), reject("bob", data="in a meeting", status=RejectStatus.BUSY)
    )
    (change,) = events_of(outcome, CallUserStateChanged)
    assert (change.state, change.reject_status) == ("Rejected", "busy")
    assert change.extended_data == "in a meeting"


def test_hang_up_carries_the_data_given_with_it() -> None:
    outcome = apply(party(), quit_("Accepted", "tablet", data="bye"))
    (change,) = events_of(outcome, CallUserStateChanged)
    assert (change.state, change.extended_data) == ("Quit", "bye")


@pytest.mark.parametrize(("who", "from_"), [("alice", "client:alice"), (None, None)])
def test_message_carries_who_says_it_what_and_its_own_id(
    who: str | None, from_: str | None
) -> None:
    call = after(ringing("bob"), accept("bob"))
    outcome = apply(call, say(who, "bob", content="open the door"))
    (message,) = events_of(outcome, CallMessage)
    assert (message.from_, message.voice_event_sid, message.call_sid) == (from_, KX, SID)
    assert message.content == {"text": "open the door"}
    assert (message.content_type, message.message_type) == (
        "application/json",
        "user-defined-message",
    )
    assert told(outcome, CallMessage) == {"bob/phone"}


def test_message_said_again_is_the_same_event_and_moves_nothing() -> None:
    call = after(ringing("bob", "carol"), accept("bob"))
    first, second = apply(call, say("bob")), apply(call, say("bob"))
    assert first == second
    assert first.call == call
    assert [notice.event.id for notice in first.notices] == [f"{SID}-{KX}"]


@pytest.mark.parametrize("command", [say("alice", "alice"), say("alice", "carol"), say("alice")])
def test_message_that_nobody_would_hear_is_refused(command: Command) -> None:
    call = after(ringing("bob", "carol", mode=Mode.ADVANCED), reject("carol"), reject("bob"))
    assert "nobody" in assert_refused(call, command).detail


@pytest.mark.parametrize(("kind", "action"), {key[:2]: None for key in CELLS})
def test_every_event_carries_the_call_and_a_new_id(kind: str, action: str) -> None:
    call = ready_for(action, kind)
    events = [notice.event for notice in apply(call, ACTIONS[action]).notices]
    assert {event.call_sid for event in events} <= {SID}
    assert len({event.id for event in events}) == len(events)
    earlier = {f"{SID}-{number}" for number in range(call.events + 1)}
    assert not earlier & {event.id for event in events}


def test_every_event_carries_the_moment_of_its_command() -> None:
    for notice in apply(party(), accept("Received", "tablet")).notices:
        assert notice.event.at == SOON
    for notice in apply(ringing("bob"), expire()).notices:
        assert notice.event.at == DEADLINE


def test_new_call_tells_each_invitee_of_the_invite_and_the_caller_alone_what_is_tried() -> None:
    outcome = new_call("bob", "carol", device="tablet")
    assert told(outcome, CallReceived) == all_of("bob", "carol")
    assert told(outcome, CallCreated) == {"alice/tablet"}
    assert len(outcome.notices) == 3
    assert user_of(outcome.call, "alice").main_device == "tablet"


# Media: `Say` to one identity. Early, before anybody has accepted, it reaches every device that rings.


@pytest.mark.parametrize("state", ["Inviting", "NotYetReceived", "Received"])
def test_early_media_goes_between_the_caller_and_who_is_still_invited(state: str) -> None:
    call = in_state(ringing("bob", "carol", device="tablet"), "bob", state)
    by_alice = say("alice", "bob", device="tablet")
    assert told(apply(call, by_alice), CallMessage) == all_of("bob")
    assert told(apply(call, say("bob", "alice")), CallMessage) == {"alice/tablet"}


def test_media_of_a_call_goes_between_the_devices_that_carry_it() -> None:
    call = after(ringing("bob", "carol", device="tablet"), accept("bob", "desk"))
    by_alice, by_bob = say("alice", "bob", device="tablet"), say("bob", "alice", device="desk")
    assert told(apply(call, by_alice), CallMessage) == {"bob/desk"}
    assert told(apply(call, by_bob), CallMessage) == {"alice/tablet"}


def test_media_for_who_is_no_longer_there_is_refused() -> None:
    call = after(ringing("bob", "carol"), reject("bob"))
    assert_refused(call, say("alice", "bob"))
    assert_refused(call, say("bob", "alice"))
