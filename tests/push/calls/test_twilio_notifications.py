"""Twilio in front: what its webhook posts, signed by Twilio's own library, rings the apps of who is
called. On a real relay, whose FCM is a server that plays Google."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import pytest_asyncio
from twilio.request_validator import RequestValidator

from tests.push.fcm_parts import APP, google_in
from tests.push.fcm_server import Answer, FcmServer, Push, fcm_error
from tests.push.support import Running, assert_problem, fresh
from tests.push.twilio_scene import AUTH_TOKEN, PATH, PUBLIC_URL, TWILIO, keys, signed

in_module = pytest.mark.asyncio(loop_scope="module")


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
    await running.until_nothing_is_owed()  # what other tests have sent
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
    await running.until_nothing_is_owed()  # what other tests have sent
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
    await running.until_nothing_is_owed()  # what other tests have sent
    before = running.tables()
    problem = assert_problem(await post(running, keys(bob, twi_params="x" * 4000)), 413)
    assert (problem["limit"], problem["channel"]) == (4096, "fcm")
    assert "twi_params" in problem["detail"]
    problem = assert_problem(await post(running, keys(bob, twi_params="x" * 17_000)), 413)
    assert problem["limit"] == 16_384
    assert running.tables() == before
