"""`bellwire relay` as a process: how it stops, what it keeps to itself, and who may read its files."""

import asyncio
import json
import signal
import sqlite3
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bellwire.cli.relay_client import find_relay
from bellwire.config.agent.settings import agent_file
from bellwire.config.private_file import write_private
from tests.cli.command import bellwire, environment
from tests.conftest import PATIENCE_S, register_station, running_station
from tests.system.scene import mosquitto_pid

STOPS_WITHIN_S = 5.0


@dataclass
class Running:
    process: Process
    data: Path
    log: list[str] = field(default_factory=list)

    async def until(self, event: str) -> dict[str, Any]:
        """Reads its log up to this event."""
        assert self.process.stderr is not None
        async with asyncio.timeout(2 * PATIENCE_S):
            async for line in self.process.stderr:
                self.log.append(line.decode())
                if line.startswith(b"{") and (entry := json.loads(line))["event"] == event:
                    assert isinstance(entry, dict)
                    return entry
        raise AssertionError(f"it ended without {event!r}: {self.log}")

    async def exit_code(self) -> int:
        """Waits for its end; its log is then complete."""
        async with asyncio.timeout(STOPS_WITHIN_S):
            _, rest = await self.process.communicate()
            self.log.append(rest.decode())
            return await self.process.wait()

    def http(self) -> httpx.AsyncClient:
        access = find_relay(None, self.data, None)
        return httpx.AsyncClient(
            base_url=access.url, headers={"Authorization": f"Bearer {access.api_key}"}
        )


@asynccontextmanager
async def relay_command(data: Path, *arguments: str, umask: int = 0o022) -> AsyncIterator[Running]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bellwire", "relay", "--listen", "127.0.0.1:0"),
        *("--data", str(data), "--log-format", "json", *arguments),
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=PIPE,
        env=environment(),
        start_new_session=True,
        umask=umask,
    )
    running = Running(process, data)
    try:
        await running.until("relay serves")
        yield running
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_sigterm_and_sigint_stop_the_relay_and_its_broker_with_exit_code_0(
    tmp_path: Path,
) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        async with relay_command(tmp_path / "data") as relay:
            assert mosquitto_pid(relay.data) is not None
            relay.process.send_signal(number)
            assert await relay.exit_code() == 0
            assert mosquitto_pid(relay.data) is None
            assert "relay stopped" in relay.log[-1]


async def test_sigterm_in_the_middle_of_a_call_stops_the_relay_within_seconds(
    tmp_path: Path,
) -> None:
    async with (
        relay_command(tmp_path / "data") as relay,
        relay.http() as http,
        running_station(await register_station(http, "desk")) as desk,
    ):
        (await http.post("/v1/calls", json={"to": ["desk"]})).raise_for_status()
        await desk.ringer(active=True)
        relay.process.terminate()
        assert await relay.exit_code() == 0


async def test_second_relay_on_one_data_directory_is_refused(tmp_path: Path) -> None:
    async with relay_command(tmp_path / "data") as relay:
        ended = await bellwire("relay", "--listen", "127.0.0.1:0", "--data", relay.data)
        ended.must_say_in_one_line(str(relay.data), "--data DIR")


async def test_every_file_that_may_hold_a_secret_is_its_owners_alone(tmp_path: Path) -> None:
    async with relay_command(tmp_path / "data", umask=0) as relay, relay.http() as http:
        async with running_station(await register_station(http, "desk")) as desk:
            (await http.post("/v1/calls", json={"to": ["desk"]})).raise_for_status()
            await desk.ringer(active=True)
        secret = await asyncio.to_thread(secrets_in, relay.data)
        holding = {
            path: path.stat().st_mode & 0o777
            for path in relay.data.rglob("*")
            if path.is_file() and any(each.encode() in path.read_bytes() for each in secret)
        }
        assert {path.name for path in holding} >= {"api-key", "login.json"}
        assert set(holding.values()) == {0o600}
        private = ("api-key", "relay.db", "broker/login.json", "broker/dynamic-security.json")
        for name in private:
            assert (relay.data / name).stat().st_mode & 0o777 == 0o600
        for folder in (relay.data, relay.data / "broker"):
            assert folder.stat().st_mode & 0o777 == 0o700


def secrets_in(data: Path) -> set[str]:
    """The secrets that a relay keeps: its API key, its broker password, its signing keys."""
    with closing(sqlite3.connect(f"file:{data}/relay.db?mode=ro", uri=True)) as file:
        keys = [key for (key,) in file.execute("SELECT private_key FROM signing_keys")]
    assert keys
    return {
        (data / "api-key").read_text().strip(),
        json.loads((data / "broker" / "login.json").read_text())["password"],
        *(key.splitlines()[1] for key in keys),
    }


async def test_no_secret_is_in_the_logs_at_debug_level_or_in_the_list_of_processes(
    tmp_path: Path,
) -> None:
    async with relay_command(tmp_path / "data", "--log-level", "debug") as relay:
        async with relay.http() as http:
            settings = await register_station(http, "gate")
            shown = {settings.broker.password.get_secret_value(), "bwk_somebody-elses"}
            answer = await http.post("/v1/tokens", json={"identity": "gate"})
            shown.add(token := answer.json()["token"])
            for credential, status in ((token, 200), ("bwk_somebody-elses", 401)):
                headers = {"Authorization": f"Bearer {credential}"}
                assert (await http.get("/v1/calls", headers=headers)).status_code == status
            shown |= await asyncio.to_thread(secrets_in, relay.data)
            file = tmp_path / "gate.toml"
            write_private(file, agent_file(settings))
            agent = await start_agent(file)
            (await http.post("/v1/calls", json={"to": ["gate"]})).raise_for_status()
            assert "pending" in await say_goodbye_once_it_rings(agent)
            processes = list_processes(relay.process.pid)
            assert "mosquitto -c" in processes
            said_by_agent = "".join(agent.log)
        relay.process.terminate()
        assert await relay.exit_code() == 0
        said = "".join(relay.log)
    assert "device registered" in said
    assert "broker connected" in said_by_agent
    for secret in shown:
        for text in (said, said_by_agent, processes):
            assert secret not in text


async def start_agent(file: Path) -> Running:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bellwire", "agent", "--config", str(file), "--simulate"),
        *("--log-level", "debug", "--log-format", "json"),
        stdin=PIPE,
        stderr=PIPE,
        env=environment(),
    )
    agent = Running(process, file.parent)
    await agent.until("broker connected")
    return agent


async def say_goodbye_once_it_rings(agent: Running) -> str:
    """The line that says it rings; afterwards the agent has ended."""
    try:
        await agent.until("call status")
    finally:
        agent.process.terminate()
    assert await agent.exit_code() == 0
    return agent.log[-2]


def list_processes(session: int) -> str:
    """The command lines of a session's processes, as anybody may read them in /proc."""
    lines = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            # The session's id is the fourth field after the name, which may hold spaces itself.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                lines.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return "\n".join(lines)
