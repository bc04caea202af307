"""When `bellwire fleet` says "Written": once a relay has stored it, or a device has it on its disk."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bellwire.cli.fleet.session import RetainedFleet
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import CONFIG_DEFAULT, CONFIG_GROUPS
from tests.broker.running import raw_client
from tests.cli.fleet_stage import FleetStage, fleet_stage, keeping, runs
from tests.config.fleet_parts import document


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[FleetStage]:
    """A fleet without a relay."""
    async with fleet_stage(tmp_path, relay=False) as here:
        yield here


async def retain(stage: FleetStage, topic: str, payload: bytes) -> None:
    async with raw_client(stage.broker.address) as client:
        await client.publish(topic, payload, qos=1, retain=True)


async def test_without_relay_and_device_it_is_said_that_nothing_is_durable_yet(
    alone: FleetStage,
) -> None:
    ended = await alone.run("set", "call_timeout_s=7", "--default")
    assert ended.code == 4
    assert "Written: default revision 1, not yet durable" in ended.out
    assert "no relay of this version runs on this broker" in ended.out
    assert "Next: start a relay" in ended.out
    alone.write("default.toml", "call_timeout_s = 8\n")
    applied = await alone.run("apply", alone.folder / "layers", "--json")
    assert applied.code == 4
    shown = json.loads(applied.out)
    assert shown["written"] == {"default": 2}
    assert shown["durable"] == {"default": {"stored_by": None, "device_id": None}}


async def test_without_a_relay_a_device_that_has_it_on_disk_makes_it_written_and_is_named(
    alone: FleetStage,
) -> None:
    await alone.add("desk")
    ended = await alone.run("set", "call_timeout_s=7", "--default")
    assert (ended.code, ended.out) == (
        0,
        "Written: default revision 1, on the disk of device desk\n",
    )
    assert (await alone.json("set", "call_timeout_s=8", "--device", "desk"))["durable"] == {
        "stored_by": "device",
        "device_id": "desk",
    }
    refused = await alone.run("set", "call_timeout_s=7000", "--device", "desk", "--force")
    assert refused.code == 4, "who refuses a layer does not keep it"
    other = await alone.run("set", "call_timeout_s=7", "--group", "nobodys")
    assert other.code == 4, "nor does who is not in its group"
    await alone.stop("desk")
    away = await alone.run("set", "call_timeout_s=9", "--device", "desk")
    assert away.code == 4


async def test_once_a_relay_runs_what_was_not_durable_is(alone: FleetStage) -> None:
    assert (await alone.run("set", "call_timeout_s=7", "--default")).code == 4
    async with keeping(alone.broker, alone.folder / "relay"):
        ended = await alone.run("set", "log_level=debug", "--default")
        assert (ended.code, ended.out) == (0, "Written: default revision 2, stored by the relay\n")
        await alone.broker.kill()
        (alone.folder / "broker/mosquitto.db").unlink(missing_ok=True)
        await alone.broker.start()
        await alone.until(lambda fleet: len(fleet.register.layers()) == 1)
        revisions = await alone.json("log", "--default")
    assert [row["revision"] for row in revisions] == [2, 1]


async def test_write_goes_above_what_a_device_has_obeyed_and_the_broker_has_lost(
    alone: FleetStage,
) -> None:
    agent = await alone.add("desk")
    await retain(alone, CONFIG_DEFAULT, document({"call_timeout_s": 8}, 8))
    await alone.until(runs("desk", "default", 8))
    await retain(alone, CONFIG_DEFAULT, document({"call_timeout_s": 5}, 5))

    def is_told(fleet: RetainedFleet) -> bool:
        reported = fleet.devices[DeviceId("desk")].reported
        return reported is not None and bool(reported.outdated)

    await alone.until(is_told)
    row = (await alone.statuses())["desk"]
    assert (row["state"], row["revisions"]) == ("refused", {"default": 8})
    assert "older than revision 8" in row["errors"][0]["reason"]
    assert "older than revision 8" in (await alone.run("status")).out
    assert agent.live.now.call_timeout_s == 8

    written = await alone.json("set", "log_level=debug", "--default")
    assert (written["revision"], written["durable"]["device_id"]) == (9, "desk")
    await alone.until(runs("desk", "default", 9))
    assert (agent.live.now.call_timeout_s, agent.live.now.log_level) == (5, "debug")


async def test_group_that_a_device_has_left_is_not_obeyed_again_at_an_older_revision(
    alone: FleetStage,
) -> None:
    agent = await alone.add("desk", groups=["north"])
    north = CONFIG_GROUPS.replace("+", "north")
    await retain(alone, north, document({"call_timeout_s": 8}, 8))
    await alone.until(runs("desk", "group/north", 8))
    await alone.run("set", "groups=[]", "--device", "desk")
    await alone.until(lambda fleet: not runs("desk", "group/north", 8)(fleet))
    await retain(alone, north, document({"call_timeout_s": 7}, 7))
    await alone.run("set", 'groups=["north"]', "--device", "desk")

    def is_told(fleet: RetainedFleet) -> bool:
        reported = fleet.devices[DeviceId("desk")].reported
        return reported is not None and reported.obeyed == {"group/north": 8}

    await alone.until(is_told)
    assert agent.live.now.call_timeout_s == 60
    assert (await alone.json("set", "call_timeout_s=9", "--group", "north"))["revision"] == 9
    await alone.until(runs("desk", "group/north", 9))


async def test_device_that_claims_the_last_of_all_revisions_does_not_use_them_up(
    alone: FleetStage,
) -> None:
    await alone.add("desk")
    reported = alone.agents["desk"].fleet.reported()
    liar = reported.model_copy(
        update={"device_id": "liar", "revisions": {"default": 2**53 - 1}, "obeyed": {"default": 99}}
    )
    topic = "bellwire/v1/device/liar/config/reported"
    await retain(alone, topic, liar.model_dump_json().encode())
    assert (await alone.json("set", "call_timeout_s=7", "--default"))["revision"] == 100
