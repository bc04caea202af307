"""A fleet of the version before, whose layers said doors and wiring, moves to this one."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bellwire.agent.fleet.follower import FleetFollower as AgentFleet
from bellwire.agent.fleet.live_settings import LiveSettings
from bellwire.cli.fleet.session import RetainedFleet
from bellwire.config.agent.panel import OutputSettings
from bellwire.config.agent.settings import AgentSettings
from bellwire.config.fleet.last_good import LastGood
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import CONFIG_DEFAULT
from tests.agent.rough_broker import RoughBroker, RoughSession
from tests.broker.running import raw_client
from tests.cli.fleet_stage import FleetStage, fleet_stage, runs
from tests.config.fleet_parts import document
from tests.conftest import running_station

GATE = DeviceId("gate")

DEFAULT_OF_BEFORE = b"""\
{"revision": 6, "author": "ann", "at": "2026-11-01T00:00:00Z", "parent": "", "comment": "",
 "rollout": {"percent": 100, "pause_at_errors": null, "back_to": 0, "paused_at": null, "before": {}},
 "settings": {
  "panel": {"door": {"active_low": true, "open_s": 60}, "ringer": {"pin": 25}},
  "behaviour": {
   "do_not_disturb": {"enabled": true},
   "lockout_s": 1,
   "doors": {"front": {"callers": ["eve"]}, "back": {"callers": ["eve"], "by_message": true}},
   "auto_answer": {"callers": ["eve"], "verified_only": false}}}}
"""
SKIPPED = [
    "behaviour.auto_answer.callers",
    "behaviour.auto_answer.verified_only",
    "behaviour.doors.back.by_message",
    "behaviour.doors.back.callers",
    "behaviour.doors.front.callers",
    "behaviour.lockout_s",
    "panel.door.active_low",
    "panel.door.open_s",
    "panel.ringer.pin",
]


def file(password: str, url: str, **more: Any) -> AgentSettings:  # noqa: ANN401
    return AgentSettings.model_validate(
        {
            "device_id": GATE,
            "identity": GATE,
            "broker": {"url": url, "username": GATE, "password": password},
            "panel": {"door": {"pin": 25}, "ringer": {"pin": 18}},
            "behaviour": {"doors": {"front": {"callers": ["ann"], "code": "471147"}}},
            **more,
        }
    )


def now() -> datetime:
    return datetime.now(UTC)


def keep_as_before(folder: Path) -> None:
    """The disk as the version before left it."""
    body = b'{"device_id": "gate", "layers": {"default": ' + DEFAULT_OF_BEFORE + b"}}"
    kept = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
    (folder / f"fleet-{GATE}.json").write_bytes(kept)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[FleetStage]:
    async with fleet_stage(tmp_path) as here:
        yield here


async def file_for(stage: FleetStage, **more: Any) -> AgentSettings:  # noqa: ANN401
    address = await stage.grant(GATE)
    return file(address.password or "", address.url, **more)


async def retain(stage: FleetStage, topic: str, payload: bytes) -> None:
    async with raw_client(stage.broker.address) as client:
        await client.publish(topic, payload, qos=1, retain=True)


def reports(skipped: int, *revisions: tuple[str, int]) -> Callable[[RetainedFleet], bool]:
    """Whether the device has reported that it runs these revisions, and skips so many keys."""

    def holds(fleet: RetainedFleet) -> bool:
        gate = fleet.devices.get(GATE)
        said = gate.reported if gate else None
        return (
            said is not None and said.revisions == dict(revisions) and len(said.skipped) == skipped
        )

    return holds


async def test_fleet_of_the_version_before_keeps_its_quiet_and_gives_its_doors_back_to_their_files(
    stage: FleetStage,
) -> None:
    keep_as_before(stage.folder)
    settings = await file_for(stage)

    # It starts with what is on its disk, before it has heard of anything.
    start = LiveSettings(settings)
    AgentFleet(
        settings,
        RoughSession(RoughBroker(GATE)),
        start,
        last_good=LastGood(stage.folder, GATE),
        now=now,
    )
    is_as_its_file_says(start)

    await retain(stage, CONFIG_DEFAULT, DEFAULT_OF_BEFORE)
    async with running_station(settings, last_good=LastGood(stage.folder, GATE)) as station:
        is_as_its_file_says(station.agent.live)
        await stage.until(reports(len(SKIPPED), ("default", 6)))
        row = (await stage.statuses())["gate"]
        assert (row["state"], row["errors"], row["drift"]) == ("in step", [], False)
        assert [one["path"] for one in row["skipped"]] == SKIPPED
        assert {(one["layer"], one["revision"]) for one in row["skipped"]} == {("default", 6)}
        shown = (await stage.run("status", "--check")).out
        assert "skipped: default revision 6, panel.door.active_low: only the device's own" in shown
        is_as_its_file_says(station.agent.live)
        assert LastGood(stage.folder, GATE).layers["default"].revision == 6

        # The layer can be worked with, and mended bit by bit.
        assert (await stage.run("set", "audio.ring_volume=0.5", "--default")).code == 0
        assert (await stage.run("unset", "panel.door", "--default")).code == 0
        await stage.until(reports(len(SKIPPED) - 2, ("default", 8)))
        assert station.agent.live.now.audio.ring_volume == 0.5

    # The file opens what operators are to say.
    opened = await file_for(
        stage, remote=["behaviour.doors.front.callers", "behaviour.auto_answer"]
    )
    async with running_station(opened, last_good=LastGood(stage.folder, GATE)) as station:
        await stage.until(reports(len(SKIPPED) - 5, ("default", 8)))
        behaviour = station.agent.live.now.behaviour
        assert behaviour.do_not_disturb.enabled
        assert behaviour.doors.keys() == {"front"}
        assert behaviour.doors["front"].callers == ("eve",), "it follows, as the layer has it"
        assert behaviour.doors["front"].code is not None
        assert behaviour.auto_answer.callers == ("eve",)
        assert behaviour.lockout_s == 300
        done = await stage.run("set", 'behaviour.doors.front.callers=["bob"]', "--default")
        assert done.code == 0, done
        await stage.until(runs("gate", "default", 9))
        assert station.agent.live.now.behaviour.doors["front"].callers == ("bob",)


def is_as_its_file_says(live: LiveSettings) -> None:
    now = live.now
    assert now.behaviour.do_not_disturb.enabled, "do not disturb stays"
    assert now.behaviour.doors.keys() == {"front"}
    front = now.behaviour.doors["front"]
    assert (front.callers, front.by_message, front.verified_only) == (("ann",), False, True)
    assert front.code is not None
    assert now.behaviour.auto_answer.callers == ()
    assert now.behaviour.lockout_s == 300
    door, ringer = now.panel.door, now.panel.ringer
    assert door is not None and (door.pin, door.active_low, door.open_s) == (25, False, 5)
    assert ringer is not None and ringer.pin == 18


async def test_no_layer_holds_a_door_open_or_rings_on_its_pin(stage: FleetStage) -> None:
    settings = await file_for(stage)
    high = OutputSettings(pin=25)
    async with running_station(settings) as station:
        pins = station.fingers.pins
        assert not pins.is_active(high)
        for revision, wiring in enumerate(
            (
                {"door": {"active_low": True}},
                {"door": None, "ringer": {"pin": 25}},
                {"door": None, "status_light": {"pin": 25, "active_low": True}},
                {"ringer": {"pin": 25, "active_low": True}, "door": {"pin": 24}},
            ),
            1,
        ):
            change = {"panel": wiring, "call_timeout_s": 10 + revision}
            await retain(stage, CONFIG_DEFAULT, document(change, revision))
            await stage.until(runs("gate", "default", revision))
            assert station.agent.live.now.call_timeout_s == 10 + revision
            assert not pins.is_active(high)
            testing = asyncio.create_task(stage.run("ring-test", "gate", "--seconds", "0.1"))
            await station.ringer(active=True)
            assert not pins.is_active(high)
            assert (await testing).code == 0
        assert [one.path for one in station.agent.fleet.verdict.skipped] == [
            "panel.door.pin",
            "panel.ringer.active_low",
            "panel.ringer.pin",
        ]
