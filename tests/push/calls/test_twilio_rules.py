"""Who gets what Twilio posts, for how long, and whose signature counts."""

import asyncio
import hashlib
import json
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from twilio.request_validator import RequestValidator

from bellwire.push.api.twilio import url_asked_for
from bellwire.push.calls.twilio_notifications import (
    Forwarded,
    check_signature,
    parse_notification,
    read_auth_token,
)
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.devices import ChannelRow
from bellwire.push.store.tables import to_ms
from bellwire.signaling.errors import (
    Forbidden,
    InvalidInput,
    NotFound,
    TooLarge,
    TooManyRequests,
)
from tests.push.clock import Clock
from tests.push.fcm_parts import APP
from tests.push.twilio_scene import (
    ANDROID,
    AUTH_TOKEN,
    IPHONE,
    PATH,
    TWILIO,
    Scene,
    keys,
    signed,
)


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
    with pytest.raises(
        TooManyRequests, match="a device of bob is called by alice too often"
    ) as flood:
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
