"""`Idempotency-Key`: a request sent again, because its answer was lost, makes no second call."""

import asyncio
from typing import Any

import pytest

from tests.push.support import Running, assert_problem, fresh, listening, on_both_stores

pytestmark = [pytest.mark.asyncio(loop_scope="module"), on_both_stores]


def calls_kept(running: Running) -> int:
    return running.tables()["calls"][0]


async def test_the_same_request_under_a_key_has_the_same_answer_and_rings_once(
    running: Running,
) -> None:
    bob = fresh("bob")
    headers = {"Idempotency-Key": fresh("key")}
    invite = {"from": fresh("alice"), "to": [bob], "custom_parameters": {"a": "1"}, "timeout": 600}
    async with listening(running, bob) as at_bob:
        first = await running.http.post("/v1/calls", json=invite, headers=headers)
        assert first.status_code == 201
        assert "Idempotent-Replayed" not in first.headers
        before = running.tables()
        again = await running.http.post("/v1/calls", json=invite, headers=headers)
        assert (again.status_code, again.json()) == (201, first.json())
        assert again.headers["Idempotent-Replayed"] == "true"
        assert running.tables() == before

        # All that the two requests owed has come once what a later call owes has.
        later = await running.called(bob)
        await at_bob.until("call.received", later)
        assert at_bob.seen("call.received", first.json()["call_sid"]) == 1


async def test_requests_in_one_instant_under_a_key_make_one_call(running: Running) -> None:
    bob = fresh("bob")
    headers = {"Idempotency-Key": fresh("key")}
    await running.register(bob)
    kept = calls_kept(running)
    answers = await asyncio.gather(
        *(running.http.post("/v1/calls", json={"to": [bob]}, headers=headers) for _ in range(16))
    )
    assert [answer.status_code for answer in answers] == [201] * 16
    assert len({answer.json()["call_sid"] for answer in answers}) == 1
    assert sum("Idempotent-Replayed" in answer.headers for answer in answers) == 15
    assert calls_kept(running) == kept + 1


async def test_a_repeated_request_shows_the_call_as_it_stands_now(running: Running) -> None:
    bob = fresh("bob")
    headers = {"Idempotency-Key": fresh("key")}
    await running.register(bob)
    made = await running.http.post("/v1/calls", json={"to": [bob]}, headers=headers)
    await running.do(made.json()["call_sid"], "cancel")
    again = await running.http.post("/v1/calls", json={"to": [bob]}, headers=headers)
    assert again.json()["call_sid"] == made.json()["call_sid"]
    assert again.json()["state"] == "ended"


@pytest.mark.parametrize(
    "change",
    [
        {"timeout": 599},
        {"call_type": "video"},
        {"from": "somebody"},
        {"custom_parameters": {"a": "2"}},
        {"extended_data": "x"},
        {"to": ["another"]},
    ],
    ids=str,
)
async def test_another_request_under_a_used_key_is_refused(
    running: Running, change: dict[str, Any]
) -> None:
    bob = fresh("bob")
    headers = {"Idempotency-Key": fresh("key")}
    await running.register(bob)
    await running.register("another")
    invite = {"to": [bob], "timeout": 600}
    await running.http.post("/v1/calls", json=invite, headers=headers)
    before = running.tables()
    answer = await running.http.post("/v1/calls", json=invite | change, headers=headers)
    assert_problem(answer, 409, "conflict")
    assert running.tables() == before


async def test_the_same_request_in_other_words_is_the_same(running: Running) -> None:
    bob = fresh("bob")
    headers = {"Idempotency-Key": fresh("key"), "Content-Type": "application/json"}
    await running.register(bob)
    bodies = (
        f'{{"to": ["{bob}"]}}',
        f'{{ "timeout": 60.0, "mode": "common",\n "to": ["client:{bob}"] }}',
    )
    made = [await running.http.post("/v1/calls", content=b, headers=headers) for b in bodies]
    assert made[0].json()["call_sid"] == made[1].json()["call_sid"]


async def test_twiml_under_a_key_makes_one_call_too(running: Running) -> None:
    bob = fresh("bob")
    headers = {"Idempotency-Key": fresh("key"), "Content-Type": "text/xml"}
    await running.register(bob)
    twiml = f"<Response><Dial><Client>{bob}</Client></Dial></Response>"
    made = [await running.http.post("/v1/calls", content=twiml, headers=headers) for _ in range(2)]
    assert made[0].json()["call_sid"] == made[1].json()["call_sid"]
    other = twiml.replace("<Dial>", '<Dial timeout="5">')
    answer = await running.http.post("/v1/calls", content=other, headers=headers)
    assert_problem(answer, 409, "conflict")


async def test_a_key_belongs_to_who_used_it(running: Running) -> None:
    alice, bob = fresh("alice"), fresh("bob")
    await running.register(bob)
    key = {"Idempotency-Key": fresh("key")}
    as_alice = await running.token(alice)
    mine = await running.http.post("/v1/calls", json={"to": [bob]}, headers=key)
    hers = await running.http.post("/v1/calls", json={"to": [bob]}, headers=key | as_alice)
    assert mine.status_code == hers.status_code == 201
    assert mine.json()["call_sid"] != hers.json()["call_sid"]
    assert hers.json()["from"] == alice


async def test_a_refused_request_leaves_its_key_free(running: Running) -> None:
    bob = fresh("bob")
    headers = {"Idempotency-Key": fresh("key")}
    before = running.tables()
    refused = await running.http.post("/v1/calls", json={"to": [bob]}, headers=headers)
    assert_problem(refused, 404, "nobody-to-call")
    assert running.tables() == before
    await running.register(bob)
    made = await running.http.post("/v1/calls", json={"to": [bob]}, headers=headers)
    assert made.status_code == 201
    assert "Idempotent-Replayed" not in made.headers


async def test_a_device_that_calls_again_under_a_key_makes_one_call(running: Running) -> None:
    alice, bob = fresh("alice"), fresh("bob")
    await running.register(bob)
    invite = {"operation": "invite", "to": [bob], "timeout": 600, "idempotency_key": fresh("key")}
    async with listening(running, alice) as at_alice:
        first, again = await at_alice.ask(invite), await at_alice.ask(invite)
        assert (first["status"], again["status"]) == (201, 201)
        assert first["call"] == again["call"]
        before = running.tables()
        other = await at_alice.ask(invite | {"timeout": 5})
        assert (other["status"], other["problem"]["type"]) == (409, "/problems/conflict")
        assert running.tables() == before


@pytest.mark.parametrize("key", ["", "x" * 256])
async def test_a_key_is_1_to_255_characters(running: Running, key: str) -> None:
    bob = fresh("bob")
    await running.register(bob)
    before = running.tables()
    headers = {"Idempotency-Key": key}
    answer = await running.http.post("/v1/calls", json={"to": [bob]}, headers=headers)
    assert_problem(answer, 422, "invalid-input")
    assert running.tables() == before
