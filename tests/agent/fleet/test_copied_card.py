"""Two agents on one device file, as on a copied SD card: they yield to each other, and say so."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bellwire.agent.fleet.device_copies import COPIED, DeviceCopies, yielding_s
from bellwire.agent.link import Link
from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.session import BACKOFF_LONGEST_S, Session
from bellwire.cli.doctor.agent import examine_agent
from bellwire.cli.doctor.diagnosis import Condition
from bellwire.config.agent.settings import AgentSettings, agent_file
from bellwire.config.agent.telemetry import Telemetry
from bellwire.config.private_file import write_private
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import telemetry_topic
from tests.agent.desk import Exchange, settings_of
from tests.broker.running import Wire, held, soon
from tests.conftest import PATIENCE_S, running_station
from tests.system.scene import Record

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Pauses:
    """A sleep that lasts until it is let go, and tells how long it was to be."""

    def __init__(self) -> None:
        self.asked: deque[float] = deque()
        self._began: asyncio.Queue[asyncio.Event] = asyncio.Queue()

    async def __call__(self, seconds: float) -> None:
        over = asyncio.Event()
        self.asked.append(seconds)
        self._began.put_nowait(over)
        await over.wait()

    async def next(self) -> asyncio.Event:
        async with asyncio.timeout(PATIENCE_S):
            return await self._began.get()


@dataclass
class Copy:
    """One of the machines that use a device's file."""

    link: Link
    pauses: Pauses
    copies: DeviceCopies
    looked: asyncio.Queue[None] = field(default_factory=asyncio.Queue)

    def __post_init__(self) -> None:
        self.link.session.on_connected(self._has_looked)  # it comes after that of the copies

    async def come_back(self) -> None:
        """Waits until it is away, ends its pause, and waits until it has looked around again."""
        over = await self.pauses.next()
        over.set()
        await self.has_looked()

    async def has_looked(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self.looked.get()

    async def _has_looked(self) -> None:
        self.looked.put_nowait(None)


def copy_of(address: BrokerAddress, clock: Callable[[], float] = time.monotonic) -> Copy:
    device, pauses = DeviceId(str(address.username)), Pauses()
    link = Link(address, device, sleep=pauses)
    return Copy(link, pauses, DeviceCopies(device, link.session, clock=clock))


async def test_two_agents_on_one_file_yield_ever_longer_and_each_says_so_once(
    exchange: Exchange,
) -> None:
    """They took the device from each other four times a second, for as long as both ran."""
    address = await exchange.admit()
    mine, copied = copy_of(address), copy_of(address)
    with capture_logs() as logs:
        async with held(mine.link.session):
            await mine.has_looked()
            running = asyncio.create_task(copied.link.run())
            await copied.has_looked()
            for each in (mine, copied) * 5:
                await each.come_back()
            await mine.pauses.next()
            running.cancel()
    for each in (mine, copied):
        first, *others = each.pauses.asked
        assert first <= 0.25, "it cannot know yet that this was no network"
        assert others[:4] == [1, 4, 16, 30]
        assert [fault.part for fault in each.copies.faults()] == ["device"]
    assert yielding_s(1000) == BACKOFF_LONGEST_S == 30
    told = [log for log in logs if log["event"] == COPIED]
    assert [log["log_level"] for log in told] == ["error", "error"], "each once"
    assert all(log["device_id"] == address.username for log in told)
    assert "another machine uses this device's file" in COPIED
    assert "bellwire devices add ID" in COPIED


async def test_an_agent_that_loses_its_network_or_starts_again_is_no_other_machine(
    exchange: Exchange,
) -> None:
    address = await exchange.admit()
    for _ in range(3):
        async with Wire(address) as wire:
            here = copy_of(replace(address, port=wire.address.port))
            async with held(here.link.session):
                await here.has_looked()
                for _ in range(3):
                    wire.cut()
                    await wire.mend()
                    await here.come_back()
            assert here.copies.faults() == ()
            assert all(asked <= 0.5 for asked in here.pauses.asked)


async def test_a_device_is_one_again_once_its_rival_has_not_come_for_two_minutes(
    exchange: Exchange,
) -> None:
    address = await exchange.admit()
    now = 0.0
    mine, copied = copy_of(address, lambda: now), copy_of(address)
    async with held(mine.link.session):
        await mine.has_looked()
        running = asyncio.create_task(copied.link.run())
        await copied.has_looked()
        await mine.come_back()
        running.cancel()
        assert mine.copies.is_contested
        now = 119.9
        assert mine.copies.is_contested
        now = 120
        assert not mine.copies.is_contested
        assert mine.copies.faults() == ()


async def test_a_copied_card_is_a_fault_that_operators_and_the_doctor_see(
    exchange: Exchange, tmp_path: Path
) -> None:
    settings: AgentSettings = settings_of(await exchange.admit())
    device = DeviceId(settings.device_id)
    file = tmp_path / "device.toml"
    write_private(file, agent_file(settings))
    operator, health = Session(exchange.broker.address, "watcher", sleep=soon), Record()
    operator.subscribe(
        telemetry_topic(device), lambda m: health.note(Telemetry.model_validate_json(m.payload))
    )
    async with held(operator), running_station(settings), running_station(settings):
        told = await health.until(lambda report: bool(report.faults), "the fault")
        assert [fault.part for fault in told.faults] == ["device"]
        assert "another machine uses this device's file" in told.faults[0].reason
        found = await examine_agent(file)
    wrong = [each.what for each in found if each.condition is Condition.BAD]
    assert any("device: another machine uses this device's file" in what for what in wrong), wrong
