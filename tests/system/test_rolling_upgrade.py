"""Relays are upgraded one after the other while calls are made: old and new stand beside each other on one
database and one broker, some end in order and some by kill -9, and every call comes to its right end."""

import asyncio
import itertools
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.system.many_relays import MqttPhone, Phone, Relays, StreamPhone, Version, many_relays
from tests.system.test_many_relays import (
    CALLEES,
    CALLS_PER_S,
    Household,
    call_and_see_to_its_end,
    rang_wrongly,
)

BEFORE = "5f7bad4"
"""The version before migrations 0006 and on."""
OLDEST = "a6c4f9e"
"""Whatever is of this or a later version goes on working."""
BESIDE_EACH_OTHER_S = 3.0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("commit", [BEFORE, pytest.param(OLDEST, marks=pytest.mark.full)])
async def test_every_call_reaches_its_right_end_while_relays_are_upgraded_under_load(
    tmp_path: Path, new_postgres_database: Callable[[], str], full: bool, commit: str
) -> None:
    try:
        version = await asyncio.to_thread(Version, commit, tmp_path)
    except LookupError as error:
        pytest.skip(str(error))
    async with AsyncExitStack() as opened:
        relays = await opened.enter_async_context(
            many_relays(tmp_path, new_postgres_database(), 3, version)
        )
        lobby = await opened.enter_async_context(StreamPhone.there(relays, "lobby-1", "lobby"))
        phones: dict[str, tuple[Phone, Phone]] = {}
        for name in CALLEES:
            phones[name] = (
                await opened.enter_async_context(MqttPhone.there(relays, f"{name}-1", name)),
                await opened.enter_async_context(StreamPhone.there(relays, f"{name}-2", name)),
            )
        is_upgraded = asyncio.Event()
        calls: list[asyncio.Task[str]] = []
        async with asyncio.TaskGroup() as tasks:
            upgrading = tasks.create_task(upgrade(relays, is_upgraded, kills=30 if full else 2))
            for number in itertools.count():
                household = Household(relays, phones[CALLEES[number % len(CALLEES)]], lobby)
                calls.append(tasks.create_task(call_and_see_to_its_end(household, number)))
                await asyncio.sleep(1 / CALLS_PER_S)
                if is_upgraded.is_set():
                    break
            await upgrading
            sids = [await call for call in calls]
        assert relays.kills >= 3
        listed = await relays.sids_of("lobby")
        assert sorted(listed) == sorted(sids), "a call was lost, or made twice"
        for phone in [lobby, *itertools.chain.from_iterable(phones.values())]:
            rang_wrongly(phone)


async def upgrade(relays: Relays, is_upgraded: asyncio.Event, *, kills: int) -> None:
    """One after the other; the second is killed. Then some of this version are, as after any upgrade."""
    for number in range(len(relays.processes)):
        await asyncio.sleep(BESIDE_EACH_OTHER_S)
        await relays.upgrade(number, killed=number == 1)
    for number in range(kills):
        await asyncio.sleep(1)
        await relays.kill_and_restart(number % len(relays.processes))
    is_upgraded.set()
