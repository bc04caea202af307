"""The course of a `<Dial>`: what a backend is told of whom it has had rung, and when a call by TwiML ends."""

from datetime import UTC, datetime, timedelta

import pytest

from bellwire.signaling.calls.calls import (
    Attestation,
    Call,
    CallState,
    EndReason,
    Mode,
    RejectStatus,
    UserState,
)
from bellwire.signaling.calls.commands import (
    Accept,
    Cancel,
    Command,
    End,
    Expire,
    Invitee,
    InviteMore,
    NewCall,
    Quit,
    Received,
    Reject,
    Say,
)
from bellwire.signaling.calls.dial_course import DialNews, DialOver, LegNews, never_begun
from bellwire.signaling.calls.dials import Callback, Dial, DialStatus, Leg, LegEvent
from bellwire.signaling.calls.events import CallMessage, CallReceived
from bellwire.signaling.calls.rules import Outcome, apply, create_call
from bellwire.signaling.errors import Forbidden, OperationRefused
from bellwire.signaling.identifiers import DeviceId, Identity, new_call_sid

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)
ALICE, BOB, CAROL = Identity("alice"), Identity("bob"), Identity("carol")
PHONE = DeviceId("phone")
ACTION, STATUS = Callback("https://b.example/over"), Callback("https://b.example/status")
ALL = tuple(LegEvent)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


class Played:
    """A call by TwiML, and what its backend has been told."""

    def __init__(
        self,
        *called: Identity,
        events: tuple[LegEvent, ...] = ALL,
        mode: Mode = Mode.COMMON,
        **dial: object,
    ) -> None:
        legs = tuple(Leg(identity, STATUS, events) for identity in called or (BOB,))
        kept = Dial(legs, **{"action": ACTION, "first_takes_it": True, **dial})  # type: ignore[arg-type]
        new = NewCall(
            new_call_sid(1, bytes(10)),
            ALICE,
            tuple(Invitee(identity) for identity in called or (BOB,)),
            T0,
            30,
            device=PHONE,
            attestation=Attestation.FULL,
            mode=mode,
            dial=kept,
        )
        self.news: list[DialNews] = []
        self.outcome = self._take(create_call(new))

    @property
    def call(self) -> Call:
        return self.outcome.call

    def do(self, command: Command) -> Outcome:
        self.outcome = self._take(apply(self.call, command))
        return self.outcome

    def accept(self, who: Identity = BOB, seconds: float = 5) -> None:
        self.do(Accept(who, PHONE, at(seconds)))

    def state(self, who: Identity) -> UserState:
        user = self.call.user(who)
        assert user is not None
        return user.state

    def _take(self, outcome: Outcome) -> Outcome:
        self.news += outcome.dial_news
        return outcome

    def legs(self, who: Identity = BOB) -> list[tuple[str, str, int, int | None]]:
        """What was told of a leg."""
        return [
            (one.event.value, one.call_status, one.number, one.duration_s)
            for one in self.news
            if isinstance(one, LegNews) and one.identity == who
        ]

    def over(self) -> tuple[DialStatus, int | None]:
        """How the dial was said to have ended."""
        (over,) = [one for one in self.news if isinstance(one, DialOver)]
        return over.status, over.duration_s


def test_leg_is_told_of_from_its_beginning_to_its_end() -> None:
    played = Played()
    played.do(Received(BOB, PHONE, at(1)))
    played.do(Received(BOB, PHONE, at(2)))
    played.accept(seconds=5)
    played.do(Quit(BOB, PHONE, at(65.4)))
    assert played.legs() == [
        ("initiated", "initiated", 0, None),
        ("ringing", "ringing", 1, None),
        ("answered", "in-progress", 2, None),
        ("completed", "completed", 3, 60),
    ]
    assert played.call.state is CallState.ENDED
    assert played.over() == (DialStatus.COMPLETED, 60)


def test_only_the_events_that_were_asked_for_are_told_and_counted() -> None:
    played = Played(events=(LegEvent.ANSWERED, LegEvent.COMPLETED))
    played.do(Received(BOB, PHONE, at(1)))
    played.accept()
    played.do(Quit(ALICE, PHONE, at(10)))
    assert played.legs() == [
        ("answered", "in-progress", 0, None),
        ("completed", "completed", 1, 5),
    ]


@pytest.mark.parametrize("reject", list(RejectStatus)[:2])
def test_leg_that_refuses_is_busy(reject: RejectStatus) -> None:
    played = Played()
    played.do(Reject(BOB, PHONE, at(2), reject))
    assert played.legs()[-1] == ("completed", "busy", 1, 0)
    assert played.over() == (DialStatus.BUSY, None)


def test_leg_that_runs_out_has_not_answered() -> None:
    played = Played()
    played.do(Expire(at(30)))
    assert played.legs()[-1] == ("completed", "no-answer", 1, 0)
    assert played.over() == (DialStatus.NO_ANSWER, None)


def test_caller_who_gives_up_cancels_the_dial() -> None:
    played = Played()
    played.do(Cancel(ALICE, at(3)))
    assert played.legs()[-1] == ("completed", "canceled", 1, 0)
    assert played.over() == (DialStatus.CANCELED, None)


def test_server_that_ends_a_ringing_call_cancels_the_dial() -> None:
    played = Played()
    played.do(End(None, None, at(3)))
    assert played.legs()[-1] == ("completed", "canceled", 1, 0)
    assert played.over() == (DialStatus.CANCELED, None)


def test_first_to_answer_has_the_call_and_the_others_ring_no_more() -> None:
    played = Played(BOB, CAROL)
    played.accept(CAROL)
    assert played.state(BOB) is UserState.CANCELED
    assert played.legs(BOB)[-1] == ("completed", "canceled", 1, 0)
    with pytest.raises(OperationRefused):
        played.accept(BOB, 6)
    played.do(Quit(CAROL, PHONE, at(8)))
    assert played.over() == (DialStatus.COMPLETED, 3)


def test_without_that_rule_the_others_ring_on() -> None:
    played = Played(BOB, CAROL, first_takes_it=False)
    played.accept(CAROL)
    assert played.state(BOB).pending
    played.accept(BOB, 6)
    assert len(played.call.accepted) == 3


def test_dial_whose_legs_ended_apart_says_what_matters_most() -> None:
    played = Played(BOB, CAROL)
    played.do(Reject(BOB, PHONE, at(2)))
    assert not [one for one in played.news if isinstance(one, DialOver)]
    played.do(Expire(at(30)))
    assert played.over() == (DialStatus.BUSY, None)


def test_time_limit_runs_from_the_first_answer_and_ends_the_call() -> None:
    played = Played(time_limit_s=90)
    assert played.call.next_deadline == at(30), "the time-out alone"
    played.accept(seconds=5)
    assert played.call.next_deadline == at(95)
    played.do(Expire(at(94)))
    assert played.call.state is CallState.OPEN
    played.do(Expire(at(95)))
    assert played.call.state is CallState.ENDED
    assert played.call.next_deadline is None
    assert played.over() == (DialStatus.COMPLETED, 90)


def test_nothing_more_is_told_once_the_dial_is_over() -> None:
    played = Played()
    played.do(Cancel(ALICE, at(3)))
    told = list(played.news)
    played.do(Cancel(ALICE, at(4)))
    assert played.news == told


def test_dial_that_could_ring_nobody_has_failed() -> None:
    dial = Dial((Leg(BOB, STATUS, ALL), Leg(CAROL)), ACTION)
    told = never_begun(dial, T0)
    assert [type(one) for one in told] == [LegNews, LegNews, DialOver]
    assert [one.call_status for one in told if isinstance(one, LegNews)] == ["initiated", "failed"]
    assert told[-1] == DialOver(ACTION, DialStatus.FAILED, T0)


def test_leg_without_a_device_has_failed_while_others_ring() -> None:
    legs = (Leg(BOB, STATUS, ALL), Leg(CAROL, STATUS, ALL))
    new = NewCall(
        new_call_sid(1, bytes(10)),
        ALICE,
        (Invitee(BOB),),
        T0,
        30,
        unreachable=((CAROL, "no_device"),),
        dial=Dial(legs, ACTION),
    )
    told = create_call(new).dial_news
    assert [(one.identity, one.call_status) for one in told if isinstance(one, LegNews)] == [
        (BOB, "initiated"),
        (CAROL, "initiated"),
        (CAROL, "failed"),
    ]


def test_caller_id_is_shown_as_the_caller_with_the_backends_word_for_it() -> None:
    played = Played(caller_id=Identity("+4930123456"))
    (invite,) = [n.event for n in played.outcome.notices if isinstance(n.event, CallReceived)]
    assert invite.from_ == "+4930123456"
    assert invite.caller_info is not None
    assert invite.caller_info.attestation is Attestation.PARTIAL
    own = Played()
    (invite,) = [n.event for n in own.outcome.notices if isinstance(n.event, CallReceived)]
    assert (invite.from_, invite.caller_info and invite.caller_info.attestation) == (
        "client:alice",
        Attestation.FULL,
    )


def say(*to: str) -> Say:
    return Say(ALICE, PHONE, at(1), "KX" + "0" * 32, "hello", to=tuple(map(Identity, to)))


def test_message_to_the_backend_goes_to_no_device() -> None:
    (notice,) = Played().do(say("backend")).notices
    assert isinstance(notice.event, CallMessage)
    assert (notice.recipients, notice.event.to_backend) == ((), True)


def test_message_to_the_backend_and_somebody_goes_to_both() -> None:
    (notice,) = Played(BOB, CAROL).do(say("backend", "carol")).notices
    assert [recipient.identity for recipient in notice.recipients] == [CAROL]


def test_user_called_backend_is_not_hidden_by_the_backend() -> None:
    (notice,) = Played(Identity("backend")).do(say("backend")).notices
    assert isinstance(notice.event, CallMessage)
    assert [recipient.identity for recipient in notice.recipients] == ["backend"]
    assert notice.event.to_backend is None


def test_nobody_outside_the_call_speaks_to_the_backend() -> None:
    stranger = Say(
        Identity("mallory"), None, at(1), "KX" + "0" * 32, "x", to=(Identity("backend"),)
    )
    with pytest.raises(Forbidden):
        Played().do(stranger)


def test_call_that_its_time_limit_ends_says_so() -> None:
    played = Played(time_limit_s=90)
    played.accept(seconds=5)
    played.do(Expire(at(95)))
    assert played.call.end_reason is EndReason.TIME_LIMIT
    assert played.call.ended_by is None


def test_time_limit_holds_too_where_somebody_answers_whom_the_dial_has_not_rung() -> None:
    played = Played(mode=Mode.ADVANCED, time_limit_s=90)
    played.do(InviteMore(ALICE, PHONE, (Invitee(CAROL),), at(1), 60))
    played.do(Reject(BOB, PHONE, at(2), RejectStatus.REJECTED))
    played.accept(CAROL, seconds=5)
    assert played.call.next_deadline == at(95)
    played.do(Expire(at(95)))
    assert played.call.end_reason is EndReason.TIME_LIMIT
