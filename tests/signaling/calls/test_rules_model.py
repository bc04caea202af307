"""Random calls in both modes, played against an independent model: whatever anybody does in any
order, states, deadlines and who hears of what are as the specification's tables say."""

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bellwire.signaling.calls.calls import Call, Mode
from bellwire.signaling.calls.commands import Command, Expire
from bellwire.signaling.calls.events import (
    CallCancelled,
    CallCreated,
    CallEnded,
    CallMessage,
    CallReceived,
    CallTimeout,
    CallUserStateChanged,
)
from bellwire.signaling.calls.rules import Outcome, apply
from bellwire.signaling.errors import Forbidden, InvalidInput, OperationRefused, Refusal
from tests.signaling.call_model import MAX_KNOWN, MAX_USERS, Expected, Model, Verdict
from tests.signaling.calls_in_play import (
    DEVICES,
    SID,
    START,
    TIMEOUT_S,
    accept,
    all_of,
    cancel,
    end,
    events_of,
    ignore,
    invite,
    join,
    new_call,
    offline,
    quit_,
    received,
    reject,
    say,
    states,
    told,
)

ALICE = "alice"
PEOPLE = [f"user{number}" for number in range(14)]
REFUSALS: dict[Verdict, type[Refusal]] = {
    Verdict.FORBIDDEN: Forbidden,
    Verdict.INVALID: InvalidInput,
    Verdict.REFUSED: OperationRefused,
}


class RandomCalls(RuleBasedStateMachine):
    """One call, its users and their devices doing anything in any order."""

    call: Call
    model: Model
    now: datetime
    last_id: int

    @initialize(
        count=st.integers(1, 3) | st.integers(1, 13),
        caller=st.sampled_from([ALICE, ALICE, ALICE, None]),
        device=st.sampled_from(["phone", "phone", None]),
        mode=st.sampled_from(Mode),
        check_s=st.sampled_from([None, 3, 5]),
    )
    def make_call(
        self, count: int, caller: str | None, device: str | None, mode: Mode, check_s: int | None
    ) -> None:
        invitees = PEOPLE[: min(count, 9) if mode is Mode.ADVANCED else count]
        outcome = new_call(*invitees, caller=caller, device=device, mode=mode, check_s=check_s)
        self.call, self.now, self.last_id = outcome.call, START, 0
        self.model = Model(
            invitees,
            caller=caller,
            device=device,
            mode=mode,
            now=START,
            timeout_s=TIMEOUT_S,
            check_s=check_s,
        )
        self.check_ids(outcome)
        assert told(outcome, CallReceived) == all_of(*invitees)
        assert told(outcome, CallCreated) == (self.model.devices(caller) if caller else set())

    # What comes of a command.

    def plays(self, command: Command, on_model: Callable[[], Verdict | Expected]) -> None:
        """Does the command to the model and to the call, and compares what comes of it."""
        knew = self.model.concerned()
        heard_at = self.model.devices(*knew)
        expected = on_model()
        if isinstance(expected, Verdict):
            self.moves_nothing(command, expected)
            return
        outcome = apply(self.call, command)
        assert outcome.call != self.call
        self.call = outcome.call
        self.check_ids(outcome)
        changes = events_of(outcome, CallUserStateChanged)
        assert {change.identity for change in changes} <= set(expected.moved)
        for one in expected.moved:
            # Each is told once, to all who are to know and to nobody else. Of those whom one command
            # moves together, some hear of the others and some do not any more.
            model, heard = self.model, told(outcome, CallUserStateChanged, one)
            to_know = model.concerned(one) | ({one} if model.of[one] == "Quit" else set())
            if len(expected.moved) == 1:
                assert heard == model.devices(*to_know), (one, model.of[one])
            else:
                assert heard <= model.devices(*to_know) | heard_at, (one, model.of[one])
                assert heard >= model.devices(*(to_know & knew)) & heard_at, (one, model.of[one])
            told_states = [change.state for change in changes if change.identity == one]
            assert told_states == [model.of[one]]
        assert told(outcome, CallReceived) == expected.received
        assert told(outcome, CallCancelled) == expected.cancelled
        assert told(outcome, CallTimeout) == expected.timeout
        assert told(outcome, CallEnded) == expected.ended
        assert not events_of(outcome, CallCreated)

    def moves_nothing(self, command: Command, verdict: Verdict) -> None:
        before = self.call
        if verdict in REFUSALS:
            with pytest.raises(REFUSALS[verdict]):
                apply(before, command)
            return
        may_refuse = (OperationRefused,) if verdict is Verdict.REFUSED_OR_NOTHING else ()
        with suppress(*may_refuse):
            outcome = apply(before, command)
            assert (outcome.call, outcome.notices) == (before, ())

    def check_ids(self, outcome: Outcome) -> None:
        for notice in outcome.notices:
            sid, _, number = notice.event.id.rpartition("-")
            assert sid == SID
            assert int(number) > self.last_id
            self.last_id = int(number)

    # What people, servers and time do.

    # Few people who do most, so that one of them comes through many states.
    who = st.sampled_from([ALICE, ALICE, *PEOPLE[:2] * 3, *PEOPLE[:4]]) | st.sampled_from(PEOPLE)
    actor = st.sampled_from([ALICE, ALICE, None, *PEOPLE[:3]]) | st.sampled_from(PEOPLE)
    device = st.sampled_from(DEVICES)
    speaking = st.sampled_from([*DEVICES, None])
    """On which device somebody speaks; none: a server does."""

    @rule(who=who, device=device)
    def confirms(self, who: str, device: str) -> None:
        self.plays(received(who, device, self.now), lambda: self.model.confirm(who, self.now))

    @rule(who=who, device=device, accepts=st.booleans())
    def answers(self, who: str, device: str, accepts: bool) -> None:
        command = (accept if accepts else reject)(who, device, self.now)
        self.plays(command, lambda: self.model.answer(who, device, self.now, accepts=accepts))

    @rule(who=who, device=device)
    def ignores(self, who: str, device: str) -> None:
        self.moves_nothing(ignore(who, device, self.now), self.model.ignore(who, self.now))

    @rule(
        who=st.sampled_from([ALICE, None, *PEOPLE[:3], PEOPLE[-1]]),
        to=st.none()
        | st.lists(st.sampled_from([ALICE, *PEOPLE]), min_size=1, max_size=4, unique=True),
    )
    def cancels(self, who: str | None, to: list[str] | None) -> None:
        command = cancel(who, self.now, to=None if to is None else tuple(to))
        before = self.call
        self.plays(command, lambda: self.model.cancel(who, self.now, to))
        with suppress(Forbidden, OperationRefused):
            assert dict(apply(before, command).not_cancelled) == self.model.last_errors

    @rule(who=who, device=device, last=st.booleans())
    def goes_offline(self, who: str, device: str, last: bool) -> None:
        command = offline(who, device, self.now, last=last)
        self.plays(command, lambda: self.model.goes_offline(who, device, self.now, last=last))

    @rule(
        who=actor,
        invitees=st.lists(
            st.sampled_from([ALICE, *PEOPLE[:2]]) | st.sampled_from(PEOPLE),
            min_size=1,
            max_size=3,
            unique=True,
        ),
        timeout_s=st.sampled_from([1, 20, 600]),
        device=speaking,
    )
    def invites_more(
        self, who: str | None, invitees: list[str], timeout_s: int, device: str | None
    ) -> None:
        command = invite(who, *invitees, at=self.now, timeout_s=timeout_s, device=device)
        self.plays(
            command,
            lambda: self.model.invite(
                who, invitees, timeout_s, self.now, device, server=device is None
            ),
        )

    @rule(who=who, device=device)
    def joins(self, who: str, device: str) -> None:
        self.plays(join(who, device, self.now), lambda: self.model.join(who, device, self.now))

    @rule(who=who, device=speaking)
    def quits(self, who: str, device: str | None) -> None:
        self.plays(
            quit_(who, device, self.now),
            lambda: self.model.quit(who, device, self.now, server=device is None),
        )

    # Every call may be ended by a server: rarely, so that calls live long enough.
    @precondition(lambda self: self.now > START + timedelta(seconds=30))
    @rule(who=actor, device=speaking)
    def ends(self, who: str | None, device: str | None) -> None:
        self.plays(
            end(who, device, self.now),
            lambda: self.model.end(who, device, self.now, server=device is None),
        )

    @rule(
        who=actor,
        to=st.none()
        | st.lists(st.sampled_from([ALICE, *PEOPLE]), min_size=1, max_size=3, unique=True),
        device=speaking,
    )
    def says(self, who: str | None, to: list[str] | None, device: str | None) -> None:
        command = say(who, *(to or []), at=self.now, device=device)
        hearers = self.model.hearers(who, to, device, server=device is None)
        if isinstance(hearers, Verdict):
            self.moves_nothing(command, hearers)
            return
        outcome = apply(self.call, command)
        assert outcome.call == self.call
        assert told(outcome, CallMessage) == hearers
        assert [type(notice.event) for notice in outcome.notices] == [CallMessage]

    @rule(seconds=st.sampled_from([1, 2, 5, 30, 60, 3600]), fires=st.booleans())
    def time_passes(self, seconds: int, fires: bool) -> None:
        self.now += timedelta(seconds=seconds)
        if fires:
            self.plays(Expire(self.now), lambda: self.model.time(self.now))

    @precondition(lambda self: self.model.deadline is not None)
    @rule(early=st.booleans())
    def next_deadline_fires(self, early: bool) -> None:
        """Exactly in time, or the smallest moment before, which changes nothing."""
        due = self.model.deadline
        assert due is not None
        if early and due > self.now:
            moment = due - timedelta(microseconds=1)
            self.moves_nothing(Expire(moment), Verdict.NOTHING)
            return
        self.now = max(due, self.now)
        self.plays(Expire(self.now), lambda: self.model.time(self.now))

    # What always holds.

    @invariant()
    def call_is_as_the_model_says(self) -> None:
        assert states(self.call) == self.model.of
        assert self.call.state == self.model.call_state
        assert {user.identity: user.main_device for user in self.call.users} == self.model.main
        assert self.call.next_deadline == self.model.deadline
        assert self.call.abandoned_until == self.model.abandoned

    @invariant()
    def advanced_call_never_has_more_than_ten_at_once_nor_any_call_one_twice(self) -> None:
        assert len(self.call.users) == len(states(self.call)) <= MAX_KNOWN
        if self.call.mode is Mode.ADVANCED:
            assert len(self.call.here) <= MAX_USERS

    @invariant()
    def living_call_waits_for_somebody_or_for_time(self) -> None:
        if self.call.state != "ended":
            assert self.call.accepted or self.call.next_deadline is not None


TestRandomCalls = RandomCalls.TestCase
TestRandomCalls.settings = settings(
    max_examples=120,
    stateful_step_count=40,
    phases=set(Phase) - {Phase.explain},  # it traces every line, which takes minutes,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
