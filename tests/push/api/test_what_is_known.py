"""What a backend knows of a call without keeping anything: from the call itself, its list, its feedback and
insights, and from the events that it is told."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from bellwire.signaling.calls.events import rfc3339
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import insights_topic
from tests.conftest import PATIENCE_S
from tests.push.support import Device, Running, assert_problem, fresh, listening, on_both_stores
from tests.push.webhook_receiver import Backend, backend, target

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def receiver() -> AsyncIterator[Backend]:
    async with backend() as here:
        yield here


@pytest.fixture(scope="module")
def settings(receiver: Backend, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    told = target(tmp_path_factory.mktemp("secrets"), receiver.url)
    return {"BELLWIRE_WEBHOOKS": json.dumps({"backend": json.loads(told.model_dump_json())})}


async def told(receiver: Backend, name: str, sid: str) -> dict[str, Any]:
    """The data of the next event of this name and call."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            came = (await receiver.came.get()).event
            if came["type"] == name and came["data"]["call_sid"] == sid:
                data: dict[str, Any] = came["data"]
                return data


async def test_the_lists_of_a_call_of_more_than_ten_come_with_its_beginning_and_its_end(
    running: Running, receiver: Backend
) -> None:
    names = [fresh("guest") for _ in range(11)]
    for name in names:
        await running.register(name)
    sid = await running.called(*names, **{"from": fresh("host")})
    assert (await running.do(sid, "cancel")).is_success
    came: dict[str, dict[str, Any]] = {}
    async with asyncio.timeout(PATIENCE_S):  # in no order
        while {"call.created", "call.received", "call.cancelled", "call.ended"} - came.keys():
            event = (await receiver.came.get()).event
            if event["data"].get("call_sid") == sid and "call" in event["data"]:
                came[event["type"]] = event["data"]["call"]
    for name in ("call.created", "call.ended"):
        assert len(came[name]["users"]) == 12
        assert len(came[name]["to"]) == 11
    for name in ("call.received", "call.cancelled"):
        assert came[name]["from"] == came["call.created"]["from"]
        assert not {"to", "users", "error_invitees"} & came[name].keys()


@on_both_stores
async def test_each_event_tells_the_call_as_it_stands(running: Running, receiver: Backend) -> None:
    alice, bob = fresh("alice"), fresh("bob")
    async with listening(running, bob) as at_bob:
        sid = await running.called(
            bob, **{"from": alice, "custom_parameters": {"reason": "parcel"}, "mode": "advanced"}
        )
        begun = (await told(receiver, "call.created", sid))["call"]
        assert {
            "from": alice,
            "to": [bob],
            "custom_parameters": {"reason": "parcel"},
            "mode": "advanced",
            "call_type": "audio",
            "state": "ringing",
            "attestation": "B",
        }.items() <= begun.items()
        await at_bob.ask({"operation": "accept", "call_sid": sid})
        await at_bob.ask({"operation": "end", "call_sid": sid})
        end = await told(receiver, "call.ended", sid)
    call = await running.call(sid)
    assert (end["reason"], end["ended_by"]) == ("ended", bob)
    shown = end["call"]
    for name in ("answered_at", "ended_at", "duration_s", "end_reason", "ended_by", "answered_by"):
        assert shown[name] == call[name] is not None, name
    assert (shown["end_reason"], shown["ended_by"], shown["ended_attestation"]) == (
        "ended",
        bob,
        "A",
    )
    assert shown["users"][1] == {
        "identity": bob,
        "state": "Accepted",
        "main_device": bob,
        "attestation": "A",
    }


@on_both_stores
async def test_calls_are_listed_by_state_and_time_and_who_may(running: Running) -> None:
    bob = fresh("bob")
    await running.register(bob)
    over = await running.called(bob)
    await running.do(over, "cancel")
    rings = await running.called(bob)
    token = await running.token(bob)

    async def listed(**asked: Any) -> list[str]:  # noqa: ANN401 - query parameters
        headers = asked.pop("headers", {})
        answer = await running.http.get("/v1/calls", params=asked, headers=headers)
        assert answer.status_code == 200, answer.text
        return [call["call_sid"] for call in answer.json()["calls"]]

    begun, later = [(await running.call(sid))["created_at"] for sid in (over, rings)]
    assert await listed(identity=bob, state="ringing") == [rings]
    assert await listed(identity=bob, state="ended") == [over]
    assert await listed(headers=token, state="ended") == [over]
    assert await listed(identity=bob, since=begun) == [rings, over]
    assert await listed(identity=bob, since=later, until="2999-01-01T00:00:00Z") == [rings]
    assert await listed(identity=bob, until=later) == [over]
    soon = rfc3339(datetime.now(UTC) + timedelta(hours=1))
    assert await listed(identity=bob, since=soon) == []
    assert rings in await listed(state="ringing", count=100)
    for wrong in (
        {"state": "over"},
        {"since": "yesterday"},
        {"since": "2026-11-30T12:00:00"},
        {"since": soon, "until": begun},
    ):
        answer = await running.http.get("/v1/calls", params=wrong)
        problem = assert_problem(answer, 422, "invalid-input")
        if wrong == {"since": "2026-11-30T12:00:00"}:
            assert "write the time with its zone" in problem["detail"]
    foreign = {"identity": fresh("eve"), "state": "ended"}
    answer = await running.http.get("/v1/calls", params=foreign, headers=token)
    assert_problem(answer, 403, "forbidden")
    for edge in ({"since": "0001-01-01T00:00:00+14:00"}, {"until": "9999-12-31T23:59:59-14:00"}):
        assert rings in await listed(identity=bob, **edge)
    assert await listed(identity=bob, since="9999-12-31T23:59:59Z") == []
    assert await listed(identity=bob, until="0001-01-01T00:00:00Z") == []
    await running.do(rings, "cancel")


@on_both_stores
async def test_feedback_is_read_and_told(running: Running, receiver: Backend) -> None:
    bob, eve = fresh("bob"), fresh("eve")
    path = ""
    async with listening(running, bob) as at_bob:
        sid = await running.called(bob, **{"from": eve})
        path = f"/v1/calls/{sid}/feedback"
        await at_bob.ask({"operation": "feedback", "call_sid": sid, "score": 2, "issue": "echo"})
        await running.http.post(path, json={"identity": eve, "score": 5})
    came = [await told(receiver, "call.feedback", sid) for _ in range(2)]
    data, by_server = sorted(came, key=lambda one: str(one["identity"]))  # no order is promised
    assert {
        "identity": bob,
        "device_id": bob,
        "score": 2,
        "issue": "echo",
        "attestation": "A",
    }.items() <= data.items()
    assert (by_server["identity"], by_server["attestation"]) == (eve, "B")
    assert "device_id" not in by_server
    said = (await running.http.get(path)).json()
    assert said["call_sid"] == sid
    assert [(f["identity"], f["device_id"], f["score"], f["issue"]) for f in said["feedback"]] == [
        (bob, bob, 2, "echo"),
        (eve, None, 5, None),
    ]
    own = await running.http.get(path, headers=await running.token(bob))
    assert [f["identity"] for f in own.json()["feedback"]] == [bob]
    stranger = await running.token(fresh("mallory"))
    assert_problem(await running.http.get(path, headers=stranger), 403, "forbidden")
    assert_problem(
        await running.http.get(f"/v1/calls/CA{'0' * 32}/feedback"), 404, "call-not-found"
    )
    await running.do(sid, "cancel")


def insight(sid: str, device: str, name: str = "codec") -> str:
    """As an agent tells it (`agent.calls.insights`)."""
    return json.dumps(
        {
            "level": "info",
            "group": "settings",
            "name": name,
            "timestamp": "2026-11-30T12:00:00.000Z",
            "payload_type": "application/json",
            "payload": {
                "call_sid": sid,
                "device_id": device,
                "direction": "INCOMING",
                "selected_codec": "opus",
            },
        }
    )


async def tells(device: Device, *documents: str) -> None:
    for document in documents:
        await device.mqtt.publish(insights_topic(DeviceId(device.name)), document, qos=1)


@on_both_stores
async def test_what_a_device_tells_of_its_calls_is_kept_once_read_and_told(
    running: Running, receiver: Backend
) -> None:
    bob, eve = fresh("bob"), fresh("eve")
    async with listening(running, bob) as at_bob, listening(running, eve) as at_eve:
        sid = await running.called(bob)
        foreign = insight(sid, eve)
        await tells(at_eve, foreign)
        await tells(at_bob, "{", insight("none", bob), "x" * 5000)
        await tells(at_bob, insight(sid, bob), insight(sid, bob), insight(sid, bob, "last"))
        came = [await told(receiver, "call.insight", sid) for _ in range(2)]
    first, last = sorted(came, key=lambda data: str(data["name"]))  # no order is promised
    assert (first["name"], last["name"]) == ("codec", "last")
    assert (first["identity"], first["device_id"], first["level"]) == (bob, bob, "info")
    assert first["payload"]["selected_codec"] == "opus"
    path = f"/v1/calls/{sid}/insights"
    kept = (await running.http.get(path)).json()
    assert [(i["name"], i["device_id"], i["group"]) for i in kept["insights"]] == [
        ("codec", bob, "settings"),
        ("last", bob, "settings"),
    ]
    assert kept["insights"][0]["timestamp"] == "2026-11-30T12:00:00.000Z"
    own = await running.http.get(path, headers=await running.token(bob))
    assert len(own.json()["insights"]) == 2
    assert_problem(await running.http.get(path, headers=await running.token(eve)), 403, "forbidden")
    await running.do(sid, "cancel")


_TIME = '"2026-11-30T12:00:00.000Z"'


@on_both_stores
async def test_what_cannot_be_written_again_harms_no_relay(
    running: Running, receiver: Backend
) -> None:
    bob = fresh("bob")
    async with listening(running, bob) as at_bob:
        for said, poison in (
            (_TIME, '"0001-01-01T00:00:00+14:00"'),
            (_TIME, '"9999-12-31T23:59:59-14:00"'),
            ('"opus"', "1e999"),
            ('"opus"', "[" * 198 + "]" * 198),
            ('"opus"', '"\\u0000"'),
        ):
            sid = await running.called(bob)
            document = insight(sid, bob, "poison").replace(said, poison)
            await tells(at_bob, document, insight(sid, bob, "next"))
            names: set[str] = set()
            while "next" not in names:
                names.add((await told(receiver, "call.insight", sid))["name"])
            answer = await running.http.get(f"/v1/calls/{sid}/insights")
            assert answer.status_code == 200, poison
            await running.do(sid, "cancel")
