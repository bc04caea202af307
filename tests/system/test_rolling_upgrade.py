"""Relays are upgraded one after the other while calls are made: old and new stand beside each other on one
database and one broker, some end in order and some by kill -9, and every call comes to its right end."""

import asyncio
import itertools
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from tests.conftest import PATIENCE_S
from tests.system.many_relays import (
    MqttPhone,
    Phone,
    Relays,
    SharingRelay,
    StreamPhone,
    Version,
    many_relays,
)
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
@pytest.mark.full
@pytest.mark.parametrize("commit", [BEFORE, OLDEST])
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


async def test_a_relay_goes_on_with_what_one_of_the_version_before_has_left(tmp_path: Path) -> None:
    """On SQLite, with a broker of its own: devices, keys, and a call that rings, to its deadline."""
    try:
        version = await asyncio.to_thread(Version, BEFORE, tmp_path)
    except LookupError as error:
        pytest.skip(str(error))
    relay = SharingRelay(tmp_path / "relay", version=version)
    try:
        await relay.start()
        key = relay.access.api_key
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(headers=headers, timeout=PATIENCE_S) as http:
            url = relay.access.url
            body = {"identity": "bob", "channels": [{"kind": "websocket"}]}
            assert (await http.put(f"{url}/v1/devices/desk", json=body)).status_code == 201
            invite = {"from": "alice", "to": ["bob"], "timeout": 8, "extended_data": "x"}
            made = await http.post(f"{url}/v1/calls", json=invite)
            sid = made.json()["call_sid"]
            await relay.stop()
            relay = relay.of_this_version()
            await relay.start()
            url = relay.access.url
            assert relay.access.api_key == key
            device = (await http.get(f"{url}/v1/devices/desk")).json()
            assert device["identity"] == "bob"
            call = (await http.get(f"{url}/v1/calls/{sid}")).json()
            assert call["call_sid"] == sid
            async with asyncio.timeout(PATIENCE_S):
                while call["state"] != "ended":
                    await asyncio.sleep(0.1)
                    call = (await http.get(f"{url}/v1/calls/{sid}")).json()
            assert [user["state"] for user in call["users"] if user["identity"] == "bob"] == [
                "Timeout"
            ]
    finally:
        await relay.stop()
