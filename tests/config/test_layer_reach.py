"""What a layer may say to a device: everything but its wiring, and its rights where the file opens them."""

import tomllib
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from bellwire.config.agent.behaviour import AutoAnswer, BehaviourSettings, DoorRelease
from bellwire.config.agent.layer_reach import (
    ANSWER_FIELDS,
    BUTTON_FIELDS,
    CALL_BUTTON_FIELDS,
    DOOR_FIELDS,
    LIMIT_FIELDS,
    NOT_THERE,
    ONLY_THE_FILE,
    PART_FIELDS,
    never_heeded,
    rights_in,
    said_anew,
)
from bellwire.config.agent.panel import (
    ButtonSettings,
    CallButtonSettings,
    DoorSettings,
    KeypadSettings,
    PanelSettings,
    RingerSettings,
    StatusLightSettings,
)
from bellwire.config.agent.settings import AgentSettings, agent_file
from bellwire.config.fleet.merge import judge
from tests.config.fleet_parts import layer, of_file

QUIET = {"do_not_disturb": {"enabled": True}}
STATION: dict[str, Any] = {
    "panel": {
        "door": {"pin": 25},
        "ringer": {"pin": 18},
        "answer": {"pin": 23},
        "keypad": {"rows": [1, 2, 3, 4], "columns": [5, 6, 7]},
        "call_buttons": {"up": {"pin": 17, "to": ["ann"]}},
    },
    "behaviour": {"doors": {"front": {"callers": ["ann"]}, "back": {"callers": ["ann"]}}},
}


@pytest.mark.parametrize(
    ("model", "said", "wiring"),
    [
        (ButtonSettings, BUTTON_FIELDS, {"pin", "pull", "active_low"}),
        (CallButtonSettings, CALL_BUTTON_FIELDS, {"pin", "pull", "active_low"}),
        (KeypadSettings, PART_FIELDS["keypad"], {"rows", "columns"}),
        (RingerSettings, PART_FIELDS["ringer"], {"pin", "active_low", "kind"}),
        (StatusLightSettings, PART_FIELDS["status_light"], {"pin", "active_low"}),
        (DoorSettings, PART_FIELDS["door"], {"pin", "active_low", "open_s"}),
        (PanelSettings, {*PART_FIELDS, "call_buttons"}, set()),
        (DoorRelease, DOOR_FIELDS, {"code"}),
        (AutoAnswer, ANSWER_FIELDS, set()),
        (BehaviourSettings, set(BehaviourSettings.model_fields) - {*LIMIT_FIELDS}, {*LIMIT_FIELDS}),
    ],
)
def test_of_each_field_it_is_said_whether_a_layer_may_say_it(
    model: type[BaseModel], said: set[str], wiring: set[str]
) -> None:
    assert not said & wiring
    assert set(model.model_fields) == said | wiring, "decide of the new one"


@pytest.mark.parametrize(
    ("patch", "path", "reason"),
    [
        ({"panel": {"door": {"active_low": True}}}, "panel.door.active_low", ONLY_THE_FILE),
        ({"panel": {"door": {"open_s": 60}}}, "panel.door.open_s", ONLY_THE_FILE),
        ({"panel": {"door": None}}, "panel.door", ONLY_THE_FILE),
        ({"panel": None}, "panel", ONLY_THE_FILE),
        ({"panel": {"ringer": {"pin": 25}}}, "panel.ringer.pin", ONLY_THE_FILE),
        ({"panel": {"ringer": {"kind": "buzzer"}}}, "panel.ringer.kind", ONLY_THE_FILE),
        ({"panel": {"answer": {"pull": "down"}}}, "panel.answer.pull", ONLY_THE_FILE),
        ({"panel": {"keypad": {"rows": [4, 3, 2, 1]}}}, "panel.keypad.rows", ONLY_THE_FILE),
        ({"panel": {"mute": {"pin": 9}}}, "panel.mute.pin", ONLY_THE_FILE),
        ({"panel": {"mute": {"debounce_s": 0.1}}}, "panel.mute.debounce_s", NOT_THERE),
        ({"panel": {"call_buttons": {"x": {"pin": 9}}}}, "panel.call_buttons.x.pin", ONLY_THE_FILE),
        ({"panel": {"call_buttons": {"x": {"to": "eve"}}}}, "panel.call_buttons.x.to", NOT_THERE),
        ({"panel": {"call_buttons": {"up": None}}}, "panel.call_buttons.up", ONLY_THE_FILE),
        ({"behaviour": {"lockout_s": 1}}, "behaviour.lockout_s", ONLY_THE_FILE),
        ({"behaviour": {"wrong_codes": 10}}, "behaviour.wrong_codes", ONLY_THE_FILE),
        ({"behaviour": {"digit_timeout_s": 60}}, "behaviour.digit_timeout_s", ONLY_THE_FILE),
        ({"behaviour": {"doors": None}}, "behaviour.doors", ONLY_THE_FILE),
        ({"behaviour": {"doors": {"front": None}}}, "behaviour.doors.front", ONLY_THE_FILE),
        (
            {"behaviour": {"doors": {"mine": {"callers": ["eve"]}}}},
            "behaviour.doors.mine.callers",
            NOT_THERE,
        ),
        (
            {"behaviour": {"doors": {"front": {"callers": ["eve"]}}}},
            "behaviour.doors.front.callers",
            'remote = ["behaviour.doors.front.callers"]',
        ),
        (
            {"behaviour": {"auto_answer": {"verified_only": False}}},
            "behaviour.auto_answer.verified_only",
            'remote = ["behaviour.auto_answer.verified_only"]',
        ),
        ({"behaviour": {"auto_answer": None}}, "behaviour.auto_answer", ONLY_THE_FILE),
        (
            {"audio": {"ring_tone": "dingdong"}},
            "audio.ring_tone",
            "there is no ring tone 'dingdong': name one of",
        ),
    ],
)
def test_key_that_only_the_file_says_is_skipped_and_the_rest_of_the_layer_counts(
    patch: dict[str, Any], path: str, reason: str
) -> None:
    local = of_file(STATION)
    behaviour = {**patch.get("behaviour", {}), **QUIET}
    verdict = judge(local, {"default": layer({**patch, "behaviour": behaviour}, 7)})
    assert verdict.errors == ()
    assert [(one.layer, one.revision, one.path) for one in verdict.skipped] == [
        ("default", 7, path)
    ]
    assert reason in verdict.skipped[0].reason
    assert verdict.settings.behaviour.do_not_disturb.enabled
    as_it_was = judge(local, {}).settings
    assert verdict.settings.panel == as_it_was.panel
    assert verdict.settings.behaviour.doors == as_it_was.behaviour.doors
    assert verdict.settings.behaviour.auto_answer == as_it_was.behaviour.auto_answer


def test_what_is_no_wiring_is_said_from_afar() -> None:
    panel = {
        "ringer": {"cadence_s": [1, 2]},
        "answer": {"debounce_s": 0.2},
        "keypad": {"debounce_s": 0.05},
        "call_buttons": {"up": {"to": None, "group": "office", "early_media": True}},
    }
    verdict = judge(of_file(STATION), {"device": layer({"panel": panel})})
    assert (verdict.errors, verdict.skipped) == ((), ())
    up = verdict.settings.panel.call_buttons["up"]
    assert (up.pin, up.to, up.group, up.early_media) == (17, (), "office", True)


@pytest.mark.parametrize(
    ("remote", "heeded"),
    [
        ((), set()),
        (("behaviour.doors.front.callers",), {"front.callers"}),
        (("behaviour.doors.front",), {"front.callers", "front.by_message"}),
        (("behaviour.doors.back", "behaviour.auto_answer"), {"back.callers", "answer"}),
        (("behaviour.auto_answer.callers",), {"answer"}),
        (("behaviour.auto_answer.after_s",), set()),
    ],
)
def test_file_opens_by_name_who_may_open_a_door_and_whom_it_answers(
    remote: tuple[str, ...], heeded: set[str]
) -> None:
    change = {
        "doors": {
            "front": {"callers": ["bob"], "by_message": True},
            "back": {"callers": ["bob"]},
        },
        "auto_answer": {"callers": ["bob"]},
    }
    verdict = judge(of_file(STATION, remote=remote), {"default": layer({"behaviour": change})})
    now = verdict.settings.behaviour
    found = {
        "front.callers": now.doors["front"].callers == ("bob",),
        "front.by_message": now.doors["front"].by_message,
        "back.callers": now.doors["back"].callers == ("bob",),
        "answer": now.auto_answer.callers == ("bob",),
    }
    assert {name for name, holds in found.items() if holds} == heeded
    assert len(verdict.skipped) == 4 - len(heeded)


def test_null_takes_an_opened_right_back_to_what_is_built_in_and_no_other() -> None:
    local = of_file(
        {"behaviour": {"auto_answer": {"callers": ["ann"]}}}, remote=("behaviour.auto_answer",)
    )
    gone = judge(local, {"default": layer({"behaviour": {"auto_answer": None}})})
    assert gone.settings.behaviour.auto_answer.callers == ()
    half = of_file(local.settings, remote=("behaviour.auto_answer.callers",))
    kept = judge(half, {"default": layer({"behaviour": {"auto_answer": None}})})
    assert kept.settings.behaviour.auto_answer.callers == ("ann",)


def test_those_outside_a_rollout_do_not_get_wiring_from_the_settings_before() -> None:
    before = {"panel": {"door": {"active_low": True}}, "call_timeout_s": 9}
    verdict = judge(of_file(STATION), {"default": layer({}, 2, percent=0, before=before)})
    assert verdict.settings.panel.door is not None and not verdict.settings.panel.door.active_low
    assert verdict.settings.call_timeout_s == 9
    assert [one.path for one in verdict.skipped] == ["panel.door.active_low"]


_FILE = """\
device_id = "gate"
identity = "gate"
remote = [{}]
[broker]
url = "mqtt://x"
username = "gate"
password = "hush"
[behaviour.doors.front]
callers = ["ann"]
"""


@pytest.mark.parametrize(
    "entry",
    [
        "panel.door",
        "panel.door.open_s",
        "behaviour",
        "behaviour.doors",
        "behaviour.doors.back",
        "behaviour.doors.front.code",
        "behaviour.lockout_s",
        "behaviour.auto_answer.nonsense",
        "remote",
    ],
)
def test_file_that_opens_what_cannot_be_opened_is_not_loaded(entry: str) -> None:
    with pytest.raises(ValidationError, match="cannot be opened to layers") as refused:
        AgentSettings.model_validate(tomllib.loads(_FILE.format(f'"{entry}"')))
    assert entry in str(refused.value)
    assert "hush" not in str(refused.value)


def test_file_that_is_made_for_a_new_device_opens_nothing() -> None:
    document = _FILE.format("").replace("remote = []\n", "")
    settings = AgentSettings.model_validate(tomllib.loads(document))
    assert settings.remote == ()
    assert "remote" not in tomllib.loads(agent_file(settings))
    opened = tomllib.loads(_FILE.format('"behaviour.doors.front"'))
    written = agent_file(AgentSettings.model_validate(opened))
    assert tomllib.loads(written)["remote"] == ["behaviour.doors.front"]


def test_commands_know_what_no_device_heeds_and_what_a_file_has_to_open() -> None:
    patch = {
        "remote": ["behaviour.auto_answer"],
        "panel": {"door": {"pin": 9}, "call_buttons": {"up": {"to": "ann"}}, "ringer": {}},
        "behaviour": {
            "lockout_s": 1,
            "doors": {"front": {"code": "1", "callers": ["eve"]}},
            "auto_answer": None,
            **QUIET,
        },
    }
    assert list(never_heeded(patch)) == [
        "remote",
        "panel.door.pin",
        "behaviour.lockout_s",
        "behaviour.doors.front.code",
    ]
    assert rights_in(patch) == ["behaviour.doors.front.callers", "behaviour.auto_answer"]
    assert said_anew({"a": {"b": 1, "c": [2]}}, {"a": {"b": 1, "c": [3]}}) == {"a.c"}
