"""What a call's end is called, who made it, and how long the call had been answered."""

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import TypeAdapter

from bellwire.signaling.calls.calls import Attestation, Call, EndReason, Mode, RejectStatus
from bellwire.signaling.calls.commands import (
    Accept,
    Cancel,
    Command,
    End,
    Expire,
    GoOffline,
    Invitee,
    Join,
    NewCall,
    Quit,
    Reject,
)
from bellwire.signaling.calls.events import CallEnded
from bellwire.signaling.calls.rules import ABANDONED_AFTER, apply, create_call
from bellwire.signaling.identifiers import CallSid, DeviceId, Identity
from bellwire.signaling.wire.answers import CallAnswer

ALICE, BOB, CAROL, EVE = map(Identity, ("alice", "bob", "carol", "eve"))
PHONE = DeviceId("phone")
START = datetime(2026, 11, 21, 8, tzinfo=UTC)
OWN, SERVER = Attestation.FULL, Attestation.PARTIAL


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def called(*invitees: Identity, mode: Mode = Mode.COMMON) -> Call:
    return create_call(
        NewCall(
            CallSid("CA" + "0" * 32),
            ALICE,
            tuple(map(Invitee, invitees)),
            START,
            60,
            device=PHONE,
            mode=mode,
            attestation=OWN,
        )
    ).call


def after(call: Call, *commands: Command) -> tuple[Call, list[CallEnded]]:
    ends = []
    for command in commands:
        outcome = apply(call, command)
        call = outcome.call
        ends += [n.event for n in outcome.notices if isinstance(n.event, CallEnded)]
    return call, ends


NOBODY = (None, None)

ENDINGS: list[
    tuple[Mode, list[Command], EndReason, tuple[Identity | None, object], float | None]
] = [
    (Mode.COMMON, [Cancel(ALICE, at(3), attestation=OWN)], EndReason.CANCELLED, (ALICE, OWN), None),
    (Mode.COMMON, [Cancel(None, at(3))], EndReason.CANCELLED, NOBODY, None),
    (Mode.COMMON, [Quit(ALICE, PHONE, at(3), "", OWN)], EndReason.CANCELLED, (ALICE, OWN), None),
    (
        Mode.COMMON,
        [GoOffline(ALICE, PHONE, at(3), last=True)],
        EndReason.CALLER_OFFLINE,
        (ALICE, None),
        None,
    ),
    (
        Mode.COMMON,
        [
            Reject(BOB, PHONE, at(3), RejectStatus.BUSY, "", OWN),
            Reject(CAROL, PHONE, at(4), RejectStatus.REJECTED, "", SERVER),
        ],
        EndReason.REJECTED,
        (CAROL, SERVER),
        None,
    ),
    (
        Mode.COMMON,
        [
            Reject(BOB, PHONE, at(3), RejectStatus.REJECTED, "", OWN),
            Reject(CAROL, PHONE, at(4), RejectStatus.BUSY, "", OWN),
        ],
        EndReason.BUSY,
        (CAROL, OWN),
        None,
    ),
    (Mode.COMMON, [Expire(at(60))], EndReason.TIMEOUT, NOBODY, None),
    (
        Mode.COMMON,
        [
            Accept(BOB, PHONE, at(2), "", OWN),
            Accept(CAROL, PHONE, at(5), "", OWN),
            Quit(CAROL, PHONE, at(9), "", OWN),
            Quit(BOB, PHONE, at(12.5), "", OWN),
        ],
        EndReason.HUNG_UP,
        (BOB, OWN),
        10.5,
    ),
    (
        Mode.COMMON,
        [Accept(BOB, PHONE, at(2), "", OWN), End(None, None, at(9))],
        EndReason.ENDED,
        NOBODY,
        7,
    ),
    (
        Mode.ADVANCED,
        [Accept(BOB, PHONE, at(2), "", OWN), End(BOB, PHONE, at(9), "", OWN)],
        EndReason.ENDED,
        (BOB, OWN),
        7,
    ),
    (
        Mode.ADVANCED,
        [
            Join(EVE, PHONE, at(1), "", OWN),
            Reject(BOB, PHONE, at(2)),
            Reject(CAROL, PHONE, at(2)),
            Quit(EVE, PHONE, at(3)),
            Quit(ALICE, PHONE, at(4)),
            Expire(at(4) + ABANDONED_AFTER),
        ],
        EndReason.ABANDONED,
        NOBODY,
        3 + ABANDONED_AFTER.total_seconds(),
    ),
]


@pytest.mark.parametrize(("mode", "commands", "reason", "by", "duration_s"), ENDINGS)
def test_an_end_says_what_made_it_who_and_how_long_the_call_was_answered(
    mode: Mode,
    commands: list[Command],
    reason: EndReason,
    by: tuple[Identity | None, object],
    duration_s: float | None,
) -> None:
    call, ends = after(called(BOB, CAROL, mode=mode), *commands)
    assert (call.end_reason, (call.ended_by, call.ended_attestation)) == (reason, by)
    assert (call.ended_at, call.duration_s) == (commands[-1].at, duration_s)
    assert [(end.reason, end.ended_by) for end in ends] == [(reason, by[0])]


def test_the_first_answer_is_kept_also_when_others_come_and_go() -> None:
    call, _ = after(
        called(BOB, CAROL, mode=Mode.ADVANCED),
        Accept(CAROL, PHONE, at(4)),
        Quit(CAROL, PHONE, at(5)),
        Accept(BOB, PHONE, at(6)),
    )
    assert (call.answered_at, call.answered_by) == (at(4), CAROL)
    assert (call.ended_at, call.end_reason, call.duration_s) == (None, None, None)


def test_a_caller_who_comes_back_has_not_answered() -> None:
    call, _ = after(
        called(BOB, mode=Mode.ADVANCED), Quit(ALICE, PHONE, at(1)), Join(ALICE, PHONE, at(2))
    )
    assert call.answered_at is None
    assert after(call, Accept(BOB, PHONE, at(3)))[0].answered_at == at(3)


def test_an_answer_tells_whom_the_call_was_for_and_whose_word_it_is() -> None:
    call, _ = after(
        called(BOB, CAROL),
        Reject(BOB, PHONE, at(1), RejectStatus.BUSY),
        Accept(CAROL, PHONE, at(2)),
        Quit(ALICE, PHONE, at(3), "", OWN),
    )
    answer = CallAnswer.of(call).model_dump(mode="json", by_alias=True)
    told = {
        "from": "alice",
        "to": ["bob", "carol"],
        "attestation": "A",
        "answered_at": "2026-11-21T08:00:02.000Z",
        "answered_by": "carol",
        "ended_at": "2026-11-21T08:00:03.000Z",
        "end_reason": "hung-up",
        "ended_by": "alice",
        "ended_attestation": "A",
        "duration_s": 1.0,
    }
    assert told.items() <= answer.items()
    assert [user["reject_status"] for user in answer["users"]] == [None, "busy", None]


def test_a_call_that_a_relay_of_before_kept_is_read_and_has_no_times() -> None:
    kept: TypeAdapter[Call] = TypeAdapter(Call)
    call, _ = after(called(BOB), Accept(BOB, PHONE, at(2)))
    document = kept.dump_python(call, mode="json")
    for name in ("answered_at", "answered_by", "ended_at", "end_reason", "ended_by"):
        del document[name]
    del document["ended_attestation"]
    before = kept.validate_python(document)
    assert (before.answered_at, before.duration_s) == (None, None)
    over, _ = after(before, Quit(BOB, PHONE, at(9)))
    assert (over.answered_at, over.ended_at, over.duration_s) == (None, at(9), None)
    # And a relay of before reads what this one has kept: it goes past what it does not know.
    assert (
        kept.validate_python({**document, "of_tomorrow": 1, "end_reason": "of-tomorrow"})
        is not None
    )
    assert kept.validate_python({**document, "end_reason": "new"}).end_reason is EndReason.UNKNOWN
