"""What an Android app is sent: every header and byte of it, by the real firebase-admin."""

import asyncio
import json
import re
import threading
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import firebase_admin
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellwire.push.channels.channel import Addressee, ChannelAtFault, DeliveryRefused
from bellwire.push.channels.fcm.channel import FcmChannel
from bellwire.push.channels.payload import FCM_LIMIT_BYTES, fcm_data
from bellwire.push.metrics import Metrics
from bellwire.push.store.rows.devices import ChannelRow, DeviceRow
from bellwire.signaling.calls.calls import CallState
from bellwire.signaling.calls.commands import Invitee, NewCall
from bellwire.signaling.calls.events import CallEnded, CallEvent, CallReceived, CallUserStateChanged
from bellwire.signaling.calls.rules import create_call
from bellwire.signaling.errors import TooLarge
from bellwire.signaling.identifiers import CallSid, DeviceId, Identity
from tests.push.clock import START
from tests.push.fcm_parts import (
    ACCOUNT_SID,
    APP,
    CALL_SID,
    DATA,
    app_at,
    google_in,
    payload,
    running_channel,
    to,
    utc_now,
)
from tests.push.fcm_server import FcmServer


@pytest.fixture
async def google(tmp_path: Path) -> AsyncIterator[FcmServer]:
    async with google_in(tmp_path) as serving:
        yield serving


async def test_the_request_is_this_and_nothing_more(google: FcmServer) -> None:
    async with running_channel(google) as channel:
        began = time.monotonic()
        assert await channel.send(to("phone"), 30.9) == "projects/relay-test/messages/1-1"
        took_s = time.monotonic() - began
    push = await google.next_push()
    headers = dict(push.headers)
    assert len(headers) == len(push.headers)
    assert re.fullmatch(r"gl-python/[\w.]+ fire-admin/[\d.]+", headers.pop("x-goog-api-client"))
    assert headers == {
        ":method": "POST",
        ":scheme": "https",
        ":authority": f"127.0.0.1:{google.port}",
        ":path": "/v1/projects/relay-test/messages:send",
        "authorization": "Bearer access-1",
        "content-type": "application/json",
        "content-length": str(len(push.body)),
        "x-goog-api-format-version": "2",
        "x-firebase-client": f"fire-admin-python/{firebase_admin.__version__}",
    }
    ttl = re.search(rb'"ttl":"(\d+)s"', push.body)
    assert ttl is not None
    assert int(30.9 - took_s) <= int(ttl[1]) <= 30, "what is left of it when it is sent"
    message = {
        "android": {"collapse_key": CALL_SID, "priority": "high", "ttl": f"{int(ttl[1])}s"},
        "data": DATA,
        "token": "phone",
    }
    whole = json.dumps({"message": message}, ensure_ascii=False, separators=(",", ":"))
    assert push.body == whole.encode()
    assert (google.count, google.tokens) == (1, ["access-1"])


async def test_access_token_is_asked_for_as_the_service_account(google: FcmServer) -> None:
    async with running_channel(google) as channel:
        await channel.send(to(), 30)
    claims = await google.next_token_request()
    assert claims["iss"] == "relay@relay-test.iam.gserviceaccount.com"
    assert "https://www.googleapis.com/auth/firebase" in claims["scope"].split()
    assert claims["exp"] - claims["iat"] == 3600


async def test_life_of_a_message_is_whole_seconds_and_never_beyond_the_invite(
    google: FcmServer,
) -> None:
    lives = {59.999: "59s", 1.9: "1s", 0.95: "0s", 3600.0: "3599s", 10_000_000.0: "2419200s"}
    async with running_channel(google) as channel:
        await channel.send(to(), 30)
        await google.next_push()
        for left_s, ttl in lives.items():
            await channel.send(to(), left_s)
            assert (await google.next_push()).message["android"]["ttl"] == ttl


async def test_time_spent_waiting_for_google_is_taken_from_the_life(google: FcmServer) -> None:
    google.token_gate.clear()
    async with running_channel(google) as channel:
        sending = asyncio.create_task(channel.send(to(), 30.05))
        await google.next_token_request()
        await asyncio.sleep(0.1)  # that much of its life is gone
        google.token_gate.set()
        await sending
    assert int((await google.next_push()).message["android"]["ttl"].removesuffix("s")) <= 29


async def test_message_about_no_call_has_no_collapse_key(google: FcmServer) -> None:
    async with running_channel(google) as channel:
        await channel.send(to(call_sid=""), 30)
    assert "collapse_key" not in (await google.next_push()).message["android"]


async def test_each_app_sends_in_its_own_project(google: FcmServer) -> None:
    apps = {
        APP: app_at(google),
        "b": app_at(google, credentials_file=google.account_file(project_id="other")),
        "c": app_at(google, project_id="named-in-settings"),
    }
    async with running_channel(apps=apps) as channel:
        for app in apps:
            await channel.send(to(app=app), 30)
    paths = [(await google.next_push()).header(":path") for _ in apps]
    assert [path.split("/")[3] for path in paths] == ["relay-test", "other", "named-in-settings"]


async def test_app_that_the_settings_do_not_name_waits_for_an_operator(google: FcmServer) -> None:
    async with running_channel(google) as channel:
        with pytest.raises(ChannelAtFault, match=r"org\.example\.gone"):
            await channel.send(to(app="org.example.gone"), 30)
        with pytest.raises(DeliveryRefused):
            await channel.send(to(""), 30)
    assert google.count == 0


async def test_nothing_is_left_behind_by_a_channel_that_has_ended(google: FcmServer) -> None:
    apps_before = set(firebase_admin._apps)
    for _ in range(3):
        async with running_channel(google) as channel:
            await channel.send(to(), 30)
            assert set(firebase_admin._apps) > apps_before
        assert set(firebase_admin._apps) == apps_before
    async with asyncio.timeout(10):
        for connection in google.connections:
            await connection.closed.wait()
    for thread in threading.enumerate():
        if thread.name.startswith("fcm-token"):
            await asyncio.to_thread(thread.join, 5)
            assert not thread.is_alive()


def received(**fields: object) -> CallReceived:
    given = {
        "id": "event-1",
        "call_sid": CALL_SID,
        "at": START,
        "to": "client:bob",
        "from": "client:alice",
        "custom_parameters": {"floor": "2"},
        "expires_at": START + timedelta(seconds=60),
        **fields,
    }
    return CallReceived.model_validate(given)


def compose(event: CallEvent) -> str | None:
    channel = FcmChannel({}, payload(), Metrics(), now=utc_now)
    return channel.compose(event, addressee())


def addressee() -> Addressee:
    new = NewCall(
        call_sid=CallSid(CALL_SID),
        caller=Identity("alice"),
        invitees=(Invitee(Identity("bob")),),
        at=START,
        timeout_s=60,
    )
    call = create_call(new).call
    assert call.state is CallState.RINGING
    row = ChannelRow("fcm", APP, None, "phone")
    return Addressee(call, DeviceRow(DeviceId("phone"), Identity("bob"), (row,)), row)


def test_invite_is_twilios_keys_as_strings() -> None:
    composed = compose(received(title="Door", content="Ä", payload='{"a": 1}'))
    assert composed is not None
    assert json.loads(composed) == {
        "twi_message_type": "twilio.voice.call",
        "twi_call_sid": CALL_SID,
        "twi_from": "client:alice",
        "twi_to": "client:bob",
        "twi_account_sid": ACCOUNT_SID,
        "twi_message_id": "event-1",
        "twi_params": "floor=2",
        "twi_bridge_token": "a-connect-token",
        "title": "Door",
        "content": "Ä",
        "payload": '{"a": 1}',
    }


def test_end_of_an_invite_is_a_cancel_and_other_events_are_not_pushed() -> None:
    common = {"id": "event-2", "call_sid": CALL_SID, "at": START}
    ended = compose(CallEnded.model_validate({**common, "reason": "ended"}))
    assert ended is not None
    assert json.loads(ended)["twi_message_type"] == "twilio.voice.cancel"
    changed = {**common, "identity": "bob", "state": "Accepted"}
    assert compose(CallUserStateChanged.model_validate(changed)) is None


def test_invite_at_the_limit_is_taken_and_one_byte_more_is_refused_by_name() -> None:
    base = compose(received(payload=""))
    assert base is not None
    size = sum(len(k.encode()) + len(v.encode()) for k, v in json.loads(base).items())
    room = 3900 - size
    assert compose(received(payload="ä" * (room // 2) + "x" * (room % 2))) is not None
    with pytest.raises(TooLarge, match=r"4097 bytes over FCM.*4096.*custom_parameters") as refused:
        compose(received(payload="x" * (room + 1)))
    assert refused.value.fields == {"size": 4097, "limit": 4096, "channel": "fcm"}


@given(st.dictionaries(st.text(max_size=40), st.text(max_size=200), max_size=30))
def test_what_is_composed_reads_back_and_is_within_googles_limit(keys: dict[str, str]) -> None:
    keys = {
        k.encode(errors="replace").decode(): v.encode(errors="replace").decode()
        for k, v in keys.items()
    }
    size = sum(len(k.encode()) + len(v.encode()) for k, v in keys.items())
    try:
        composed = fcm_data(keys, "it", "it")
    except TooLarge:
        assert size > 3900
    else:
        assert size <= FCM_LIMIT_BYTES
        assert json.loads(composed) == keys
