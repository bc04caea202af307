"""Devices that come, go, and hear or say the same thing twice, as MQTT's QoS 1 allows."""

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from bellwire.agent.calls.call import CallStatus
from bellwire.broker.session.address import BrokerAddress, parse_broker_url
from bellwire.config.agent.settings import AgentSettings
from bellwire.signaling.calls.calls import UserState
from bellwire.signaling.calls.events import CallReceived, CallUserStateChanged, event_document
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import call_topic, presence_topic, request_topic, response_topic
from bellwire.signaling.wire.operations import (
    DeviceAccept,
    DeviceInvite,
    DeviceQuit,
    DeviceReceived,
)
from tests.conftest import register_station, running_station
from tests.system.mqtt_ear import Ear, address_of_own_broker, ear
from tests.system.scene import Diary, Scene, scene

AT_ONCE_S = 2.0
"""The relay's sweeper looks every 5 s: what is sent sooner was sent for its own reason."""


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene(tmp_path) as opened:
        yield opened


async def registered(stage: Scene, name: str) -> AgentSettings:
    """A device that is registered, and away."""
    return await register_station(stage.http, name)


async def test_device_that_comes_online_in_time_receives_its_live_invite_at_once(
    stage: Scene,
) -> None:
    settings = await registered(stage, "gate")
    body = {"from": "lobby", "to": ["gate"], "timeout": 30, "custom_parameters": {"a": "b c"}}
    sid = await stage.post(body)
    assert await stage.state_of(sid, "gate") == "Inviting"
    async with running_station(settings) as station:
        online = time.time()
        gate = Diary(station)
        call, rang_at = await gate.until(sid, CallStatus.PENDING)
        assert rang_at - online < AT_ONCE_S
        assert call.custom_parameters == {"a": "b c"}
        await stage.lobby.heard.until(_is(sid, UserState.RECEIVED), "gate received it")
        await station.fingers.press("a")
        await gate.until(sid, CallStatus.OPEN)
        await station.fingers.press("h")
        await stage.lobby.until_told_ended(sid)


async def test_invite_that_waited_in_the_broker_and_in_the_relay_rings_once(stage: Scene) -> None:
    settings = await registered(stage, "gate")
    async with running_station(settings):
        pass  # Now the broker keeps a session for it: an invite waits there, too.
    sid = await stage.invite(to="gate")
    async with running_station(settings) as station:
        gate = Diary(station)
        await gate.until(sid, CallStatus.PENDING)
        await stage.lobby.heard.until(_is(sid, UserState.RECEIVED), "gate received it")
        await stage.operate(sid, "cancel")
        await gate.until(sid, CallStatus.CLOSED)
        assert gate.rings(sid) == 1
        assert gate.is_silent()


async def test_device_that_comes_online_too_late_stays_silent(stage: Scene) -> None:
    settings = await registered(stage, "gate")
    async with running_station(settings):
        pass
    late = await stage.invite(to="gate", timeout_s=1)
    await stage.lobby.until_told_ended(late)
    async with running_station(settings) as station:
        gate = Diary(station)
        marker = await stage.invite(to="gate")
        await gate.until(marker, CallStatus.PENDING)
        assert gate.rings(late) == 0
        await stage.operate(marker, "cancel")
        await gate.until(marker, CallStatus.CLOSED)
    assert await stage.state_of(late, "gate") == "Timeout"


async def test_device_that_comes_online_after_another_answered_does_not_ring_on(
    stage: Scene,
) -> None:
    settings = await register_station(stage.http, "desk-2", identity="desk")
    async with running_station(settings):
        pass
    sid = await stage.invite()
    await stage.desk.until(sid, CallStatus.PENDING)
    await stage.desk.station.fingers.press("a")
    await stage.desk.until(sid, CallStatus.OPEN)
    async with running_station(settings) as station:
        second = Diary(station)
        # Its topic keeps its order: once it rings for a later call, it has heard all of this one.
        await stage.hang_up_once_open(sid)
        marker = await stage.invite()
        await second.until(marker, CallStatus.PENDING)
        assert second.statuses(sid) in ([], [CallStatus.PENDING, CallStatus.CLOSED])
        await stage.operate(marker, "cancel")
        await second.until(marker, CallStatus.CLOSED)


async def test_presence_is_retained_and_false_after_a_clean_goodbye(stage: Scene) -> None:
    settings = await registered(stage, "gate")
    topic = presence_topic(DeviceId("gate"))
    async with ear(address_of_own_broker(stage.relay.data), topic) as watcher:
        async with running_station(settings):
            await watcher.until(lambda heard: heard.document["online"] is True, "online")
        await watcher.until(lambda heard: heard.document["online"] is False, "offline")
    async with ear(address_of_own_broker(stage.relay.data), topic) as later:
        kept = await later.until(lambda heard: heard.retained, "what was retained")
        assert kept.document["online"] is False


async def test_each_request_published_twice_changes_nothing_twice(stage: Scene) -> None:
    settings = await registered(stage, "gate")
    sid = await stage.invite(to="gate")
    gate = DeviceId("gate")
    received = DeviceReceived(operation="received", call_sid=sid)
    accept = DeviceAccept(operation="accept", call_sid=sid)
    quit_ = DeviceQuit(operation="quit", call_sid=sid)
    async with ear(_address(settings), response_topic(gate)) as device:
        for operation, state in (
            (received, UserState.RECEIVED),
            (accept, UserState.ACCEPTED),
            (quit_, UserState.QUIT),
        ):
            document = operation.model_dump_json(by_alias=True, exclude_none=True).encode()
            first, second = await _ask_twice(device, gate, document)
            assert first == second
            assert (first["status"], _state_in(first, "gate")) == (200, state)
    await stage.lobby.until_told_ended(sid)
    told = [
        event.state
        for event in stage.lobby.heard.noted
        if isinstance(event, CallUserStateChanged) and event.identity == "gate"
    ]
    assert told == [UserState.RECEIVED, UserState.ACCEPTED, UserState.QUIT]


async def test_invite_request_published_twice_makes_one_call_that_rings_once(stage: Scene) -> None:
    settings = await registered(stage, "gate")
    gate = DeviceId("gate")
    invite = DeviceInvite(operation="invite", to=["desk"], timeout=30, idempotency_key="one press")
    document = invite.model_dump_json(by_alias=True, exclude_none=True).encode()
    async with ear(_address(settings), response_topic(gate)) as device:
        first, second = await _ask_twice(device, gate, document)
    sid = first["call"]["call_sid"]
    assert (first["status"], second["call"]["call_sid"]) == (201, sid)
    await stage.desk.until(sid, CallStatus.PENDING)
    assert len((await stage.ask("GET", "/v1/calls")).json()["calls"]) == 1
    await stage.operate(sid, "cancel")
    await stage.desk.until(sid, CallStatus.CLOSED)
    assert stage.desk.rings(sid) == 1


async def test_invite_delivered_again_while_it_rings_and_after_its_end_rings_once(
    stage: Scene,
) -> None:
    desk = DeviceId("desk")
    sid = await stage.invite()
    await stage.desk.until(sid, CallStatus.PENDING)
    invite = await stage.desk.heard.until(lambda event: isinstance(event, CallReceived), "invite")
    document = event_document(invite).encode()
    async with ear(address_of_own_broker(stage.relay.data)) as relay:
        await relay.say(call_topic(desk), document)
        await stage.desk.station.fingers.press("h")
        await stage.desk.until(sid, CallStatus.CLOSED)
        await stage.lobby.until_told_ended(sid)
        await relay.say(call_topic(desk), document)
    # A topic keeps its order, so once a later invite rings the repeated one has been heard.
    marker = await stage.invite()
    await stage.desk.until(marker, CallStatus.PENDING)
    assert stage.desk.rings(sid) == 1
    assert await stage.state_of(sid) == "Rejected"
    await stage.operate(marker, "cancel")
    await stage.desk.until(marker, CallStatus.CLOSED)
    await stage.must_have_kept_everything()


async def _ask_twice(
    device: Ear, name: DeviceId, document: bytes
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Publishes one request document twice; both answers."""
    before = len(device.record.noted)
    for _ in range(2):
        await device.say(request_topic(name), document, answer_to=response_topic(name), tag=b"1")
    await device.record.until(lambda _: len(device.record.noted) == before + 2, "two answers")
    first, second = device.record.noted[before:]
    return first.document, second.document


def _address(settings: AgentSettings) -> BrokerAddress:
    broker = settings.broker
    return parse_broker_url(
        broker.url, username=broker.username, password=broker.password.get_secret_value()
    )


def _state_in(answer: dict[str, Any], identity: str) -> UserState:
    return UserState(
        next(user["state"] for user in answer["call"]["users"] if user["identity"] == identity)
    )


def _is(sid: str, state: UserState) -> Callable[[object], bool]:
    return lambda event: (
        isinstance(event, CallUserStateChanged) and event.call_sid == sid and event.state is state
    )
