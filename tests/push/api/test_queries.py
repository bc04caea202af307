"""Query parameters that a route does not know are refused, on every route of the API and stream."""

import re

import httpx
import pytest

from bellwire.push.api.app import build_app
from tests.push.streams import register_for_stream, stream_url
from tests.push.support import Running, assert_problem, fresh

pytestmark = pytest.mark.asyncio(loop_scope="module")

_ANY = "CA" + "0" * 32


def routes() -> list[tuple[str, str]]:
    """Every route that is described, with something in the places of its path."""
    document = build_app().openapi()
    return sorted(
        (method.upper(), re.sub(r"{(\w+)}", lambda m: _ANY if m[1] == "call_sid" else "x", path))
        for path, methods in document["paths"].items()
        for method in methods
        if path.startswith("/v1/") and not path.startswith("/v1/twilio/")
    )


@pytest.mark.parametrize(("method", "path"), routes())
async def test_route_refuses_a_query_parameter_that_it_does_not_know(
    running: Running, method: str, path: str
) -> None:
    answer = await running.http.request(method, f"{path}?no-such=1")
    problem = assert_problem(answer, 422, "invalid-input")
    assert problem["parameter"] == "no-such"
    assert "`no-such`" in problem["detail"]
    assert all(f"`{known}`" in problem["detail"] for known in problem["known"])


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
async def test_who_watches_the_relay_may_ask_with_any_parameter(
    running: Running, path: str
) -> None:
    assert (await running.http.get(f"{path}?t=1796065942")).status_code == 200


async def test_refusal_names_the_parameters_that_the_route_knows(running: Running) -> None:
    answer = await running.http.get("/v1/calls", params={"count": 1, "limit": 5})
    problem = assert_problem(answer, 422, "invalid-input")
    assert problem["parameter"] == "limit"
    assert {"identity", "count", "next"} <= {*problem["known"]}
    assert (await running.http.get("/v1/calls", params={"count": 1})).status_code == 200


async def test_stream_refuses_a_query_parameter_that_it_does_not_know(running: Running) -> None:
    device = fresh("device")
    await register_for_stream(running, device)
    url = stream_url(running, device_id=device, curser=3).replace("ws://", "http://")
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "x3JJHMbDL1EzLkh9GBhXDw==",
    }
    async with httpx.AsyncClient(headers=running.http.headers) as http:
        answer = await http.get(url, headers=headers)
    problem = assert_problem(answer, 422, "invalid-input")
    assert (problem["parameter"], problem["known"]) == (
        "curser",
        ["token", "device_id", "cursor"],
    )


async def test_routes_of_the_application_are_all_looked_at() -> None:
    assert len(routes()) > 30
