"""Topics: a device reaches its own and the configuration, and never another device's."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from bellwire.signaling.errors import InvalidInput
from bellwire.signaling.identifiers import DeviceId, DeviceIdField, parse_device_id
from bellwire.signaling.topics import (
    CONFIG_DEFAULT,
    CONFIG_GROUPS,
    PRESENCE_OF_ALL,
    PRESENCE_SHARED,
    REQUESTS_SHARED,
    call_topic,
    config_topic,
    device_of,
    gathered_topic,
    presence_topic,
    readable_by,
    request_topic,
    response_topic,
    telemetry_topic,
    writable_by,
)

DEVICES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True).map(parse_device_id)
FRONT = parse_device_id("front-door")


def matches(subscription: str, topic: str) -> bool:
    """Whether a topic filter takes in a topic or a filter (MQTT 5, section 4.7)."""
    wanted, levels = subscription.split("/"), topic.split("/")
    for position, level in enumerate(wanted):
        if level == "#":
            return True
        if position >= len(levels) or level not in ("+", levels[position]):
            return False
    return len(wanted) == len(levels)


def unshared(subscription: str) -> str:
    """The filter of a shared subscription (MQTT 5, section 4.8.2)."""
    share, group, wanted = subscription.split("/", 2)
    assert share == "$share"
    assert group
    assert not set(group) & set("+#")
    return wanted


def own_topics(device: DeviceId) -> set[str]:
    return {
        topic
        for topic in (*readable_by(device), *writable_by(device))
        if topic not in (CONFIG_DEFAULT, CONFIG_GROUPS)
    }


def test_topics_are_those_of_the_architecture() -> None:
    assert call_topic(FRONT) == "bellwire/v1/device/front-door/call"
    assert request_topic(FRONT) == "bellwire/v1/device/front-door/request"
    assert presence_topic(FRONT) == "bellwire/v1/device/front-door/presence"
    assert config_topic(FRONT) == "bellwire/v1/config/device/front-door"
    assert CONFIG_DEFAULT == "bellwire/v1/config/default"
    assert CONFIG_GROUPS == "bellwire/v1/config/group/+"


def test_device_may_hear_its_calls_its_answers_and_the_configuration_and_nothing_else() -> None:
    assert set(readable_by(FRONT)) == {
        "bellwire/v1/device/front-door/call",
        response_topic(FRONT),
        "bellwire/v1/config/default",
        "bellwire/v1/config/group/+",
        "bellwire/v1/config/device/front-door",
        "bellwire/v1/device/front-door/config/gathered",
        "bellwire/v1/device/front-door/command",
        "bellwire/v1/device/front-door/telemetry",
    }


def test_device_may_say_what_the_architecture_gives_it_and_nothing_else() -> None:
    assert set(writable_by(FRONT)) == {
        f"bellwire/v1/device/front-door/{last}"
        for last in (
            "request",
            "presence",
            "telemetry",
            "insights",
            "config/reported",
            "config/gathered",
            "command/result",
        )
    }


@given(DEVICES)
def test_device_can_neither_answer_itself_nor_configure_itself(device: DeviceId) -> None:
    to_itself = {gathered_topic(device), telemetry_topic(device)}
    assert set(writable_by(device)) & set(readable_by(device)) == to_itself
    assert not any(
        matches(said, heard) or matches(heard, said)
        for said in set(writable_by(device)) - to_itself
        for heard in readable_by(device)
    )


@given(DEVICES, DEVICES)
def test_topics_of_one_device_never_match_those_of_another(one: DeviceId, other: DeviceId) -> None:
    assume(one != other)
    for mine in (*readable_by(one), *writable_by(one)):
        for theirs in own_topics(other):
            assert not matches(mine, theirs), (mine, theirs)


@given(DEVICES)
def test_device_writes_to_plain_topics_without_wildcards(device: DeviceId) -> None:
    assert not any(set(topic) & set("+#") for topic in writable_by(device))
    assert [topic for topic in readable_by(device) if set(topic) & set("+#")] == [CONFIG_GROUPS]


@pytest.mark.parametrize("text", ["a/b", "+", "#", "a+b", "a#", "/a", "a/", "front-door/call/x"])
def test_device_id_that_would_reach_other_topics_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="device id"):
        parse_device_id(text)


@given(st.text(max_size=70))
def test_any_device_id_that_is_taken_is_one_plain_level_of_a_topic(text: str) -> None:
    try:
        device = TypeAdapter(DeviceIdField).validate_python(text)
    except ValueError:
        return
    assert not set(device) & set("/+#\x00")
    assert call_topic(DeviceId(device)).count("/") == 4


@given(DEVICES)
def test_relay_hears_requests_and_presence_of_every_device_and_nothing_more(
    device: DeviceId,
) -> None:
    requests, presence = unshared(REQUESTS_SHARED), unshared(PRESENCE_SHARED)
    assert presence == PRESENCE_OF_ALL
    every = {*own_topics(device), CONFIG_DEFAULT}
    assert {t for t in every if matches(requests, t)} == {request_topic(device)}
    assert {t for t in every if matches(PRESENCE_OF_ALL, t)} == {presence_topic(device)}


@given(DEVICES)
def test_topic_under_device_tells_whose_it_is(device: DeviceId) -> None:
    for topic in (call_topic(device), response_topic(device), *writable_by(device)):
        assert device_of(topic) == device


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "bellwire",
        "front-door",
        "bellwire/v1/device",
        "bellwire/v1/device/",
        "bellwire/v1/device//call",
        "bellwire/v1/device/+/call",
        "bellwire/v1/config/default",
        "bellwire/v1/config/device/front-door",
        "bellwire/v2/device/front-door/call",
        "x/bellwire/v1/device/front-door/call",
        "$SYS/broker/uptime",
    ],
)
def test_topic_of_no_device_is_refused(topic: str) -> None:
    with pytest.raises(InvalidInput):
        device_of(topic)
