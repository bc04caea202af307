"""`/v1/tokens`, the public keys to check tokens with, and the API key of a relay."""

import stat
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest

from bellwire.push.access.api_keys import ApiKeys, open_api_keys
from bellwire.push.access.revocation import open_access
from bellwire.push.access.tokens import open_access_tokens
from bellwire.push.metrics import Metrics
from bellwire.push.store.engine.sqlite import SqliteDatabase
from bellwire.signaling.errors import Unauthenticated
from bellwire.signaling.identifiers import DeviceId, Identity
from tests.push.clock import START, Clock
from tests.push.support import Running, assert_problem, fresh

ALICE = Identity("alice")
over_http = pytest.mark.asyncio(loop_scope="module")


async def issued(running: Running, **body: Any) -> tuple[dict[str, Any], dict[str, Any]]:  # noqa: ANN401
    """A token's answer, and what it claims as a stranger reads it with the published keys."""
    answer = await running.http.post("/v1/tokens", json=body)
    assert answer.status_code == 201, answer.text
    async with running.stranger() as http:
        published = (await http.get("/.well-known/jwks.json")).json()
    token = answer.json()["token"]
    kid = jwt.get_unverified_header(token)["kid"]
    (key,) = (key for key in published["keys"] if key["kid"] == kid)
    claims = jwt.decode(
        token, jwt.PyJWK(key).key, algorithms=["EdDSA"], audience="bellwire", issuer="bellwire"
    )
    return answer.json(), claims


@over_http
async def test_a_token_stands_for_its_identity_as_long_as_was_asked(running: Running) -> None:
    answer, claims = await issued(running, identity="client:alice", device_id="phone", ttl=120)
    assert answer.keys() == {"token", "expires_at"}
    assert (claims["sub"], claims["device_id"]) == ("alice", "phone")
    assert claims["exp"] - claims["iat"] == 120
    assert datetime.fromisoformat(answer["expires_at"]).timestamp() == claims["exp"]


@over_http
async def test_a_token_is_for_any_device_and_an_hour_unless_told_otherwise(
    running: Running,
) -> None:
    _, claims = await issued(running, identity="alice")
    assert "device_id" not in claims
    assert claims["exp"] - claims["iat"] == 3600
    _, again = await issued(running, identity="alice")
    assert again["jti"] != claims["jti"]


@over_http
async def test_only_public_keys_are_published(running: Running) -> None:
    async with running.stranger() as http:
        answer = await http.get("/.well-known/jwks.json")
    assert answer.status_code == 200
    (key,) = answer.json()["keys"]
    assert key.keys() == {"kty", "crv", "x", "kid", "use", "alg"}
    assert (key["kty"], key["crv"], key["use"], key["alg"]) == ("OKP", "Ed25519", "sig", "EdDSA")


@over_http
@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({}, "body.identity"),
        ({"identity": "two words"}, "body.identity"),
        ({"identity": "alice", "device_id": "a/b"}, "body.device_id"),
        *(({"identity": "alice", "ttl": ttl}, "body.ttl") for ttl in (0, -1, 86_401, 1.5, "long")),
        ({"identity": "alice", "admin": True}, "body.admin"),
    ],
    ids=str,
)
async def test_a_token_that_cannot_be_is_refused(
    running: Running, body: dict[str, object], place: str
) -> None:
    answer = await running.http.post("/v1/tokens", json=body)
    assert assert_problem(answer, 422, "invalid-input")["detail"].startswith(place)


@over_http
async def test_a_token_makes_no_tokens(running: Running) -> None:
    name = fresh("alice")
    headers = await running.token(name)
    answer = await running.http.post("/v1/tokens", json={"identity": name}, headers=headers)
    assert_problem(answer, 403, "forbidden")


async def test_a_token_is_good_until_its_last_second_and_not_longer(
    database: SqliteDatabase, clock: Clock
) -> None:
    tokens = await open_access_tokens(database, "bellwire", clock.now)
    token, expires_at = tokens.issue(ALICE, DeviceId("phone"), 60)
    assert expires_at == START + timedelta(seconds=60)
    clock.advance(59.999)
    actor = await tokens.check(token)
    assert (actor.identity, actor.device, actor.is_server) == (ALICE, "phone", False)
    clock.advance(0.001)
    with pytest.raises(Unauthenticated, match="expired"):
        await tokens.check(token)


async def test_a_token_outlives_the_relay_that_signed_it(
    database: SqliteDatabase, clock: Clock
) -> None:
    token, _ = (await open_access_tokens(database, "bellwire", clock.now)).issue(ALICE, None, 60)
    restarted = await open_access_tokens(database, "bellwire", clock.now)
    assert (await restarted.check(token)).identity == ALICE
    assert len((await restarted.key_set()).keys) == 1


async def test_a_token_of_another_relay_is_refused(
    database: SqliteDatabase, tmp_path: Path, clock: Clock
) -> None:
    ours = await open_access_tokens(database, "bellwire", clock.now)
    renamed = await open_access_tokens(database, "another", clock.now)
    (tmp_path / "other").mkdir()
    other = SqliteDatabase(tmp_path / "other" / "relay.db")
    try:
        theirs = await open_access_tokens(other, "bellwire", clock.now)
    finally:
        await other.close()
    for foreign in (renamed, theirs):
        token, _ = foreign.issue(ALICE, None, 60)
        with pytest.raises(Unauthenticated, match="not issued by this relay"):
            await ours.check(token)


async def opened(database: SqliteDatabase, file: Path, clock: Clock) -> ApiKeys:
    access = await open_access(database, Metrics(), now=clock.now)
    return await open_api_keys(database, file, access, clock.now)


async def holds(keys: ApiKeys, key: str) -> bool:
    try:
        return (await keys.check(key)).is_server
    except Unauthenticated:
        return False


async def test_the_api_key_is_made_once_for_its_owner_alone_and_kept_as_a_hash(
    database: SqliteDatabase, tmp_path: Path, clock: Clock
) -> None:
    file = tmp_path / "api-key"
    first = await opened(database, file, clock)
    key = file.read_text().strip()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key.startswith("bwk_") and len(key) > 40
    assert await holds(first, key)
    assert not await holds(first, key[:-1]) and not await holds(first, "")

    again = await opened(database, file, clock)
    assert file.read_text().strip() == key
    assert await holds(again, key)
    assert key.encode() not in contents(tmp_path)


async def test_an_api_key_file_that_was_lost_is_made_anew_and_both_keys_open(
    database: SqliteDatabase, tmp_path: Path, clock: Clock
) -> None:
    file = tmp_path / "api-key"
    await opened(database, file, clock)
    old = file.read_text().strip()
    file.unlink()
    keys = await opened(database, file, clock)
    new = file.read_text().strip()
    assert new != old
    assert await holds(keys, old) and await holds(keys, new)
    assert new not in repr(keys)


def contents(folder: Path) -> bytes:
    """All that the database's files hold."""
    return b"".join(path.read_bytes() for path in sorted(folder.glob("relay.db*")))
