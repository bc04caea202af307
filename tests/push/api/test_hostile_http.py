"""Strangers who would have the relay's memory, its places or its time, over raw sockets."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bellwire.config.relay import RelaySettings
from bellwire.push.api.server.admission import bounds_of
from bellwire.push.api.server.guarded_http import (
    BODY_S,
    HEAD_BYTES,
    HEAD_FIELDS,
    HEAD_S,
    PIPELINED,
    STALLED_S,
)
from tests.conftest import PATIENCE_S
from tests.push.hostile import WAITS, Raw, Target, attacked
from tests.push.support import assert_problem, fresh, serving

MB = 1024 * 1024
HALF_A_HEAD = b"GET /v1/calls HTTP/1.1\r\nHost: relay\r\nX-Slow: "
CREATE = b"POST /v1/calls HTTP/1.1\r\nHost: relay\r\nContent-Type: application/json\r\n"
OTHER = "127.0.0.2"
HASTY_HEAD_S, HASTY_BODY_S, HASTY_STALLED_S = 3.0, 5.0, 3.0
"""Times of a relay, for tests that wait for their end."""
NO_PROXIES: list[str] = []


@pytest.fixture
async def target(tmp_path: Path) -> AsyncIterator[Target]:
    async with attacked(tmp_path) as attacked_one:
        yield attacked_one


async def test_a_head_of_100_mb_is_refused_at_16_kib_and_costs_no_memory(target: Target) -> None:
    before = target.resident_mb()
    raws = [await target.open() for _ in range(8)]

    async def stream(number: int) -> None:
        raw = raws[number]
        raw.send(b"GET / HTTP/1.1\r\n" if number % 2 else b"GET /?")
        try:
            for part in range(100):
                raw.send((b"X-%d: " % part if number % 2 else b"") + b"a" * MB)
                await raw.writer.drain()
        except ConnectionError:
            return

    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(stream(number) for number in range(8)))
    for raw in raws:
        await raw.until_closed()
    assert (await target.refusals())["head-too-large"] == 8
    assert target.resident_mb() - before < 32


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: relay\r\nX-Long: " + b"a" * HEAD_BYTES + b"\r\n\r\n",
        b"GET /?" + b"a" * HEAD_BYTES + b" HTTP/1.1\r\nHost: relay\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X-Many: 1\r\n" * (HEAD_FIELDS + 1) + b"\r\n",
        b"GET / HTTP/1.1\r\n" + b"X-Many: 1\r\n" * 1000,
        b"GET / HTTP/1.1\r\nHost: relay\r\nX-Long: " + b"a" * 2 * HEAD_BYTES,
        b"GET /v1/events HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        + b"X-Many: 1\r\n" * HEAD_FIELDS
        + b"\r\n",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X-Trailer: 1\r\n" * 2000,
    ],
    ids=["value", "url", "101 fields", "1,000 fields", "unfinished", "upgrade", "trailers"],
)
async def test_a_head_over_its_bounds_is_refused_in_words(target: Target, head: bytes) -> None:
    if b"Trailer" in head:  # the route would answer before it has heard them
        head = head.replace(
            b"GET / HTTP/1.1\r\n",
            CREATE.replace(b"Host", b"Authorization: Bearer " + target.key.encode() + b"\r\nHost"),
        )
    raw = await target.open()
    raw.send(head)
    problem = await raw.refused(431, "head-too-large")
    assert problem["limit"] == HEAD_BYTES
    assert (await target.refusals()) == {"head-too-large": 1}


async def test_a_head_and_a_body_of_the_bounds_are_read(target: Target) -> None:
    raw = await target.open()
    fields = b"".join(b"X-%d: %s\r\n" % (number, b"a" * 150) for number in range(HEAD_FIELDS - 1))
    head = b"GET /healthz HTTP/1.1\r\nHost: relay\r\n" + fields + b"\r\n"
    assert len(head) > HEAD_BYTES * 0.95
    for _ in range(3):  # over and over on one connection, and whole or byte by byte
        raw.send(head)
        assert (await raw.answer()).status_code == 200
    for byte in head[:300]:
        raw.send(bytes([byte]))
        await raw.writer.drain()
    raw.send(head[300:])
    assert (await raw.answer()).status_code == 200
    body = json.dumps({"to": ["nobody"]}).encode().ljust(60_000)
    shown = b"Authorization: Bearer " + target.key.encode() + b"\r\n"
    raw.send(CREATE + shown + b"Content-Length: 60000\r\n\r\n" + body + head)
    assert (await raw.answer()).status_code == 404
    assert (await raw.answer()).status_code == 200


@pytest.fixture
async def hasty(tmp_path: Path) -> AsyncIterator[Target]:
    """One that waits as long for nobody."""
    times = {"HEAD_S": HASTY_HEAD_S, "BODY_S": HASTY_BODY_S, "STALLED_S": HASTY_STALLED_S}
    shorter = {f"{WAITS}:{name}": seconds for name, seconds in times.items()}
    async with attacked(tmp_path, times=shorter) as attacked_one:
        yield attacked_one


async def test_what_is_half_sent_is_ended_after_10_s_a_head_and_30_s_a_body(hasty: Target) -> None:
    assert (HEAD_S, BODY_S) == (10, 30)
    began = time.monotonic()
    silent, half, trickling = [await hasty.open() for _ in range(3)]
    for raw in (half, trickling):
        raw.send(HALF_A_HEAD)
    second = await hasty.open()  # whose second request is half sent
    second.send(b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n")
    assert (await second.answer()).status_code == 200
    second.send(HALF_A_HEAD)
    shown = b"Authorization: Bearer " + hasty.key.encode() + b"\r\n"
    body, trickled, twilio, unread = [await hasty.open() for _ in range(4)]
    for raw in (body, trickled):
        raw.send(CREATE + shown + b"Content-Length: 1000\r\n\r\n{")
    twilio.send(
        b"POST /v1/twilio/notifications HTTP/1.1\r\nHost: relay\r\nContent-Length: 9\r\n\r\n{"
    )
    unread.send(CREATE + b"Content-Length: 1000\r\n\r\n{")
    assert (await unread.answer()).status_code == 401
    idle = await hasty.open()
    idle.send(b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n")
    assert (await idle.answer()).status_code == 200

    async def trickle(raw: Raw) -> None:
        while raw.is_open and not raw.writer.transport.is_closing():
            raw.send(b"a")
            await asyncio.sleep(0.5)

    async with asyncio.TaskGroup() as tasks:
        for raw in (trickling, trickled):
            tasks.create_task(trickle(raw))
        assert await silent.until_closed() == b""
        await half.refused(408, "too-slow")
        await second.refused(408, "too-slow")
        assert (await trickling.answer()).status_code == 408
        assert HASTY_HEAD_S <= time.monotonic() - began < HASTY_HEAD_S + 10
        await body.refused(408, "too-slow")
        await twilio.refused(408, "too-slow")
        assert (await trickled.answer()).status_code == 408
        await unread.until_closed()
        assert HASTY_BODY_S <= time.monotonic() - began < HASTY_BODY_S + 10
    assert await hasty.refusals() == {
        "head-too-slow": 4,
        "body-too-slow": 4,
        "body-of-stranger": 1,
    }
    idle.send(b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n")
    assert (await idle.answer()).status_code == 200, "idle connections are kept for 75 s"
    assert "Traceback" not in hasty.relay.log_path.read_text()


@pytest.mark.parametrize(
    ("proxies", "sending"),
    [
        pytest.param(["127.0.0.0/8"], b"", id="a proxy-idle", marks=pytest.mark.full),
        pytest.param(["127.0.0.0/8"], HALF_A_HEAD, id="a proxy-half sent"),
        pytest.param(NO_PROXIES, b"", id="an address-idle"),
        pytest.param(NO_PROXIES, HALF_A_HEAD, id="an address-half sent", marks=pytest.mark.full),
    ],
)
async def test_5000_sockets_of_one_address_shut_nobody_out(
    tmp_path: Path, sending: bytes, proxies: list[str]
) -> None:
    async with attacked(tmp_path, trusted_proxies=proxies) as target:
        before, quiet = target.resident_mb(), await target.p99_ms()
        await target.open_many(1100, sending=sending)
        await target.must_answer_within(1)
        await target.must_answer_within(1, OTHER)
        await target.open_many(3900, sending=sending)
        await target.must_answer_within(1)
        await target.must_answer_within(1, OTHER)
        assert await target.p99_ms() < 4 * quiet + 250
        assert target.resident_mb() - before < 48
        refusals = await target.refusals()  # on a busy machine the first wait in vain meanwhile
        assert refusals["too-many-connections"] + refusals.get("head-too-slow", 0) > 3000


async def test_who_has_a_key_keeps_their_connection_when_strangers_take_all_the_others(
    tmp_path: Path,
) -> None:
    async with attacked(tmp_path, trusted_proxies=NO_PROXIES, max_connections=64) as target:
        shown = b"GET /v1/calls HTTP/1.1\r\nHost: relay\r\nX-API-Key: %s\r\n\r\n"
        mine = await target.open()
        mine.send(shown % target.key.encode())
        assert (await mine.answer()).status_code == 200
        strangers = await target.open_many(2000, OTHER)
        for _ in range(2):
            mine.send(shown % target.key.encode())
            assert (await mine.answer()).status_code == 200
        guessing = await target.open(OTHER)
        guessing.send(shown % b"bwk_guessed")
        assert (await guessing.answer()).status_code == 401
        assert await guessing.until_closed() == b""
        another = await target.open(OTHER)
        another.send(b"GET /docs HTTP/1.1\r\nHost: relay\r\n\r\n")
        assert "max_connections" in (await another.refused(503, "unavailable"))["detail"]
        told = await strangers[500].refused(503, "unavailable")
        assert "max_connections" in told["detail"]


@pytest.mark.parametrize("descriptors", [256, 1024, 4096, 65_536])
def test_connections_leave_descriptors_for_the_database_and_the_broker(descriptors: int) -> None:
    bounds = bounds_of(RelaySettings(max_connections=10_000), descriptors)
    taken = bounds.connections + bounds.door + bounds.backlog
    assert descriptors - taken >= min(256, descriptors // 4)
    assert 0 < bounds.strangers < bounds.connections <= 10_000


@pytest.mark.parametrize("path", [b"twilio", b"%74wilio"])
async def test_bodies_that_are_read_before_it_is_known_who_sends_them_do_not_fill_the_door(
    tmp_path: Path, path: bytes
) -> None:
    half = (
        b"POST /v1/%s/notifications HTTP/1.1\r\nHost: relay\r\nX-API-Key: guessed\r\n"
        b"Content-Length: 9\r\n\r\n{" % path
    )
    async with attacked(tmp_path, max_connections=64) as target:
        await target.open_many(500, sending=half)
        await target.must_answer_within(1)


async def test_one_address_has_a_bounded_number_of_connections_also_with_a_key(
    tmp_path: Path,
) -> None:
    settings = {"trusted_proxies": NO_PROXIES, "max_connections_per_address": 8}
    async with attacked(tmp_path, **settings) as target:
        shown = b"GET /v1/calls HTTP/1.1\r\nHost: relay\r\nX-API-Key: %s\r\n\r\n"
        mine = [await target.open() for _ in range(9)]
        for raw in mine:
            raw.send(shown % target.key.encode())
        for raw in mine[:8]:
            assert (await raw.answer()).status_code == 200
        refused = await mine[8].answer()
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert "max_connections_per_address" in refused.json()["detail"]
        await target.must_answer_within(1, OTHER)
        assert (await target.get("/readyz")).status_code == 200
        mine[0].writer.close()
        await mine[0].writer.wait_closed()
        async with asyncio.timeout(PATIENCE_S):
            while True:  # until the relay has seen that one is gone
                again = await target.open()
                again.send(shown % target.key.encode())
                if (await again.answer()).status_code == 200:
                    break


async def test_one_identity_has_a_bounded_number_of_connections_from_many_addresses(
    tmp_path: Path,
) -> None:
    settings = {
        "trusted_proxies": NO_PROXIES,
        "max_connections": 64,
        "max_connections_per_address": 16,
    }
    async with attacked(tmp_path, **settings) as target:
        async with serving(target.relay) as running:
            eve = fresh("eve")
            await running.register(eve)
            token = (await running.token(eve, eve))["Authorization"]
        answers = []
        for host in range(2, 8):
            for _ in range(16):
                raw = await target.open(f"127.0.0.{host}")
                head = (
                    f"GET /v1/ice-servers HTTP/1.1\r\nHost: relay\r\nAuthorization: {token}\r\n\r\n"
                )
                raw.send(head.encode())
                answers.append(await raw.answer())
        assert sum(answer.status_code == 200 for answer in answers) == 16
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert f"{eve} has as many connections" in refused.json()["detail"]
        await target.must_answer_within(PATIENCE_S, "127.0.0.99")


@pytest.mark.full
async def test_a_token_that_floods_at_the_door_keeps_nobody_with_a_key_out(tmp_path: Path) -> None:
    """Its connections that find no place are refused at once: late, they would fill the door."""
    settings = {
        "trusted_proxies": NO_PROXIES,
        "max_connections": 256,
        "max_connections_per_address": 64,
    }
    async with attacked(tmp_path, **settings) as target, serving(target.relay) as running:
        eve = fresh("eve")
        await running.register(eve)
        token = (await running.token(eve, eve))["Authorization"]
        asks = f"GET /v1/calls HTTP/1.1\r\nHost: relay\r\nAuthorization: {token}\r\n\r\n".encode()
        is_over, is_beset, knocks = asyncio.Event(), asyncio.Event(), 0

        async def ask_on_and_on(raw: Raw) -> None:
            while not is_over.is_set():
                raw.send(asks)
                await raw.answer()

        async def knock(source: str) -> None:
            nonlocal knocks
            while not is_over.is_set():
                knocks += 1
                if knocks == 1000:
                    is_beset.set()
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    raw = await target.open(source)
                    raw.send(asks)
                    await raw.answer()
                    raw.writer.close()

        async with asyncio.TaskGroup() as tasks:
            for raw in await target.open_many(64, "127.0.0.3"):
                tasks.create_task(ask_on_and_on(raw))
            await target.until_refused("device-requests", 100)
            await target.open_many(64, "127.0.0.4")  # all places of strangers
            for number in range(400):
                tasks.create_task(knock(f"127.0.0.{number % 8 + 4}"))
            await asyncio.wait_for(is_beset.wait(), PATIENCE_S)
            answers = [await target.get("/v1/devices", OTHER, target.key) for _ in range(30)]
            is_over.set()
        served = sum(answer.status_code == 200 for answer in answers)
        assert served > 20


async def test_a_proxys_clients_are_counted_one_by_one_and_nobody_else_can_name_theirs(
    tmp_path: Path,
) -> None:
    settings = {"trusted_proxies": ["127.0.0.2", "10.0.0.0/8"], "max_connections_per_address": 2}
    async with attacked(tmp_path, **settings) as target:
        head = CREATE + b"X-API-Key: " + target.key.encode() + b"\r\nContent-Length: 5\r\n"

        async def ask(client: bytes, source: str) -> Raw:
            """A request whose body is still to come."""
            raw = await target.open(source)
            raw.send(head + b"X-Forwarded-For: " + client + b"\r\n\r\n")
            raw.send(b"{")
            return raw

        async def is_in_hand(*clients: bytes, source: str = OTHER) -> None:
            answers = [
                asyncio.ensure_future((await ask(client, source)).answer()) for client in clients
            ]
            answered, in_hand = await asyncio.wait(answers, timeout=0.5)
            assert not answered
            for answer in in_hand:
                answer.cancel()

        async def is_refused(client: bytes, source: str = OTHER) -> None:
            assert (await (await ask(client, source)).answer()).status_code == 429

        await is_in_hand(b"203.0.113.1", b"203.0.113.1")
        await is_refused(b"203.0.113.1")
        await is_refused(b"6.6.6.6, 203.0.113.1, 10.1.2.3")
        await is_in_hand(b"203.0.113.1, 203.0.113.2")
        await is_in_hand(b"2001:db8::1", b"2001:db8::2")
        await is_refused(b"2001:db8::3")
        await is_in_hand(b"2001:db8:0:1::1")
        # Who is no proxy is counted as what they are.
        await is_in_hand(b"203.0.113.7", b"203.0.113.8", source="127.0.0.3")
        await is_refused(b"203.0.113.9", source="127.0.0.3")


async def test_a_stranger_is_told_so_before_a_byte_of_their_body(target: Target) -> None:
    for start in (
        CREATE,
        b"PUT /v1/devices/desk HTTP/1.1\r\nHost: relay\r\n",
        b"POST /v1/tokens HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer bwk_guessed\r\n",
    ):
        for rest in (
            b"Content-Length: 60000\r\n\r\n",
            b"Content-Length: 60000\r\nExpect: 100-continue\r\n\r\n",
            b"Transfer-Encoding: chunked\r\n\r\n",
        ):
            raw = await target.open()
            raw.send(start + rest)
            assert (await raw.answer()).status_code == 401
    assert (await target.refusals())["body-of-stranger"] == 9


async def test_a_body_over_its_limit_is_refused_in_words_and_counted(target: Target) -> None:
    key = b"Authorization: Bearer " + target.key.encode() + b"\r\n"
    for start in (CREATE, b"PUT /v1/devices/desk HTTP/1.1\r\nHost: relay\r\n"):
        for rest in (
            b"Content-Length: 60000000\r\n\r\n",
            b"Transfer-Encoding: chunked\r\n\r\n20000\r\n" + b"x" * 0x20000 + b"\r\n0\r\n\r\n",
        ):
            raw = await target.open()
            raw.send(start + key + rest)
            assert_problem(await raw.answer(), 413, "too-large")
    assert await target.refusals() == {"body-too-large": 4}


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_who_is_shut_out_while_their_body_is_half_sent_has_nothing_done(
    target: Target, framing: str
) -> None:
    """They begin as many requests as they have connections, and end them once they are shut out."""
    async with serving(target.relay) as running:
        eve = fresh("eve")
        await running.register(eve)
        token = (await running.token(eve, eve))["Authorization"]
        leaked = (
            await running.http.post("/v1/keys", json={"name": "leaked", "scopes": ["tokens"]})
        ).json()
        half_sent = []
        for shown, path, body in (
            (token, "/v1/calls", {"to": [eve]}),
            (f"Bearer {leaked['key']}", "/v1/tokens", {"identity": "victim"}),
        ):
            said = json.dumps(body).encode()
            length = b"Content-Length: %d\r\n\r\n" % len(said)
            if framing == "chunked":
                length = b"Transfer-Encoding: chunked\r\n\r\n"
                said = b"%x\r\n%s\r\n0\r\n\r\n" % (len(said), said)
            raw = await target.open()
            raw.send(f"POST {path} HTTP/1.1\r\nHost: relay\r\nAuthorization: {shown}\r\n".encode())
            raw.send(b"Content-Type: application/json\r\n" + length + said[:-1])
            half_sent.append((raw, said[-1:]))
        await asyncio.sleep(0.5)  # it is known by now who they are
        assert (await running.http.delete(f"/v1/devices/{eve}")).is_success
        assert (await running.http.delete("/v1/keys/leaked")).is_success
        await asyncio.sleep(1)
        for raw, last in half_sent:
            raw.send(last)
            assert_problem(await raw.answer(), 401, "unauthenticated")
        assert (await target.refusals()) == {"token-ended": 1, "api-key-unknown": 1}


async def test_a_length_with_thousands_of_zeros_is_read_as_the_number_it_is(target: Target) -> None:
    raw = await target.open()
    raw.send(
        b"POST /healthz HTTP/1.1\r\nHost: relay\r\nContent-Length: " + b"0" * 5000 + b"2\r\n\r\n{}"
    )
    assert_problem(await raw.answer(), 405)


async def test_what_is_pipelined_without_end_is_refused_in_its_turn(target: Target) -> None:
    before = target.resident_mb()
    raw = await target.open()
    raw.send(b"GET /readyz HTTP/1.1\r\nHost: relay\r\n\r\n" * 20_000)
    for _ in range(PIPELINED + 1):
        assert (await raw.answer()).status_code == 200
    await raw.refused(429, "too-many-requests")
    assert await target.refusals() == {"pipeline": 1}
    assert target.resident_mb() - before < 16


async def test_who_never_reads_the_answers_is_cut_off(hasty: Target) -> None:
    assert STALLED_S == 30
    before = hasty.resident_mb()
    raws = [await hasty.open() for _ in range(100)]
    for raw in raws:
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        raw.send(b"GET /openapi.json HTTP/1.1\r\nHost: relay\r\n\r\n" * PIPELINED)
    async with asyncio.timeout(PATIENCE_S):
        while (await hasty.refusals()).get("answer-not-read", 0) < 100:
            assert hasty.resident_mb() - before < 100
            await asyncio.sleep(0.25)
    await hasty.must_answer_within(1)
