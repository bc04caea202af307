"""Rollouts from a terminal: by steps, and back again where devices refuse."""

import asyncio
import json
from datetime import UTC, datetime

import pytest

from bellwire.broker.fleet.rollout_guard import guard_rollouts
from bellwire.broker.session.receiving import ReceivingSession
from bellwire.cli.fleet.rollout import rollout_lines
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import (
    DEFAULT_LAYER,
    OPERATORS_ECHO,
    REPORTED_OF_ALL,
    group_layer,
    presence_topic,
)
from bellwire.signaling.wire.station import Presence, presence_document
from tests.broker.running import raw_client, soon
from tests.cli.fleet_stage import FleetStage, everybody, runs
from tests.config.fleet_parts import layer


async def doors(stage: FleetStage, count: int) -> list[str]:
    """Devices at work, and a layer that all of them run."""
    names = [f"door-{number}" for number in range(count)]
    for name in names:
        await stage.add(name)
    await stage.run("set", "audio.ring_volume=0.2", "--default")
    return names


async def test_rollout_grows_by_steps_and_each_device_outside_keeps_what_it_had(
    stage: FleetStage,
) -> None:
    names = await doors(stage, 6)
    file = stage.write("default.toml", "[audio]\nring_volume = 0.6\n")
    half = await stage.json("apply", file, "--percent", "50", "--wait")
    assert half["written"] == {"default": 2}
    volumes = {name: stage.agents[name].live.now.audio.ring_volume for name in names}
    assert set(half["following"]) == {name for name, volume in volumes.items() if volume == 0.6}
    assert set(volumes.values()) == {0.2, 0.6}

    assert (await stage.json("apply", file))["written"] == {}
    whole = await stage.json("apply", file, "--percent", "80,100", "--wait")
    assert (whole["written"], whole["following"]) == ({"default": 4}, names)
    assert {agent.live.now.audio.ring_volume for agent in stage.agents.values()} == {0.6}


@pytest.mark.parametrize(("steps", "failed_at"), [("50,100", 50), ("100", 100)])
async def test_rollout_that_too_many_devices_refuse_goes_back_a_step_and_says_so(
    stage: FleetStage, steps: str, failed_at: int
) -> None:
    await doors(stage, 6)
    file = stage.write("default.toml", "[audio]\nring_volume = 6\n")
    ended = await stage.run(
        *("apply", file, "--force", "--percent", steps, "--pause-at-errors", "1", "--wait")
    )
    assert ended.code == 3
    assert "Paused" in ended.out
    (last, failed, before) = await stage.json("log", "--default")
    assert (last["rollout"]["percent"], failed["rollout"]["percent"]) == (0, failed_at)
    assert last["rollout"]["before"] == before["settings"]
    await stage.until(runs("door-0", "default", 3))
    assert {row["state"] for row in (await stage.statuses()).values()} == {"in step"}
    assert {agent.live.now.audio.ring_volume for agent in stage.agents.values()} == {0.2}


async def test_rollout_without_a_command_that_waits_is_taken_back_by_whoever_guards(
    stage: FleetStage,
) -> None:
    names = await doors(stage, 3)
    file = stage.write("default.toml", "[audio]\nring_volume = 6\n")
    ended = await stage.run("apply", file, "--force", "--pause-at-errors", "2")
    assert (ended.code, "bellwire fleet watch --guard" in ended.out) == (0, True)
    assert (await stage.json("status"))["rollouts"] == []
    session = ReceivingSession(
        stage.broker.address, "bellwire-guard", echo_topic=OPERATORS_ECHO, sleep=soon
    )
    async with asyncio.TaskGroup() as tasks:
        guarding = tasks.create_task(
            guard_rollouts(
                session, everybody, author="bellwire-relay", now=lambda: datetime.now(UTC)
            )
        )
        await stage.until(runs("door-0", "default", 3))
        guarding.cancel()
    [rollout] = (await stage.json("status"))["rollouts"]
    assert (rollout["layer"], rollout["percent"], rollout["paused_at"]) == ("default", 0, 100)
    table = await stage.run("status")
    assert "default revision 3 is for 0 % of its devices, paused at 100 %: 3 refuse it" in table.out

    file.write_text("[audio]\nring_volume = 0.6\n")
    mended = await stage.json("apply", file, "--pause-at-errors", "2", "--wait")
    assert (mended["following"], mended["paused"]) == (names, False)


async def test_command_that_waits_and_a_guard_beside_it_take_a_rollout_back_once(
    stage: FleetStage,
) -> None:
    for number in range(3):
        await stage.add(f"door-{number}")
    file = stage.write("default.toml", "[audio]\nring_volume = 6\n")
    session = ReceivingSession(
        stage.broker.address, "bellwire-guard", echo_topic=OPERATORS_ECHO, sleep=soon
    )
    async with asyncio.TaskGroup() as tasks:
        guarding = tasks.create_task(
            guard_rollouts(
                session, everybody, author="bellwire-relay", now=lambda: datetime.now(UTC)
            )
        )
        await session.wait_connected()
        ended = await stage.run("apply", file, "--force", "--pause-at-errors", "1", "--wait")
        guarding.cancel()
    assert ended.code == 3
    assert "paused at 100 %" in ended.out
    (last, _) = await stage.json("log", "--default")
    assert (last["rollout"]["percent"], last["rollout"]["paused_at"]) == (0, 100)


async def test_same_file_changes_the_share_or_the_number_of_errors_and_nothing_else(
    stage: FleetStage,
) -> None:
    await stage.add("door")
    await stage.run("set", "audio.ring_volume=0.2", "--default")
    file = stage.write("default.toml", "[audio]\nring_volume = 0.6\n")

    async def rollout(*options: str) -> tuple[object, ...]:
        await stage.run("apply", file, *options)
        (last, *_) = await stage.json("log", "--default")
        said = last["rollout"]
        before = said["before"].get("audio", {}).get("ring_volume")
        return last["revision"], said["percent"], said["back_to"], said["pause_at_errors"], before

    assert await rollout("--percent", "10") == (2, 10, 0, None, 0.2)
    assert await rollout() == (2, 10, 0, None, 0.2)
    assert await rollout("--pause-at-errors", "3") == (3, 10, 0, 3, 0.2)
    assert await rollout("--percent", "100", "--pause-at-errors", "3") == (4, 100, 10, 3, 0.2)
    assert await rollout("--percent", "100") == (5, 100, 0, None, None)
    assert await rollout("--percent", "50") == (6, 50, 0, None, 0.6)
    assert await rollout("--percent", "100") == (7, 100, 0, None, None)


async def test_share_of_a_directory_leaves_layers_that_are_finished_with_all_their_devices(
    stage: FleetStage,
) -> None:
    await stage.add("door")
    file = stage.write("default.toml", "[audio]\nring_volume = 0.6\n")
    await stage.run("apply", file)
    await stage.run("apply", file, "--percent", "1")
    [shared, _] = await stage.json("log", "--default")
    assert shared["rollout"]["before"] == shared["settings"], "the others run it as before"
    await stage.run("apply", file, "--percent", "100")
    written = await stage.json("apply", file, "--pause-at-errors", "3")
    assert written["written"] == {}, "there is nothing that it could go back to"


async def test_rollback_after_a_pause_is_to_what_ran_before_the_rollout(stage: FleetStage) -> None:
    await stage.add("door")
    await stage.run("set", "audio.ring_volume=0.2", "--default")
    file = stage.write("default.toml", "[audio]\nring_volume = 6\n")
    await stage.run("apply", file, "--force", "--percent", "50,100", "--wait")
    back = await stage.json("rollback", "--default")
    assert back["settings"] == {"audio": {"ring_volume": 0.2}}
    assert back["comment"] == "rollback to 1"


async def test_value_set_in_a_rollout_is_for_its_share_and_allows_as_many_errors(
    stage: FleetStage,
) -> None:
    await stage.add("door")
    await stage.run("set", "audio.ring_volume=0.2", "--default")
    file = stage.write("default.toml", "[audio]\nring_volume = 0.6\n")
    await stage.run("apply", file, "--percent", "10", "--pause-at-errors", "3")
    said = await stage.run("set", "audio.ring_volume=0.7", "--default")
    assert "default revision 3 is for 10 % of its devices" in said.out
    await stage.run("apply", file, "--percent", "100", "--pause-at-errors", "3")
    changed = await stage.json("set", "audio.ring_volume=0.8", "--default")
    assert changed["rollout"]["pause_at_errors"] == 3
    assert changed["rollout"]["before"] == {"audio": {"ring_volume": 0.6}}


async def test_device_whose_own_file_makes_no_sense_here_is_unknown_and_stops_nobody(
    stage: FleetStage,
) -> None:
    await stage.add("door")
    said = {
        "device_id": "odd",
        "software": "\x1b[31m9",
        "at": "2026-11-21T00:00:00Z",
        "hash": "",
        "effective": {},
        "sources": {},
        "revisions": {},
        "local": {"audio": {"ring_volume": 9}},
    }
    async with raw_client(stage.broker.address) as client:
        here = presence_document(Presence(online=False))
        await client.publish(presence_topic(DeviceId("odd")), here, qos=1, retain=True)
        topic = REPORTED_OF_ALL.replace("+", "odd")
        await client.publish(topic, json.dumps(said).encode(), qos=1, retain=True)
    await stage.until(lambda fleet: DeviceId("odd") in fleet.devices)
    assert (await stage.run("set", "log_level=debug", "--default")).code == 0
    await stage.until(runs("door", "default", 1))
    states = {name: row["state"] for name, row in (await stage.statuses()).items()}
    assert states == {"door": "in step", "odd": "unknown"}
    assert "\x1b" not in (await stage.run("status")).out


def test_status_says_of_a_rollout_that_takes_rights_away_that_nobody_takes_it_back() -> None:
    moved = layer({"groups": ["yard"]}, 4, percent=100, pause_at_errors=1, before={})
    quiet = layer({"log_level": "error"}, 4, percent=100, pause_at_errors=1, before={})
    [line] = rollout_lines({DEFAULT_LAYER: moved, group_layer("north"): quiet})
    assert line.startswith("default revision 4 is for 100 % of its devices")
    assert "never takes it back, since it takes rights away" in line
