"""Rollouts: who is in a share, and when one has to pause: how many of its share refuse this very revision."""

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bellwire.config.fleet.layer import Layer, LayerProblem, Reported
from bellwire.config.fleet.merge import in_rollout, judge
from bellwire.config.fleet.rollout_pause import (
    Said,
    pause,
    refusing,
    said_in,
    takes_rights_away,
    too_many_refuse,
)
from bellwire.config.fleet.writing import Draft
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import DEFAULT_LAYER, LayerName, device_layer, group_layer
from tests.config.fleet_parts import AT, layer, of_file

DEVICES = [DeviceId(f"door-{number}") for number in range(40)]
LOUD = {"audio": {"ring_volume": 6}}
QUIET = {"audio": {"ring_volume": 0.2}}


def refusal(name: str, revision: int | None = 7, *groups: str) -> Said:
    reason = "6 > 1"
    problem = LayerProblem(layer=name, revision=revision, path="audio.ring_volume", reason=reason)
    return Said((problem,), groups)


def due_pause(
    name: LayerName,
    on: Layer,
    errors: dict[DeviceId, Said],
    layers: dict[LayerName, Layer] | None = None,
) -> Draft | None:
    refused = too_many_refuse(name, on, errors, layers or {})
    return pause(on, refused) if refused else None


def rolled_out(**rollout: object) -> Layer:
    return layer(LOUD, 7, **{"pause_at_errors": 2, "percent": 50, "before": QUIET, **rollout})


def inside(name: LayerName, percent: int = 50) -> list[DeviceId]:
    return [device for device in DEVICES if in_rollout(device, name, percent)]


@hypothesis_settings(deadline=None)
@given(st.text(max_size=20), st.integers(0, 100), st.integers(0, 100))
def test_a_wider_rollout_holds_all_devices_of_a_narrower_one(
    device: str, one: int, other: int
) -> None:
    narrow, wide = sorted((one, other))
    assert in_rollout(device, "default", 100)
    assert not in_rollout(device, "default", 0)
    assert in_rollout(device, "default", wide) or not in_rollout(device, "default", narrow)


def test_a_rollout_takes_its_share_of_the_devices_and_each_layer_takes_others() -> None:
    devices = [f"door-{n}" for n in range(2000)]
    first = {d for d in devices if in_rollout(d, "default", 10)}
    second = {d for d in devices if in_rollout(d, "group/a", 10)}
    assert 150 < len(first) < 250
    assert len(first & second) < 60


def test_devices_outside_a_rollout_run_the_revision_before_even_if_they_never_saw_it() -> None:
    change = {"default": layer({"call_timeout_s": 5}, 2, percent=50, before={"call_timeout_s": 9})}
    verdicts = {d: judge(of_file(device_id=d), change) for d in map(str, range(40))}
    for device, verdict in verdicts.items():
        inside = in_rollout(device, "default", 50)
        assert verdict.settings.call_timeout_s == (5 if inside else 9)
    assert {v.settings.call_timeout_s for v in verdicts.values()} == {5, 9}


@pytest.mark.parametrize("name", [DEFAULT_LAYER, group_layer("north")])
def test_rollout_pauses_once_more_of_its_share_refuse_it_than_it_allows(name: LayerName) -> None:
    three = inside(name)[:3]
    assert (
        due_pause(name, rolled_out(), dict.fromkeys(three[:2], refusal(name, 7, "north"))) is None
    )
    all_three = dict.fromkeys(three, refusal(name, 7, "north"))
    draft = due_pause(name, rolled_out(back_to=10), all_three)
    assert draft is not None
    assert (draft.rollout.percent, draft.rollout.paused_at) == (10, 50)
    assert (draft.settings, draft.rollout.before) == (LOUD, QUIET)
    assert draft.comment == (
        f"paused at 50 %: 3 refuse it, such as {min(three)}: audio.ring_volume: 6 > 1"
    )


@pytest.mark.parametrize(
    ("rollout", "problems", "why"),
    [
        ({}, refusal("default", 6), "of the revision before"),
        ({}, refusal("default", None), "of a document that was no layer"),
        ({}, refusal("group/north"), "of another layer"),
        ({}, refusal("device"), "of their own layers"),
        ({"pause_at_errors": None}, refusal("default"), "nobody asked to pause"),
        ({"percent": 10, "back_to": 10, "paused_at": 50}, refusal("default"), "paused already"),
    ],
)
def test_other_errors_pause_nothing(rollout: dict[str, object], problems: Said, why: str) -> None:
    errors = dict.fromkeys(DEVICES, problems)
    assert due_pause(DEFAULT_LAYER, rolled_out(**rollout), errors) is None, why


def test_devices_outside_the_share_do_not_count() -> None:
    errors = dict.fromkeys(set(DEVICES) - set(inside(DEFAULT_LAYER)), refusal("default"))
    assert len(errors) > 3
    assert refusing(DEFAULT_LAYER, rolled_out(), errors, {}) == {}


def test_layer_of_one_device_counts_that_device_alone() -> None:
    name = device_layer("door-1")
    errors = dict.fromkeys(DEVICES, refusal("device"))
    assert refusing(name, rolled_out(percent=100), errors, {}).keys() == {"door-1"}


def test_what_a_device_says_at_length_still_makes_a_layer() -> None:
    long = (LayerProblem(layer="default", revision=7, path="p" * 300, reason="r" * 3000),)
    draft = due_pause(DEFAULT_LAYER, rolled_out(), dict.fromkeys(DEVICES, Said(long)))
    assert draft is not None
    assert len(draft.comment) <= 512


def test_device_outside_a_group_does_not_count_for_its_layer() -> None:
    name = group_layer("north")
    errors = dict.fromkeys(DEVICES, refusal(name, 7, "south"))
    assert due_pause(name, rolled_out(), errors) is None


def test_device_cannot_talk_itself_into_a_group_that_layers_say_it_is_not_in() -> None:
    name = group_layer("north")
    errors = dict.fromkeys(DEVICES, refusal(name, 7, "north"))
    assert due_pause(name, rolled_out(), errors) is not None
    south = {DEFAULT_LAYER: layer({"groups": ["south"]})}
    assert due_pause(name, rolled_out(), errors, south) is None
    [one, *_] = inside(name, 100)
    moved = {**south, device_layer(one): layer({"groups": ["north"]})}
    assert refusing(name, rolled_out(percent=100), errors, moved).keys() == {one}


def test_device_counts_once_however_much_it_says() -> None:
    [problem] = refusal("default").problems
    errors = {inside(DEFAULT_LAYER)[0]: Said((problem,) * 50)}
    assert due_pause(DEFAULT_LAYER, rolled_out(), errors) is None
    reported = Reported(
        device_id="x",
        software="",
        at=AT,
        hash="",
        effective={},
        sources={},
        revisions={},
        local={"groups": ["north", 7]},
        errors=(problem,) * 5000,
    )
    assert len(said_in(reported).problems) == 64
    assert said_in(reported).groups == ()


def _door(**rights: object) -> dict[str, object]:
    return {"behaviour": {"doors": {"front": rights}}}


def _answer(**rights: object) -> dict[str, object]:
    return {"behaviour": {"auto_answer": rights}}


@pytest.mark.parametrize(
    ("before", "now", "takes"),
    [
        (_door(callers=["ann", "eve"]), _door(callers=["ann"]), True),
        (_door(callers=["ann"]), _door(callers=["ann", "eve"]), False),
        (_door(callers=["ann"]), _door(callers=["ann"]), False),
        (_door(callers=["ann"]), {}, True),
        ({}, _door(callers=["ann"]), True),
        (_door(callers=[]), _door(callers=["ann"]), False),
        (_door(by_message=True), _door(by_message=False), True),
        (_door(by_message=False), _door(by_message=True), False),
        (_door(verified_only=False), _door(verified_only=True), True),
        (_door(verified_only=True), _door(verified_only=False), False),
        (_answer(callers=["ann", "eve"]), _answer(callers=["ann"]), True),
        (_answer(verified_only=False), _answer(verified_only=True), True),
        (_answer(after_s=1), _answer(after_s=9), False),
        ({"behaviour": None}, {}, True),
        ({"behaviour": {"doors": None}}, {}, True),
        ({"groups": ["cellar"]}, {"groups": ["north"]}, True),
        (QUIET, LOUD, False),
        ({"behaviour": {"do_not_disturb": {"enabled": True}}}, {}, False),
    ],
)
def test_layer_takes_rights_away_where_going_back_could_give_one(
    before: dict[str, object], now: dict[str, object], takes: bool
) -> None:
    assert takes_rights_away(layer(now, 7, percent=50, before=before)) is takes
