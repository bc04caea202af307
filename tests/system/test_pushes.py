"""Pushes through a whole relay, to servers that play Apple and Google: a sleeping mobile is woken, it
answers with what the push brought, and a relay that is killed before it could push does so when it
is back, unless the invite is over by then."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cli.command import bellwire
from tests.conftest import PATIENCE_S
from tests.forking import ForkedRelay
from tests.push.apns_server import Authority, Pushed, Reply, apns_server, write_team_key
from tests.push.fcm_server import FcmServer, Push

IOS, ANDROID = "com.example.ios", "com.example.android"
IPHONE_TOKEN = "ab" * 32


@dataclass
class Mobiles:
    """Alice has an iPhone and an Android; a relay can push to both."""

    relay: ForkedRelay
    authority: Authority
    google: FcmServer
    apple_port: int

    async def ask(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        **more: Any,  # noqa: ANN401 - JSON
    ) -> httpx.Response:
        access = self.relay.access
        shown = {"Authorization": f"Bearer {token or access.api_key}"}
        async with httpx.AsyncClient(base_url=access.url, timeout=PATIENCE_S) as http:
            return await http.request(method, path, headers=shown, **more)

    async def call(self, **body: Any) -> str:  # noqa: ANN401 - JSON
        invite = {"from": "door", "to": ["alice"], "timeout": 60, **body}
        answer = await self.ask("POST", "/v1/calls", json=invite)
        assert answer.status_code == 201, answer.text
        sid: str = answer.json()["call_sid"]
        return sid

    async def deliveries(self, sid: str) -> dict[str, dict[str, Any]]:
        """What became of a call's pushes, by channel."""
        answer = await self.ask("GET", f"/v1/calls/{sid}/deliveries")
        return {shown["channel"]: shown for shown in answer.json()["deliveries"]}

    async def until_state(self, sid: str, channel: str, state: str) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_S):
            while (shown := (await self.deliveries(sid)).get(channel, {})).get("state") != state:
                pass
        return shown


@pytest.fixture
async def mobiles(tmp_path: Path) -> AsyncIterator[Mobiles]:
    """Apple is not there yet: each test opens `apns_server` at its port."""
    authority = Authority(tmp_path)
    (tmp_path / "google").mkdir()
    async with apns_server(authority) as apns:
        port = apns.port
    async with AsyncExitStack() as stack:
        google = await stack.enter_async_context(FcmServer(tmp_path / "google").serving())
        key_file = tmp_path / "AuthKey.p8"
        write_team_key(key_file)
        ios = {
            "key_file": str(key_file),
            "key_id": "KEY4567890",
            "team_id": "TEAM567890",
            "server": f"127.0.0.1:{port}",
            "ca_file": str(authority.file),
            "connections": 1,
        }
        android = {
            "credentials_file": str(google.account_file()),
            "server": google.url,
            "ca_file": str(google.ca_file),
        }
        environment = {
            "BELLWIRE_APNS": json.dumps({IOS: ios}),
            "BELLWIRE_FCM": json.dumps({ANDROID: android}),
        }
        relay = ForkedRelay(tmp_path / "relay", environment=environment)
        await stack.enter_async_context(relay)
        here = Mobiles(relay, authority, google, port)
        for device, kind, app, token in (
            ("iphone", "apns", IOS, IPHONE_TOKEN),
            ("android", "fcm", ANDROID, "android-token"),
        ):
            channel = {"kind": kind, "app": app, "token": token}
            body = {"identity": "alice", "channels": [channel]}
            assert (await here.ask("PUT", f"/v1/devices/{device}", json=body)).is_success
        yield here


def body_of(push: Pushed) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(push.body)
    return document


def data_of(push: Push) -> dict[str, str]:
    data: dict[str, str] = push.message["data"]
    return data


async def test_a_mobile_that_a_push_has_woken_answers_with_what_the_push_brought(
    mobiles: Mobiles,
) -> None:
    async with apns_server(mobiles.authority, port=mobiles.apple_port) as apple:
        sid = await mobiles.call(custom_parameters={"door": "café & co"})
        other = await mobiles.call()
        await apple.until(lambda: len(apple.pushes) == 2)
        woken = next(push for push in apple.pushes if push.header("apns-collapse-id") == sid)
        by_apple = body_of(woken)
        by_google = data_of(await mobiles.google.next_push())
        assert by_apple.pop("aps") == {}
        assert by_apple["twi_params"] == "door=caf%C3%A9%20%26%20co"
        assert by_google["twi_call_sid"] in (sid, other)
        assert by_apple.keys() == by_google.keys()
        connect = by_apple["twi_bridge_token"]
        said = await mobiles.ask(
            "POST",
            f"/v1/calls/{sid}/received",
            token=connect,
            json={"channel": "apns", "app": IOS},
        )
        assert said.status_code == 200, said.text
        # A mobile may be faster than the relay, which keeps what Apple said some milliseconds later.
        async with asyncio.timeout(PATIENCE_S):
            while not (shown := await mobiles.until_state(sid, "apns", "received"))["detail"]:
                pass
        assert shown["detail"] == woken.header("apns-id")
        assert shown["latency_ms"] >= 0
        accepted = await mobiles.ask("POST", f"/v1/calls/{sid}/accept", token=connect)
        assert accepted.json()["state"] == "open"
        users = {user["identity"]: user for user in accepted.json()["users"]}
        assert users["alice"]["main_device"] == "iphone"
        for path in (f"/v1/calls/{other}/accept", "/v1/calls"):
            refused = await mobiles.ask("POST", path, token=connect, json={})
            assert refused.status_code == 403, refused.text
        # The Android learns that it need not ring; on APNs nothing more is pushed.
        while (data := data_of(await mobiles.google.next_push()))["twi_call_sid"] != sid or (
            data["twi_message_type"] != "twilio.voice.cancel"
        ):
            pass
        assert len(apple.pushes) == 2


async def test_a_push_that_apple_had_not_answered_when_the_relay_was_killed_is_sent_again(
    mobiles: Mobiles,
) -> None:
    async with apns_server(mobiles.authority, port=mobiles.apple_port) as apple:
        apple.answer = lambda _: None
        sid = await mobiles.call()
        await apple.until(lambda: len(apple.pushes) == 1)
        await mobiles.relay.kill()
        apple.answer = lambda _: Reply()
        await mobiles.relay.start()
        await apple.until(lambda: len(apple.pushes) == 2)
        first, again = apple.pushes
        assert first.header("apns-id") == again.header("apns-id")
        assert first.header("apns-collapse-id") == again.header("apns-collapse-id") == sid
        assert first.header("apns-expiration") == again.header("apns-expiration")
        assert first.body == again.body
        await mobiles.until_state(sid, "apns", "sent")


async def test_an_invite_committed_before_a_kill_is_pushed_after_it_if_it_is_alive(
    mobiles: Mobiles,
) -> None:
    short = await mobiles.call(timeout=1)
    alive = await mobiles.call()
    await mobiles.until_state(alive, "apns", "owed")
    await mobiles.relay.kill()
    await mobiles.relay.start()
    async with asyncio.timeout(PATIENCE_S):
        while (await mobiles.ask("GET", f"/v1/calls/{short}")).json()["state"] != "ended":
            pass
    async with apns_server(mobiles.authority, port=mobiles.apple_port) as apple:
        await apple.until(lambda: bool(apple.pushes))
        await mobiles.until_state(alive, "apns", "sent")
        last = await mobiles.call()
        await mobiles.until_state(last, "apns", "sent")
        pushed = [push.header("apns-collapse-id") for push in apple.pushes]
    assert pushed == [alive, last]


async def test_a_dead_token_is_removed_and_the_other_mobile_still_rings(mobiles: Mobiles) -> None:
    async with apns_server(mobiles.authority, port=mobiles.apple_port) as apple:
        apple.answer = lambda _: Reply(410, "Unregistered", timestamp=2**42)
        sid = await mobiles.call()
        shown = await mobiles.until_state(sid, "apns", "refused")
        assert "Unregistered" in shown["detail"]
        assert data_of(await mobiles.google.next_push())["twi_call_sid"] == sid
        assert (await mobiles.ask("GET", "/v1/devices/iphone")).json()["channels"] == []
        again = await mobiles.call()
        await mobiles.until_state(again, "fcm", "sent")
        assert "apns" not in await mobiles.deliveries(again)


async def test_the_push_test_command_says_what_apple_and_google_answered(mobiles: Mobiles) -> None:
    test = ("push", "test", "--cancel-after", "0", "--data", mobiles.relay.data)
    async with apns_server(mobiles.authority, port=mobiles.apple_port) as apple:
        taken = await bellwire(*test, "--device", "iphone")
        assert taken.code == 0, taken.err
        assert "Apple took it" in taken.out
        apple.answer = lambda _: Reply(400, "BadDeviceToken")
        refused = await bellwire(*test, "--device", "iphone")
    assert refused.code != 0
    assert "BadDeviceToken" in refused.out
    taken = await bellwire(*test, "--device", "android")
    assert taken.code == 0, taken.err
    assert "Google took it" in taken.out
