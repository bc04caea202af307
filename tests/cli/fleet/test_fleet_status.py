"""`bellwire fleet status`: who is there as the broker confirms it, and the devices that are asked for."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from bellwire.cli.fleet.session import FleetDevice
from bellwire.cli.fleet.standing import Standing
from bellwire.config.agent.telemetry import Fault, Telemetry
from bellwire.config.fleet.layer import Reported
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import presence_topic, reported_topic, telemetry_topic
from bellwire.signaling.wire.station import Presence, presence_document
from tests.broker.running import raw_client
from tests.cli.fleet_stage import FleetStage

AT = datetime(2026, 11, 30, 12, 5, tzinfo=UTC)
GATE, YARD, HALL, NEW = map(DeviceId, ("gate", "yard", "hall", "new"))


async def retain(
    stage: FleetStage, topic: str, document: bytes, expires_in_s: int | None = None
) -> None:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    if expires_in_s is not None:
        properties.MessageExpiryInterval = expires_in_s
    async with raw_client(stage.broker.address) as client:
        await client.publish(topic, document, qos=1, retain=True, properties=properties)


def report(device: DeviceId, *groups: str) -> bytes:
    said = Reported(
        device_id=device,
        software="0.2.0",
        at=AT,
        hash="0" * 64,
        effective={"groups": list(groups)},
        sources={},
        revisions={},
    )
    return said.model_dump_json().encode()


async def a_fleet(stage: FleetStage) -> None:
    """Gate confirms that it is there, yard is of an older version, hall has gone, new never came."""
    there = Presence(online=True, software="0.2.0", since=AT)
    await retain(stage, presence_topic(GATE), presence_document(there), expires_in_s=600)
    await retain(stage, presence_topic(YARD), b'{"online": true, "software": "0.1.0"}')
    await retain(stage, presence_topic(HALL), presence_document(Presence(online=False)))
    registered = Presence(online=False, registered_at=AT)
    await retain(stage, presence_topic(NEW), presence_document(registered))
    for device, groups in ((GATE, ("north", "doors")), (YARD, ("north",)), (HALL, ())):
        await retain(stage, reported_topic(device), report(device, *groups))
    health = Telemetry(
        device_id=GATE,
        at=AT,
        software="0.2.0",
        uptime_s=60,
        cpu_percent=7.4,
        load_1m=0.51,
        temperature_c=48.7,
        faults=(Fault(part="audio", reason="no sound card"),),
    )
    await retain(stage, telemetry_topic(GATE), health.model_dump_json().encode())


async def names(stage: FleetStage, *arguments: object) -> list[str]:
    rows: list[dict[str, Any]] = (await stage.json("status", *arguments))["devices"]
    return [row["device_id"] for row in rows]


async def test_status_shows_the_devices_that_are_asked_for(stage: FleetStage) -> None:
    await a_fleet(stage)
    for arguments, expected in (
        ((), ["gate", "hall", "new", "yard"]),
        (("--group", "north"), ["gate", "yard"]),
        (("--group", "doors", "--group", "none"), ["gate"]),
        (("--state", "online"), ["gate", "yard"]),
        (("--state", "unconfirmed"), ["yard"]),
        (("--state", "offline"), ["hall"]),
        (("--state", "never-seen"), ["new"]),
        (("--state", "unknown", "--group", "north"), []),
        (("--state", "behind"), ["gate", "hall", "yard"]),
        (("--fault", "audio"), ["gate"]),
        (("--fault", "any"), ["gate"]),
        (("--fault", "door"), []),
        (("yard", "gate"), ["gate", "yard"]),
    ):
        assert await names(stage, *arguments) == expected, arguments
    nobody = await stage.run("status", "--fault", "door")
    assert (nobody.code, nobody.out) == (0, "None of 4 devices is as you ask.\n")
    slip = await stage.run("status", "--group", "nroth")
    assert slip.out.endswith("No device is in group nroth: did you mean north?\n")
    (await stage.run("status", "--state", "asleep")).must_say_in_one_line("asleep", "never-seen")
    (await stage.run("status", "gtae")).must_say_in_one_line("no device gtae", "fleet status")


async def test_status_tells_since_when_a_device_is_there_and_how_its_machine_is(
    stage: FleetStage,
) -> None:
    await a_fleet(stage)
    rows = await stage.statuses()
    assert rows["gate"]["since"] == "2026-11-30T12:05:00+00:00"
    assert [rows[name]["confirmed"] for name in ("gate", "yard")] == [True, False]
    assert rows["gate"]["groups"] == ["north", "doors"]
    assert rows["gate"]["telemetry"]["temperature_c"] == 48.7
    assert rows["yard"]["telemetry"] is None
    usual = (await stage.run("status")).out
    assert "2026-11-30 12:05" in usual
    assert "…" not in (await stage.run("status", columns=80)).out
    assert "unconfirmed" in usual
    told = (await stage.run("status", "gate", "--telemetry")).out
    for cell in ("7 %", "0.51", "49 °C", "audio: no sound card"):
        assert cell in told, told
    assert "yard" not in told


async def test_a_device_that_stops_confirming_is_offline_once_its_broker_says_so_no_more(
    stage: FleetStage,
) -> None:
    """No last will comes: its broker was killed, or there never was one. No relay runs here."""
    there = presence_document(Presence(online=True, since=AT))
    await retain(stage, reported_topic(GATE), report(GATE))
    await retain(stage, presence_topic(GATE), there, expires_in_s=2)
    began = time.monotonic()
    assert (await stage.statuses())["gate"]["online"]
    await stage.until(lambda fleet: not fleet.devices[GATE].online)
    assert time.monotonic() - began < 10
    await asyncio.sleep(2)
    assert not (await stage.statuses())["gate"]["online"]


def test_a_presence_holds_until_it_is_too_old_by_the_clock_of_who_heard_it() -> None:
    device = FleetDevice(GATE, clock=lambda: 10.0)
    device.presence, device.presence_until_s = Presence(online=True, since=AT), 10.5
    assert device.online
    assert Standing(device, "in step", {}).as_json()["confirmed"]
    device.presence_until_s = 10.0
    assert not device.online
    assert device.is_confirmed
