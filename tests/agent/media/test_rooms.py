"""Calls of more than five: real devices, a real relay and a real Janus."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import pytest_asyncio

from bellwire.agent.calls.call import Call, CallStatus
from bellwire.agent.door.doors import Doors
from bellwire.agent.fleet.live_settings import LiveSettings
from bellwire.agent.media.peer import MediaTiming
from bellwire.config.agent.settings import ConfigurableSettings
from bellwire.hardware.panel.door_lock import DoorLock
from bellwire.hardware.panel.panel import Panel
from bellwire.hardware.panel.simulated_pins import SimulatedPins
from tests.agent.post import settings_of
from tests.agent.talking import QUICK, Talker, heard, talker
from tests.conftest import PATIENCE_S, register_station
from tests.forking import ForkedRelay
from tests.janus import SECRET, RunningJanus, janus, needs_janus
from tests.speech import RATE_HZ, Sound, fraction_heard, say
from tests.system.scene import Record

pytestmark = pytest.mark.asyncio(loop_scope="module")

HELLO, THANKS = say("Hello, is anybody there?", "en"), say("Thank you very much", "en+f3")
SAYS = (HELLO, THANKS, THANKS, THANKS, THANKS, THANKS)
DIGIT_TIMEOUT_S = 2
WHOLE = [(None, digit) for digit in "47#1"]
SILENT = ("v", "w", "x", "y")
HASTY, PATIENT = replace(QUICK, give_up_s=0.5), replace(QUICK, give_up_s=60)


@dataclass
class House:
    """Talkers of one relay, who are called by the first of them."""

    http: httpx.AsyncClient
    talkers: list[Talker]
    calls: list[Call]

    async def ring(self, *others: str) -> None:
        """The first calls all other talkers, and these."""
        caller, *called = self.talkers
        to = [*(talker.device.identity for talker in called), *others]
        self.calls = [caller.device.connect(to)]
        for talking in called:
            await talking.invited()

    async def accept(self, *numbers: int) -> None:
        for number in numbers:
            self.calls.append((await self.talkers[number].invited()).accept())

    async def has_accepted_silently(self, *others: str) -> None:
        """These accept by their own tokens, on devices that never say a word of their sound."""
        for who in others:
            body = {"identity": who, "device_id": who}
            token = (await self.http.post("/v1/tokens", json=body)).json()["token"]
            answer = await self.http.post(
                f"/v1/calls/{self.calls[1].sid}/accept",
                headers={"Authorization": f"Bearer {token}"},
            )
            assert answer.is_success, answer.text

    def only(self, speaking: int) -> None:
        """Has this one speak, and all others be silent."""
        for number, call in enumerate(self.calls):
            call.mute(number != speaking)


@asynccontextmanager
async def house(
    http: httpx.AsyncClient, size: int, timing: MediaTiming = QUICK
) -> AsyncIterator[House]:
    names = ("front", "a", "b", "c", "d", "e")[:size]
    async with AsyncExitStack() as stack:
        talkers = [
            await stack.enter_async_context(talker(http, name, says, timing=timing))
            for name, says in zip(names, SAYS, strict=False)
        ]
        yield House(http, talkers, [])


@asynccontextmanager
async def in_a_room(http: httpx.AsyncClient, timing: MediaTiming) -> AsyncIterator[House]:
    """Two who talk, in the room of a call of six."""
    async with house(http, 2, timing) as here:
        await meet_in_room(here)
        yield here


async def meet_in_room(here: House) -> None:
    for who in SILENT:
        await register_station(here.http, who)
    await here.ring(*SILENT)
    await here.accept(1)
    await here.has_accepted_silently(*SILENT)
    await both_hear_in_room(here)


async def both_hear_in_room(here: House) -> None:
    first, second = here.talkers
    await asyncio.gather(all_hear_in_room([second], HELLO), all_hear_in_room([first], THANKS))


async def all_hear_in_room(listeners: Sequence[Talker], speech: Sound) -> None:
    """Waits until each understands the beginning of a speech, and out of the room alone."""

    async def hear(listener: Talker) -> None:
        while True:
            listener.voice.heard.clear()
            # So long that all of it is there, wherever it sets in.
            await listener.voice.hears_more(2 * speech.size * 100 // RATE_HZ)
            sources = set(listener.voice.heard)
            if sources == {"room"}:
                sound = np.concatenate(listener.voice.heard["room"])
                if fraction_heard(speech, sound) >= 0.6:
                    return

    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        for listener in listeners:
            tasks.create_task(hear(listener))


@asynccontextmanager
async def relay_at(data: Path, **settings: str) -> AsyncIterator[httpx.AsyncClient]:
    environment = {f"BELLWIRE_{name.upper()}": value for name, value in settings.items()}
    async with ForkedRelay(data, environment=environment) as relay:
        headers = {"Authorization": f"Bearer {relay.access.api_key}"}
        async with httpx.AsyncClient(
            base_url=relay.access.url, headers=headers, timeout=PATIENCE_S
        ) as plain:
            yield plain


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bridge(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningJanus]:
    async with janus(tmp_path_factory.mktemp("janus")) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(
    tmp_path_factory: pytest.TempPathFactory, bridge: RunningJanus
) -> AsyncIterator[httpx.AsyncClient]:
    folder = tmp_path_factory.mktemp("rooms")
    secret = folder / "secret"
    secret.touch(mode=0o600)
    secret.write_text(SECRET)
    settings = {"janus_url": bridge.url, "janus_secret_file": str(secret)}
    async with relay_at(folder / "relay", **settings) as plain:
        yield plain


@needs_janus
async def test_six_parties_hear_one_another_in_a_room_and_nobody_twice(
    http: httpx.AsyncClient, bridge: RunningJanus
) -> None:
    async with house(http, 6) as here:
        await here.ring()
        await here.accept(1, 2, 3, 4, 5)
        await bridge.until_rooms_are(6)
        here.only(0)
        await all_hear_in_room(here.talkers[1:], HELLO)
        here.only(5)
        await all_hear_in_room(here.talkers[:5], THANKS)
        assert [call.status() for call in here.calls] == [CallStatus.OPEN] * 6
        for number, call in enumerate(here.calls):
            assert "reconnecting" not in here.talkers[number].names(call)
            call.disconnect()
        await bridge.until_rooms_are()


@needs_janus
@pytest.mark.full
async def test_a_call_whose_room_dies_for_good_ends_with_the_reason(
    http: httpx.AsyncClient, bridge: RunningJanus
) -> None:
    async with in_a_room(http, HASTY) as here:
        await bridge.kill()
        try:
            for talking, call in zip(here.talkers, here.calls, strict=True):
                await talking.until(call, "reconnecting")
                await talking.until_status(call, CallStatus.CLOSED)
                (error,) = [it[1] for it in talking.told[id(call)].noted if it[0] == "error"][-1:]
                assert error.code == 53401
                assert "Janus" in error.message
        finally:
            await bridge.start()


@needs_janus
@pytest.mark.full
async def test_a_call_finds_its_room_again_when_janus_was_away(
    http: httpx.AsyncClient, bridge: RunningJanus
) -> None:
    async with in_a_room(http, PATIENT) as here:
        await bridge.kill()
        for talking, call in zip(here.talkers, here.calls, strict=True):
            await talking.until(call, "reconnecting")
        await bridge.start()
        for talking, call in zip(here.talkers, here.calls, strict=True):
            await talking.until(call, "reconnected")
        await both_hear_in_room(here)
        assert sorted((await bridge.rooms()).values()) == [2]


@needs_janus
async def test_digits_pressed_in_a_room_open_a_door_that_all_who_are_in_it_may_open(
    http: httpx.AsyncClient,
) -> None:
    async with house(http, 2) as here:
        station, visitor = here.talkers
        async with door_of(station, callers=SILENT) as (door, live):
            await meet_in_room(here)
            call, answered = here.calls
            assert call.parties == {"a", *SILENT}
            for end in here.calls:
                end.mute()
            await dial(answered, station.told[id(call)])
            assert not door.is_open, "any of these may have pressed them"
            live.take(guarded(("a", *SILENT)))
            await dial(answered, station.told[id(call)])
            assert door.is_open
            released = {"door": "front", "result": "released"}
            await visitor.told[id(answered)].until(
                lambda it: it[0] == "messageReceived" and it[1].content == released, "the result"
            )
            assert "digit" not in visitor.names(answered)
            for leaving in here.calls:
                leaving.disconnect()


async def dial(call: Call, there: Record) -> None:
    """Presses 47#1 until that is what came out of the room: a busy machine tears tones up."""

    def heard_since(number: int) -> list[tuple[str | None, str]]:
        return [it[1:] for it in there.noted[number:] if it[0] == "digit"]

    async with asyncio.timeout(PATIENCE_S):
        while True:
            before = len(there.noted)
            call.send_digits("47w#1")
            with suppress(TimeoutError):
                async with asyncio.timeout(2 * DIGIT_TIMEOUT_S):
                    await there.until(
                        lambda it, since=before: it[0] == "digit" and heard_since(since) == WHOLE,
                        "47#1",
                    )
                    return


def guarded(callers: Sequence[str]) -> ConfigurableSettings:
    """A door for these, by a code."""
    doors = {"front": {"callers": list(callers), "code": "47#1"}}
    return settings_of(
        behaviour={"doors": doors, "digit_timeout_s": DIGIT_TIMEOUT_S, "wrong_codes": 10}
    )


@asynccontextmanager
async def door_of(
    station: Talker, callers: Sequence[str]
) -> AsyncIterator[tuple[DoorLock, LiveSettings]]:
    """A door at this station, which opens for these."""
    live = LiveSettings(guarded(callers))
    with SimulatedPins(live.now.panel) as pins:
        panel = Panel(live.now.panel, pin_factory=pins)
        Doors(live, station.device, panel)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(panel.run())
            await panel.ready()
            assert panel.door is not None
            yield panel.door, live
            running.cancel()
        panel.close()


async def test_without_janus_five_talk_on_and_the_sixth_is_told_why_not(tmp_path: Path) -> None:
    async with relay_at(tmp_path / "relay") as http, house(http, 6) as here:
        await here.ring()
        await here.accept(1, 2, 3, 4)
        for talking, call in zip(here.talkers[:5], here.calls, strict=True):
            await talking.until(call, "audio")
        await here.accept(5)
        sixth, call = here.talkers[5], here.calls[5]
        await sixth.until_status(call, CallStatus.CLOSED)
        errors = [it[1] for it in sixth.told[id(call)].noted if it[0] == "error"]
        assert {error.code for error in errors} == {53401, 53405}
        assert "janus_url" in errors[-1].message
        assert [call.status() for call in here.calls[:5]] == [CallStatus.OPEN] * 5
        await asyncio.gather(*(heard(other, "front", HELLO) for other in here.talkers[1:5]))
