"""How an agent starts and stops: presence, pins, SIGTERM and kill -9."""

import asyncio
import sys
from functools import partial
from pathlib import Path

import pytest

from bellwire.agent.main import run_agent
from bellwire.cli.demo.station import SimulatedStation
from bellwire.config.agent.settings import AgentSettings, agent_file
from bellwire.config.private_file import write_private
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.wire.station import parse_presence
from tests.agent.desk import PANEL, Desk, Exchange, settings_of
from tests.agent.scripted_relay import ScriptedRelay, fresh_sid, invite, scripted_relay
from tests.conftest import AT_ONCE_S, PATIENCE_S

pytestmark = pytest.mark.asyncio(loop_scope="module")


def note_level(levels: dict[int, bool], pin: int, high: bool, _: float) -> None:
    levels[pin] = high


async def until_present(relay: ScriptedRelay, *, online: bool) -> None:
    await relay.presence.until(
        lambda document: parse_presence(document).online is online, f"presence {online}"
    )


async def test_a_station_at_work_is_present_with_its_version(desk: Desk) -> None:
    await until_present(desk.relay, online=True)
    assert parse_presence(desk.relay.presence.noted[-1]).software


async def test_a_station_that_stops_while_it_rings_drops_every_pin_and_its_presence(
    exchange: Exchange,
) -> None:
    address = await exchange.admit()
    settings = settings_of(address)
    fingers = SimulatedStation(settings)
    stop, ready = asyncio.Event(), asyncio.Event()
    levels: dict[int, bool] = {}
    outputs = dict(PANEL.outputs())
    for output in outputs.values():
        fingers.pins.watch(output.pin, partial(note_level, levels, output.pin))
    async with scripted_relay(exchange.broker.address, DeviceId(settings.device_id)) as relay:
        running = asyncio.create_task(
            run_agent(settings, stop, pin_factory=fingers.pins, ready=ready.set)
        )
        await asyncio.wait_for(ready.wait(), PATIENCE_S)
        sid = fresh_sid()
        await relay.say(invite(sid))
        await relay.asked("received", sid)
        assert levels[outputs["ringer"].pin]
        stop.set()
        async with asyncio.timeout(AT_ONCE_S):
            await running
        assert levels.keys() == {output.pin for output in outputs.values()}
        assert not any(levels.values()), levels
        await until_present(relay, online=False)


async def started(folder: Path, settings: AgentSettings) -> asyncio.subprocess.Process:
    file = folder / "agent.toml"
    write_private(file, agent_file(settings))
    with (folder / "agent.log").open("wb") as log:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bellwire", "agent", "--config", str(file), "--simulate"),
            stdin=asyncio.subprocess.PIPE,
            stdout=log,
            stderr=log,
        )


async def test_sigterm_ends_the_agent_in_order_while_it_rings(
    exchange: Exchange, tmp_path: Path
) -> None:
    settings = settings_of(await exchange.admit())
    async with scripted_relay(exchange.broker.address, DeviceId(settings.device_id)) as relay:
        process = await started(tmp_path, settings)
        try:
            await until_present(relay, online=True)
            sid = fresh_sid()
            await relay.say(invite(sid))
            await relay.asked("received", sid)
            process.terminate()
            async with asyncio.timeout(PATIENCE_S):
                assert await process.wait() == 0
            await until_present(relay, online=False)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    said = (tmp_path / "agent.log").read_text()
    assert "agent stopped" in said
    assert "Traceback" not in said, said
    assert settings.broker.password.get_secret_value() not in said


async def test_a_killed_agent_is_called_away_by_its_last_will(
    exchange: Exchange, tmp_path: Path
) -> None:
    settings = settings_of(await exchange.admit())
    async with scripted_relay(exchange.broker.address, DeviceId(settings.device_id)) as relay:
        process = await started(tmp_path, settings)
        await until_present(relay, online=True)
        process.kill()
        await process.wait()
        await until_present(relay, online=False)
