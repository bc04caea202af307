"""What was called written is there, whatever becomes of the broker: its disk is 30 s behind, and it is
killed at random moments while two operators write."""

import asyncio
import json
import os
import random
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cli.command import bellwire
from tests.conftest import PATIENCE_S
from tests.forking import ForkedRelay
from tests.system.scene import mosquitto_pid

LAYER = ("--group", "two")
ROUNDS, ROUNDS_IN_FULL = 2, 20
WRITES_AT_MOST = 6
"""Of one operator in a round: those of both are to be in a history of 20."""


@dataclass
class Operator:
    """Somebody who counts one key up; `written` is each revision that the command called written."""

    name: str
    key: str
    file: Path
    count: int = 0
    written: dict[int, Any] = field(default_factory=dict)
    wrote: asyncio.Event = field(default_factory=asyncio.Event)

    async def write(self, times: int) -> None:
        for _ in range(times):
            self.count += 1
            words = ("set", f"{self.key}={self.count}", *LAYER, "--json", "--operator", self.file)
            ended = await bellwire("fleet", *words)
            if ended.code == 0:
                written = json.loads(ended.out)
                assert written["durable"]["stored_by"] == "relay"
                self.written[written["revision"]] = written
                self.wrote.set()


async def test_whatever_was_called_written_outlives_a_broker_that_is_killed(
    tmp_path: Path, full: bool
) -> None:
    chance = random.Random(15)  # noqa: S311
    async with ForkedRelay(tmp_path / "relay"):
        both = [
            Operator("ann", "call_timeout_s", tmp_path / "ann.toml"),
            Operator("bob", "telemetry.interval_s", tmp_path / "bob.toml"),
        ]
        for operator in both:
            add = ("operator", "add", operator.name, "--out", operator.file)
            added = await bellwire("fleet", *add, "--data", tmp_path / "relay")
            assert added.code == 0, added
        for _ in range(ROUNDS_IN_FULL if full else ROUNDS):
            await outlive(tmp_path / "relay", both, chance)


async def outlive(data: Path, both: list[Operator], chance: random.Random) -> None:
    """One round: the broker dies while both write; then each writes once more, and all is there."""
    for operator in both:
        operator.written.clear()
        operator.wrote.clear()
    writing = [asyncio.create_task(operator.write(WRITES_AT_MOST)) for operator in both]
    await asyncio.gather(*(wait(operator.wrote) for operator in both))
    await asyncio.sleep(chance.uniform(0, 2))  # it is this moment that is random
    broker = mosquitto_pid(data)
    assert broker is not None
    os.kill(broker, signal.SIGKILL)
    await asyncio.gather(*writing)
    for operator in both:
        operator.wrote.clear()
        while not operator.wrote.is_set():
            await operator.write(1)

    # Whoever wrote on what the broker had lost may have taken a number that stands: the relay puts the
    # history right once it is back.
    async with asyncio.timeout(PATIENCE_S):
        while await what_is_amiss(both):
            pass
    newest = max((await history_of(both[0])).items())[1]
    assert newest["settings"]["call_timeout_s"] == both[0].count
    assert newest["settings"]["telemetry"]["interval_s"] == both[1].count


async def history_of(operator: Operator) -> dict[int, Any]:
    log = await bellwire("fleet", "log", *LAYER, "--json", "--operator", operator.file)
    return {revision["revision"]: revision for revision in json.loads(log.out)}


async def what_is_amiss(both: list[Operator]) -> list[str]:
    """What was called written and does not stand so in the history."""
    history = await history_of(both[0])
    return [
        f"{operator.name}: {written}, but {history.get(revision)}"
        for operator in both
        for revision, written in operator.written.items()
        if revision not in history
        or {name: written[name] for name in history[revision]} != history[revision]
    ]


async def wait(event: asyncio.Event) -> None:
    async with asyncio.timeout(2 * PATIENCE_S):
        await event.wait()
