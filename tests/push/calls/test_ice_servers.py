"""What calls are connected by: who asks gets STUN and TURN servers with credentials of its own, which a
real coturn takes for as long as they say, and no longer."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr, ValidationError

from bellwire.config.media_servers import read_turn_secret
from bellwire.config.relay import RelaySettings
from bellwire.push.access.tokens import Actor, open_access_tokens
from bellwire.push.calls.ice_servers import IceServers
from bellwire.push.store.engine.sqlite import SqliteDatabase
from bellwire.signaling.errors import InvalidInput
from bellwire.signaling.identifiers import CallSid, DeviceId, Identity
from bellwire.signaling.wire.answers import IceServerAnswer
from tests.push.clock import Clock
from tests.push.coturn import Coturn, coturn, needs_coturn
from tests.push.streams import streaming
from tests.push.support import Running, assert_problem, fresh, listening

in_module = pytest.mark.asyncio(loop_scope="module")

SECRET = "a-secret-that-relay-and-coturn-share"
STUN = "stun:stun.example.org:3478"
TURN = ("turn:turn.example.org?transport=udp", "turns:turn.example.org:443?transport=tcp")


def servers(now: datetime, life_s: int = 3600, secret: str = SECRET) -> IceServers:
    return IceServers((STUN,), TURN, secret, life_s, now=lambda: now)


def credentials(source: IceServers, actor: Actor) -> tuple[str, str]:
    _, server = source.of(actor).ice_servers
    assert server.username is not None and server.credential is not None
    return server.username, server.credential


# The scheme, and what a real TURN server makes of it.


def test_credentials_are_those_of_turn_rest(clock: Clock) -> None:
    alice = Actor(Identity("alice"), DeviceId("phone-1"))
    answer = servers(clock.now()).of(alice)
    stun, turn = answer.ice_servers
    assert answer.ttl == 3600
    assert stun == IceServerAnswer(urls=(STUN,))
    # printf %s 1772370000:phone-1 | openssl dgst -sha1 -hmac SECRET -binary | base64
    assert turn == IceServerAnswer(
        urls=TURN, username="1772370000:phone-1", credential="HywHTpVwZpXyS/Srs4judQ0AwMI="
    )
    assert "credential" not in repr(answer)


@pytest.mark.parametrize(
    ("actor", "name"),
    [
        (Actor(Identity("alice"), DeviceId("phone-1")), "phone-1"),
        (Actor(Identity("alice")), "@alice"),
        (Actor(Identity("zoë:x/y")), "@zo%C3%AB%3Ax%2Fy"),
        (Actor(), "server"),
    ],
)
def test_credentials_are_in_the_name_of_who_asks(clock: Clock, actor: Actor, name: str) -> None:
    username, _ = credentials(servers(clock.now()), actor)
    assert username.partition(":")[2] == name


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def turn_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Coturn]:
    async with coturn(tmp_path_factory.mktemp("coturn"), SECRET) as serving:
        yield serving


@needs_coturn
@in_module
async def test_coturn_relays_for_who_has_our_credentials_and_for_nobody_else(
    turn_server: Coturn,
) -> None:
    now = datetime.now(UTC)
    for actor in (
        Actor(Identity("alice"), DeviceId("phone-1")),
        Actor(Identity("zoë:x/y")),
        Actor(Identity("\N{BELL}" * 121)),
        Actor(),
    ):
        username, credential = credentials(servers(now), actor)
        host, port = await turn_server.allocate(username, credential)
        assert host == "127.0.0.1" and port

    username, credential = credentials(servers(now), Actor(Identity("alice")))
    later = f"{int(username.partition(':')[0]) + 60}:@alice"
    expired = credentials(servers(now - timedelta(seconds=3601)), Actor(Identity("alice")))
    foreign = credentials(servers(now, secret=SECRET[::-1]), Actor(Identity("alice")))
    for refused in (
        (username, credential.swapcase()),
        (username, SECRET),
        (later, credential),
        (username.replace("alice", "bob"), credential),
        ("alice", credential),
        expired,
        foreign,
    ):
        assert await turn_server.refusal(*refused) == 401
    await turn_server.allocate(username, credential)


# How they are asked for.


@pytest.fixture(scope="module")
def settings(turn_server: Coturn, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    file = tmp_path_factory.mktemp("secrets") / "turn"
    file.write_text(f"{SECRET}\n")
    file.chmod(0o600)
    return {
        "BELLWIRE_STUN_URLS": json.dumps([STUN]),
        "BELLWIRE_TURN_URLS": json.dumps([turn_server.url]),
        "BELLWIRE_TURN_SECRET_FILE": str(file),
        "BELLWIRE_TURN_CREDENTIALS_LIFE_S": "600",
    }


@needs_coturn
@in_module
async def test_every_way_to_ask_gets_servers_that_work(
    running: Running, turn_server: Coturn
) -> None:
    desk, web = fresh("desk"), fresh("web")
    async with listening(running, desk) as device, streaming(running, web) as stream:
        over_mqtt = await device.ask({"operation": "ice_servers"})
        over_stream = await stream.ask({"operation": "ice_servers"})
    await running.register("phone-1", "alice")
    token = await running.token("alice", "phone-1")
    asked = [
        (over_mqtt, desk),
        (over_stream, web),
        ((await running.http.get("/v1/ice-servers", headers=token)).json(), "phone-1"),
        ((await running.http.get("/v1/ice-servers")).json(), "server"),
    ]
    for answer, name in asked:
        assert answer["ttl"] == 600
        stun, turn = answer["ice_servers"]
        assert stun == {"urls": [STUN]}  # no members that are null: a browser would read "null"
        assert turn.keys() == {"urls", "username", "credential"}
        assert turn["urls"] == [turn_server.url]
        ends, _, whose = turn["username"].partition(":")
        assert whose == name
        assert 500 < int(ends) - datetime.now(UTC).timestamp() <= 600
        await turn_server.allocate(turn["username"], turn["credential"])
    async with running.stranger() as stranger:
        assert_problem(await stranger.get("/v1/ice-servers"), 401, "unauthenticated")
    log = running.relay.log_path.read_text()
    assert SECRET not in log and over_mqtt["ice_servers"][1]["credential"] not in log


@needs_coturn
@in_module
async def test_who_was_woken_for_one_call_gets_servers_for_it(running: Running) -> None:
    db = SqliteDatabase(running.relay.data / "relay.db")
    tokens = await open_access_tokens(db, "bellwire", lambda: datetime.now(UTC))
    sid = CallSid("CA0123456789abcdef0123456789abcdef")
    until = datetime.now(UTC) + timedelta(minutes=1)
    shown = tokens.connect_token(Identity("bob"), DeviceId("bob-1"), sid, until)
    await db.close()
    await running.register("bob-1", "bob")
    headers = {"Authorization": f"Bearer {shown}"}
    answer = await running.http.get("/v1/ice-servers", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["ice_servers"][1]["username"].endswith(":bob-1")
    assert_problem(await running.http.get("/v1/calls", headers=headers), 403, "forbidden")


def test_without_servers_the_answer_is_empty(clock: Clock) -> None:
    none = IceServers((), (), None, 3600, now=clock.now)
    assert none.of(Actor()).model_dump() == {"ice_servers": (), "ttl": 3600}


# Settings.


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"turn_urls": TURN}, "turn_urls need turn_secret_file or turn_secret"),
        ({"turn_secret": SECRET, "turn_secret_file": "x"}, "and not both"),
        ({"stun_urls": ["turn:example.org"]}, "stun_urls"),
        ({"stun_urls": ["stun:"]}, "stun_urls"),
        ({"turn_urls": ["turn:a b"], "turn_secret": SECRET}, "turn_urls"),
        ({"turn_urls": ["turn:a?transport=sctp"], "turn_secret": SECRET}, "turn_urls"),
        ({"turn_credentials_life_s": 59}, "turn_credentials_life_s"),
        ({"turn_credentials_life_s": 86_401}, "turn_credentials_life_s"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_setting_that_cannot_be_is_named_and_the_secret_is_not_shown(
    given: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said) as refused:
        RelaySettings.model_validate(given)
    assert SECRET not in str(refused.value.errors(include_input=False))


def test_servers_of_every_form_are_taken() -> None:
    settings = RelaySettings(
        stun_urls=("stun:[2001:db8::1]:3478", "stuns:stun.example.org"),
        turn_urls=("turn:192.0.2.1", *TURN),
        turn_secret=SecretStr(SECRET),
    )
    assert len(settings.stun_urls) + len(settings.turn_urls) == 5
    assert SECRET not in repr(settings)
    assert read_turn_secret(settings.turn_secret, None) == SECRET


@pytest.mark.parametrize(
    ("mode", "text", "said"),
    [
        (0o604, SECRET, "may be read by everybody.*mode 604.*chmod 600"),
        (0o620, SECRET, "mode 620"),
        (0o600, "short", "at least 16 characters.*openssl rand"),
        (0o600, "", "at least 16 characters"),
        (0o600, "ü" * 20, "not in ASCII"),
        (None, "", "No such file"),
    ],
)
def test_a_secret_file_that_is_not_private_or_holds_no_secret_is_refused(
    tmp_path: Path, mode: int | None, text: str, said: str
) -> None:
    file = tmp_path / "turn"
    if mode is not None:
        file.write_text(text)
        file.chmod(mode)
    with pytest.raises(InvalidInput, match=said) as refused:
        read_turn_secret(None, file)
    assert str(file) in refused.value.detail
    assert not text or text not in refused.value.detail


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440])
def test_a_secret_file_of_its_owner_and_group_is_read(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "turn"
    file.write_text(f"{SECRET}\n")
    file.chmod(mode)
    assert read_turn_secret(None, file) == SECRET
