"""Who called, and how sure the relay is of it: what invites carry, by who asked for the call."""

import json
from datetime import datetime, timedelta
from typing import Any

import httpx
import jwt
import pytest
from websockets.asyncio.client import connect

from bellwire.push.access.tokens import new_signing_key, open_access_tokens
from bellwire.push.store.engine.sqlite import SqliteDatabase
from bellwire.push.store.rows.access import add_signing_key
from bellwire.signaling.calls.calls import Attestation
from bellwire.signaling.calls.events import CallerToken, CallReceived
from bellwire.signaling.errors import Unauthenticated
from tests.push.clock import Clock
from tests.push.streams import Stream, reading, register_for_stream, stream_url
from tests.push.support import Device, Running, assert_problem, fresh, listening

in_module = pytest.mark.asyncio(loop_scope="module")


async def claims(http: httpx.AsyncClient, invite: dict[str, Any]) -> dict[str, Any]:
    """What the relay signed in an invite, checked as anybody may: by the keys that it publishes."""
    token = invite["caller_info"]["token"]
    keys = jwt.PyJWKSet.from_dict((await http.get("/.well-known/jwks.json")).json())
    key = keys[jwt.get_unverified_header(token)["kid"]]
    decoded: dict[str, Any] = jwt.decode(
        token,
        key,
        algorithms=["EdDSA"],
        audience="bellwire-caller",
        options={"verify_exp": False, "verify_iat": False},
    )
    return decoded


def signed(invite: dict[str, Any], attest: str) -> dict[str, Any]:
    """What stands in the token of an invite that was not tampered with."""

    def whole_s(moment: str) -> int:
        return int(datetime.fromisoformat(moment).timestamp())

    return {
        "iss": "bellwire",
        "aud": "bellwire-caller",
        "call_sid": invite["call_sid"],
        "orig": invite["from"],
        "dest": invite["to"],
        "attest": attest,
        "iat": whole_s(invite["at"]),
        "exp": whole_s(invite["expires_at"]),
    }


async def invite_by(bob: Device, by: httpx.Response) -> dict[str, Any]:
    """The invite of a call that was asked for so."""
    assert by.status_code == 201, by.text
    return await bob.until("call.received", by.json()["call_sid"])


@in_module
async def test_an_invite_says_whether_the_caller_itself_or_a_server_called(
    running: Running,
) -> None:
    bob_id, alice = fresh("bob"), fresh("zoë")
    async with listening(running, bob_id) as bob:
        body = {"to": [bob_id], "timeout": 600}
        token = await running.token(alice)
        dial = f"<Dial callerId='client:{alice}'><Client>{bob_id}</Client></Dial>"
        twiml = f"<Response>{dial}</Response>"
        xml = {"Content-Type": "application/xml"}
        for answer, attest in (
            (await running.http.post("/v1/calls", json=body, headers=token), "A"),
            (await running.http.post("/v1/calls", json={**body, "from": alice}), "B"),
            (await running.http.post("/v1/calls", content=twiml.encode(), headers=xml), "B"),
        ):
            invite = await invite_by(bob, answer)
            assert invite["caller_info"]["attestation"] == attest
            assert await claims(running.http, invite) == signed(invite, attest)
            assert invite["from"] == f"client:{alice}"
        nobody = await invite_by(bob, await running.http.post("/v1/calls", json=body))
        assert "caller_info" not in nobody and "from" not in nobody


@in_module
async def test_a_server_that_opens_a_devices_stream_is_still_a_server_in_all_that_it_asks_there(
    running: Running,
) -> None:
    ann, web, lobby = fresh("ann"), fresh("web"), fresh("lobby")
    async with listening(running, lobby) as at_lobby:
        await register_for_stream(running, web, ann)
        sid = (await at_lobby.ask({"operation": "invite", "to": [ann]}))["call"]["call_sid"]
        key = {"X-API-Key": running.relay.access.api_key}
        url = stream_url(running, device_id=web)
        async with connect(url, additional_headers=key) as socket:
            stream = Stream(web, socket, json.loads(await socket.recv()))
            accepted = await stream.ask({"operation": "accept", "call_sid": sid})
            assert accepted["call"]["users"][1]["attestation"] == "B"
            told = await at_lobby.until("call.user_state_changed", sid)
            assert (told["state"], told["attestation"]) == ("Accepted", "B")
            await stream.ask({"operation": "message", "call_sid": sid, "content": {}})
            assert (await at_lobby.until("call.message", sid))["attestation"] == "B"
            await stream.ask({"operation": "invite", "to": [lobby]})
            assert (await at_lobby.until("call.received"))["caller_info"]["attestation"] == "B"
        async with reading(running, web, ann) as own:
            await own.ask({"operation": "message", "call_sid": sid, "content": {}})
            assert (await at_lobby.until("call.message", sid))["attestation"] == "A"


@in_module
async def test_a_device_calls_over_mqtt_in_its_own_name_and_invites_more_in_it(
    running: Running,
) -> None:
    alice, bob, carol, dave = (fresh(name) for name in ("alice", "bob", "carol", "dave"))
    async with (
        listening(running, alice) as alice_1,
        listening(running, bob) as bob_1,
        listening(running, carol) as carol_1,
        listening(running, dave) as dave_1,
    ):
        invite_all = {"operation": "invite", "to": [bob], "mode": "advanced", "timeout": 600}
        sid = (await alice_1.ask(invite_all))["call"]["call_sid"]
        invite = await bob_1.until("call.received", sid)
        assert await claims(running.http, invite) == signed(invite, "A")
        await bob_1.ask({"operation": "accept", "call_sid": sid})
        await bob_1.ask({"operation": "invite_more", "call_sid": sid, "to": [carol]})
        invite = await carol_1.until("call.received", sid)
        assert invite["from"] == f"client:{bob}"
        assert await claims(running.http, invite) == signed(invite, "A")
        await running.do(sid, "invite", to=[dave])
        invite = await dave_1.until("call.received", sid)
        assert invite["from"] == f"client:{alice}"
        assert await claims(running.http, invite) == signed(invite, "B")


@in_module
async def test_an_invite_that_is_sent_again_is_the_same_but_for_its_connect_token(
    running: Running,
) -> None:
    bob, alice = fresh("bob"), fresh("alice")
    body = {"identity": bob, "channels": [{"kind": "websocket"}, {"kind": "mqtt"}]}
    await running.http.put(f"/v1/devices/{bob}", json=body)
    token = await running.token(alice)
    answer = await running.http.post("/v1/calls", json={"to": [bob]}, headers=token)
    assert answer.status_code == 201
    heard = []
    for _ in range(2):
        async with reading(running, bob) as stream:
            event = await stream.until("call.received")
            heard.append({name: value for name, value in event.items() if name != "cursor"})
    tokens = {event.pop("connect_token") for event in heard}
    assert (
        len(tokens) == 2
    )  # each is made as it is sent, and ends no sooner than others of its moment
    assert heard[0] == heard[1]
    assert heard[0]["caller_info"]["attestation"] == "A"


@in_module
async def test_a_device_learns_the_public_keys_over_its_connection(running: Running) -> None:
    published = (await running.http.get("/.well-known/jwks.json")).json()
    async with listening(running, fresh("bob")) as bob:
        answer = await bob.ask({"operation": "keys"})
    assert (answer["status"], answer["keys"]) == (200, published["keys"])
    (key,) = answer["keys"]
    assert key.keys() == {"kid", "kty", "crv", "x", "use", "alg"}


@in_module
async def test_a_caller_token_opens_nothing(running: Running) -> None:
    bob_id, alice = fresh("bob"), fresh("alice")
    async with listening(running, bob_id) as bob:
        token = await running.token(alice)
        answer = await running.http.post("/v1/calls", json={"to": [bob_id]}, headers=token)
        invite = await invite_by(bob, answer)
    shown = {"Authorization": f"Bearer {invite['caller_info']['token']}"}
    async with running.stranger() as stranger:
        for path in ("/v1/calls", "/v1/ice-servers", f"/v1/calls/{invite['call_sid']}"):
            assert_problem(await stranger.get(path, headers=shown), 401, "unauthenticated")


def invite(clock: Clock) -> CallReceived:
    return CallReceived(
        id="CA0123456789abcdef0123456789abcdef-1",
        call_sid="CA0123456789abcdef0123456789abcdef",
        at=clock.now(),
        from_="client:alice",
        to="client:bob",
        custom_parameters={},
        expires_at=clock.now() + timedelta(seconds=60),
        caller_info=CallerToken(attestation=Attestation.FULL),
    )


async def test_the_key_set_holds_what_another_relay_has_made_since(
    database: SqliteDatabase, clock: Clock
) -> None:
    ours = await open_access_tokens(database, "bellwire", clock.now)
    kids = {key.kid for key in (await ours.key_set()).keys}
    assert len(kids) == 1
    made = new_signing_key()
    await database.write(lambda c: add_signing_key(c, made, 2**42))
    theirs = await open_access_tokens(database, "bellwire", clock.now)
    token = theirs.signed_invite(invite(clock)).caller_info
    assert token is not None and token.token is not None
    assert jwt.get_unverified_header(token.token)["kid"] == made.kid
    clock.advance(1)
    assert {key.kid for key in (await ours.key_set()).keys} == kids | {made.kid}
    with pytest.raises(Unauthenticated):
        await ours.check(token.token)
