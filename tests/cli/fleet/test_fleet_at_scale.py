"""All that a large fleet has said reaches an operator and a guard, through a broker that keeps a few
megabytes for one session. What a wildcard alone would bring is shown beside it."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bellwire.broker.accounts.credentials import DynamicSecurity
from bellwire.broker.fleet.rollout_guard import guard_rollouts
from bellwire.broker.session.receiving import ReceivingSession
from bellwire.broker.session.session import Session
from bellwire.cli.fleet.session import RetainedFleet
from bellwire.config.agent.telemetry import Telemetry
from bellwire.config.fleet.layer import LayerProblem, Reported
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import (
    DEFAULT_LAYER,
    OPERATORS_ECHO,
    REPORTED_OF_ALL,
    presence_topic,
    reported_topic,
    telemetry_topic,
)
from bellwire.signaling.wire.station import Presence, presence_document
from tests.broker.flooding import connected, publish_at_qos_0, publish_at_qos_1
from tests.broker.running import Inbox, RunningBroker, held, soon
from tests.cli.fleet_stage import FleetStage, everybody
from tests.conftest import PATIENCE_S

AT = datetime(2026, 11, 21, tzinfo=UTC)
DEVICES, DEVICES_IN_FULL = 3000, 20_000
REPORT_BYTES = 2500


@pytest.fixture
def count(full: bool) -> int:
    return DEVICES_IN_FULL if full else DEVICES


@pytest.fixture
async def stage(tmp_path: Path, count: int) -> AsyncIterator[FleetStage]:
    """A stage whose broker keeps as much less for one session as the fleet is smaller."""
    broker = RunningBroker(tmp_path)
    path = tmp_path / "broker" / "mosquitto.conf"
    smaller = re.sub(
        r"(max_\w+_bytes) (\d+)",
        lambda found: f"{found[1]} {int(found[2]) * count // DEVICES_IN_FULL}",
        path.read_text(),
    )
    await asyncio.to_thread(path.write_text, smaller)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(broker)
        relay = Session(broker.address, "provisioner", sleep=soon)
        provisioner = DynamicSecurity(relay)
        await stack.enter_async_context(held(relay))
        yield FleetStage(broker, provisioner, stack, tmp_path)


async def retain_a_fleet(stage: FleetStage, count: int, refusing: int) -> None:
    """Has the broker retain what so many devices say; the last ones refuse the default layer."""
    async with connected(stage.broker.address, "fleet") as (reader, writer):
        for number in range(count):
            device = DeviceId(f"door-{number:05}")
            problem = LayerProblem(layer="default", revision=1, path="audio", reason="too loud")
            reported = Reported(
                device_id=device,
                software="0.2.0",
                at=AT,
                hash="0" * 64,
                effective={"filled": "x" * REPORT_BYTES},
                sources={},
                revisions={"default": 1},
                errors=(problem,) if number >= count - refusing else (),
            )
            telemetry = Telemetry(device_id=device, at=AT, software="0.2.0", uptime_s=1)
            presence = presence_document(Presence(online=True, software="0.2.0", since=AT))
            for topic, payload in (
                (presence_topic(device), presence),
                (reported_topic(device), reported.model_dump_json().encode()),
                (telemetry_topic(device), telemetry.model_dump_json().encode()),
            ):
                packet = publish_at_qos_0(topic, payload)
                writer.write(bytes((packet[0] | 1,)) + packet[1:])  # retained
            await writer.drain()
        writer.write(publish_at_qos_1("bellwire/v1/test", b""))
        async with asyncio.timeout(PATIENCE_S):
            while b"\x40" not in await reader.read(1024):
                pass


async def come_by_one_wildcard(stage: FleetStage) -> int:
    """How many reports come by one wildcard subscription."""
    reports = Inbox()
    session = ReceivingSession(
        stage.broker.address, "wildcard", echo_topic=OPERATORS_ECHO, sleep=soon
    )
    session.hear(REPORTED_OF_ALL, reports.take)
    async with held(session):
        await session.read_retained(REPORTED_OF_ALL)
    return len(reports.taken)


async def test_all_reports_of_a_large_fleet_reach_an_operator_and_a_guard(
    stage: FleetStage, count: int
) -> None:
    file = stage.write("default.toml", "[audio]\nring_volume = 0.5\n")
    await stage.run("apply", file, "--force", "--pause-at-errors", "1")
    await retain_a_fleet(stage, count, refusing=2)
    assert await come_by_one_wildcard(stage) < count

    rows = await stage.statuses()
    assert len(rows) == count
    assert {row["hash"] for row in rows.values()} == {"0" * 64}
    assert {row["call"] for row in rows.values()} == {"idle"}
    assert all(row["online"] for row in rows.values())

    session = ReceivingSession(
        stage.broker.address, "bellwire-guard", echo_topic=OPERATORS_ECHO, sleep=soon
    )
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(PATIENCE_S):
        guarding = tasks.create_task(
            guard_rollouts(session, everybody, author="guard", now=lambda: AT)
        )
        await stage.until(_is_paused)
        guarding.cancel()


def _is_paused(fleet: RetainedFleet) -> bool:
    layer = fleet.register.held(DEFAULT_LAYER).layer
    return layer is not None and layer.rollout.paused_at == 100
