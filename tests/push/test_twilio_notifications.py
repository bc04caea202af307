"""Twilio in front: what its webhook posts, signed by Twilio's own library, rings the apps of who is
called. On a real relay, whose FCM is a server that plays Google."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, select
from starlette.requests import Request
from twilio.request_validator import RequestValidator

from push.api.twilio import url_asked_for
from push.flood_limits import FloodLimits
from push.metrics import Metrics
from push.outbox import Outbox
from push.store.call_rows import to_ms
from push.store.database import Database
from push.store.device_rows import ChannelRow, DeviceRow, put_device
from push.store.tables import outbox
from push.twilio_notifications import (
    Forwarded,
    TwilioNotifications,
    check_signature,
    parse_notification,
    read_auth_token,
)
from signaling.errors import Forbidden, InvalidInput, NotFound, TooLarge, TooManyRequests
from signaling.identifiers import DeviceId, Identity
from tests.push.clock import Clock
from tests.push.fcm_parts import APP, google_in
from tests.push.fcm_server import Answer, FcmServer, Push, fcm_error
from tests.push.support import Running, assert_problem, fresh

in_module = pytest.mark.asyncio(loop_scope="module")

AUTH_TOKEN = "0123456789abcdef0123456789abcdef"
PUBLIC_URL = "https://relay.example.org/bellwire"
PATH = "/v1/twilio/notifications"
TWILIO = RequestValidator(AUTH_TOKEN)


def keys(to: str, **more: str) -> dict[str, str]:
    """What Twilio posts."""
    sid = hashlib.md5(fresh("call").encode(), usedforsecurity=False).hexdigest()
    return {
        "twi_account_sid": "AC" + "3" * 32,
        "twi_answer_timeout": "30",
        "twi_bridge_token": "e30.e30.sig",
        "twi_call_sid": f"CA{sid}",
        "twi_from": "client:alice",
        "twi_to": f"client:{to}",
        "twi_message_id": f"RU{sid}",
        "twi_message_type": "twilio.voice.call",
        "twi_stir_status": "A",
        "twi_params": "name=Zo%C3%AB&a=1%2B2",
        **more,
    }


def signed(body: bytes, base: str = PUBLIC_URL, query: str = "") -> tuple[str, dict[str, str]]:
    """The path to post to and the headers, as Twilio's library signs a JSON body."""
    path = f"{PATH}?{query}bodySHA256={TWILIO.compute_hash(body.decode())}"
    signature = TWILIO.compute_signature(base + path, {})
    assert TWILIO.validate(base + path, body.decode(), signature)
    return path, {"X-Twilio-Signature": signature, "Content-Type": "application/json"}


async def post(running: Running, document: object) -> httpx.Response:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    path, headers = signed(body)
    async with running.stranger() as twilio:
        return await twilio.post(path, content=body, headers=headers)


async def phone(running: Running, identity: str, token: str) -> None:
    """Registers a phone with the FCM channel."""
    channel = {"kind": "fcm", "token": token, "app": APP}
    answer = await running.http.put(
        f"/v1/devices/{fresh('phone')}", json={"identity": identity, "channels": [channel]}
    )
    assert answer.is_success, answer.text


async def arrived(google: FcmServer, token: str) -> Push:
    """The next message to this phone."""
    while (push := await google.next_push()).message["token"] != token:
        pass
    return push


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def google(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FcmServer]:
    async with google_in(tmp_path_factory.mktemp("google")) as serving:
        yield serving


@pytest.fixture(scope="module")
def settings(google: FcmServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    file = tmp_path_factory.mktemp("secrets") / "twilio"
    file.write_text(f"{AUTH_TOKEN}\n")
    app = {
        "credentials_file": str(google.account_file()),
        "server": google.url,
        "ca_file": str(google.ca_file),
    }
    return {
        "BELLWIRE_FCM": json.dumps({APP: app}),
        "BELLWIRE_TWILIO_AUTH_TOKEN_FILE": str(file),
        "BELLWIRE_PUBLIC_URL": PUBLIC_URL + "/",
    }


@in_module
async def test_notification_reaches_every_phone_of_who_is_called_unchanged(
    running: Running, google: FcmServer
) -> None:
    bob = fresh("zoë")
    tokens = {fresh("token"), fresh("token")}
    for token in tokens:
        await phone(running, bob, token)
    sent = keys(bob)
    answer = await post(running, {**sent, "other": {"not": "Twilio's"}})
    assert (answer.status_code, answer.json()) == (200, {"deliveries": 2, "repeated": False})
    pushes = [await google.next_push() for _ in tokens]
    assert {push.message["token"] for push in pushes} == tokens
    for push in pushes:
        assert push.message["data"] == sent
        assert push.message["android"]["collapse_key"] == sent["twi_call_sid"]
        assert 15 < int(push.message["android"]["ttl"].removesuffix("s")) < 30


@in_module
async def test_notification_that_twilio_sends_again_rings_once(
    running: Running, google: FcmServer
) -> None:
    bob, token = fresh("bob"), fresh("token")
    await phone(running, bob, token)
    first, without_id = keys(bob), keys(bob)
    del without_id["twi_message_id"]
    for document in (first, without_id):
        answers = await asyncio.gather(*(post(running, document) for _ in range(3)))
        assert [answer.status_code for answer in answers] == [200] * 3
        assert sorted(answer.json()["deliveries"] for answer in answers) == [0, 0, 1]
        assert (await arrived(google, token)).message["data"] == document
        again = await post(running, document)  # now that it has been delivered, too
        assert again.json() == {"deliveries": 0, "repeated": True}
    last = keys(bob)
    await post(running, last)
    assert (await arrived(google, token)).message["data"] == last


@in_module
async def test_notification_is_tried_again_until_fcm_takes_it(
    running: Running, google: FcmServer
) -> None:
    bob, token = fresh("bob"), fresh("token")
    await phone(running, bob, token)
    google.answers[token] = Answer(*fcm_error(503, "UNAVAILABLE"))
    assert (await post(running, keys(bob))).status_code == 200
    first = await arrived(google, token)
    del google.answers[token]
    second = await arrived(google, token)
    assert first.message["data"] == second.message["data"]


@in_module
async def test_identity_without_a_push_channel_is_not_found(running: Running) -> None:
    assert_problem(await post(running, keys(fresh("nobody"))), 404, "not-found")
    await running.register(fresh("desk"), bob := fresh("bob"))
    before = running.tables()
    problem = assert_problem(await post(running, keys(bob)), 404, "not-found")
    assert bob in problem["detail"]
    assert running.tables() == before


@in_module
async def test_request_that_twilio_has_not_signed_is_forbidden(running: Running) -> None:
    bob = fresh("bob")
    await phone(running, bob, fresh("token"))
    body = json.dumps(keys(bob)).encode()
    path, headers = signed(body)
    bare, _, query = path.partition("?")
    wrong = RequestValidator("another token").compute_signature(PUBLIC_URL + path, {})
    unsigned_body = TWILIO.compute_signature(PUBLIC_URL + bare, {})
    before = running.tables()
    async with running.stranger() as twilio:
        for url, changed, content in (
            (path, {"X-Twilio-Signature": wrong}, body),
            (path, {"X-Twilio-Signature": ""}, body),
            (path, {"X-Twilio-Signature": "ä"}, body),
            (path, {"X-Twilio-Signature": headers["X-Twilio-Signature"][:-1]}, body),
            (path, {}, body + b" "),
            (path, {}, b""),
            (f"{path}&a=b", {}, body),
            (f"{bare}?bodysha256={query}", {}, body),
            (bare, {"X-Twilio-Signature": unsigned_body}, body),
        ):
            given = {k: v.encode() for k, v in {**headers, **changed}.items()}
            answer = await twilio.post(url, content=content, headers=given)
            problem = assert_problem(answer, 403, "forbidden")
            assert "public_url" in problem["detail"]
        answer = await twilio.post(path, content=body)
        assert_problem(answer, 403, "forbidden")
    assert running.tables() == before


@in_module
async def test_query_of_the_url_is_part_of_what_is_signed(running: Running) -> None:
    bob = fresh("bob")
    await phone(running, bob, fresh("token"))
    body = json.dumps(keys(bob)).encode()
    path, headers = signed(body, query=f"tenant={quote('a b/ä')}&empty=&")
    async with running.stranger() as twilio:
        answer = await twilio.post(path, content=body, headers=headers)
    assert answer.status_code == 200, answer.text


@in_module
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"twi_to": None}, "twi_to"),
        ({"twi_to": ""}, "twi_to"),
        ({"twi_to": "client:"}, "identity"),
        ({"twi_to": 5}, "twi_to"),
        ({"twi_call_sid": None}, "twi_call_sid"),
        ({"twi_call_sid": "CAxyz"}, "CAxyz"),
        ({"twi_message_type": None}, "twi_message_type"),
        ({"twi_answer_timeout": "soon"}, "twi_answer_timeout"),
        ({"twi_answer_timeout": "0"}, "twi_answer_timeout"),
        ({"twi_answer_timeout": 30}, "twi_answer_timeout"),
        ({"twi_params": "\ud800"}, "twi_params"),
        ({"twi_params": {"a": "b"}}, "twi_params"),
        ({f"twi_{n}": "" for n in range(64)}, "64 keys"),
    ],
)
async def test_notification_that_is_none_is_refused_by_name(
    running: Running, change: dict[str, Any], named: str
) -> None:
    document = {**keys("bob"), **change}
    body = {name: value for name, value in document.items() if value is not None}
    problem = assert_problem(await post(running, body), 422, "invalid-input")
    assert named in problem["detail"]


@in_module
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"a"', b"[" * 10_000, b"\xff"])
async def test_body_that_is_no_json_object_is_refused(running: Running, body: bytes) -> None:
    digest = hashlib.sha256(body).hexdigest()
    path = f"{PATH}?bodySHA256={digest}"
    signature = TWILIO.compute_signature(PUBLIC_URL + path, {})
    async with running.stranger() as twilio:
        answer = await twilio.post(path, content=body, headers={"X-Twilio-Signature": signature})
    assert_problem(answer, 422, "invalid-input")


@in_module
async def test_notification_over_a_limit_is_too_large_and_says_what_to_shorten(
    running: Running,
) -> None:
    bob = fresh("bob")
    await phone(running, bob, fresh("token"))
    before = running.tables()
    problem = assert_problem(await post(running, keys(bob, twi_params="x" * 4000)), 413)
    assert (problem["limit"], problem["channel"]) == (4096, "fcm")
    assert "twi_params" in problem["detail"]
    problem = assert_problem(await post(running, keys(bob, twi_params="x" * 17_000)), 413)
    assert problem["limit"] == 16_384
    assert running.tables() == before


class Scene:
    """The rule alone, on a database, with an outbox that does not run: what is owed stays to be seen."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        token: str | None = AUTH_TOKEN,
        device_per_s: float = 1000,
    ) -> None:
        self.database = database
        self.clock = clock
        box = Outbox(database, {}, Metrics(), now=clock.now, sleep=clock.sleep)
        floods = FloodLimits(1000, device_per_s, clock=lambda: clock.now().timestamp())
        self.rule = TwilioNotifications(
            database, box, ("mqtt", "apns", "fcm"), token, floods, now=clock.now
        )

    async def register(self, identity: str, *channels: ChannelRow) -> None:
        device = DeviceRow(DeviceId(fresh("device")), Identity(identity), channels)
        await self.database.write(lambda c: put_device(c, device, 0))

    async def post(self, document: dict[str, str], base: str = PUBLIC_URL) -> Forwarded:
        body = json.dumps(document).encode()
        path, headers = signed(body, base)
        return await self.rule.forward(base + path, headers["X-Twilio-Signature"], body)

    async def owed(self) -> list[Any]:
        def work(connection: Connection) -> list[Any]:
            return list(connection.execute(select(outbox).order_by(outbox.c.kind)).all())

        return await self.database.read(work)


IPHONE = ChannelRow("apns", "org.example.ios", "production", "a" * 64)
ANDROID = ChannelRow("fcm", APP, None, "token")


async def test_ios_gets_the_keys_with_aps_beside_them_and_no_other_channel_any(
    each_database: Database, clock: Clock
) -> None:
    scene = Scene(each_database, clock)
    await scene.register("bob", IPHONE, ANDROID, ChannelRow("mqtt"), ChannelRow("websocket"))
    sent = keys("bob")
    assert await scene.post(sent) == Forwarded(2)
    apns, fcm = await scene.owed()
    assert (apns.kind, apns.app, json.loads(apns.payload)) == (
        "apns",
        "org.example.ios",
        {"aps": {}, **sent},
    )
    assert (fcm.kind, fcm.app, json.loads(fcm.payload)) == ("fcm", APP, sent)
    for row in (apns, fcm):
        assert row.call_sid == sent["twi_call_sid"]
        assert row.expires_at_ms == to_ms(clock.now()) + 30_000
    many = await asyncio.gather(*(scene.post(sent) for _ in range(5)))
    assert many == [Forwarded(0, repeated=True)] * 5
    assert len(await scene.owed()) == 2


async def test_one_of_many_that_come_at_once_is_delivered(
    each_database: Database, clock: Clock
) -> None:
    scene = Scene(each_database, clock)
    await scene.register("bob", IPHONE)
    sent = keys("bob")
    many = await asyncio.gather(*(scene.post(sent) for _ in range(8)))
    assert sorted(forwarded.deliveries for forwarded in many) == [0] * 7 + [1]
    assert len(await scene.owed()) == 1


async def test_life_is_the_answer_timeout_or_a_minute_and_never_over_ten(
    database: Database, clock: Clock
) -> None:
    scene = Scene(database, clock)
    await scene.register("bob", IPHONE)
    for timeout, life_s in (("1", 1), ("", 60), ("599", 599), ("9" * 500, 600)):
        await scene.post(keys("bob", twi_answer_timeout=timeout))
        assert (await scene.owed())[-1].expires_at_ms == to_ms(clock.now()) + life_s * 1000


async def test_push_over_apples_limit_is_refused_and_nothing_is_owed(
    database: Database, clock: Clock
) -> None:
    scene = Scene(database, clock)
    await scene.register("bob", IPHONE)
    body = {"aps": {}, **keys("bob", twi_params="")}
    room = 5120 - len(json.dumps(body, separators=(",", ":")).encode())
    await scene.post(keys("bob", twi_params="ä" * (room // 2 - 4)))
    with pytest.raises(TooLarge, match="5120: shorten twi_params"):
        await scene.post(keys("bob", twi_params="x" * (room + 20)))
    assert len(await scene.owed()) == 1


async def test_relay_without_an_auth_token_says_what_to_set(
    database: Database, clock: Clock
) -> None:
    scene = Scene(database, clock, token=None)
    with pytest.raises(Forbidden, match="set twilio_auth_token_file"):
        await scene.post(keys("bob"))


async def test_identity_is_not_found_without_a_device(database: Database, clock: Clock) -> None:
    with pytest.raises(NotFound, match="bob has no device with an apns or fcm channel"):
        await Scene(database, clock).post(keys("bob"))


@pytest.mark.parametrize(
    ("signed_for", "asked"),
    [
        ("https://relay.example.org", "https://relay.example.org"),
        ("https://relay.example.org:443", "https://relay.example.org"),
        ("https://relay.example.org", "https://relay.example.org:443"),
        ("http://relay.example.org:80", "http://relay.example.org"),
        ("https://relay.example.org:8443", "https://relay.example.org:8443"),
        ("https://relay.example.org", "https://relay.example.org:8443"),
    ],
)
def test_port_may_stand_in_the_signed_url_or_not(signed_for: str, asked: str) -> None:
    body = b"{}"
    path, headers = signed(body, signed_for)
    assert TWILIO.validate(asked + path, body.decode(), headers["X-Twilio-Signature"])
    check_signature(AUTH_TOKEN, asked + path, headers["X-Twilio-Signature"], body)


@pytest.mark.parametrize(
    ("public_url", "expected"),
    [
        (None, "http://relay.example.org:8080/v1/twilio/notifications?a=%2f&b"),
        ("https://a.example", "https://a.example/v1/twilio/notifications?a=%2f&b"),
        ("https://a.example/x/", "https://a.example/x/v1/twilio/notifications?a=%2f&b"),
    ],
)
def test_url_that_twilio_has_signed_is_the_public_one_or_that_of_the_request(
    public_url: str | None, expected: str
) -> None:
    scope = {
        "type": "http",
        "scheme": "http",
        "headers": [(b"host", b"relay.example.org:8080")],
        "raw_path": PATH.encode(),
        "query_string": b"a=%2f&b",
    }
    assert url_asked_for(Request(scope), public_url) == expected


def test_url_of_no_host_is_forbidden() -> None:
    with pytest.raises(Forbidden):
        check_signature(AUTH_TOKEN, "http://[bad/v1?bodySHA256=a", "sig", b"{}")


@given(st.text(), st.text(alphabet=st.characters(codec="utf-8")), st.binary(max_size=50))
def test_whatever_twilio_signs_is_taken_and_with_another_token_is_not(
    token: str, query: str, body: bytes
) -> None:
    token = token.encode(errors="replace").decode()
    digest = hashlib.sha256(body).hexdigest()
    url = f"https://relay.example.org{PATH}?q={quote(query)}&bodySHA256={digest}"
    signature = RequestValidator(token).compute_signature(url, {})
    check_signature(token, url, signature, body)
    with pytest.raises(Forbidden):
        check_signature(token + "x", url, signature, body)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(
    st.binary(max_size=200)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(
        st.sampled_from([*keys("bob"), "aps", "twi_"]), st.text(max_size=9) | json_values
    ).map(lambda more: json.dumps({**keys("bob"), **more}).encode())
)
def test_any_body_is_a_notification_or_a_refusal_and_nothing_else(body: bytes) -> None:
    try:
        notification = parse_notification(body)
    except InvalidInput as refusal:
        assert refusal.detail
    else:
        document = json.loads(body)
        assert all(document[name] == text for name, text in notification.keys.items())
        assert set(notification.keys) <= set(document)
        assert 1 <= notification.life_s <= 600


def test_auth_token_is_read_from_its_file_and_never_quoted(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f" {AUTH_TOKEN}\n")
    assert read_auth_token(file) == AUTH_TOKEN
    file.write_text(" \n")
    with pytest.raises(InvalidInput, match=r"twilio_auth_token_file, .*token, is empty"):
        read_auth_token(file)
    file.write_bytes(b"\xff\xfe")
    for path in (file, tmp_path, tmp_path / "nothing"):
        with pytest.raises(InvalidInput, match=f"twilio_auth_token_file, {path}, cannot be read"):
            read_auth_token(path)


async def test_a_flood_of_calls_is_refused_and_cancels_and_repeats_are_not(
    each_database: Database, clock: Clock
) -> None:
    # Each device three at once, and one each ten seconds.
    scene = Scene(each_database, clock, device_per_s=0.1)
    await scene.register("bob", IPHONE)
    await scene.register("bob", ChannelRow("mqtt"))  # is not pushed to, so not flooded
    await scene.register("carol", ANDROID)
    first = keys("bob")
    for document in (first, keys("bob"), keys("bob")):
        assert await scene.post(document) == Forwarded(1)
    owed = len(await scene.owed())
    with pytest.raises(TooManyRequests, match="a device of bob is called too often") as flood:
        await scene.post(keys("bob"))
    assert flood.value.retry_after_s == pytest.approx(10, abs=0.5)
    assert len(await scene.owed()) == owed
    assert await scene.post(first) == Forwarded(0, repeated=True)
    cancel = keys("bob", twi_message_type="twilio.voice.cancel")
    assert await scene.post(cancel) == Forwarded(1)
    for _ in range(2):  # what is too long rings nobody, and costs nothing
        with pytest.raises(TooLarge):
            await scene.post(keys("carol", twi_params="x" * 5000))
    assert [await scene.post(keys("carol")) for _ in range(3)] == [Forwarded(1)] * 3
    clock.advance(10)
    assert await scene.post(keys("bob")) == Forwarded(1)
