"""Relays on a PostgreSQL with a standby, which Patroni has take its place: what was acknowledged is kept,
whether the change is made in order or by kill -9, and nobody is answered 500."""

import asyncio
import itertools
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from tests.patroni import needs_etcd, patroni_cluster
from tests.system.many_relays import Relays, many_relays

log = structlog.get_logger(__name__)

pytestmark = [pytest.mark.full, needs_etcd, pytest.mark.timeout(600)]

CALLERS = 8
LONGEST_GAP_S = 90.0
UNDISTURBED_S = 3.0
STATES = ("ringing", "open", "ended")


class Load:
    """Calls that are made, answered and hung up, again and again; and what was acknowledged of them."""

    def __init__(self, relays: Relays) -> None:
        self.relays = relays
        self.acknowledged: dict[str, tuple[str, str]] = {}
        """By Idempotency-Key: the call, and the state in which it was last said to be."""
        self.longest_gap_s = 0.0
        self.unavailable = 0
        self._keys = itertools.count()

    async def run(self, number: int) -> None:
        callee = f"callee-{number}"
        for key in map("call-{}".format, self._keys):
            body = {"from": "lobby", "to": [callee], "timeout": 600}
            made = await self._post("/v1/calls", body, {"Idempotency-Key": key})
            assert made.status_code == 201, made.text
            sid = made.json()["call_sid"]
            self.acknowledged[key] = (sid, made.json()["state"])
            for operation in ("accept", "quit"):
                said = {"identity": callee, "device_id": callee}
                answer = await self._post(f"/v1/calls/{sid}/{operation}", said)
                # Where the answer to the same was lost, it has been done.
                assert answer.status_code in (200, 409), answer.text
                if answer.status_code == 200:
                    self.acknowledged[key] = (sid, answer.json()["state"])

    async def _post(
        self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """Asks until it is answered, as a client is told to."""
        began = time.monotonic()
        async with asyncio.timeout(LONGEST_GAP_S):
            while True:
                answer = await self.relays.ask("POST", path, at=0, json=body, headers=headers)
                assert answer.status_code != 500, answer.text
                if answer.status_code != 503:
                    self.longest_gap_s = max(self.longest_gap_s, time.monotonic() - began)
                    return answer
                assert answer.headers["retry-after"]
                self.unavailable += 1
                await asyncio.sleep(0.2)

    async def go_on(self) -> None:
        """Waits until calls are made and ended, some of each."""
        wanted = len(self.acknowledged) + 3 * CALLERS
        async with asyncio.timeout(LONGEST_GAP_S):
            while len(self.acknowledged) < wanted:  # noqa: ASYNC110 - many take part
                await asyncio.sleep(0.05)


async def test_a_switchover_and_a_killed_leader_lose_nothing_that_was_acknowledged(
    tmp_path: Path,
) -> None:
    async with (
        patroni_cluster() as cluster,
        many_relays(tmp_path, cluster.url, 2) as relays,
    ):
        for number in range(CALLERS):
            await relays.register(f"callee-{number}", f"callee-{number}", "websocket")
        load = Load(relays)
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(load.run(number)) for number in range(CALLERS)]
            await load.go_on()
            await cluster.switch_over()
            await load.go_on()
            in_order_s, load.longest_gap_s = load.longest_gap_s, 0.0
            await cluster.until_followed()
            await asyncio.sleep(UNDISTURBED_S)
            leader = await cluster.until_leads()
            await leader.kill()
            await cluster.until_leads(other_than=leader)
            await load.go_on()
            for task in running:
                task.cancel()
        log.info(
            "gaps",
            calls=len(load.acknowledged),
            answers_503=load.unavailable,
            of_a_switchover_s=round(in_order_s, 1),
            of_kill_9_s=round(load.longest_gap_s, 1),
        )
        for key, (sid, state) in load.acknowledged.items():
            now = await relays.show(sid, at=1)
            assert STATES.index(now["state"]) >= STATES.index(state), (key, state, now)
        body = {"from": "lobby", "to": ["callee-0"], "timeout": 600}
        for key, (sid, _) in [*load.acknowledged.items()][:20]:
            again = await relays.ask(
                "POST",
                "/v1/calls",
                json={**body, "to": [await callee_of(relays, sid)]},
                headers={"Idempotency-Key": key},
            )
            assert again.json()["call_sid"] == sid, "a call was made twice"
        listed = await relays.sids_of("lobby")
        assert len(listed) == len(set(listed))
        assert {sid for sid, _ in load.acknowledged.values()} <= set(listed)


async def callee_of(relays: Relays, sid: str) -> str:
    users = (await relays.show(sid))["users"]
    name: str = next(user["identity"] for user in users if user["identity"] != "lobby")
    return name
