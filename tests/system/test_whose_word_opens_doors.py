"""Attacks on a door by who holds an API key: in the name of somebody whom the station has called. On a
real relay, broker and agent, with simulated pins."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from bellwire.config.agent.settings import AgentSettings
from tests.conftest import PATIENCE_S, Station, register_station, running_station
from tests.forking import ForkedRelay
from tests.push.support import Device, Running, listening

DOOR = {"pin": 25, "open_s": 60}
FRONT = {"callers": ["ann"], "by_message": True, "code": "4711"}
PRESSED = {"message_type": "door-release", "content": {"door": "front"}}


@dataclass
class House:
    """A station with a door that ann may open, ann's phone, and the attacker's API key."""

    station: Station
    phone: Device
    running: Running

    async def call_ann(self) -> str:
        """The call button; returns the call's SID, once it rings at ann's."""
        await self.station.fingers.press("1")
        sid: str = (await self.phone.until("call.received"))["call_sid"]
        return sid

    async def server(self, sid: str, operation: str, **body: Any) -> dict[str, Any]:  # noqa: ANN401
        """What the server does in ann's name."""
        answer = await self.running.do(sid, operation, identity="ann", **body)
        assert answer.status_code == 200, answer.text
        call: dict[str, Any] = answer.json()
        return call

    async def own_phone(self, sid: str, operation: str, **body: Any) -> None:  # noqa: ANN401
        """What ann does herself."""
        answer = await self.phone.ask({"operation": operation, "call_sid": sid, **body})
        assert answer["status"] == 200, answer

    async def is_answered(self) -> None:
        """Waits until the station knows that it is."""
        async with asyncio.timeout(PATIENCE_S):
            while not any(call.signalling.answered for call in self.station.agent.device.calls):
                await self.station.calls.get()

    async def result(self, sid: str, on: Device | None = None) -> str:
        """What the station answers to who asked for the door, on the phone or another device."""
        while True:
            said = await (on or self.phone).until("call.message", sid)
            if said["message_type"] == "door-release-result":
                result: str = said["content"]["result"]
                return result

    async def counted(self) -> float:
        """How often the relay was told that a door stayed shut for want of attestation."""
        exposition = (await self.running.http.get("/metrics")).text
        name = 'bellwire_refused_total{reason="door-not-verified"} '
        (line,) = (line for line in exposition.splitlines() if line.startswith(name))
        return float(line.removeprefix(name))

    async def is_counted(self, count: float) -> None:
        """Waits until it was told so often."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.counted() != count:  # noqa: ASYNC110 - the counter tells nobody
                await asyncio.sleep(0.05)

    def is_open(self) -> bool:
        door = self.station.agent.panel.door
        assert door is not None
        settings = self.station.fingers.settings.panel.door
        assert settings is not None
        assert door.is_open is self.station.fingers.pins.is_active(settings)
        return door.is_open


@pytest.fixture
async def house(relay: ForkedRelay, http: httpx.AsyncClient) -> AsyncIterator[House]:
    running = Running(relay, http)
    made = (await register_station(http, "lobby", calls=("ann",))).model_dump(exclude_unset=True)
    made["panel"] = {**made["panel"], "door": DOOR}
    made["behaviour"] = {"doors": {"front": FRONT}}
    async with AsyncExitStack() as opened:
        settings = AgentSettings.model_validate(made)
        station = await opened.enter_async_context(running_station(settings))
        phone = await opened.enter_async_context(listening(running, "ann-phone", "ann"))
        yield House(station, phone, running)


async def test_a_server_that_accepts_as_whom_the_station_called_opens_no_door(
    house: House,
) -> None:
    counted = await house.counted()
    sid = await house.call_ann()
    call = await house.server(sid, "accept")
    assert {user["identity"]: user["attestation"] for user in call["users"]} == {
        "lobby": "A",
        "ann": "B",
    }
    await house.is_answered()
    await house.server(sid, "messages", **PRESSED)
    assert await house.result(sid) == "not allowed"
    # Nor does it by the name of a device that ann has, or when ann herself asks in that call.
    await house.own_phone(sid, "message", **PRESSED)
    assert await house.result(sid) == "not allowed"
    for digit in "4711":
        house.station.agent.device.calls[0]._emit("digit", "ann", digit)  # as the media does
    assert not house.is_open()
    await house.is_counted(counted + 1)


async def test_a_message_that_a_server_says_in_the_name_of_who_accepted_herself_opens_no_door(
    house: House,
) -> None:
    sid = await house.call_ann()
    await house.own_phone(sid, "accept")
    await house.is_answered()
    await house.server(sid, "messages", device_id="ann-phone", **PRESSED)
    assert await house.result(sid) == "not allowed"
    assert not house.is_open()
    await house.own_phone(sid, "message", **PRESSED)
    assert await house.result(sid) == "released"
    assert house.is_open()


async def test_a_server_that_takes_the_call_over_from_her_phone_opens_no_door(
    house: House,
) -> None:
    sid = await house.call_ann()
    await house.own_phone(sid, "accept")
    await house.is_answered()
    async with listening(house.running, "another", "ann") as another:
        await house.server(sid, "join", device_id="another")
        told = await house.phone.until("call.cancelled", sid)
        assert told["reason"] == "joined_elsewhere"
        await house.server(sid, "messages", **PRESSED)
        assert await house.result(sid, another) == "not allowed"
        asked = {"operation": "message", "call_sid": sid, **PRESSED}
        refused = await house.phone.ask(asked)  # the server's device is the main one now
        assert (refused["status"], refused["problem"]["reason"]) == (409, "not-main-device")
        assert not house.is_open()
    await house.own_phone(sid, "join")  # it is hers again
    await house.own_phone(sid, "message", **PRESSED)
    assert await house.result(sid) == "released"
    assert house.is_open()


async def test_her_own_phone_opens_the_door_by_message_and_by_digits(house: House) -> None:
    sid = await house.call_ann()
    await house.own_phone(sid, "accept")
    await house.is_answered()
    (call,) = house.station.agent.device.calls
    (answer,) = call.record.acceptances
    assert (answer.identity, answer.attestation, answer.main_device) == ("ann", "A", "ann-phone")
    for digit in "4711":
        call._emit("digit", "ann", digit)  # as the media does
    assert await house.result(sid) == "released"
    assert house.is_open()
