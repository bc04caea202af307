"""`bellwire fleet ring-test` and `watch`: real agents, as an operator sees and rings them."""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE
from datetime import UTC, datetime

from pydantic import SecretStr

from bellwire.config.agent.settings import AgentSettings, BrokerSettings, default_panel
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import command_topic, presence_topic, reported_topic
from bellwire.signaling.wire.station import Presence, RingTest, presence_document
from tests.broker.running import raw_client
from tests.cli.command import environment
from tests.cli.fleet_stage import FleetStage
from tests.conftest import PATIENCE_S, running_station


async def settings_of(stage: FleetStage, device: str) -> AgentSettings:
    address = await stage.grant(DeviceId(device))
    return AgentSettings(
        device_id=device,
        identity=device,
        broker=BrokerSettings(
            url=address.url, username=device, password=SecretStr(address.password or "")
        ),
        panel=default_panel([]),
    )


async def test_ring_test_rings_the_device_for_a_moment_and_says_so(stage: FleetStage) -> None:
    async with running_station(await settings_of(stage, "desk")) as station:
        testing = asyncio.create_task(stage.run("ring-test", "desk", "--seconds", "0.3"))
        began = await station.ringer(active=True)
        assert await station.ringer(active=False) > began
        done = await testing
    assert (done.code, done.out) == (0, "desk rang for 0.3 s.\n")


async def test_device_without_a_ringer_says_why_it_does_not_ring(stage: FleetStage) -> None:
    settings = await settings_of(stage, "gate")
    without = settings.model_copy(
        update={"panel": settings.panel.model_copy(update={"ringer": None})}
    )
    async with running_station(without):
        refused = await stage.run("ring-test", "gate")
    refused.must_say_in_one_line("gate did not ring", "panel.ringer")


async def test_device_that_is_offline_is_not_rung_later(stage: FleetStage) -> None:
    await stage.add("gate")
    await stage.stop("gate")
    await stage.until(lambda fleet: not fleet.devices[DeviceId("gate")].online)
    (await stage.run("ring-test", "gate")).must_say_in_one_line("gate is offline", "fleet status")


async def test_command_that_another_device_or_a_retained_message_gives_is_not_obeyed(
    stage: FleetStage,
) -> None:
    agent = await stage.add("gate")
    other = await stage.grant(DeviceId("other"))
    command = RingTest(id="forged", duration_s=0.1).model_dump_json().encode()
    async with raw_client(other) as client:
        await client.publish(command_topic(DeviceId("gate")), command, qos=1)
    async with raw_client(stage.broker.address) as client:
        await client.publish(command_topic(DeviceId("gate")), b"{not JSON", qos=1)
        await client.publish(command_topic(DeviceId("gate")), b"x" * 2000, qos=1)
    assert (await stage.run("ring-test", "gate", "--seconds", "0.1")).code == 0
    assert agent.rang == [True, False]


async def test_watch_prints_a_line_for_each_device_that_changes_until_it_is_stopped(
    stage: FleetStage,
) -> None:
    await stage.add("gate")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bellwire", "fleet", "watch", "--json"),
        *("--operator", str(await stage.operator())),
        stdout=PIPE,
        env=environment(),
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(2 * PATIENCE_S):
            first = json.loads(await process.stdout.readline())
            assert (first["device_id"], first["state"]) == ("gate", "in step")
            await stage.run("set", "audio.ring_volume=9", "--default", "--force")
            while (row := json.loads(await process.stdout.readline()))["state"] != "refused":
                pass
            assert row["errors"][0]["path"] == "audio.ring_volume"
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_status_names_an_error_once_whole_and_all_devices_that_have_it(
    stage: FleetStage,
) -> None:
    for name in ("gate", "yard"):
        await stage.add(name)
    await stage.run("set", "audio.speaker_volume=7", "--default", "--force")
    await stage.until(
        lambda fleet: all(
            device.reported is not None and device.reported.errors
            for device in fleet.devices.values()
        )
    )
    shown = await stage.run("status")
    error = "default revision 1, audio.speaker_volume: Input should be less than or equal to 1"
    # However narrow the terminal is.
    assert " ".join(shown.out.split()).count(error) == 1
    assert "on gate, yard" in shown.out


async def test_status_check_fails_where_a_door_is_offline_or_was_never_seen(
    stage: FleetStage,
) -> None:
    """It was content with a fleet of which half was dead."""
    await stage.add("gate")
    assert (await stage.run("status", "--check")).code == 0
    await stage.stop("gate")
    await stage.until(lambda fleet: not fleet.devices[DeviceId("gate")].online)
    assert (await stage.run("status", "--check")).code == 3
    yard = DeviceId("yard")
    registered = Presence(online=False, registered_at=datetime.now(UTC))
    async with raw_client(stage.broker.address) as relay:
        for device, presence in (("gate", b""), (yard, presence_document(registered))):
            topic = presence_topic(DeviceId(device))
            await relay.publish(topic, presence, qos=1, retain=True)
        await relay.publish(reported_topic(DeviceId("gate")), b"", qos=1, retain=True)
    ended = await stage.run("status", "--check")
    assert ended.code == 3
    assert "1 devices, 0 online, 1 never seen: 1 unknown" in ended.out
    row = (await stage.statuses())["yard"]
    assert (row["online"], row["never_seen"]) == (False, True)
    async with running_station(await settings_of(stage, "yard")):
        await stage.until(lambda f: f.devices[yard].online and f.devices[yard].reported is not None)
        assert (await stage.run("status", "--check")).code == 0


async def test_status_shows_that_another_machine_uses_a_devices_file(stage: FleetStage) -> None:
    settings = await settings_of(stage, "gate")
    async with running_station(settings), running_station(settings):
        await stage.until(
            lambda fleet: any(
                device.online and device.telemetry is not None and device.telemetry.faults
                for device in fleet.devices.values()
            )
        )
        shown = await stage.run("status")
    assert "device: another machine uses this device's file" in " ".join(shown.out.split())
