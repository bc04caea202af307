"""A fleet of real processes, configured from a terminal: with its relay, and when that is gone."""

import asyncio
import json
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from bellwire.config.agent.settings import agent_file
from bellwire.config.private_file import write_private
from bellwire.signaling.topics import DEFAULT_LAYER, stored_topic
from tests.broker.running import raw_client
from tests.cli.command import bellwire, environment
from tests.conftest import PATIENCE_S, register_station
from tests.forking import ForkedProcess, ForkedRelay, forked
from tests.system.mosquitto import Mosquitto, running_mosquitto
from tests.system.scene import Record
from tests.system.test_agent_process import agent_process

DEVICES = ("gate-1", "gate-2", "gate-3")


class Terminal:
    """An operator's terminal: commands, and `bellwire fleet watch` beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen = Record()

    async def run(self, *words: object, code: int = 0) -> Any:  # noqa: ANN401 - JSON
        key = self.folder / "ann.toml"
        ended = await bellwire("fleet", *words, "--json", "--operator", key)
        assert ended.code == code, ended
        return json.loads(ended.out)

    async def states(self) -> dict[str, Any]:
        return {row["device_id"]: row for row in (await self.run("status"))["devices"]}

    async def all_seen(self, state: str, revision: int) -> list[dict[str, Any]]:
        """Waits until watch has shown each device so, at this revision of the default layer."""
        return [
            await self.seen.until(
                lambda row, device=device: (
                    (row["device_id"], row["state"], row["expected"].get("default"))
                    == (device, state, revision)
                ),
                f"{device} {state}",
            )
            for device in DEVICES
        ]

    @asynccontextmanager
    async def watching(self, *more: str) -> AsyncIterator[None]:
        words = ("fleet", "watch", "--json", "--operator", str(self.folder / "ann.toml"), *more)
        process = await forked(*words, stdout=PIPE, environment=environment())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read(process))
            try:
                yield
            finally:
                process.terminate()
            async with asyncio.timeout(PATIENCE_S):
                assert await process.wait() == 0

    async def _read(self, process: ForkedProcess) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            self.seen.note(json.loads(line))


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    async with running_mosquitto(tmp_path / "mosquitto") as running:
        yield running


@pytest.fixture
async def terminal(tmp_path: Path, broker: Mosquitto) -> AsyncIterator[Terminal]:
    """Three agents on a broker of their own, and an operator; the relay that let them in is gone."""
    async with AsyncExitStack() as opened:
        files = await registered(tmp_path, broker)
        for file in files:
            await opened.enter_async_context(agent_process(file))
        here = Terminal(tmp_path)
        await opened.enter_async_context(here.watching())
        for device in DEVICES:
            await here.seen.until(
                lambda row, device=device: row["device_id"] == device and row["online"] is True,
                f"{device} online",
            )
        yield here


async def registered(folder: Path, broker: Mosquitto) -> list[Path]:
    """Has a relay let three devices in and makes an operator's file; the relay stops then."""
    async with ForkedRelay(
        folder / "relay", arguments=broker.arguments, environment=broker.environment
    ) as relay:
        headers = {"Authorization": f"Bearer {relay.access.api_key}"}
        async with httpx.AsyncClient(
            base_url=relay.access.url, headers=headers, timeout=PATIENCE_S
        ) as http:
            files = [folder / device / "agent.toml" for device in DEVICES]
            for file in files:
                file.parent.mkdir()
                write_private(file, agent_file(await register_station(http, file.parent.name)))
        added = await bellwire(
            *("fleet", "operator", "add", "ann", "--out", folder / "ann.toml"),
            *("--admin-broker", broker.address.url),
            more=broker.environment,
        )
    assert added.code == 0, added
    return files


async def test_fleet_is_configured_from_a_terminal_and_shows_who_does_not_follow(
    terminal: Terminal,
) -> None:
    files = terminal.folder / "fleet"
    (files / "groups").mkdir(parents=True)
    (files / "default.toml").write_text("call_timeout_s = 33\n")
    (files / "groups" / "north.toml").write_text('log_level = "warning"\n')
    moved = await terminal.run("set", 'groups=["north"]', "--device", "gate-2")
    assert moved["durable"] == {"stored_by": "device", "device_id": "gate-2"}
    assert moved["warnings"] == ["nobody has named group north so far"]
    applied = await terminal.run("apply", files, "--wait", "--timeout", PATIENCE_S)
    assert applied["written"] == {"default": 1, "group/north": 1}
    assert applied["durable"]["group/north"] == {"stored_by": "device", "device_id": "gate-2"}
    assert applied["following"] == list(DEVICES)
    await terminal.all_seen("in step", 1)
    await terminal.seen.until(
        lambda row: row["device_id"] == "gate-2" and "group/north" in row["revisions"], "its group"
    )
    rang, changed, revisions, exported = await asyncio.gather(
        terminal.run("ring-test", "gate-1", "--seconds", 0.2),
        terminal.run("diff", files),
        terminal.run("log", "--default"),
        terminal.run("export", terminal.folder / "exported"),
    )
    assert (rang["device_id"], rang["result"]) == ("gate-1", "done")
    assert changed["changes"] == [], "the device's layer has no file, and is left alone"
    assert [(row["revision"], row["author"]) for row in revisions] == [(1, "ann")]
    assert {Path(file).name for file in exported["files"]} == {
        *("default.toml", "north.toml", "gate-2.toml")
    }

    (files / "default.toml").write_text("call_timeout_s = 3333\n")
    await terminal.run("apply", files, "--force", code=4)
    rows = await terminal.all_seen("refused", 2)
    [error] = rows[0]["errors"]
    assert (error["layer"], error["revision"], error["path"]) == ("default", 2, "call_timeout_s")
    assert "less than or equal to 600; this is 3333" in error["reason"]
    assert all(row["errors"] == [error] for row in rows), "the same on every device"
    states = await terminal.states()
    assert {(row["state"], row["revisions"]["default"]) for row in states.values()} == {
        ("refused", 1)
    }

    back = await terminal.run("rollback", "--default")
    assert back["revision"] == 3
    await terminal.all_seen("in step", 3)


async def test_rollout_that_devices_refuse_pauses_itself_with_a_watch_that_guards_and_with_a_relay(
    terminal: Terminal, broker: Mosquitto
) -> None:
    loud = terminal.folder / "default.toml"
    loud.write_text("call_timeout_s = 3333\n")
    apply = ("apply", loud, "--force", "--pause-at-errors", 2)
    async with terminal.watching("--guard"):
        assert (await terminal.run(*apply, code=4))["written"] == {"default": 1}
        await terminal.all_seen("in step", 2)
    [rollout] = (await terminal.run("status"))["rollouts"]
    assert (rollout["percent"], rollout["paused_at"]) == (0, 100)
    assert "3 refuse it, such as gate-1: call_timeout_s" in rollout["comment"]

    async with ForkedRelay(
        terminal.folder / "relay", arguments=broker.arguments, environment=broker.environment
    ):
        async with raw_client(broker.address) as client, asyncio.timeout(PATIENCE_S):
            await client.subscribe(stored_topic(DEFAULT_LAYER), qos=1)
            await anext(aiter(client.messages))
        assert (await terminal.run(*apply, "--percent", 100))["written"] == {"default": 3}
        await terminal.all_seen("in step", 4)
    newest, _, guarded, _ = await terminal.run("log", "--default")
    assert (newest["author"], guarded["author"]) == ("bellwire-relay", "ann")
    assert newest["settings"] == guarded["settings"] == {"call_timeout_s": 3333}
