"""The sum of a device's file and the fleet's layers: order, locks, rollouts, and who is to blame."""

import itertools
import json
import tomllib
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import JsonValue, SecretStr, ValidationError

from bellwire.config.agent.layer_reach import LayerReach, never_heeded
from bellwire.config.agent.settings import (
    LOCAL_ONLY_PLACES,
    AgentSettings,
    ConfigurableSettings,
    settings_given,
    settings_schema,
    with_secrets_of,
)
from bellwire.config.fleet.layer import LAYER_LIMIT_BYTES, Layer, LayerProblem, hash_of
from bellwire.config.fleet.merge import LayerVerdict, judge, local_file, merge_patch, parse_layer
from tests.config.fleet_parts import document, layer, of_file

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner),
    max_leaves=12,
)
NAMES = ("default", "group/a", "group/b", "device")
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "call_timeout_s": st.sampled_from([5, 50, None, 5000]),
        "audio": st.fixed_dictionaries(
            {}, optional={"ring_volume": st.sampled_from([0.1, 0.9, None, 7]), "loud": st.just(1)}
        ),
        "panel": st.fixed_dictionaries(
            {},
            optional={
                "door": st.sampled_from([{"pin": 4}, None]),
                "mute": st.sampled_from([{"debounce_s": 0.5}, {"debounce_s": 2}, {"pin": 5}, None]),
            },
        ),
        "groups": st.sampled_from([["a"], ["b", "a"], ["a", "b"], [], "a"]),
    },
)
LAYERS = st.dictionaries(
    st.sampled_from(NAMES), st.builds(layer, SETTINGS, st.integers(1, 9)), max_size=4
)


@pytest.mark.parametrize(
    ("target", "patch", "merged"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_a_patch_merges_as_in_the_examples_of_rfc_7396(
    target: JsonValue, patch: JsonValue, merged: JsonValue
) -> None:
    assert merge_patch(target, patch) == merged


@hypothesis_settings(deadline=None)
@given(JSON, JSON)
def test_a_patch_applied_twice_is_as_once_and_changes_nothing_it_was_given(
    target: JsonValue, patch: JsonValue
) -> None:
    before = json.dumps([target, patch])
    once = merge_patch(target, patch)
    assert merge_patch(once, patch) == once
    assert json.dumps([target, patch]) == before


def test_the_nearer_layer_wins_and_the_report_says_which() -> None:
    local = of_file({"groups": ["a", "b"], "log_level": "error"})
    verdict = judge(
        local,
        {
            "device": layer({"audio": {"ring_volume": 0.4}}),
            "group/b": layer({"audio": {"ring_volume": 0.3, "speaker_volume": 0.3}}),
            "group/a": layer({"audio": {"ring_volume": 0.2, "speaker_volume": 0.2}}, 7),
            "default": layer({"audio": {"ring_volume": 0.1}, "call_timeout_s": 5}),
            "group/other": layer({"log_level": "debug"}),
        },
    )
    assert verdict.settings.audio.ring_volume == 0.4
    assert verdict.settings.audio.speaker_volume == 0.3
    assert verdict.revisions == {"default": 1, "group/a": 7, "group/b": 1, "device": 1}
    of = verdict.sources
    assert of["audio.ring_volume"] == "device"
    assert of["audio.speaker_volume"] == "group/b"
    assert (of["call_timeout_s"], of["log_level"]) == ("default", "file")
    assert (of["groups"], of["audio.ring_tone"]) == ("file", "built-in")
    assert verdict.hash == hash_of(verdict.effective)


def test_null_takes_a_nearer_value_back_to_what_is_built_in_and_a_list_is_replaced() -> None:
    local = of_file(
        {
            "call_timeout_s": 9,
            "audio": {"ring_volume": 0.1},
            "panel": {"call_buttons": {"up": {"pin": 4, "to": ["ann", "bob"]}}},
        }
    )
    change = {
        "call_timeout_s": None,
        "audio": None,
        "panel": {"call_buttons": {"up": {"to": ["eve"]}}},
    }
    verdict = judge(local, {"default": layer(change)})
    assert verdict.settings.call_timeout_s == 60
    assert verdict.sources["call_timeout_s"] == "built-in"
    assert verdict.settings.panel.call_buttons["up"].to == ("eve",)
    assert verdict.settings.audio.ring_volume == 0.8


def test_groups_come_from_the_file_the_default_and_the_device_and_the_later_group_wins() -> None:
    groups = {"group/a": layer({"call_timeout_s": 1}), "group/b": layer({"call_timeout_s": 2})}
    local = of_file({"groups": ["a"]})
    assert judge(local, groups).settings.call_timeout_s == 1
    moved = {**groups, "device": layer({"groups": ["b"]})}
    assert judge(local, moved).settings.call_timeout_s == 2
    both = {**groups, "default": layer({"groups": ["b", "a"]})}
    assert judge(local, both).settings.call_timeout_s == 1
    itself = {**groups, "group/a": layer({"groups": ["b"]})}
    verdict = judge(local, itself)
    assert verdict.settings.groups == ("a",)
    assert [(e.layer, e.path) for e in verdict.errors] == [("group/a", "groups")]


@pytest.mark.parametrize(
    ("patch", "path"),
    [
        ({"audio": {"input_device": "USB"}}, "audio.input_device"),
        ({"audio": None}, "audio"),
        ({"audio": 5}, "audio"),
        ({"log_level": "debug"}, "log_level"),
    ],
)
def test_what_the_file_locks_is_skipped_and_said(patch: dict[str, JsonValue], path: str) -> None:
    local = of_file({"audio": {"input_device": 1}}, locked=("audio.input_device", "log_level"))
    verdict = judge(local, {"default": layer({**patch, "call_timeout_s": 5}, 3)})
    [skipped] = verdict.skipped
    assert (skipped.layer, skipped.revision, skipped.path) == ("default", 3, path)
    assert "the device's own file locks" in skipped.reason
    assert verdict.errors == (), "it refuses nothing"
    assert verdict.settings.call_timeout_s == 5, "the rest of the layer counts"
    alone = judge(local, {"default": layer({"call_timeout_s": 5})})
    assert verdict.effective == alone.effective


def test_a_layer_changes_what_lies_beside_a_lock() -> None:
    local = of_file({"audio": {"input_device": 1}}, locked=("audio.input_device",))
    change = {"audio": {"ring_volume": 0.5, "ring_tone": None}}
    verdict = judge(local, {"default": layer(change)})
    assert verdict.errors == ()
    assert verdict.settings.audio.ring_volume == 0.5


@pytest.mark.parametrize("name", ["device_id", "identity", "broker", "locked", "remote"])
@pytest.mark.parametrize("where", ["default", "group/a", "device"])
def test_who_a_device_is_only_its_own_file_says(name: str, where: str) -> None:
    change = {name: {"url": "mqtt://evil"}, "call_timeout_s": 5}
    verdict = judge(of_file({"groups": ["a"]}), {where: layer(change)})
    assert [(s.layer, s.path, s.reason) for s in verdict.skipped] == [
        (where, f"{name}.url", "only the device's own file may say this")
    ]
    assert verdict.errors == ()
    assert verdict.settings.call_timeout_s == 5


@pytest.mark.parametrize(
    ("settings", "path", "reason"),
    [
        ({"audio": {"ring_volume": 7}}, "audio.ring_volume", "less than or equal to 1; this is 7"),
        ({"audio": {"loudness": 1}}, "audio.loudness", "no such setting"),
        (
            {"behaviour": {"do_not_disturb": True}},
            "behaviour.do_not_disturb",
            "table of settings; this",
        ),
        (
            {"panel": {"mute": {"debounce_s": 0.5, "long_press_s": 0.4}}},
            "panel.mute",
            "long_press_s (0.4 s) must be longer than debounce_s (0.5 s)",
        ),
        ({"ice_servers": [{"urls": ["http://x"]}]}, "ice_servers.0.urls.0", "'http://x'"),
        (
            {"ice_servers": [{"urls": ["stun:x"], "credential": "s"}]},
            "ice_servers.0.credential",
            "",
        ),
        ({"audio": {"input_device": -1}}, "audio.input_device", "this is -1"),
        ({"groups": "front"}, "groups", "valid tuple"),
    ],
)
def test_an_error_says_where_why_and_in_which_layer(
    settings: dict[str, Any], path: str, reason: str
) -> None:
    local = of_file({"panel": {"mute": {"pin": 4}}})
    layers = {"default": layer({"call_timeout_s": 5}), "device": layer(settings, 8)}
    verdict = judge(local, layers)
    assert {(e.layer, e.revision, e.path) for e in verdict.errors} == {("device", 8, path)}
    assert any(reason in e.reason for e in verdict.errors)
    assert verdict.settings.call_timeout_s == 5, "the other layer holds"


def test_of_two_layers_that_clash_the_later_one_is_refused_and_an_innocent_third_is_not() -> None:
    local = of_file({"groups": ["a"], "panel": {"mute": {"pin": 4, "long_press_s": 0.5}}})
    layers = {
        "default": layer({"panel": {"mute": {"debounce_s": 0.2}}}),
        "group/a": layer({"panel": {"mute": {"long_press_s": 0.1}}}),
        "device": layer({"call_timeout_s": 5}),
    }
    verdict = judge(local, layers)
    assert [e.layer for e in verdict.errors] == ["group/a"]
    assert set(verdict.layers) == {"default", "device"}


def test_what_one_layer_begins_another_may_complete() -> None:
    local = of_file({"panel": {"call_buttons": {"up": {"pin": 4, "to": ["ann"]}}}})
    button = {"panel": {"call_buttons": {"up": {"to": None}}}}
    layers = {"default": layer(button)}
    assert [e.path for e in judge(local, layers).errors] == ["panel.call_buttons.up"]
    layers["device"] = layer({"panel": {"call_buttons": {"up": {"group": "office"}}}})
    assert judge(local, layers).errors == ()


def test_in_place_of_a_refused_layer_stays_its_last_good_one_while_the_others_go_on() -> None:
    good = {"default": layer({"call_timeout_s": 5}), "device": layer({"log_level": "debug"})}
    now = {
        "default": layer({"call_timeout_s": 5000}, 2),
        "device": layer({"log_level": "error"}, 2),
    }
    verdict = judge(of_file(), now, good)
    assert (verdict.settings.call_timeout_s, verdict.settings.log_level) == (5, "error")
    assert verdict.revisions == {"default": 1, "device": 2}
    assert verdict.errors == judge(of_file(), now).errors, "the errors are the same everywhere"


def test_a_last_good_layer_that_clashes_with_the_new_ones_keeps_all_the_last_good_ones() -> None:
    def button(**said: object) -> dict[str, object]:
        return {"panel": {"mute": said}}

    good = {"default": layer(button(debounce_s=0.5)), "device": layer({})}
    now = {
        "default": layer(button(debounce_s=99), 2),
        "device": layer(button(long_press_s=0.4), 2),
    }
    verdict = judge(of_file({"panel": {"mute": {"pin": 4}}}), now, good)
    assert verdict.revisions == {"default": 1, "device": 1}


def test_a_layer_that_cannot_be_read_is_refused_where_it_counts_and_nowhere_else() -> None:
    for payload, reason in (
        (b"{", "Invalid JSON"),
        (b"[]", "be an object"),
        (b"\xff", "Invalid JSON"),
        (document({}).replace(b'"ann"', b'""'), "at least 1 character"),
        (document({"a": 1.5}).replace(b"1.5", b"NaN"), "no JSON numbers"),
        (b'{"settings":' + b'{"a":' * 5000, "recursion limit"),
        (b" " * (LAYER_LIMIT_BYTES + 1), "at most 65536 bytes, this one has more"),
    ):
        problem = parse_layer("group/a", payload)
        assert isinstance(problem, LayerProblem), payload[:20]
        assert reason in problem.reason
        assert judge(of_file({"groups": ["a"]}), {"group/a": problem}).errors == (problem,)
        assert judge(of_file(), {"group/a": problem}).errors == ()
    assert isinstance(parse_layer("default", document({})), Layer)


@hypothesis_settings(deadline=None)
@given(LAYERS, LAYERS)
def test_the_order_in_which_layers_came_makes_no_difference(
    layers: dict[str, Layer], good: dict[str, Layer]
) -> None:
    local = of_file({"groups": ["b"], "panel": {"mute": {"pin": 5}}})
    first = judge(local, layers, good)
    for names in itertools.islice(itertools.permutations(layers), 1, 6):
        assert judge(local, {n: layers[n] for n in names}, dict(reversed(good.items()))) == first


@hypothesis_settings(deadline=None)
@given(LAYERS)
def test_good_layers_are_merged_and_of_bad_ones_none_leaves_a_trace(
    layers: dict[str, Layer],
) -> None:
    local = of_file({"panel": {"mute": {"pin": 5}}})
    verdict = judge(local, layers)
    refused = {error.layer for error in verdict.errors}
    assert not refused & set(verdict.layers)
    again = judge(local, {n: one for n, one in layers.items() if n not in refused})
    assert (again.effective, again.sources, again.errors) == (
        verdict.effective,
        verdict.sources,
        (),
    )
    if not refused:
        assert verdict.effective == _plain_sum(local.settings, layers, verdict)
    assert set(verdict.sources.values()) <= {"file", "built-in", *verdict.layers}


def _plain_sum(
    base: dict[str, JsonValue], layers: dict[str, Layer], verdict: LayerVerdict
) -> dict[str, Any]:
    total: JsonValue = base
    groups = [f"group/{group}" for group in verdict.settings.groups]
    for name in ["default", *groups, "device"]:
        if name in layers:
            heeded = LayerReach(base, ()).heed(layers[name].settings)
            total = merge_patch(total, heeded.patch)
    return ConfigurableSettings.model_validate(total).model_dump(mode="json", exclude_none=True)


def test_a_file_gives_what_it_says_and_no_secret() -> None:
    settings = AgentSettings.model_validate(
        tomllib.loads(
            'device_id = "gate"\nidentity = "door"\nlocked = ["panel"]\nlog_level = "info"\n'
            '[broker]\nurl = "mqtt://x"\nusername = "gate"\npassword = "hush"\n'
            '[panel.answer]\npin = 4\npull = "down"\n'
        )
    )
    assert settings_given(settings) == {
        "panel": {"answer": {"pin": 4, "pull": "down"}},
        "log_level": "info",
    }
    local = local_file(settings)
    assert (local.device_id, local.locked) == ("gate", ("panel",))
    assert "hush" not in repr(local)


def test_door_codes_stay_in_the_devices_own_file_and_in_no_report() -> None:
    door = {"callers": ["ann"], "code": "4711#"}
    file = ConfigurableSettings.model_validate({"behaviour": {"doors": {"front": door}}})
    local = of_file(settings_given(file), remote=("behaviour.doors.front",))
    change = {"doors": {"front": {"callers": ["bob"], "code": "1"}}}
    verdict = judge(local, {"default": layer({"behaviour": change})})
    assert [(s.path, s.reason) for s in verdict.skipped] == [
        ("behaviour.doors.front.code", "only the device's own file may say this")
    ]
    front = with_secrets_of(file, verdict.settings).behaviour.doors["front"]
    assert (front.callers, front.code) == (("bob",), SecretStr("4711#"))
    shown = json.dumps([verdict.effective, verdict.sources, local.settings])
    assert '"code"' not in shown and ".code" not in shown and "4711" not in shown
    assert not _validator().is_valid({"behaviour": {"doors": {"front": {"code": "1"}}}})
    assert {("behaviour", "doors", "*", "code")} == LOCAL_ONLY_PLACES, "with_secrets_of keeps these"


@hypothesis_settings(deadline=None)
@given(SETTINGS)
def test_the_schema_takes_whatever_the_agents_take(settings: dict[str, Any]) -> None:
    validator = _validator()
    try:
        ConfigurableSettings.model_validate(merge_patch({"panel": {"mute": {"pin": 4}}}, settings))
    except ValidationError:
        return
    assert validator.is_valid(settings) == (not never_heeded(settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"loud": 1},
        {"audio": {"ring_volume": 7}},
        {"panel": {"door": {"open_s": 5}}},
        {"panel": {"ringer": {"pin": 5}}},
        {"panel": {"call_buttons": {"up": {"active_low": True}}}},
        {"behaviour": {"lockout_s": 5}},
        {"groups": [""]},
    ],
)
def test_the_schema_marks_what_an_agent_would_refuse(settings: dict[str, Any]) -> None:
    assert not _validator().is_valid(settings)


@cache
def _validator() -> Any:  # noqa: ANN401
    jsonschema_rs = pytest.importorskip("jsonschema_rs")
    return jsonschema_rs.validator_for(settings_schema())
