"""A call from end to end: a real relay, a real mosquitto, real agents on simulated pins."""

import time

import httpx

from bellwire.agent.calls.call import CallStatus
from tests.conftest import register_station, running_station


async def test_invite_rings_the_desk_and_its_button_answers_and_hangs_up(
    http: httpx.AsyncClient,
) -> None:
    async with running_station(await register_station(http, "desk")) as desk:
        created = await http.post(
            "/v1/calls", json={"from": "lobby", "to": ["desk"], "custom_parameters": {"a": "b c"}}
        )
        assert created.status_code == 201
        await desk.ringer(active=True)
        assert (await desk.until(CallStatus.PENDING)).custom_parameters == {"a": "b c"}

        await desk.fingers.press("a")
        await desk.ringer(active=False)
        await desk.until(CallStatus.OPEN)
        sid = created.json()["call_sid"]
        assert (await http.get(f"/v1/calls/{sid}")).json()["state"] == "open"

        await desk.fingers.press("h")
        await desk.until(CallStatus.CLOSED)


async def test_cancel_stops_the_ringing_within_100_ms(http: httpx.AsyncClient) -> None:
    """One of a few rings, that is: a busy machine makes any of them wait."""
    took_s: list[float] = []
    async with running_station(await register_station(http, "desk")) as desk:
        while not took_s or (min(took_s) >= 0.1 and len(took_s) < 20):
            created = await http.post("/v1/calls", json={"to": ["desk"]})
            await desk.ringer(active=True)
            asked = time.perf_counter()
            await http.post(f"/v1/calls/{created.json()['call_sid']}/cancel")
            took_s.append(await desk.ringer(active=False) - asked)
            await desk.until(CallStatus.CLOSED)
    assert min(took_s) < 0.1, took_s
