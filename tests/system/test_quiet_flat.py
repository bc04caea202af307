"""A visitor at a flat that is to be left in peace: on a real relay, broker and agents, the station that
calls goes on to whom it forwards to, since nobody has said no."""

import asyncio
from typing import Any

import httpx
import pytest

from bellwire.agent.calls.call import CallStatus
from bellwire.config.agent.settings import AgentSettings
from tests.conftest import PATIENCE_S, register_station, running_station
from tests.forking import ForkedRelay
from tests.push.support import Running, listening

QUIET = {"do_not_disturb": {"enabled": True, "treatment": "reject"}}


async def station_of(
    http: httpx.AsyncClient,
    name: str,
    *,
    panel: dict[str, Any] | None = None,
    behaviour: dict[str, Any] | None = None,
) -> AgentSettings:
    made = (await register_station(http, name)).model_dump(exclude_unset=True)
    more = {"panel": {**made["panel"], **(panel or {})}, "behaviour": behaviour or {}}
    return AgentSettings.model_validate(made | more)


@pytest.mark.parametrize(("who", "calls"), [("the flat itself", 2), ("a person", 1)])
async def test_a_quiet_flats_rejection_is_forwarded_and_a_persons_is_not(
    relay: ForkedRelay, http: httpx.AsyncClient, who: str, calls: int
) -> None:
    button = {"flat": {"pin": 17, "to": "flat", "forward_to": ["porter"]}}
    behaviour = QUIET if who == "the flat itself" else {}
    lobby_settings = await station_of(http, "lobby", panel={"call_buttons": button})
    flat_settings = await station_of(http, "flat", behaviour=behaviour)
    async with (
        listening(Running(relay, http), "porter") as porter,
        running_station(flat_settings) as flat,
        running_station(lobby_settings) as lobby,
    ):
        await lobby.fingers.press("1")
        if calls == 1:
            await flat.until(CallStatus.PENDING)
            await flat.fingers.press("h")
        else:
            await porter.until("call.received")
        async with asyncio.timeout(PATIENCE_S):
            await lobby.until(CallStatus.CLOSED)
        listed = (await http.get("/v1/calls", params={"identity": "lobby"})).json()["calls"]
        called = [user["identity"] for call in listed for user in call["users"]]
        assert called.count("lobby") == calls
        assert called.count("porter") == calls - 1
