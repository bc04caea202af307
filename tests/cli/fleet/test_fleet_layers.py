"""`bellwire fleet set`, `unset`, `log`, `rollback`, `apply`, `diff`, `export`: the layers, as an operator
works with them, and the devices that follow."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from bellwire.signaling.topics import CONFIG_DEFAULT
from tests.broker.running import raw_client
from tests.cli.fleet_stage import FleetStage, fleet_stage, invoke, runs


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mistakes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FleetStage]:
    async with fleet_stage(tmp_path_factory.mktemp("mistakes")) as here:
        yield here


async def test_value_is_set_followed_logged_rolled_back_and_taken_out(stage: FleetStage) -> None:
    agent = await stage.add("desk", groups=["north"])
    for revision, value in ((1, 0.1), (2, 0.2)):
        done = await stage.run("set", f"audio.ring_volume={value}", "--group", "north")
        assert (done.code, done.out) == (
            0,
            f"Written: group/north revision {revision}, stored by the relay\n",
        ), done
    await stage.until(runs("desk", "group/north", 2))
    assert agent.live.now.audio.ring_volume == 0.2

    assert (await stage.run("rollback", "--group", "north", "--comment", "too loud")).code == 0
    await stage.until(runs("desk", "group/north", 3))
    assert agent.live.now.audio.ring_volume == 0.1

    assert (await stage.run("unset", "audio.ring_volume", "--group", "north")).code == 0
    await stage.until(runs("desk", "group/north", 4))
    assert agent.live.now.audio.ring_volume == 0.8

    log = await stage.json("log", "--group", "north")
    assert [(row["revision"], row["comment"]) for row in log] == [
        (4, "unset audio.ring_volume"),
        (3, "too loud"),
        (2, "set audio.ring_volume"),
        (1, "set audio.ring_volume"),
    ]
    assert {row["author"] for row in log} == {"ann"}
    gone = await stage.run("rollback", "--group", "north", "--to", 9)
    gone.must_say_in_one_line("no revision 9", "4, 3, 2, 1")


async def test_two_operators_at_one_layer_keep_each_others_keys_and_not_the_same_key(
    stage: FleetStage,
) -> None:
    await stage.operator("bob")
    await stage.run("set", "log_level=debug", "--default")
    ann = await stage.run("set", "audio.ring_volume=0.3", "--default")
    bob = await stage.run("set", "call_timeout_s=30", "--default", operator="bob")
    assert (ann.code, bob.code) == (0, 0)
    (row, *_) = await stage.json("log", "--default")
    assert (row["author"], row["settings"]) == (
        "bob",
        {"log_level": "debug", "audio": {"ring_volume": 0.3}, "call_timeout_s": 30},
    )


async def test_directory_is_applied_diffed_exported_and_taken_back_unchanged(
    stage: FleetStage, tmp_path: Path
) -> None:
    await stage.add("lobby-1", groups=["north"])
    stage.write("default.toml", "[audio]\nring_volume = 0.5\n")
    stage.write("groups/north.toml", 'log_level = "debug"\n')
    stage.write("devices/lobby-1.json", '{"audio": {"ring_tone": null}, "call_timeout_s": 20}')
    folder = tmp_path / "layers"

    shown = await stage.json("apply", folder, "--dry-run")
    assert {change["layer"] for change in shown["changes"]} == {
        "default",
        "group/north",
        "device/lobby-1",
    }
    (device,) = shown["devices"]
    assert {"path": "audio.ring_volume", "old": "0.8", "new": "0.5"} in device["differences"]
    assert {"path": "call_timeout_s", "old": "60.0", "new": "20.0"} in device["differences"]
    assert (await stage.statuses())["lobby-1"]["expected"] == {}
    assert (await stage.run("diff", folder)).code == 3

    applied = await stage.json("apply", folder, "--wait")
    assert applied["following"] == ["lobby-1"]
    assert applied["written"] == {"default": 1, "group/north": 1, "device/lobby-1": 1}
    status = (await stage.statuses())["lobby-1"]
    assert (status["state"], status["drift"], status["online"]) == ("in step", False, True)
    assert status["revisions"] == {"default": 1, "group/north": 1, "device": 1}

    assert (await stage.run("export", tmp_path / "out")).code == 0
    assert (await stage.run("diff", tmp_path / "out")).code == 0
    again = await stage.json("apply", tmp_path / "out")
    assert (again["changes"], again["written"]) == ([], {})
    (await stage.run("export", tmp_path / "out")).must_say_in_one_line("not empty")


async def test_layer_that_a_device_would_refuse_is_not_written_unless_forced(
    stage: FleetStage,
) -> None:
    await stage.add("desk")
    refused = await stage.run("set", "audio.ring_volume=7", "--default")
    refused.must_say_in_one_line("desk", "default", "audio.ring_volume", "--force")
    bad = stage.write("default.toml", "[audio]\nring_volume = 7\n")
    (await stage.run("apply", bad)).must_say_in_one_line("would refuse", "--dry-run", "--force")
    assert (await stage.run("log", "--default")).code == 1

    forced = await stage.json("apply", bad, "--force", "--wait")
    assert (forced["refusing"], forced["following"]) == (["desk"], [])
    status = (await stage.statuses())["desk"]
    assert (status["state"], status["errors"][0]["path"]) == ("refused", "audio.ring_volume")
    assert (await stage.run("status", "--check")).code == 3


async def test_bad_layer_of_another_client_is_shown_with_each_devices_error(
    stage: FleetStage,
) -> None:
    for device in ("a", "b", "c"):
        await stage.add(device)
    await stage.run("set", "audio.ring_volume=0.5", "--default")
    bad = {"revision": 2, "author": "mosquitto_pub", "at": "2026-11-21T00:00:00Z"}
    bad["settings"] = {"audio": {"ring_volume": "loud"}}  # type: ignore[assignment]
    async with raw_client(stage.broker.address) as client:
        await client.publish(CONFIG_DEFAULT, json.dumps(bad).encode(), qos=1, retain=True)
    await stage.until(
        lambda fleet: all(d.reported and d.reported.errors for d in fleet.devices.values())
    )
    rows = (await stage.statuses()).values()
    assert [row["state"] for row in rows] == ["refused"] * 3
    (error,) = {json.dumps(row["errors"]) for row in rows}
    assert "audio.ring_volume" in error
    assert {agent.live.now.audio.ring_volume for agent in stage.agents.values()} == {0.5}
    table = await stage.run("status")
    assert "3 devices, 3 online: 3 refused" in table.out
    assert table.out.count("audio.ring_volume") == 1
    assert "on a, b, c" in table.out

    assert (await stage.run("rollback", "--default")).code == 0
    await stage.until(runs("a", "default", 3))


async def test_table_of_a_large_fleet_shows_those_that_do_not_follow_first(
    stage: FleetStage,
) -> None:
    agent = await stage.add("desk")
    good = agent.fleet.reported()
    async with raw_client(stage.broker.address) as client:
        for number in range(130):
            device = f"a-{number}"
            said = good.model_copy(
                update={"device_id": device, "hash": "0" * 64 if number == 129 else good.hash}
            )
            await client.publish(
                f"bellwire/v1/device/{device}/config/reported",
                said.model_dump_json().encode(),
                qos=1,
                retain=True,
            )
    shown = (await stage.run("status")).out
    assert "131 devices, 1 online: 130 in step, 1 behind; 31 more: see them with --all" in shown
    assert shown.index("a-129") < shown.index("a-0")
    assert (await stage.run("status", "--all")).out.count("a-") >= 130


async def test_moving_a_device_between_groups_changes_what_it_runs(stage: FleetStage) -> None:
    agent = await stage.add("lobby", groups=["north"])
    await stage.run("set", "audio.ring_volume=0.1", "--group", "north")
    await stage.run("set", "audio.ring_volume=0.9", "--group", "south")
    done = await stage.run("set", 'groups=["south"]', "--device", "lobby")
    assert done.code == 0
    await stage.until(runs("lobby", "group/south", 1))
    assert agent.live.now.audio.ring_volume == 0.9
    assert (await stage.statuses())["lobby"]["state"] == "in step"


async def test_device_that_is_away_or_runs_something_else_is_shown_behind(
    stage: FleetStage,
) -> None:
    await stage.add("desk")
    async with raw_client(stage.broker.address) as client:
        await client.publish(
            "bellwire/v1/device/desk/presence", b'{"online": false}', qos=1, retain=True
        )
        reported = stage.agents["desk"].fleet.reported().model_copy(update={"hash": "0" * 64})
        await client.publish(
            "bellwire/v1/device/desk/config/reported",
            reported.model_dump_json().encode(),
            qos=1,
            retain=True,
        )
    status = (await stage.statuses())["desk"]
    assert (status["state"], status["drift"], status["online"]) == ("behind", True, False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("set", "audio.ring_volume", "--default"), ("KEY=VALUE",)),
        (("set", "log_level=debug"), ("--default, --group NAME or --device ID",)),
        (("set", "log_level=debug", "--default", "--group", "a"), ("give one of",)),
        (("set", "log_level=debug", "--group", "a/b"), ("group 'a/b'",)),
        (("set", "a..b=1", "--default"), ("dots",)),
        (("unset", "log_level", "--default"), ("does not say log_level",)),
        (("log",), ("--default", "--group NAME")),
        (("log", "--default"), ("has no revisions",)),
        (("apply", "missing.toml"), ("missing.toml", "which layer")),
        (("apply", "missing.toml", "--default"), ("missing.toml cannot be read",)),
        (("apply", "x", "--percent", "50,20"), ("growing steps",)),
        (("apply", "x", "--percent", "10,100"), ("--wait",)),
        (("ring-test", "nobody"), ("nobody", "fleet status")),
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_mistake_is_told_in_one_line(
    mistakes: FleetStage, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    (await mistakes.run(*arguments)).must_say_in_one_line(*words)


async def test_unreached_broker_and_refused_credentials_are_told_in_one_line(
    stage: FleetStage,
) -> None:
    path = await stage.operator()
    password = json.loads(f'"{path.read_text().split(chr(34))[5]}"')
    path.write_text(path.read_text().replace(password, "wrong"))
    (await stage.run("status")).must_say_in_one_line("refuses the credentials")
    path.chmod(0o644)
    (await stage.run("status")).must_say_in_one_line("chmod 600")
    path.unlink()
    ended = await asyncio.to_thread(invoke, ["fleet", "status", "--operator", str(path)])
    ended.must_say_in_one_line("fleet operator add")
