"""`WS /v1/events`: a device's events, each once and in order through every loss of the connection,
and what is answered to frames and readers that are not as they should be."""

import asyncio
import json
import random
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from bellwire.push.devices.event_stream import HEARTBEAT_S
from tests.conftest import PATIENCE_S
from tests.push.streams import (
    Stream,
    cut,
    reading,
    register_for_stream,
    stream_url,
    streaming,
)
from tests.push.support import PROBLEM_TYPE, Running, fresh, listening, on_both_stores_in_full

pytestmark = [pytest.mark.asyncio(loop_scope="module"), on_both_stores_in_full]


async def say(running: Running, sid: str, *contents: object) -> None:
    for content in contents:
        answer = await running.do(sid, "messages", content=content)
        assert answer.status_code == 200, answer.text


async def hear(stream: Stream, sid: str, count: int) -> list[object]:
    return [(await stream.until("call.message", sid))["content"] for _ in range(count)]


async def test_a_stream_opens_with_its_cursor_and_brings_the_documents_that_mqtt_brings(
    running: Running,
) -> None:
    bob, desk = fresh("bob"), fresh("desk")
    async with streaming(running, bob) as stream, listening(running, desk, bob) as at_desk:
        first = stream.opened["cursor"]
        assert stream.opened == {
            "event": "stream.opened",
            "cursor": first,
            "device_id": bob,
            "heartbeat_s": HEARTBEAT_S,
        }
        sid = await running.called(bob, **{"from": fresh("alice")})
        await stream.until("call.received", sid)  # unread, it would be taken back by the cancel
        await running.do(sid, "received", identity=bob)
        await running.do(sid, "cancel")
        await stream.until("call.cancelled", sid)
        await at_desk.until("call.cancelled", sid)
    assert [event.pop("cursor") - first for event in stream.events] == [1, 2, 3]
    tokens = {events[0].pop("connect_token") for events in (stream.events, at_desk.events)}
    assert len(tokens) == 2  # each device has its own
    assert stream.events == at_desk.events


@pytest.mark.parametrize("seed", range(3))
async def test_a_stream_that_breaks_again_and_again_loses_and_repeats_nothing(
    running: Running, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311 - a test's
    bob, count = fresh("bob"), 60
    async with streaming(running, bob) as stream:
        cursor = stream.cursor
    sid = await running.called(bob)
    heard: list[dict[str, Any]] = []
    cuts = 0
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(say(running, sid, *range(count)))
        while len(heard) < 1 + count:
            async with reading(running, bob, cursor=cursor) as stream:
                for _ in range(min(chance.randint(0, 12), 1 + count - len(heard))):
                    await stream.take()
                heard += stream.events
                cursor = stream.cursor
                if chance.random() < 0.3:
                    await stream.socket.send(json.dumps({"ack": cursor}))
                cut(stream)
                cuts += 1
    assert [event.get("content") for event in heard] == [None, *range(count)]
    assert cuts > 5


async def test_what_was_acknowledged_is_not_kept_and_what_was_not_comes_again(
    running: Running,
) -> None:
    bob = fresh("bob")
    async with streaming(running, bob) as stream:
        sid = await running.called(bob)
        await say(running, sid, *range(4))
        assert await hear(stream, sid, 4) == [0, 1, 2, 3]
        read = stream.events[2]["cursor"]
        await stream.socket.send(json.dumps({"ack": read}))
        await stream.ask({"operation": "list"})  # the acknowledgement was carried out before
    async with reading(running, bob, cursor=stream.opened["cursor"]) as again:
        assert await hear(again, sid, 2) == [2, 3]
        assert len(again.events) == 2


async def test_an_acknowledgement_of_what_was_never_sent_takes_nothing_away(
    running: Running,
) -> None:
    bob = fresh("bob")
    async with streaming(running, bob) as stream:
        await stream.socket.send(json.dumps({"ack": 10**30}))
        sid = await running.called(bob)
        assert (await stream.until("call.received"))["call_sid"] == sid
    async with reading(running, bob, cursor=stream.opened["cursor"]) as again:
        assert (await again.until("call.received"))["call_sid"] == sid


async def test_a_device_that_opens_another_stream_reads_on_there_and_the_old_one_is_closed(
    running: Running,
) -> None:
    bob = fresh("bob")
    async with streaming(running, bob) as old:
        first = await running.called(bob)
        await old.until("call.received", first)
        async with reading(running, bob, cursor=old.cursor) as new:
            code, reason = await old.closed()
            assert (code, bool(reason)) == (4001, True)
            second = await running.called(bob)
            assert (await new.until("call.received"))["call_sid"] == second
            assert old.seen("call.received") == 1
            assert (await new.ask({"operation": "show", "call_sid": second}))["status"] == 200


async def test_a_client_that_goes_on_talking_on_a_stream_that_was_replaced_does_nothing(
    running: Running,
) -> None:
    bob = fresh("bob")
    before = running.relay.log_path.read_text().count("Traceback")
    async with streaming(running, bob) as old:
        sid = await running.called(bob)

        async def talk() -> None:
            try:
                for _ in range(300):
                    await old.socket.send(json.dumps({"operation": "list"}))
                    await asyncio.sleep(0)  # sending alone lets nobody else run
            except ConnectionClosed:
                pass

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(talk())
            async with reading(running, bob) as new:
                assert (await old.closed())[0] == 4001
                assert (await new.until("call.received"))["call_sid"] == sid
    assert running.relay.log_path.read_text().count("Traceback") == before


async def test_the_stream_of_a_device_that_was_removed_is_closed_at_once(running: Running) -> None:
    bob = fresh("bob")
    async with streaming(running, bob) as stream:
        async with asyncio.timeout(3):  # sooner than a reader looks by itself
            assert (await running.http.delete(f"/v1/devices/{bob}")).status_code == 204
            assert (await stream.closed())[0] == 4001


@pytest.mark.parametrize(
    ("frame", "status"),
    [
        *(
            (frame, 422)
            for frame in (
                "",
                "nonsense",
                "{",
                "[]",
                "[" * 5000,
                "1",
                '"list"',
                "null",
                "{}",
                '{"operation": "fly"}',
                '{"operation": "accept"}',
                '{"operation": "accept", "call_sid": "CA1"}',
                '{"operation": "list", "identity": "eve"}',
                '{"operation": "list", "count": NaN}',
                '{"ack": -1}',
                '{"ack": true}',
                '{"ack": "1"}',
                '{"ack": 1, "operation": "list"}',
                '{"ack": 1.5}',
                b"\xff\xfe",
            )
        ),
        (json.dumps({"operation": "x" * 16_500}), 413),
        ("ü" * 9_000, 413),
        (b'{"operation": "list"}', 200),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_every_frame_is_answered_and_the_stream_goes_on(
    running: Running, frame: str | bytes, status: int
) -> None:
    bob = fresh("bob")
    async with streaming(running, bob) as stream:
        before = running.tables()
        await stream.socket.send(frame)
        async with asyncio.timeout(PATIENCE_S):
            answer = await stream.take()
        assert answer is not None
        assert answer["status"] == status
        if status != 200:
            assert answer["problem"]["detail"]
            assert running.tables() == before
        assert (await stream.ask({"operation": "list"}))["status"] == 200


@pytest.mark.parametrize(
    ("given", "echoed"),
    [("a", "a"), (7, "7"), ("x" * 100, "x" * 64), (None, None)],
    ids=["text", "number", "long", "null"],
)
async def test_an_answer_carries_its_requests_id(
    running: Running, given: object, echoed: str | None
) -> None:
    async with streaming(running, fresh("bob")) as stream:
        await stream.socket.send(json.dumps({"operation": "list", "request_id": given}))
        async with asyncio.timeout(PATIENCE_S):
            answer = await stream.take()
        assert answer is not None
        assert answer.get("request_id") == echoed


async def test_a_frame_that_is_far_too_large_closes_the_stream(running: Running) -> None:
    async with streaming(running, fresh("bob")) as stream:
        await stream.socket.send("x" * 40_000)
        assert (await stream.closed())[0] == 1009


async def refused(
    running: Running, headers: dict[str, str] | None = None, **query: object
) -> dict[str, Any]:
    """The problem that a reader is refused with, before the upgrade."""
    with pytest.raises(InvalidStatus) as caught:
        async with connect(stream_url(running, **query), additional_headers=headers or {}):
            pass
    response = caught.value.response
    assert response.headers["content-type"].partition(";")[0] == PROBLEM_TYPE
    problem: dict[str, Any] = json.loads(response.body or b"")
    assert problem["status"] == response.status_code
    return problem


async def test_who_may_not_read_is_refused_before_the_upgrade_and_told_why(
    running: Running,
) -> None:
    bob, eve, desk = fresh("bob"), fresh("eve"), fresh("desk")
    await register_for_stream(running, bob)
    await running.register(desk, bob)
    of_bob, of_bobs, of_eve = (
        await running.token(bob, bob),
        await running.token(bob),
        await running.token(eve),
    )
    server = {"Authorization": f"Bearer {running.relay.access.api_key}"}
    before = running.tables()
    table: list[tuple[dict[str, str], dict[str, object], int, str]] = [
        ({}, {}, 401, "unauthenticated"),
        ({}, {"device_id": bob}, 401, "unauthenticated"),
        ({}, {"token": "forged", "device_id": bob}, 401, "unauthenticated"),
        ({"Authorization": "Bearer bwk_wrong"}, {"device_id": bob}, 401, "unauthenticated"),
        ({"X-API-Key": "wrong"}, {"device_id": bob}, 401, "unauthenticated"),
        (of_bob, {"device_id": desk}, 403, "forbidden"),
        (of_eve, {"device_id": bob}, 403, "forbidden"),
        (of_bobs, {"device_id": desk}, 403, "forbidden"),  # it has no such channel
        (of_bobs, {}, 422, "invalid-input"),
        (server, {}, 422, "invalid-input"),
        (server, {"device_id": "no/id"}, 422, "invalid-input"),
        (server, {"device_id": fresh("nothing")}, 404, "not-found"),
    ]
    for cursor in ("", "-1", "x", "1.5", "9" * 19, "٣"):
        table.append((of_bob, {"cursor": cursor}, 422, "invalid-input"))
    for headers, query, status, slug in table:
        problem = await refused(running, headers, **query)
        assert (problem["status"], problem["type"]) == (status, f"/problems/{slug}"), query
    assert running.tables() == before


async def test_a_reader_shows_its_credentials_in_any_of_the_ways(running: Running) -> None:
    bob = fresh("bob")
    await register_for_stream(running, bob)
    token = (await running.token(bob, bob))["Authorization"].removeprefix("Bearer ")
    key = running.relay.access.api_key
    ways: list[tuple[dict[str, str], dict[str, object]]] = [
        ({}, {"token": token}),
        ({}, {"token": token, "device_id": bob}),
        ({"Authorization": f"Bearer {token}"}, {}),
        (await running.token(bob), {"device_id": bob}),
        ({"X-API-Key": key}, {"device_id": bob}),
        ({"Authorization": f"Bearer {key}"}, {"device_id": bob}),
    ]
    for headers, query in ways:
        async with connect(stream_url(running, **query), additional_headers=headers) as socket:
            opened = json.loads(await socket.recv())
            assert (opened["event"], opened["device_id"]) == ("stream.opened", bob)
