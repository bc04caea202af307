"""The wiring of a panel, as an operator writes it."""

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from bellwire.config.agent import panel
from bellwire.config.agent.panel import (
    ButtonSettings,
    CallButtonSettings,
    DoorSettings,
    KeypadSettings,
    PanelSettings,
    RingerSettings,
)


@pytest.mark.parametrize(("pull", "active_low"), [("up", True), ("down", False)])
def test_a_button_is_pressed_against_its_pull(
    pull: Literal["up", "down"], active_low: bool
) -> None:
    assert ButtonSettings(pin=4, pull=pull).active_low is active_low


def test_a_button_is_pulled_up_unless_it_says_otherwise() -> None:
    button = ButtonSettings(pin=4)
    assert (button.pull, button.active_low) == ("up", True)
    assert (button.debounce_s, button.long_press_s) == (0.03, 1.0)


@pytest.mark.parametrize("pull", ["up", "down"])
@pytest.mark.parametrize("active_low", [True, False])
def test_a_normally_closed_contact_may_say_the_opposite_of_its_pull(
    pull: Literal["up", "down"], active_low: bool
) -> None:
    assert ButtonSettings(pin=4, pull=pull, active_low=active_low).active_low is active_low


def test_a_floating_pin_has_to_say_which_level_means_pressed() -> None:
    with pytest.raises(ValidationError, match="give active_low"):
        ButtonSettings(pin=4, pull="floating")
    assert not ButtonSettings(pin=4, pull="floating", active_low=False).active_low


def test_a_mistake_in_the_pull_is_reported_once() -> None:
    with pytest.raises(ValidationError) as refused:
        ButtonSettings.model_validate({"pin": 4, "pull": "sideways"})
    assert [error["loc"] for error in refused.value.errors()] == [("pull",)]


@pytest.mark.parametrize("pin", [-1, 28, "GPIO4", None])
def test_a_pin_that_the_header_does_not_have_is_refused(pin: object) -> None:
    with pytest.raises(ValidationError):
        ButtonSettings.model_validate({"pin": pin})


def test_a_long_press_is_longer_than_a_bounce() -> None:
    with pytest.raises(ValidationError, match="must be longer"):
        ButtonSettings(pin=4, debounce_s=0.5, long_press_s=0.5)


def test_a_call_button_takes_one_identity_or_several() -> None:
    assert CallButtonSettings(pin=4, to=("alice",)).to == ("alice",)
    assert CallButtonSettings.model_validate({"pin": 4, "to": "alice"}).to == ("alice",)
    assert CallButtonSettings.model_validate({"pin": 4, "to": ["a", "b"]}).to == ("a", "b")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({}, "neither"),
        ({"to": []}, "neither"),
        ({"to": "alice", "group": "office"}, "both"),
        ({"to": ""}, "pattern"),
        ({"to": ["two words"]}, "pattern"),
        ({"group": ""}, "at least 1"),
        ({"to": [f"i{n}" for n in range(10)]}, "at most 9"),
    ],
)
def test_a_call_button_calls_either_identities_or_a_group(
    target: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        CallButtonSettings.model_validate({"pin": 4} | target)


@given(name=st.text(max_size=3))
def test_a_custom_parameters_name_is_allowed_exactly_if_the_wire_can_carry_it(name: str) -> None:
    allowed = bool(name) and all("!" <= letter <= "~" and letter not in "&=%+#" for letter in name)
    settings = {"pin": 4, "to": "alice", "custom_parameters": {name: "any välue & more"}}
    if allowed:
        assert CallButtonSettings.model_validate(settings).custom_parameters[name]
    else:
        with pytest.raises(ValidationError):
            CallButtonSettings.model_validate(settings)


def test_the_bell_rings_as_in_the_uk_unless_it_is_told_otherwise() -> None:
    assert RingerSettings(pin=17).cadence_s == (0.4, 0.2, 0.4, 2.0)
    assert RingerSettings.model_validate({"pin": 17, "cadence_s": [2, 4]}).cadence_s == (2, 4)


@pytest.mark.parametrize(
    "cadence_s", [[], [1], [1, 2, 3], [1, 0], [1, -1], [1, 61], [1, 1] * 17, [1, float("nan")]]
)
def test_a_cadence_is_pairs_of_on_and_off_within_bounds(cadence_s: list[float]) -> None:
    with pytest.raises(ValidationError):
        RingerSettings.model_validate({"pin": 17, "cadence_s": cadence_s})


@pytest.mark.parametrize("open_s", [0, 0.09, 60.1, float("inf"), float("nan")])
def test_a_door_opens_for_a_tenth_of_a_second_to_a_minute(open_s: float) -> None:
    assert DoorSettings(pin=27).open_s == 5
    with pytest.raises(ValidationError):
        DoorSettings(pin=27, open_s=open_s)


def test_a_keypad_has_four_rows_and_three_columns() -> None:
    with pytest.raises(ValidationError):
        KeypadSettings.model_validate({"rows": [5, 6, 13], "columns": [12, 16, 20]})


def test_a_panel_without_anything_is_a_panel() -> None:
    assert list(PanelSettings().pin_users()) == []


WIRED = {
    "call_buttons": {"front-door": {"pin": 4, "to": "alice"}},
    "answer": {"pin": 23},
    "hang_up": {"pin": 24},
    "hook": {"pin": 25},
    "mute": {"pin": 8},
    "keypad": {"rows": [5, 6, 13, 19], "columns": [12, 16, 20]},
    "ringer": {"pin": 17},
    "status_light": {"pin": 22},
    "door": {"pin": 27},
}


@pytest.mark.parametrize(
    "part", ["answer", "hang_up", "hook", "mute", "ringer", "status_light", "door"]
)
def test_a_pin_used_twice_is_refused_and_both_users_are_named(part: str) -> None:
    with pytest.raises(ValidationError, match="pin 4 is used twice") as refused:
        PanelSettings.model_validate(WIRED | {part: {"pin": 4}})
    assert f"by call_buttons.front-door and by {part}" in str(refused.value)


def test_a_keypad_line_that_is_a_rows_and_a_columns_is_refused() -> None:
    keypad = {"rows": [5, 6, 13, 19], "columns": [12, 16, 5]}
    with pytest.raises(ValidationError, match=r"by keypad.rows\[0\] and by keypad.columns\[2\]"):
        PanelSettings.model_validate({"keypad": keypad})


def test_settings_survive_the_way_through_json() -> None:
    settings = PanelSettings.model_validate(WIRED)
    assert PanelSettings.model_validate_json(settings.model_dump_json()) == settings


def test_settings_do_not_change_and_unknown_names_are_mistakes() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        PanelSettings().door = None
    with pytest.raises(ValidationError, match="doorbell"):
        PanelSettings.model_validate({"doorbell": {}})


def test_every_setting_is_described() -> None:
    models = [m for m in vars(panel).values() if isinstance(m, type) and issubclass(m, BaseModel)]
    fields = [field for model in models for field in model.model_fields.values()]
    assert fields
    assert all(field.description for field in fields)


def test_a_button_forwards_to_people_or_to_a_group_but_not_to_both() -> None:
    with pytest.raises(ValidationError, match="this one has both"):
        CallButtonSettings(pin=4, to=("a",), forward_to=("b",), forward_group="c")
