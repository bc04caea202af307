"""The guide for builders of devices: its examples are settings of an agent, and nothing is left out."""

import re
import tomllib
from datetime import UTC, datetime
from typing import Any

import pytest

from bellwire.agent.door.authorization import DOOR_MESSAGE_TYPE, DOOR_RESULT_TYPE, DoorOutcome
from bellwire.agent.station.incoming import Invited, decide_invite
from bellwire.config.agent.behaviour import (
    AutoAnswer,
    BehaviourSettings,
    DoorRelease,
    QuietHours,
    Redial,
)
from bellwire.config.agent.panel import ButtonSettings, CallButtonSettings
from bellwire.config.agent.settings import ConfigurableSettings
from bellwire.config.fleet.merge import merge_patch
from tests.docs.documents import ROOT, Block, blocks

PAGE = ROOT / "docs/agent.md"
GUIDE = PAGE.read_text()
EXAMPLES = [block for block in blocks(PAGE) if block.kind == "toml"]


def settings_in(text: str) -> ConfigurableSettings:
    return ConfigurableSettings.model_validate(tomllib.loads(text))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda block: block.place)
def test_each_example_is_settings_of_an_agent_by_itself(example: Block) -> None:
    assert settings_in(example.text).model_fields_set


def test_all_examples_are_one_file_too() -> None:
    document: dict[str, Any] = {}
    for example in EXAMPLES:
        document = merge_patch(document, tomllib.loads(example.text))
    whole = ConfigurableSettings.model_validate(document)
    assert whole.behaviour.doors["front"].code is not None
    now = datetime(2026, 11, 21, 23, tzinfo=UTC)
    porter = Invited("client:night-porter", now, now)
    decision = decide_invite(
        whole.behaviour, porter, now=now, in_call=False, ring_volume=whole.audio.ring_volume
    )
    assert decision.reject is None


@pytest.mark.parametrize(
    "name",
    sorted(
        {
            *(set(CallButtonSettings.model_fields) - set(ButtonSettings.model_fields)),
            *BehaviourSettings.model_fields,
            *AutoAnswer.model_fields,
            *DoorRelease.model_fields,
            *QuietHours.model_fields,
            *Redial.model_fields,
        }
    ),
)
def test_each_setting_is_in_the_guide(name: str) -> None:
    assert re.search(rf"\b{name}\b", GUIDE)


@pytest.mark.parametrize(
    "outcome", [one for one in DoorOutcome if one is not DoorOutcome.UNFINISHED]
)
def test_each_result_of_a_door_is_explained(outcome: DoorOutcome) -> None:
    assert f"| `{outcome.value}` |" in GUIDE


def test_the_types_of_door_messages_are_those_of_the_code() -> None:
    assert f'"message_type": "{DOOR_MESSAGE_TYPE}"' in GUIDE
    assert f'"message_type": "{DOOR_RESULT_TYPE}"' in GUIDE
