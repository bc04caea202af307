"""What a device does with an invite at a moment, and which door a digit or message opens."""

from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import JsonValue

from bellwire.agent.door.authorization import DoorDecision, DoorKeeper, DoorOutcome, Party
from bellwire.agent.station.dialling import redial_in_s
from bellwire.agent.station.incoming import (
    Invited,
    InviteDecision,
    decide_invite,
    ring_volume_at,
    within,
)
from bellwire.config.agent.behaviour import WEEKDAYS, BehaviourSettings, Hours
from bellwire.signaling.calls.calls import RejectStatus

BERLIN = ZoneInfo("Europe/Berlin")
SATURDAY_NOON = datetime(2026, 11, 21, 12, 0, tzinfo=BERLIN)


def behaving(**members: Any) -> BehaviourSettings:  # noqa: ANN401 - as a configuration file says it
    return BehaviourSettings.model_validate({"time_zone": "Europe/Berlin", **members})


def decided(
    settings: BehaviourSettings,
    caller: str | None = "client:alice",
    *,
    now: datetime = SATURDAY_NOON,
    in_call: bool = False,
    verified: bool = True,
    rings_s: float = 60,
) -> InviteDecision:
    invited = Invited(caller, now, now + timedelta(seconds=rings_s), verified)
    return decide_invite(settings, invited, now=now, in_call=in_call, ring_volume=0.8)


def test_a_device_as_it_comes_rings_for_everybody_at_its_volume() -> None:
    for caller in ("client:alice", "alice", "+4930123456", None, "no identity"):
        decision = decided(behaving(), caller)
        assert decision.ring_volume == 0.8
        assert decision.reject is decision.auto_answer_at is None


# Quiet hours and do not disturb

NIGHT = {"start": "22:00", "end": "07:00", "days": ["mon", "tue", "wed", "thu", "fri"]}


@pytest.mark.parametrize(
    ("moment", "quiet"),
    [
        ("2026-11-20 21:59:59", False),  # a Friday
        ("2026-11-20 22:00:00", True),
        ("2026-11-21 06:59:59", True),  # the Saturday after, still Friday's night
        ("2026-11-21 07:00:00", False),
        ("2026-11-21 23:00:00", False),  # Saturday's own night is none
        ("2026-11-23 03:00:00", False),  # Monday morning would be Sunday's night
        ("2026-11-23 22:30:00", True),
    ],
)
def test_a_night_belongs_to_the_day_on_which_it_begins(moment: str, quiet: bool) -> None:
    now = datetime.fromisoformat(moment).replace(tzinfo=BERLIN).astimezone(UTC)
    decision = decided(behaving(quiet_hours=[NIGHT]), now=now)
    assert (decision.ring_volume == 0) is quiet
    assert decision.reject is None


def test_quiet_hours_are_of_the_wall_clock_in_summer_and_in_winter() -> None:
    settings = behaving(quiet_hours=[{"start": "22:00", "end": "07:00"}])
    winter, summer = (
        datetime(2026, 1, 10, 5, 30, tzinfo=UTC),
        datetime(2026, 7, 10, 5, 30, tzinfo=UTC),
    )
    assert decided(settings, now=winter).ring_volume == 0, "06:30 in Berlin"
    assert decided(settings, now=summer).ring_volume > 0, "07:30 in Berlin"


@given(
    st.times(),
    st.times(),
    st.sets(st.sampled_from(WEEKDAYS), min_size=1),
    st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1)),
)
def test_a_weekly_range_and_the_rest_of_its_days_are_all_the_time_there_is(
    start: time, end: time, days: set[str], moment: datetime
) -> None:
    hours = Hours.model_validate({"start": start, "end": end, "days": tuple(sorted(days))})
    rest = Hours.model_validate({"start": end, "end": start, "days": WEEKDAYS})
    whole_week = hours.model_copy(update={"days": WEEKDAYS})
    if start != end:
        assert within(whole_week, moment) is not within(rest, moment)
    begins = moment if moment.time() >= start or start < end else moment - timedelta(days=1)
    assert within(hours, moment) is (
        within(whole_week, moment) and WEEKDAYS[begins.weekday()] in days
    )


def test_in_quiet_hours_a_call_is_silent_or_turned_away_but_for_those_on_the_list() -> None:
    always = {"start": "00:00", "end": "00:00", "except_callers": ["porter"]}
    silent, reject = ({**always, "treatment": treatment} for treatment in ("silent", "reject"))
    decision = decided(behaving(quiet_hours=[silent]))
    assert (decision.ring_volume, decision.reject) == (0, None)
    assert decided(behaving(quiet_hours=[reject])).reject is RejectStatus.REJECTED
    assert decided(behaving(quiet_hours=[reject]), None).reject is RejectStatus.REJECTED
    for quiet in (silent, reject):
        decision = decided(behaving(quiet_hours=[quiet]), "client:porter")
        assert (decision.ring_volume, decision.reject) == (0.8, None)


def test_the_first_range_that_a_moment_is_in_counts() -> None:
    noon = {"start": "11:00", "end": "13:00", "treatment": "silent"}
    day = {"start": "08:00", "end": "18:00", "treatment": "reject"}
    assert decided(behaving(quiet_hours=[noon, day])).reject is None
    assert decided(behaving(quiet_hours=[day, noon])).reject is RejectStatus.REJECTED


def test_do_not_disturb_is_quiet_at_every_hour_and_before_quiet_hours() -> None:
    do_not_disturb = {"enabled": True, "treatment": "reject", "except_callers": ["porter"]}
    settings = behaving(do_not_disturb=do_not_disturb, quiet_hours=[NIGHT])
    assert decided(settings).reject is RejectStatus.REJECTED
    assert decided(settings, "client:porter").ring_volume == 0.8
    assert "do not disturb" in decided(settings).because


# Volume


def test_the_ring_volume_follows_the_hour() -> None:
    hours = [
        {"start": "12:00", "end": "14:00", "volume": 0.2},
        {"start": "18:00", "end": "20:00", "volume": 0},
    ]
    settings = behaving(ring_volume_hours=hours)
    assert decided(settings).ring_volume == 0.2
    assert ring_volume_at(settings, None, SATURDAY_NOON - timedelta(seconds=1), 0.8) == 0.8
    assert ring_volume_at(settings, None, SATURDAY_NOON + timedelta(hours=2), 0.8) == 0.8
    evening = decided(settings, now=SATURDAY_NOON + timedelta(hours=6))
    assert (evening.ring_volume, evening.reject) == (0, None)


def test_the_ring_volume_is_none_while_it_is_to_keep_quiet_but_for_those_on_the_list() -> None:
    settings = behaving(do_not_disturb={"enabled": True, "except_callers": ["porter"]})
    assert ring_volume_at(settings, "client:alice", SATURDAY_NOON, 0.8) == 0
    assert ring_volume_at(settings, "client:porter", SATURDAY_NOON, 0.8) == 0.8


# Answering, waiting, redialling

DESK = {"callers": ["desk"], "after_s": 2}


def test_only_verified_callers_on_the_list_are_answered_by_the_device_itself() -> None:
    settings = behaving(auto_answer=DESK)
    assert decided(settings, "client:desk").auto_answer_at == SATURDAY_NOON + timedelta(seconds=2)
    assert decided(settings, "client:desk", verified=False).auto_answer_at is None
    assert decided(settings, "client:alice").auto_answer_at is None
    assert decided(settings, None).auto_answer_at is None
    assert decided(settings, "client:desk", rings_s=2).auto_answer_at is None
    trusting = behaving(auto_answer={**DESK, "verified_only": False})
    assert decided(trusting, "client:desk", verified=False).auto_answer_at is not None


def test_a_device_that_keeps_quiet_opens_no_microphone_by_itself() -> None:
    silent = {"enabled": True, "treatment": "silent"}
    settings = behaving(auto_answer=DESK, do_not_disturb=silent)
    assert decided(settings, "client:desk").auto_answer_at is None
    excepted = behaving(auto_answer=DESK, do_not_disturb={**silent, "except_callers": ["desk"]})
    assert decided(excepted, "client:desk").auto_answer_at is not None


def test_a_second_call_hears_busy_unless_call_waiting_is_on() -> None:
    assert decided(behaving(), in_call=True).reject is RejectStatus.BUSY
    waiting = decided(behaving(call_waiting=True, auto_answer=DESK), "client:desk", in_call=True)
    assert waiting.ring_volume == 0.8
    assert waiting.reject is waiting.auto_answer_at is None


def test_the_time_until_it_answers_counts_from_when_the_call_came() -> None:
    settings = behaving(auto_answer=DESK)
    came, later = SATURDAY_NOON, SATURDAY_NOON + timedelta(seconds=9)
    invited = Invited("client:desk", came, came + timedelta(seconds=60), verified=True)
    decision = decide_invite(settings, invited, now=later, in_call=False, ring_volume=0.8)
    assert decision.auto_answer_at == came + timedelta(seconds=2)


def test_a_ring_group_is_called_again_as_often_as_set_and_only_where_nobody_answered() -> None:
    settings = behaving(redial={"times": 2, "pause_s": 7})
    assert [redial_in_s(settings, made, unanswered=True) for made in (1, 2, 3)] == [7, 7, None]
    assert redial_in_s(settings, 1, unanswered=False) is None
    assert redial_in_s(behaving(), 1, unanswered=True) is None


def test_a_moment_without_a_time_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="aware"):
        decided(behaving(), now=datetime(2026, 11, 21, 12))


# Doors

ALICE, EVE = Party("client:alice", verified=True), Party("client:eve", verified=True)
SOMEBODY_LIKE_ALICE = Party("client:alice", verified=False)
DOORS = {
    "front": {"callers": ["alice"], "code": "4711", "by_message": True},
    "yard": {"callers": ["alice", "bob"], "code": "902468", "verified_only": False},
}


class Keypad:
    """A party that presses digits half a second apart; of several, any one."""

    def __init__(self, keeper: DoorKeeper, *parties: Party) -> None:
        self.keeper = keeper
        self.parties = parties
        self.at = 1000.0

    def press(self, digits: str) -> DoorDecision:
        for digit in digits:
            self.at += 0.5
            decision = self.keeper.hear_digit(digit, self.parties, self.at, "a call")
        return decision

    def wait(self, seconds: float) -> None:
        self.at += seconds

    def hang_up(self) -> None:
        self.keeper.hang_up("a call", self.at)

    def restarted(self) -> "Keypad":
        """The same person, before the station's next process, whose clock began anew."""
        counted = self.keeper.wrong_codes
        return Keypad(
            DoorKeeper(self.keeper.settings, wrong_codes=counted, at=1000.0), *self.parties
        )


def keypad(*parties: Party, **members: Any) -> Keypad:  # noqa: ANN401
    return Keypad(DoorKeeper(behaving(**{"doors": DOORS, **members})), *(parties or (ALICE,)))


def test_the_right_code_opens_its_own_door() -> None:
    keys = keypad()
    assert keys.press("471") == DoorDecision(DoorOutcome.UNFINISHED)
    assert keys.press("1") == DoorDecision(DoorOutcome.RELEASED, "front")
    assert keys.press("902468") == DoorDecision(DoorOutcome.RELEASED, "yard")


def test_only_who_is_allowed_opens_a_door_and_verified_only_where_set() -> None:
    assert keypad(EVE).press("4711") == DoorDecision(DoorOutcome.NOT_ALLOWED)
    assert keypad(Party("", verified=True)).press("4711").outcome is DoorOutcome.NOT_ALLOWED
    stranger = keypad(SOMEBODY_LIKE_ALICE)
    assert stranger.press("902468") == DoorDecision(DoorOutcome.RELEASED, "yard")
    assert all(stranger.press(digit).door is None for digit in "4711")
    assert keypad(Party("bob", verified=True)).press("902468").door == "yard"


def test_who_lacks_nothing_but_attestation_is_told_apart_from_who_may_never_open() -> None:
    doors = {"front": {"callers": ["alice", "bob"], "code": "4711"}}
    keeper = DoorKeeper(behaving(doors=doors))
    alice, bob, eve = (Party(name, verified=False) for name in ("alice", "bob", "eve"))
    assert keeper.not_verified([alice]) == ("alice",)
    assert keeper.not_verified([alice, Party("bob", verified=True)]) == ("alice",)
    assert keeper.not_verified([alice, bob]) == ("alice", "bob")
    assert keeper.not_verified([eve]) == ()
    assert keeper.not_verified([alice, eve]) == ()
    assert keeper.not_verified([Party("alice", verified=True)]) == ()
    open_to_all = {"front": {**doors["front"], "verified_only": False}}
    assert DoorKeeper(behaving(doors=open_to_all)).not_verified([alice]) == ()


def test_a_digit_that_comes_too_late_begins_a_new_code() -> None:
    keys = keypad(doors={"front": DOORS["front"]})
    keys.press("4")
    keys.wait(4)
    assert keys.press("711").door == "front"
    keys.press("47")
    keys.wait(6)
    assert keys.press("11").outcome is DoorOutcome.UNFINISHED
    keys.wait(6)
    assert keys.press("4711").door == "front"


def test_a_code_is_typed_whole_and_not_found_among_other_digits() -> None:
    assert keypad(doors={"front": DOORS["front"]}).press("04711").door is None


def test_wrong_codes_are_few_and_hanging_up_forgives_none() -> None:
    keys = keypad(doors={"front": DOORS["front"]}, wrong_codes=3, lockout_s=60)
    assert keys.press("0000") == DoorDecision(DoorOutcome.WRONG_CODE)
    assert keys.press("0001") == DoorDecision(DoorOutcome.WRONG_CODE)
    keys.hang_up()
    assert keys.press("0002") == DoorDecision(DoorOutcome.LOCKED_OUT)
    assert keys.press("4711") == DoorDecision(DoorOutcome.LOCKED_OUT)
    keys.hang_up()
    assert keys.press("4711") == DoorDecision(DoorOutcome.LOCKED_OUT)
    keys.wait(61)
    assert keys.press("4711").door == "front"


def test_one_partys_wrong_codes_lock_out_no_other() -> None:
    doors = {"front": {**DOORS["front"], "callers": ["alice", "bob"]}}
    keys = keypad(doors=doors, wrong_codes=1)
    assert keys.press("0000").outcome is DoorOutcome.LOCKED_OUT
    assert Keypad(keys.keeper, Party("bob", verified=True)).press("4711").door == "front"


def test_a_digit_that_may_be_anybodys_opens_what_all_of_them_may_open() -> None:
    bob = Party("bob", verified=True)
    assert keypad(ALICE, bob).press("902468").door == "yard"
    assert all(keypad(ALICE, bob).press(digit).door is None for digit in "4711")
    assert keypad(ALICE, bob, EVE).press("902468") == DoorDecision(DoorOutcome.NOT_ALLOWED)
    doors = {"front": {**DOORS["front"], "callers": ["alice", "bob"]}}
    assert keypad(ALICE, bob, doors=doors).press("4711").door == "front"
    unverified = (SOMEBODY_LIKE_ALICE, bob)
    assert keypad(*unverified, doors=doors).press("4711").outcome is DoorOutcome.NOT_ALLOWED
    nobody = DoorKeeper(behaving(doors=DOORS)).hear_digit("9", [], 0)
    assert nobody == DoorDecision(DoorOutcome.NOT_ALLOWED)


def test_wrong_codes_that_may_be_anybodys_lock_out_no_one_of_them() -> None:
    doors = {"front": {**DOORS["front"], "callers": ["alice", "bob"]}}
    keys = keypad(ALICE, Party("bob", verified=True), doors=doors, wrong_codes=1)
    assert keys.press("0000").outcome is DoorOutcome.LOCKED_OUT
    assert keys.press("4711").outcome is DoorOutcome.LOCKED_OUT
    assert Keypad(keys.keeper, ALICE).press("4711").door == "front"


@pytest.mark.parametrize("left", ["wait", "hang_up", "*", "restart"])
def test_a_shorter_code_tried_and_left_counts_as_wrong_however_it_is_left(left: str) -> None:
    keys = keypad(wrong_codes=2)
    for code in ("1111", "1112"):
        assert keys.press(code).outcome is DoorOutcome.UNFINISHED
        if left == "wait":
            keys.wait(6)
        elif left == "hang_up":
            keys.hang_up()
        elif left == "restart":
            keys = keys.restarted()
        else:
            outcomes = {"1111": DoorOutcome.WRONG_CODE, "1112": DoorOutcome.LOCKED_OUT}
            assert keys.press("*").outcome is outcomes[code]
    assert keys.press("4711").outcome is DoorOutcome.LOCKED_OUT


def test_guessing_the_shorter_code_and_hanging_up_each_time_is_over_after_three() -> None:
    keys = keypad(wrong_codes=3, lockout_s=600)
    tried = 0
    for code in range(10_000):
        if keys.press(f"{code:04}").outcome is DoorOutcome.LOCKED_OUT:
            break
        tried += 1
        keys.hang_up()
        keys = keys.restarted() if code % 2 else keys
    assert tried == 3


def test_fewer_digits_than_any_code_are_no_guess_and_begin_anew_unpunished() -> None:
    keys = keypad(wrong_codes=1)
    keys.press("471*")
    keys.press("12")
    keys.hang_up()
    assert keys.keeper.wrong_codes == {}
    assert keys.press("99*4711").door == "front"


def test_the_code_that_opens_forgives_what_was_wrong_before() -> None:
    keys = keypad(doors={"front": DOORS["front"]}, wrong_codes=2)
    keys.press("0000")
    assert keys.keeper.wrong_codes == {"alice": 1}
    assert keys.press("4711").door == "front"
    assert keys.keeper.wrong_codes == {}
    assert keys.press("0000").outcome is DoorOutcome.WRONG_CODE


def test_a_longer_code_is_not_taken_for_a_wrong_shorter_one() -> None:
    keys = keypad(wrong_codes=1)
    assert keys.press("902468").door == "yard"
    assert keys.keeper.wrong_codes == {}


def test_who_was_locked_out_is_told_of_once_with_what_they_could_have_opened() -> None:
    keys = keypad(wrong_codes=2, lockout_s=60)
    keys.press("1111*1112*")
    (lock_out,) = keys.keeper.lock_outs()
    assert (lock_out.who, lock_out.doors) == ("alice", ("front", "yard"))
    assert (lock_out.wrong_codes, lock_out.lasts_s, lock_out.call) == (2, 60, "a call")
    keys.press("4711")
    assert keys.keeper.lock_outs() == ()
    assert keys.keeper.locked_out(keys.at) == ("alice",)
    assert keys.keeper.locked_out(keys.at + 60) == ()


def test_after_a_restart_the_time_of_a_lockout_begins_anew_and_ends() -> None:
    keys = keypad(wrong_codes=1, lockout_s=60)
    keys.press("1111*")
    keys.wait(59)
    keys = keys.restarted()
    assert keys.press("4711").outcome is DoorOutcome.LOCKED_OUT
    keys.wait(60)
    assert keys.press("4711").door == "front"


def test_where_it_is_not_known_who_was_wrong_nobodys_code_opens_for_as_long_as_a_lockout() -> None:
    keeper = DoorKeeper(behaving(doors=DOORS, lockout_s=60), all_wrong=True, at=1000.0)
    keys = Keypad(keeper, ALICE)
    assert keys.press("4711").outcome is DoorOutcome.LOCKED_OUT
    assert keeper.take_message({"door": "front"}, ALICE).door == "front"
    keys.wait(60)
    assert keys.press("4711").door == "front"


@pytest.mark.parametrize("code", ["471", "47*11", "1"])
def test_a_door_whose_code_cannot_be_used_stays_shut_and_the_others_do_not(code: str) -> None:
    doors = {"yard": DOORS["yard"], "front": {**DOORS["front"], "code": code}}
    keys = keypad(doors=doors)
    assert [keys.press(digit).door for digit in code] == [None] * len(code)
    assert keys.keeper.take_message({"door": "front"}, ALICE) == DoorDecision(
        DoorOutcome.FAILED, "front"
    )
    keys.hang_up()
    assert keys.press("902468").door == "yard"


def test_the_next_call_begins_with_no_digit_typed() -> None:
    keys = keypad()
    keys.press("47")
    keys.hang_up()
    assert keys.press("11").door is None


@given(st.text("0123456789*#", max_size=40))
@example("47114711")
@example("0471147111")
@example("#00047114*")
@example("47*4711")
def test_a_door_opens_for_its_code_alone(digits: str) -> None:
    keys = keypad(doors={"front": DOORS["front"]}, wrong_codes=10)
    opened = [place for place, digit in enumerate(digits) if keys.press(digit).door is not None]
    expected, typed = [], ""
    for place, digit in enumerate(digits):
        typed = "" if digit == "*" else typed + digit
        if typed == "4711":
            expected.append(place)
        typed = "" if len(typed) == 4 else typed
    assert opened == expected


@pytest.mark.parametrize("digit", ["", "a", "12", "٤", "w"])
def test_what_is_no_digit_is_not_taken_for_one(digit: str) -> None:
    keeper = keypad().keeper
    assert keeper.hear_digit(digit, [ALICE], 0).outcome is DoorOutcome.NOT_UNDERSTOOD


def test_nothing_that_is_typed_can_be_seen() -> None:
    keys = keypad()
    keys.press("471")
    assert "471" not in repr(vars(keys.keeper))


@pytest.mark.parametrize(
    ("content", "party", "decision"),
    [
        ({"door": "front"}, ALICE, DoorDecision(DoorOutcome.RELEASED, "front")),
        ({"door": "front"}, EVE, DoorDecision(DoorOutcome.NOT_ALLOWED)),
        ({"door": "front"}, SOMEBODY_LIKE_ALICE, DoorDecision(DoorOutcome.NOT_ALLOWED)),
        ({"door": "yard"}, ALICE, DoorDecision(DoorOutcome.NOT_ALLOWED)),
        ({"door": "cellar"}, ALICE, DoorDecision(DoorOutcome.NO_SUCH_DOOR)),
        ({}, ALICE, DoorDecision(DoorOutcome.NO_SUCH_DOOR)),
        ({"door": ["front"]}, ALICE, DoorDecision(DoorOutcome.NOT_UNDERSTOOD)),
        ({"door": "x" * 99}, ALICE, DoorDecision(DoorOutcome.NOT_UNDERSTOOD)),
        ("front", ALICE, DoorDecision(DoorOutcome.NOT_UNDERSTOOD)),
        (None, ALICE, DoorDecision(DoorOutcome.NOT_UNDERSTOOD)),
    ],
)
def test_a_message_opens_the_door_it_names_for_who_may(
    content: JsonValue,
    party: Party,
    decision: DoorDecision,
) -> None:
    assert keypad().keeper.take_message(content, party) == decision


def test_a_message_need_not_name_the_only_door() -> None:
    keeper = keypad(doors={"front": DOORS["front"]}).keeper
    assert keeper.take_message({}, ALICE) == DoorDecision(DoorOutcome.RELEASED, "front")
