"""Webhooks through a whole relay: as its settings say, listed, tested and replayed over HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from bellwire.config.relay import WebhookTarget
from bellwire.signaling.errors import Unavailable
from tests.conftest import PATIENCE_S
from tests.forking import ForkedRelay
from tests.push.support import Running, assert_problem, fresh
from tests.push.webhook_receiver import Backend, backend, status, target

pytestmark = pytest.mark.asyncio(loop_scope="module")

SINCE = "2026-01-01T00:00:00Z"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def receiver() -> AsyncIterator[Backend]:
    async with backend() as here:
        yield here


@pytest.fixture(scope="module")
def settings(receiver: Backend, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("secrets")
    url = receiver.url.replace("://", "://user:pass@") + "?token=secret"
    targets: dict[str, WebhookTarget] = {
        "billing": target(folder, url),
        "ends": target(folder, receiver.url, events=["call.ended"]),
    }
    document = {name: json.loads(given.model_dump_json()) for name, given in targets.items()}
    return {"BELLWIRE_WEBHOOKS": json.dumps(document)}


async def webhook(running: Running, name: str = "billing") -> dict[str, Any]:
    listed = (await running.http.get("/v1/webhooks")).json()["webhooks"]
    found: dict[str, Any]
    (found,) = [one for one in listed if one["name"] == name]
    return found


async def until_owed(running: Running, count: int) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE_S):
        while (found := await webhook(running))["owed"] != count:
            pass
    return found


async def test_a_call_is_told_to_the_backend_and_can_be_replayed(
    running: Running, receiver: Backend
) -> None:
    bob = fresh("bob")
    await running.register(bob)
    sid = await running.called(bob)
    came = await receiver.next_few(2)
    assert sorted(one.verified()["type"] for one in came) == ["call.created", "call.received"]
    assert all(one.event["data"]["call_sid"] == sid for one in came)
    await until_owed(running, 0)
    asked = await running.http.post(
        "/v1/webhooks/billing/replay", json={"since": SINCE, "call_sid": sid}
    )
    assert (asked.status_code, asked.json()) == (200, {"replayed": 2, "next_since": None})
    again = await receiver.next_few(2)
    assert {one.id: one.body for one in again} == {one.id: one.body for one in came}
    assert all(one.verified() for one in again)
    await until_owed(running, 0)


async def test_the_list_shows_how_webhooks_fare_and_no_secret(
    running: Running, receiver: Backend
) -> None:
    receiver.answers = [status(500)]
    asked = await running.http.post("/v1/webhooks/billing/test")
    assert asked.status_code == 202
    came = await receiver.next()
    assert came.line == "POST /hook?token=secret HTTP/1.1"
    assert (came.id, came.verified()["type"]) == (asked.json()["event_id"], "webhook.test")
    async with asyncio.timeout(PATIENCE_S):
        while (found := await webhook(running))["last_attempt"]["taken"]:
            pass
    at = found["last_attempt"].pop("at")
    assert at.endswith("Z")
    assert found == {
        "name": "billing",
        "url": receiver.url,
        "events": None,
        "owed": 1,
        "last_attempt": {"taken": False, "result": "answered 500"},
    }
    other = await webhook(running, "ends")
    assert (other["events"], other["owed"], other["last_attempt"]) == (["call.ended"], 0, None)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "since"),
        ({"since": "yesterday"}, "since"),
        ({"since": "2026-01-01T00:00:00"}, "since"),
        ({"since": SINCE, "until": SINCE}, "until must be after since"),
        ({"since": SINCE, "call_sid": "CA1"}, "call_sid"),
        ({"since": SINCE, "limit": 5}, "limit"),
    ],
)
async def test_a_replay_that_cannot_be_is_refused(
    running: Running, body: dict[str, object], said: str
) -> None:
    answer = await running.http.post("/v1/webhooks/billing/replay", json=body)
    assert said in assert_problem(answer, 422, "invalid-input")["detail"]


async def test_a_webhook_that_the_settings_do_not_hold_is_not_found(running: Running) -> None:
    for asked in (
        running.http.post("/v1/webhooks/crm/replay", json={"since": SINCE}),
        running.http.post("/v1/webhooks/crm/test"),
    ):
        problem = assert_problem(await asked, 404, "not-found")
        assert problem["detail"] == "there is no webhook crm in the relay's settings"


async def test_webhooks_are_for_servers_only(running: Running) -> None:
    as_bob = await running.token(fresh("bob"))
    before = running.tables()
    for asked in (
        running.http.get("/v1/webhooks", headers=as_bob),
        running.http.post("/v1/webhooks/billing/replay", json={"since": SINCE}, headers=as_bob),
        running.http.post("/v1/webhooks/billing/test", headers=as_bob),
    ):
        assert_problem(await asked, 403, "forbidden")
    assert running.tables() == before


async def test_no_device_can_be_registered_as_a_webhook(running: Running) -> None:
    body = {"identity": "eve", "channels": [{"kind": "webhook", "app": "billing"}]}
    assert_problem(await running.http.put("/v1/devices/eve", json=body), 422, "invalid-input")


async def test_what_a_killed_relay_owed_arrives_once_it_runs_again(
    running: Running, receiver: Backend
) -> None:
    receiver.answer = status(500)
    event_id = (await running.http.post("/v1/webhooks/billing/test")).json()["event_id"]
    while (await receiver.next()).id != event_id:
        pass
    await running.relay.kill()
    receiver.answer = status(200)
    await running.relay.start()
    while (came := await receiver.next()).id != event_id:
        pass
    assert came.verified()["type"] == "webhook.test"


async def test_a_relay_does_not_start_with_a_webhook_that_cannot_be(tmp_path: Path) -> None:
    good = target(tmp_path, "https://backend.example/", allow_private_network=False)
    document = {"billing": json.loads(good.model_dump_json()) | {"url": "https://10.0.0.1/"}}
    environment = {"BELLWIRE_WEBHOOKS": json.dumps(document)}
    with pytest.raises(Unavailable, match=r"webhooks\.billing\.url"):
        await ForkedRelay(tmp_path / "data", environment=environment).start()
