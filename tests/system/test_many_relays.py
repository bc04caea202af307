"""Several relays on one PostgreSQL and one broker: whoever asks whichever of them hears the same, and
any of them may die."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from tests.system.many_relays import MqttPhone, Phone, Relays, StreamPhone, many_relays

RACES_AT_ONCE = 8

RING_S = 8
"""Longer than a delivery that a relay died with waits until another takes it over."""

LATE_S = 1.0
CALLS_PER_S = 6
KILL_EVERY_S = 2.0
CALLEES = ("ann", "ben", "cem", "dan")
OVER = {"call.cancelled", "call.timeout", "call.ended"}


async def test_exactly_one_of_two_devices_wins_that_accept_in_one_instant_at_two_relays(
    tmp_path: Path, new_postgres_database: Callable[[], str], full: bool
) -> None:
    room = asyncio.Semaphore(RACES_AT_ONCE)
    winners: Counter[str] = Counter()
    async with (
        many_relays(tmp_path, new_postgres_database(), 2) as relays,
        StreamPhone.there(relays, "bob-1", "bob", of_relay=0) as one,
        StreamPhone.there(relays, "bob-2", "bob", of_relay=1) as other,
    ):

        async def race(number: int) -> None:
            async with room:
                winners[await winner_of(relays, [one, other], number)] += 1

        async with asyncio.timeout(600):
            await asyncio.gather(*(race(number) for number in range(1000 if full else 40)))
        assert winners.keys() == {"bob-1", "bob-2"}, "they have not raced"


async def winner_of(relays: Relays, phones: list[Phone], number: int) -> str:
    """Has two phones accept a call, each at its own relay; who won, and everybody agrees."""
    sid = await relays.call(f"race-{number}", **{"from": "alice", "to": ["bob"], "timeout": 600})

    async def accept(place: int) -> int:
        body = {"identity": "bob", "device_id": phones[place].name}
        answer = await relays.ask("POST", f"/v1/calls/{sid}/accept", at=place, json=body)
        if answer.status_code == 409:
            problem = answer.json()
            assert (problem["operation"], problem["state"]) == ("accept", "Accepted")
        return answer.status_code

    order = [number % 2, 1 - number % 2]  # who asks first by a hair
    statuses = dict(zip(order, await asyncio.gather(*map(accept, order)), strict=True))
    assert sorted(statuses.values()) == [200, 409], statuses
    winner, loser = (phones[place] for place in sorted(statuses, key=statuses.__getitem__))
    for place in range(2):
        call = await relays.show(sid, at=place)
        bob = next(user for user in call["users"] if user["identity"] == "bob")
        assert (call["state"], bob["state"]) == ("open", "Accepted")
        assert bob["main_device"] == winner.name
    await loser.until(sid, "call.cancelled", reason="answered_elsewhere")
    assert "call.cancelled" not in winner.events_of(sid)
    return winner.name


@dataclass(frozen=True)
class Household:
    """The two phones of somebody, one on MQTT and one on WebSocket, and the phone of who calls."""

    relays: Relays
    phones: tuple[Phone, Phone]
    lobby: Phone


async def answers_and_hangs_up(here: Household, sid: str, first: int) -> str:
    phone, other = here.phones[first], here.phones[1 - first]
    await phone.until(sid, "call.received")
    assert (await phone.ask("accept", sid))["status"] == 200
    await other.until(sid, "call.cancelled", reason="answered_elsewhere")
    await here.lobby.until(sid, "call.user_state_changed", state="Accepted")
    assert (await phone.ask("quit", sid))["status"] == 200
    await phone.until(sid, "call.user_state_changed", state="Quit")
    await here.lobby.until(sid, "call.user_state_changed", state="Quit")
    return "Quit"


async def rejects(here: Household, sid: str, first: int) -> str:
    phone, other = here.phones[first], here.phones[1 - first]
    await phone.until(sid, "call.received")
    assert (await phone.ask("reject", sid))["status"] == 200
    await other.until(sid, "call.cancelled", reason="rejected_elsewhere")
    await here.lobby.until(sid, "call.user_state_changed", state="Rejected")
    return "Rejected"


async def caller_gives_up(here: Household, sid: str, first: int) -> str:
    await here.phones[first].until(sid, "call.received")
    answer = await here.relays.ask("POST", f"/v1/calls/{sid}/cancel")
    assert answer.status_code == 200, answer.text
    for phone in here.phones:
        await phone.until(sid, "call.cancelled", reason="cancelled")
    await here.lobby.until(sid, "call.user_state_changed", state="Canceled")
    return "Canceled"


async def nobody_answers(here: Household, sid: str, first: int) -> str:
    for phone in (here.phones[first], here.phones[1 - first]):
        await phone.until(sid, "call.received")
        await phone.until(sid, "call.timeout")
    await here.lobby.until(sid, "call.user_state_changed", state="Timeout")
    return "Timeout"


FATES: tuple[Callable[[Household, str, int], Awaitable[str]], ...] = (
    answers_and_hangs_up,
    nobody_answers,
    rejects,
    nobody_answers,
    caller_gives_up,
)


@pytest.mark.timeout(900)
async def test_every_call_reaches_its_right_end_while_relays_are_killed_one_after_another(
    tmp_path: Path, new_postgres_database: Callable[[], str], full: bool
) -> None:
    seconds = 300 if full else 8
    async with AsyncExitStack() as opened:
        relays = await opened.enter_async_context(many_relays(tmp_path, new_postgres_database(), 3))
        lobby = await opened.enter_async_context(StreamPhone.there(relays, "lobby-1", "lobby"))
        phones: dict[str, tuple[Phone, Phone]] = {}
        for name in CALLEES:
            phones[name] = (
                await opened.enter_async_context(MqttPhone.there(relays, f"{name}-1", name)),
                await opened.enter_async_context(StreamPhone.there(relays, f"{name}-2", name)),
            )
        over = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            killing = tasks.create_task(kill_in_turn(relays, over))
            calls = []
            for number in range(seconds * CALLS_PER_S):
                household = Household(relays, phones[CALLEES[number % len(CALLEES)]], lobby)
                calls.append(tasks.create_task(call_and_see_to_its_end(household, number)))
                await asyncio.sleep(1 / CALLS_PER_S)
            sids = [await call for call in calls]
            over.set()
            await killing
        assert relays.kills >= seconds / 10
        listed = await relays.sids_of("lobby")
        assert sorted(listed) == sorted(sids), "a call was lost, or made twice"
        everybody = [lobby, *itertools.chain.from_iterable(phones.values())]
        for phone in everybody:
            rang_wrongly(phone)


async def kill_in_turn(relays: Relays, over: asyncio.Event) -> None:
    for number in itertools.cycle(range(len(relays.processes))):
        try:
            async with asyncio.timeout(KILL_EVERY_S):
                await over.wait()
                return
        except TimeoutError:
            await relays.kill_and_restart(number)


async def call_and_see_to_its_end(here: Household, number: int) -> str:
    callee = here.phones[0].identity
    body = {"from": "lobby", "to": [callee], "timeout": RING_S}
    sid = await here.relays.call(f"call-{number}", **body)
    fate = FATES[number % len(FATES)]
    state = await fate(here, sid, number // len(FATES) % 2)
    await here.lobby.until(sid, "call.created")
    await here.lobby.until(sid, "call.ended")
    call = await here.relays.show(sid)
    assert call["state"] == "ended"
    assert {u["identity"]: u["state"] for u in call["users"]}[callee] == state
    if fate is nobody_answers:
        due = datetime.fromisoformat(call["expires_at"]).timestamp()
        for phone in here.phones:
            timeout, _ = await phone.until(sid, "call.timeout")
            fired = datetime.fromisoformat(timeout["at"]).timestamp()
            assert 0 <= fired - due <= LATE_S, f"fired {fired - due:.2f} s after its deadline"
    return sid


def rang_wrongly(phone: Phone) -> None:
    """Fails where a call has rung twice on a phone, or once it was over."""
    for sid in phone.heard:
        events = phone.events_of(sid)
        if "call.received" in events:
            assert events.count("call.received") == 1, f"{sid} rang twice at {phone.name}"
            before = events[: events.index("call.received")]
            assert not OVER & set(before), f"{sid} rang at {phone.name} after {before}"
    if isinstance(phone, StreamPhone):
        assert set(phone.came.values()) == {1}, "an event came twice in a stream"
