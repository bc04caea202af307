"""A broker that comes back without its disk: the devices run on as they were, and say so."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bellwire.cli.fleet.session import RetainedFleet
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import CONFIG_DEFAULT
from tests.broker.running import raw_client
from tests.cli.fleet_stage import FleetStage, fleet_stage
from tests.config.fleet_parts import document


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[FleetStage]:
    async with fleet_stage(tmp_path, relay=False) as here:
        yield here


def _revisions(fleet: RetainedFleet) -> dict[str, int]:
    gate = fleet.devices.get(DeviceId("gate"))
    return gate.reported.revisions if gate and gate.reported else {}


def _errors(fleet: RetainedFleet) -> tuple[object, ...]:
    gate = fleet.devices.get(DeviceId("gate"))
    return gate.reported.errors if gate and gate.reported else ()


async def test_layers_that_vanish_with_the_brokers_disk_stay_in_force_and_are_reported(
    stage: FleetStage,
) -> None:
    gate = await stage.add("gate", groups=["north"])
    await stage.run("set", "call_timeout_s=33", "--default")
    await stage.run("set", "log_level=error", "--group", "north")
    await stage.until(lambda f: len(_revisions(f)) == 2)

    await stage.broker.kill()
    for store in stage.folder.rglob("mosquitto.db"):
        store.unlink()
    await stage.broker.start()

    await stage.until(lambda f: len(_errors(f)) == 2)
    assert (gate.live.now.call_timeout_s, gate.live.now.log_level) == (33, "error")
    row = (await stage.statuses())["gate"]
    assert (row["state"], row["revisions"]) == ("behind", {"default": 1, "group/north": 1})
    assert {error["layer"] for error in row["errors"]} == {"default", "group/north"}
    assert all("the broker has lost this layer" in error["reason"] for error in row["errors"])

    await stage.run("set", "call_timeout_s=44", "--default")
    (stage.folder / "north.toml").write_text("")
    await stage.run("apply", stage.folder / "north.toml", "--group", "north")
    await stage.until(lambda f: not _errors(f))
    assert (gate.live.now.call_timeout_s, gate.live.now.log_level) == (44, "info")
    assert (await stage.statuses())["gate"]["state"] == "in step"


async def test_empty_message_is_a_loss_and_a_layer_goes_only_by_a_revision_without_settings(
    stage: FleetStage,
) -> None:
    gate = await stage.add("gate")
    async with raw_client(stage.broker.address) as client:
        written = document({"call_timeout_s": 33})
        await client.publish(CONFIG_DEFAULT, written, qos=1, retain=True)
        await stage.until(lambda f: len(_revisions(f)) == 1)
        await client.publish(CONFIG_DEFAULT, b"", qos=1, retain=True)
    await stage.until(lambda f: len(_errors(f)) == 1)
    assert gate.live.now.call_timeout_s == 33
    (stage.folder / "default.toml").write_text("")
    assert (await stage.run("apply", stage.folder / "default.toml")).code == 0
    await stage.until(lambda f: not _errors(f) and _revisions(f) == {"default": 2})
    assert gate.live.now.call_timeout_s == gate.settings.call_timeout_s
    assert (await stage.statuses())["gate"]["errors"] == []
