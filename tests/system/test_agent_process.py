"""The agent as the process that systemd starts: it rings, answers and says goodbye, and when it is
killed the broker says goodbye for it."""

import asyncio
import json
import os
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bellwire.agent.calls.call import CallStatus
from bellwire.config.agent.settings import agent_file
from bellwire.config.private_file import write_private
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import presence_topic
from tests.conftest import PATIENCE_S, register_station
from tests.forking import ForkedProcess, forked
from tests.system.mqtt_ear import Ear, Heard, address_of_own_broker, ear
from tests.system.scene import Record, Scene, scene


class AgentProcess:
    """`bellwire agent --simulate`: its keys, and what it logs."""

    def __init__(self, process: ForkedProcess) -> None:
        self.process = process
        self.log = Record()

    async def read_log(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            if line.startswith(b"{"):
                self.log.note(json.loads(line))

    async def type(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        await self.process.stdin.drain()

    async def until(self, sid: str, status: CallStatus) -> dict[str, Any]:
        line: dict[str, Any] = await self.log.until(
            lambda entry: entry.get("call_sid") == sid and entry.get("status") == status,
            f"{sid} {status}",
        )
        return line

    async def exit_code(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()


@asynccontextmanager
async def agent_process(file: Path) -> AsyncIterator[AgentProcess]:
    process = await forked(
        *("agent", "--config", file, "--simulate", "--log-format", "json"),
        stdin=PIPE,
        stderr=PIPE,
        environment={k: v for k, v in os.environ.items() if k != "NOTIFY_SOCKET"},
    )
    running = AgentProcess(process)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(running.read_log())
        try:
            yield running
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            assert process.stdin is not None
            process.stdin.close()


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene(tmp_path) as opened:
        yield opened


@pytest.fixture
async def file(stage: Scene, tmp_path: Path) -> Path:
    """The file of a device `gate`, whose first button calls the desk."""
    path = tmp_path / "gate.toml"
    write_private(path, agent_file(await register_station(stage.http, "gate", calls=("desk",))))
    return path


@pytest.fixture
async def presence(stage: Scene) -> AsyncIterator[Ear]:
    """What is said of the gate's presence."""
    topic = presence_topic(DeviceId("gate"))
    async with ear(address_of_own_broker(stage.relay.data), topic) as watcher:
        yield watcher


def is_online(heard: Heard) -> bool:
    return heard.document["online"] is True


def is_offline(heard: Heard) -> bool:
    return heard.document["online"] is False


async def test_agent_process_rings_is_answered_calls_and_stops_cleanly_on_sigterm(
    stage: Scene, file: Path, presence: Ear
) -> None:
    async with agent_process(file) as gate:
        await presence.until(is_online, "online")
        sid = await stage.invite(to="gate")
        await gate.until(sid, CallStatus.PENDING)
        await gate.type("a")
        await gate.until(sid, CallStatus.OPEN)
        assert await stage.state_of(sid, "gate") == "Accepted"
        await gate.type("h")
        await stage.lobby.until_told_ended(sid)

        await gate.type("1")
        made = await gate.log.until(lambda entry: entry["event"] == "call made", "its own call")
        await stage.desk.until(made["call_sid"], CallStatus.PENDING)
        await stage.desk.station.fingers.press("a")
        await gate.until(made["call_sid"], CallStatus.OPEN)
        await gate.type("h")
        await stage.desk.until(made["call_sid"], CallStatus.CLOSED)

        gate.process.terminate()
        assert await gate.exit_code() == 0
        await presence.until(is_offline, "offline")
        assert gate.log.noted[-1]["event"] == "agent stopped"
        assert [e for e in gate.log.noted if e["level"] in ("error", "critical")] == []


async def test_agent_process_stops_when_told_by_its_keyboard(file: Path, presence: Ear) -> None:
    async with agent_process(file) as gate:
        await presence.until(is_online, "online")
        await gate.type("q")
        assert await gate.exit_code() == 0
        await presence.until(is_offline, "offline")


async def test_sigterm_while_it_rings_stops_the_agent_and_leaves_the_call_to_others(
    stage: Scene, file: Path, presence: Ear
) -> None:
    async with agent_process(file) as gate:
        await presence.until(is_online, "online")
        sid = await stage.invite(to="gate")
        await gate.until(sid, CallStatus.PENDING)
        gate.process.terminate()
        assert await gate.exit_code() == 0
        await presence.until(is_offline, "offline")
        assert await stage.state_of(sid, "gate") == "Received"
        await stage.operate(sid, "cancel")


async def test_broker_says_that_a_killed_agent_is_gone_and_a_new_one_takes_up_its_call(
    stage: Scene, file: Path, presence: Ear
) -> None:
    async with agent_process(file) as gate:
        await presence.until(is_online, "online")
        sid = await stage.invite(to="gate", timeout_s=60)
        await gate.until(sid, CallStatus.PENDING)
        gate.process.kill()
        assert await gate.exit_code() == -9
        await presence.until(is_offline, "the last will")
    async with agent_process(file) as gate:
        await gate.until(sid, CallStatus.PENDING)
        await gate.type("a")
        await gate.until(sid, CallStatus.OPEN)
        await gate.type("h")
        await stage.lobby.until_told_ended(sid)
        assert await stage.state_of(sid, "gate") == "Quit"


async def test_agent_answers_no_network_with_patience_and_still_stops_cleanly(
    stage: Scene, file: Path
) -> None:
    await stage.kill()
    async with agent_process(file) as gate:
        await gate.log.until(lambda e: e["event"] == "broker not reached", "a failed attempt")
        gate.process.terminate()
        assert await gate.exit_code() == 0
