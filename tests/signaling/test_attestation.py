"""Whose word it is that moved a user: its own, or a server's in its name."""

import json
from dataclasses import replace

import pytest
from pydantic import TypeAdapter

from bellwire.signaling.calls.calls import Attestation, Call, Mode, RejectStatus
from bellwire.signaling.calls.commands import Accept, Command, Join, Quit, Received, Reject, Say
from bellwire.signaling.calls.events import (
    CallCancelled,
    CallMessage,
    CallUserStateChanged,
    parse_event,
)
from bellwire.signaling.calls.rules import apply
from bellwire.signaling.wire.answers import CallAnswer
from tests.signaling.calls_in_play import (
    accept,
    advanced,
    after,
    events_of,
    expire,
    invite,
    join,
    quit_,
    received,
    reject,
    ringing,
    say,
    user_of,
)

OWN, SERVERS = Attestation.FULL, Attestation.PARTIAL


def by(
    attestation: Attestation, command: Accept | Join | Quit | Received | Reject | Say
) -> Command:
    return replace(command, attestation=attestation)


def open_call(attestation: Attestation = OWN) -> Call:
    return after(ringing("bob", "carol"), by(attestation, accept("bob")))


@pytest.mark.parametrize("attestation", Attestation)
@pytest.mark.parametrize("command", [received("bob"), accept("bob"), reject("bob")], ids=repr)
def test_a_change_of_state_says_whether_the_user_itself_or_a_server_made_it(
    command: Accept | Received | Reject, attestation: Attestation
) -> None:
    outcome = apply(ringing("bob"), by(attestation, command))
    (changed,) = events_of(outcome, CallUserStateChanged)
    assert changed.attestation is attestation
    shown = CallAnswer.of(outcome.call)
    assert {user.identity: user.attestation for user in shown.users}["bob"] is attestation


def test_who_accepts_is_told_with_its_main_device_and_who_does_not_without() -> None:
    (changed,) = events_of(apply(ringing("bob"), by(OWN, accept("bob"))), CallUserStateChanged)
    assert changed.main_device == "phone"
    (changed,) = events_of(apply(ringing("bob"), by(OWN, reject("bob"))), CallUserStateChanged)
    assert changed.main_device is None


def test_what_time_or_others_do_to_a_user_is_nobodys_word() -> None:
    call = after(ringing("bob"), by(OWN, received("bob")))
    assert user_of(call, "bob").own_attestation is OWN
    (changed,) = events_of(apply(call, expire()), CallUserStateChanged)
    assert changed.attestation is None
    again = after(advanced("bob"), by(OWN, reject("bob")), invite("alice", "bob"))
    assert user_of(again, "bob").own_attestation is None


def test_a_server_that_repeats_what_the_user_has_done_changes_nothing_of_it() -> None:
    for again in (accept("bob"), join("bob"), join("bob", None)):
        outcome = apply(open_call(), by(SERVERS, again))
        assert outcome.notices == ()
        assert user_of(outcome.call, "bob").own_attestation is OWN


def test_a_server_that_takes_a_call_over_is_told_to_all_and_a_device_that_does_to_nobody() -> None:
    outcome = apply(open_call(), by(SERVERS, join("bob", "desk")))
    (changed,) = events_of(outcome, CallUserStateChanged)
    assert (changed.identity, changed.state, changed.attestation) == ("bob", "Accepted", SERVERS)
    assert changed.main_device == "desk"
    quietly = apply(open_call(), by(OWN, join("bob", "desk")))
    assert events_of(quietly, CallUserStateChanged) == []
    assert user_of(quietly.call, "bob").own_attestation is OWN


def test_a_user_takes_back_the_place_that_a_server_had_taken_on_the_same_device() -> None:
    outcome = apply(open_call(SERVERS), by(OWN, join("bob")))
    assert events_of(outcome, CallCancelled) == []
    (changed,) = events_of(outcome, CallUserStateChanged)
    assert changed.attestation is OWN
    assert apply(outcome.call, by(OWN, join("bob"))).notices == ()


def test_who_comes_back_by_a_server_is_not_there_by_its_own_word_any_more() -> None:
    gone = after(open_call(), by(OWN, quit_("bob")))
    back = after(replace(gone, mode=Mode.ADVANCED), by(SERVERS, join("bob")))
    assert user_of(back, "bob").own_attestation is SERVERS


@pytest.mark.parametrize("attestation", Attestation)
def test_a_message_says_whose_word_it_is(attestation: Attestation) -> None:
    (said,) = events_of(apply(open_call(), by(attestation, say("bob"))), CallMessage)
    assert said.attestation is attestation
    (servers_own,) = events_of(apply(open_call(), by(SERVERS, say(None))), CallMessage)
    assert servers_own.attestation is None


def test_a_rejection_that_no_person_made_says_so_and_a_persons_says_nothing() -> None:
    for status in RejectStatus:
        itself = replace(reject("bob", status=status), automatic=True)
        (changed,) = events_of(apply(ringing("bob"), itself), CallUserStateChanged)
        assert (changed.automatic, changed.reject_status) == (True, status)
        assert '"automatic":true' in changed.document
    (changed,) = events_of(apply(ringing("bob"), reject("bob")), CallUserStateChanged)
    assert "automatic" not in changed.document


def test_a_call_that_a_relay_of_the_version_before_kept_is_nobodys_own_word() -> None:
    documents = TypeAdapter(Call)
    kept = documents.dump_python(open_call(), mode="json")
    for user in kept["users"]:
        del user["own_attestation"]
    call = documents.validate_python(kept)
    assert user_of(call, "bob").own_attestation is None
    assert CallAnswer.of(call).users[1].attestation is None


def test_an_event_of_a_relay_of_the_version_before_is_nobodys_own_word() -> None:
    (changed,) = events_of(apply(ringing("bob"), accept("bob")), CallUserStateChanged)
    old = json.loads(changed.document)
    old.pop("main_device")
    read = parse_event(json.dumps(old))
    assert isinstance(read, CallUserStateChanged)
    assert (read.attestation, read.main_device, read.automatic) == (None, None, None)
