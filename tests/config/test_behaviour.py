"""How a device behaves, as an operator writes it, and which of it only its own file may say."""

import json
import tomllib
from typing import Annotated, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr, ValidationError

from bellwire.config.agent.behaviour import BehaviourSettings, DoorRelease
from bellwire.config.agent.layer_reach import (
    LOCAL_ONLY,
    local_only_in,
    local_only_places,
    split_local_only,
)

EXAMPLE = """
time_zone = "Europe/Berlin"
call_waiting = true

[[quiet_hours]]
start = 22:00:00
end = 07:00:00
days = ["mon", "tue", "wed", "thu", "sun"]
treatment = "reject"
except_callers = ["client:night-porter"]

[[ring_volume_hours]]
start = 07:00:00
end = 09:00:00
volume = 0.3

[auto_answer]
callers = ["front-desk"]
after_s = 2

[redial]
times = 3

[doors.front]
callers = ["alice"]
code = "4711#"

[doors.yard]
callers = ["alice"]
verified_only = false
by_message = true
"""


def test_an_operator_writes_it_as_toml() -> None:
    written = BehaviourSettings.model_validate(tomllib.loads(EXAMPLE))
    assert written.quiet_hours[0].except_callers == ("night-porter",)
    assert written.ring_volume_hours[0].days == ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
    assert written.doors["front"].verified_only
    assert written.doors["front"].code == SecretStr("4711#")


def test_as_it_stands_a_device_answers_nobody_by_itself_and_opens_nothing() -> None:
    assert not BehaviourSettings().auto_answer.callers
    assert not BehaviourSettings().doors
    assert not DoorRelease().callers


@pytest.mark.parametrize(
    ("document", "place", "reason"),
    [
        ({"time_zone": "Europe/Atlantis"}, "time_zone", "IANA name such as Europe/Berlin"),
        ({"time_zone": "../../etc/passwd"}, "time_zone", "IANA name"),
        ({"time_zone": "Europe"}, "time_zone", "IANA name"),
        ({"time_zone": ""}, "time_zone", "IANA name"),
        ({"quiet_hours": [{"start": "22:00", "end": "25:00"}]}, "quiet_hours.0.end", ""),
        ({"quiet_hours": [{"start": "22:00Z", "end": "06:00"}]}, "quiet_hours.0.start", "time_zone"),
        ({"quiet_hours": [{"start": "22:00", "end": "06:00", "days": []}]}, "quiet_hours.0.days", ""),
        ({"ring_volume_hours": [{"start": "08:00", "end": "09:00", "volume": 1.1}]},
         "ring_volume_hours.0.volume", ""),
        ({"auto_answer": {"callers": ["a b"]}}, "auto_answer.callers.0", "without spaces"),
        ({"redial": {"times": 21}}, "redial.times", ""),
        ({"doors": {"a b": {}}}, "doors.a b.[key]", ""),
        ({"doors": {"front": {"code": "12a"}}}, "doors.front.code", "0-9"),
        ({"doors": {"front": {"code": ""}}}, "doors.front.code", "4 to 16"),
        ({"doors": {"front": {"code": "1" * 17}}}, "doors.front.code", "4 to 16"),
        ({"dnd": True}, "dnd", "Extra inputs"),
    ],
)  # fmt: skip
def test_a_mistake_is_reported_at_its_place(
    document: dict[str, Any], place: str, reason: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        BehaviourSettings.model_validate(document)
    (error,) = refused.value.errors()
    assert ".".join(map(str, error["loc"])) == place
    assert reason in error["msg"]


def test_a_code_that_begins_with_another_is_refused_by_the_doors_names() -> None:
    doors = {"front": {"code": "12"}, "back": {"code": "129"}, "cellar": {"code": "15"}}
    with pytest.raises(ValidationError, match=r"'back' begins with that of door 'front'"):
        BehaviourSettings.model_validate({"doors": doors})
    with pytest.raises(ValidationError, match="give one another code"):
        BehaviourSettings.model_validate({"doors": {"a": {"code": "5"}, "b": {"code": "5"}}})


@pytest.mark.parametrize(
    ("code", "why"), [("1", "shorter than 4"), ("471", "shorter than 4"), ("47*11", "holds `*`")]
)
def test_a_file_with_a_code_that_cannot_be_used_loads_and_says_that_its_door_stays_shut(
    code: str, why: str
) -> None:
    doors = {"front": {"code": code}, "back": {"code": "90#4"}, "gate": {"by_message": True}}
    loaded = BehaviourSettings.model_validate({"doors": doors})
    assert list(loaded.shut_doors) == ["front"]
    said = loaded.shut_doors["front"]
    assert why in said
    assert "'front'" in said
    assert "4 to 16 of 0-9 #" in said
    assert code not in said or len(code) == 1


@pytest.mark.parametrize("code", ["90817263", "9081726x", "9" * 20])
def test_a_code_is_seen_nowhere(code: str) -> None:
    document = {"doors": {"front": {"code": code}, "back": {"code": code}}}
    with pytest.raises(ValidationError) as refused:
        BehaviourSettings.model_validate(document)
    assert code not in str(refused.value) + repr(refused.value)
    if code.isdigit() and len(code) <= 16:
        kept = BehaviourSettings.model_validate({"doors": {"front": {"code": code}}})
        assert code not in repr(kept) + str(kept) + kept.model_dump_json()


PLACES = local_only_places(BehaviourSettings)


def test_door_codes_are_for_the_devices_own_file_alone() -> None:
    assert frozenset({("doors", "*", "code")}) == PLACES
    schema = json.dumps(BehaviourSettings.model_json_schema())
    assert schema.count('"x-local-only": true') == 1


@pytest.mark.parametrize("code", ["4711", None])
def test_a_layer_that_says_a_door_code_is_found_out_without_repeating_it(code: str | None) -> None:
    layer = {"doors": {"front": {"code": code, "callers": ["eve"]}, "yard": None}, "redial": {}}
    assert local_only_in(layer, PLACES) == ["doors.front.code"]
    assert local_only_in({"doors": {"front": {"callers": []}}}, PLACES) == []
    assert local_only_in({"doors": None, "code": "1"}, PLACES) == []
    assert local_only_in({"doors": {"front": "nonsense"}}, PLACES) == []


def merged(target: Any, patch: Any) -> Any:  # noqa: ANN401 - JSON, as RFC 7396 merges it
    if not isinstance(patch, dict):
        return patch
    base = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        base[key] = merged(base.get(key), value)
    return base


keys = st.sampled_from(["doors", "front", "code", "callers", "redial"])
documents = st.recursive(
    st.sampled_from(["", "1", 2, None]),
    lambda inner: st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(keys, documents, max_size=4))
def test_a_settings_file_split_in_two_is_whole_again_and_its_shared_part_holds_no_code(
    document: dict[str, Any],
) -> None:
    shared, own = split_local_only(document, PLACES)
    assert merged(shared, own) == document
    assert local_only_in(shared, PLACES) == []


def test_a_secret_inside_a_list_is_a_mistake_of_the_model() -> None:
    class Lock(BaseModel):
        code: Annotated[SecretStr, LOCAL_ONLY]

    class Locks(BaseModel):
        locks: tuple[Lock, ...]

    with pytest.raises(TypeError, match=r"locks\.\[\]\.code"):
        local_only_places(Locks)
