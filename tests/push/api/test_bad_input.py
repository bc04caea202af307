"""Bodies that are no invite: each gets its problem document, and changes nothing."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.conftest import PATIENCE_S
from tests.push.support import PROBLEM_TYPE, Running, assert_problem, fresh

pytestmark = pytest.mark.asyncio(loop_scope="module")

JSON = {"Content-Type": "application/json"}
XML = {"Content-Type": "text/xml"}
LIMIT_BYTES = 64 * 1024
MQTT_LIMIT_BYTES = 5120


async def refused(
    running: Running,
    status: int,
    slug: str,
    *,
    body: bytes | dict[str, Any],
    headers: dict[str, str] = JSON,
    path: str = "/v1/calls",
) -> dict[str, Any]:
    """The problem that a body posted is refused with; no table may have changed."""
    before = running.tables()
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = await running.http.post(path, content=content, headers=headers)
    problem = assert_problem(answer, status, slug)
    assert running.tables() == before
    return problem


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"to": ["bob"',
        b'{"to": ["bob"]} {}',
        b"null",
        b"[]",
        b'"bob"',
        b"{}",
        b"\xff\xfe",
        b'{"to": ["b\xff"]}',
        b'{"to": ["b\\ud800"]}',
        b'{"to": ["bob"], "timeout": NaN}',
        b'{"to": ["bob"], "timeout": Infinity}',
        b'{"to": ["bob"], "timeout": 1e999}',
        b'{"to": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        b'{"to": ["bob"], "custom_parameters": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001,
        b'{"to": ["bob"], "timeout": ' + b"9" * 60_000 + b"}",
    ],
    ids=lambda body: repr(body[:40]),
)
async def test_a_body_that_is_no_json_invite_is_refused(running: Running, body: bytes) -> None:
    await running.register("bob")
    problem = await refused(running, 422, "invalid-input", body=body)
    assert problem["errors"] and len(problem["detail"]) < 500


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"to": []}, "to"),
        ({"to": "bob"}, "to"),
        ({"to": ["two words"]}, "to"),
        ({"to": [""]}, "to"),
        ({"to": [None]}, "to"),
        ({"to": ["x" * 200]}, "to"),
        ({"to": ["bob", "carol", "bob"]}, "to"),
        ({"to": ["bob", "client:bob"]}, "to"),
        ({"to": ["bob", *(f"friend-{n}" for n in range(100))]}, "to"),
        ({"to": ["bob"], "from": "bob"}, "body"),
        ({"to": ["bob"], "from": "client:bob"}, "body"),
        *(({"to": ["bob"], "timeout": t}, "timeout") for t in (0, 0.99, 600.01, -1, "soon", None)),
        ({"to": ["bob"], "mode": "shouting"}, "mode"),
        ({"to": ["bob"], "call_type": "telepathy"}, "call_type"),
        ({"to": ["bob"], "custom_parameters": {"a b": "1"}}, "custom_parameters"),
        ({"to": ["bob"], "custom_parameters": {"": "1"}}, "custom_parameters"),
        ({"to": ["bob"], "custom_parameters": {"a": 1}}, "custom_parameters"),
        ({"to": ["bob"], "custom_parameters": {f"n{n}": "" for n in range(65)}}, "custom_param"),
        ({"to": ["bob"], "extended_data": "x" * 4097}, "extended_data"),
        ({"to": ["bob"], "push": {"title": "x" * 257}}, "push.title"),
        ({"to": ["bob"], "push": {"payload": "x" * 4097}}, "push.payload"),
        ({"to": ["bob"], "color": "red"}, "color"),
    ],
    ids=lambda value: value if isinstance(value, str) else json.dumps(value)[:50],
)
async def test_an_invite_with_a_bad_member_is_refused_and_told_where(
    running: Running, body: dict[str, Any], place: str
) -> None:
    await running.register("bob")
    problem = await refused(running, 422, "invalid-input", body=body)
    assert problem["detail"].startswith(place)


async def test_ten_users_are_an_advanced_call_and_eleven_are_not(running: Running) -> None:
    alice, bob = fresh("alice"), fresh("bob")
    await running.register(bob)
    nine = [bob, *(fresh("friend") for _ in range(8))]
    for identity in nine[1:]:
        await running.register(identity)
    await running.called(*nine, mode="advanced", **{"from": alice})
    ten = [*nine, fresh("friend")]
    await running.register(ten[-1])
    problem = await refused(
        running, 422, "invalid-input", body={"from": alice, "to": ten, "mode": "advanced"}
    )
    assert "at most 10 users" in problem["detail"]
    await running.called(*ten, **{"from": alice})  # it is one in common mode


async def test_nobody_to_call_is_said_one_by_one(running: Running) -> None:
    unknown, silent = fresh("unknown"), fresh("silent")
    await running.http.put(f"/v1/devices/{silent}", json={"identity": silent})
    problem = await refused(running, 404, "nobody-to-call", body={"to": [unknown, silent]})
    assert problem["code"] == 31604
    assert problem["error_invitees"] == [
        {"identity": unknown, "reason": "unknown"},
        {"identity": silent, "reason": "no_device"},
    ]


async def test_a_group_that_does_not_exist_cannot_be_called(running: Running) -> None:
    problem = await refused(running, 404, "not-found", body={"to": {"group": "nobodies"}})
    assert "nobodies" in problem["detail"]


def with_parameters(size: int) -> dict[str, Any]:
    return {"custom_parameters": {"note": "x" * size}}


def with_extended_data(size: int) -> dict[str, Any]:
    return {"extended_data": "ü" * (size // 2)}


def with_push_text(size: int) -> dict[str, Any]:
    return {"push": {"payload": "x" * 4096, "content": "x" * (size - 4096)}}


@pytest.mark.parametrize("part", [with_parameters, with_extended_data, with_push_text])
async def test_an_invite_over_the_channels_limit_is_refused_with_its_size_and_what_to_shorten(
    running: Running, part: Callable[[int], dict[str, Any]]
) -> None:
    bob = fresh("bob")
    await running.register(bob)
    problem = await refused(running, 413, "too-large", body={"to": [bob], **part(MQTT_LIMIT_BYTES)})
    assert problem["size"] > problem["limit"] == MQTT_LIMIT_BYTES
    assert problem["channel"] == "mqtt"
    for what in (str(problem["size"]), str(MQTT_LIMIT_BYTES), "shorten custom_parameters"):
        assert what in problem["detail"]

    # One byte within the limit, as the problem itself counts it, and the call is made.
    over = problem["size"] - MQTT_LIMIT_BYTES
    fits = {"to": [bob], **part(MQTT_LIMIT_BYTES - over - over % 2)}
    answer = await running.http.post("/v1/calls", json=fits)
    assert answer.status_code == 201, answer.text
    await running.do(answer.json()["call_sid"], "cancel")


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"to=bob&timeout=5", {"Content-Type": "application/x-www-form-urlencoded"}),
        (b"<Response><Dial><Client>bob</Client></Dial></Response>", JSON),
        (b'{"to": ["bob"]}', XML),
        (b"\x89PNG\r\n\x1a\n", {"Content-Type": "image/png"}),
    ],
    ids=["form", "twiml-as-json", "json-as-twiml", "image"],
)
async def test_a_body_of_another_kind_than_it_says_is_refused(
    running: Running, body: bytes, headers: dict[str, str]
) -> None:
    await running.register("bob")
    await refused(running, 422, "invalid-input", body=body, headers=headers)


@pytest.mark.parametrize(
    ("twiml", "says"),
    [
        (b"<Response>", "not well-formed"),
        (b"\xff\xfe\x00", "not well-formed"),
        (b"<Response><Say>hi</Say></Response>", "<Say>"),
        (b"<a>" * 9_000, "deep"),
        (
            b'<!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
            b"<Response><Dial><Client>&x;</Client></Dial></Response>",
            "DOCTYPE",
        ),
        (b"<Response><Dial><Client>bob</Client><Client>bob</Client></Dial></Response>", "two"),
        (b'<Response><Dial timeout="0"><Client>bob</Client></Dial></Response>', "timeout"),
    ],
)
async def test_twiml_that_is_no_invite_is_refused_by_name(
    running: Running, twiml: bytes, says: str
) -> None:
    await running.register("bob")
    problem = await refused(running, 422, "invalid-input", body=twiml, headers=XML)
    assert says in problem["detail"]


@pytest.mark.parametrize(
    "body",
    [
        {"identity": "two words"},
        {"identity": 5},
        {"device_id": "../etc"},
        {"device_id": "a/b"},
        {"extended_data": "x" * 4097},
        {"status": "asleep"},
        {"colour": "red"},
    ],
    ids=json.dumps,
)
async def test_an_operation_with_a_bad_body_is_refused(
    running: Running, body: dict[str, Any]
) -> None:
    bob = fresh("bob")
    await running.register(bob)
    sid = await running.called(bob)
    where = f"/v1/calls/{sid}/reject"
    problem = await refused(
        running, 422, "invalid-input", body={"identity": bob} | body, path=where
    )
    assert problem["detail"].startswith(f"body.{next(iter(body))}")


async def test_what_is_not_there_is_a_problem_document_too(running: Running) -> None:
    assert_problem(await running.http.get("/v1/nothing"), 404, "not-found")
    answer = await running.http.delete("/v1/calls")
    assert_problem(answer, 405, "method-not-allowed")
    assert "POST" in answer.headers["allow"]
    too_big = f"next={2**63}"
    for query in ("next=-1", "next=soon", too_big, "count=0", "identity=two%20words"):
        assert_problem(await running.http.get(f"/v1/calls?{query}"), 422, "invalid-input")


async def test_a_body_that_says_it_is_10_mb_is_refused_before_it_is_sent(running: Running) -> None:
    await answered_413(running, b"Content-Length: 10000000\r\n\r\n")


async def test_a_body_in_chunks_is_refused_once_it_passes_the_limit(running: Running) -> None:
    size = LIMIT_BYTES + 1
    body = b"Transfer-Encoding: chunked\r\n\r\n" + f"{size:x}\r\n".encode() + b" " * size + b"\r\n"
    await answered_413(running, body)


@pytest.mark.parametrize(
    "body",
    [b"[" * 20_000, b'{"identity": "\xff"}', b'{"identity": %s}' % (b"1" * 5_000), b"{"],
    ids=["nested", "no-utf-8", "endless-number", "cut-short"],
)
async def test_a_body_that_cannot_be_read_is_the_same_refusal_on_every_route(
    running: Running, body: bytes
) -> None:
    before = running.tables()
    for path in (f"/v1/devices/{fresh('device')}", "/v1/calls"):
        method = "POST" if path == "/v1/calls" else "PUT"
        answer = await running.http.request(method, path, content=body, headers=JSON)
        assert_problem(answer, 422, "invalid-input")
    assert running.tables() == before


async def test_a_body_under_another_name_than_json_or_xml_is_refused(running: Running) -> None:
    answer = await running.http.post(
        "/v1/calls", content=b'{"to": ["bob"]}', headers={"Content-Type": "text/plain"}
    )
    assert "text/plain" in assert_problem(answer, 422, "invalid-input")["detail"]


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_client_that_sends_10_mb_whole_comes_to_read_why_it_is_refused(
    running: Running, chunked: bool
) -> None:
    before = running.tables()

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b" " * 1_000_000

    for method, path in (("POST", "/v1/calls"), ("PUT", f"/v1/devices/{fresh('device')}")):
        content = parts() if chunked else b" " * 10_000_000
        answer = await running.http.request(method, path, content=content, headers=JSON)
        assert assert_problem(answer, 413, "too-large")["limit"] == LIMIT_BYTES
    assert running.tables() == before


async def test_a_body_of_the_limit_is_read_to_its_end(running: Running) -> None:
    bob = fresh("bob")
    await running.register(bob)
    invite = json.dumps({"to": [bob]}).encode()
    body = invite + b" " * (LIMIT_BYTES - len(invite))
    answer = await running.http.post("/v1/calls", content=body, headers=JSON)
    assert answer.status_code == 201
    await refused(running, 413, "too-large", body=body + b" ")


async def answered_413(running: Running, rest: bytes) -> None:
    """The relay answers a request with 413 while its body has not been sent whole."""
    before = running.tables()
    access = running.relay.access
    url = urlsplit(access.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    try:
        writer.write(
            b"POST /v1/calls HTTP/1.1\r\nHost: relay\r\nContent-Type: application/json\r\n"
            + f"Authorization: Bearer {access.api_key}\r\n".encode()
            + rest
        )
        async with asyncio.timeout(PATIENCE_S):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lines = dict(line.split(": ", 1) for line in head.lower().split("\r\n")[1:-2])
            content = await reader.readexactly(int(lines["content-length"]))
    finally:
        writer.close()
    assert head.startswith("HTTP/1.1 413 ")
    answer = httpx.Response(413, content=content, headers={"Content-Type": PROBLEM_TYPE})
    assert lines["content-type"] == PROBLEM_TYPE
    assert_problem(answer, 413, "too-large")
    assert answer.json()["limit"] == LIMIT_BYTES
    assert running.tables() == before
