"""Credentials that are none: each is refused with 401, and changes nothing."""

import base64
import hashlib
import hmac
import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import jwt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.push.support import Running, assert_problem, fresh

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True)
class Forger:
    """Makes tokens: with the relay's own key, so that only what is wrong is wrong."""

    kid: str
    private_key: str
    public_key: bytes
    identity: str

    def claims(self, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
        """What the relay itself would claim, but for the changes; None leaves a claim out."""
        now = int(time.time())
        claims = {
            "iss": "bellwire",
            "aud": "bellwire",
            "sub": self.identity,
            "iat": now,
            "exp": now + 3600,
            "jti": "1",
        }
        return {name: v for name, v in (claims | changes).items() if v is not None}

    def signed(self, **changes: Any) -> str:  # noqa: ANN401 - JSON
        return jwt.encode(
            self.claims(**changes), self.private_key, "EdDSA", headers={"kid": self.kid}
        )

    def by_another_key(self) -> str:
        key = Ed25519PrivateKey.generate()
        return jwt.encode(self.claims(), key, "EdDSA", headers={"kid": self.kid})

    def of_unknown_key(self) -> str:
        return jwt.encode(self.claims(), self.private_key, "EdDSA", headers={"kid": "no-such"})

    def unsigned(self) -> str:
        return f"{segment({'alg': 'none', 'kid': self.kid})}.{segment(self.claims())}."

    def signed_with_the_public_key_as_a_secret(self) -> str:
        text = f"{segment({'alg': 'HS256', 'kid': self.kid})}.{segment(self.claims())}"
        return f"{text}.{base64url(hmac.digest(self.public_key, text.encode(), 'sha256'))}"

    def of_somebody_else_under_my_signature(self) -> str:
        head, _, signature = self.signed().split(".")
        return f"{head}.{segment(self.claims(sub='mallory'))}.{signature}"

    def without_its_signature(self) -> str:
        return self.signed().rpartition(".")[0] + "."

    def with_a_key_id_that_is_no_text(self) -> str:
        return f"{segment({'alg': 'EdDSA', 'kid': ['x']})}.{segment(self.claims())}.AAAA"

    def nested_without_end(self) -> str:
        return f"{base64url(b'[' * 11_000)}.e30.AAAA"  # as long as a head may be


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def segment(document: dict[str, Any]) -> str:
    return base64url(json.dumps(document).encode())


@pytest_asyncio.fixture(loop_scope="module")
async def forger(running: Running) -> Forger:
    with closing(sqlite3.connect(running.relay.data / "relay.db")) as file:
        ((kid, private_key),) = file.execute("SELECT kid, private_key FROM signing_keys").fetchall()
    (key,) = (await running.http.get("/.well-known/jwks.json")).json()["keys"]
    public = base64.urlsafe_b64decode(key["x"] + "=")
    return Forger(kid, private_key, public, fresh("alice"))


async def assert_refused(running: Running, headers: dict[str, str], says: str) -> None:
    """Neither a call can be made with these headers, nor one moved or seen."""
    bob = fresh("bob")
    await running.register(bob)
    sid = await running.called(bob)
    before = running.tables()
    async with running.stranger() as http:
        for answer in (
            await http.post("/v1/calls", json={"to": [bob]}, headers=headers),
            await http.post(f"/v1/calls/{sid}/accept", headers=headers),
            await http.get(f"/v1/calls/{sid}", headers=headers),
            await http.get("/v1/calls", headers=headers),
            await http.post("/v1/tokens", json={"identity": bob}, headers=headers),
            await http.put(f"/v1/devices/{bob}", json={"identity": "eve"}, headers=headers),
            await http.delete(f"/v1/devices/{bob}", headers=headers),
        ):
            problem = assert_problem(answer, 401, "unauthenticated")
            assert problem["code"] == 20151
            assert says in problem["detail"]
            assert answer.headers["www-authenticate"] == "Bearer"
    assert running.tables() == before


FORGED: list[Callable[[Forger], str]] = [
    Forger.by_another_key,
    Forger.of_unknown_key,
    Forger.unsigned,
    Forger.signed_with_the_public_key_as_a_secret,
    Forger.of_somebody_else_under_my_signature,
    Forger.without_its_signature,
    Forger.with_a_key_id_that_is_no_text,
    Forger.nested_without_end,
]


@pytest.mark.parametrize("forge", FORGED, ids=lambda forge: forge.__name__)
async def test_a_forged_token_is_refused(
    running: Running, forger: Forger, forge: Callable[[Forger], str]
) -> None:
    headers = {"Authorization": f"Bearer {forge(forger)}"}
    await assert_refused(running, headers, "not issued by this relay")


@pytest.mark.parametrize(
    "wrong",
    [
        {"iss": "another-relay"},
        {"iss": None},
        {"aud": "another-service"},
        {"aud": None},
        {"sub": None},
        {"sub": "two words"},
        {"exp": None},
        {"exp": "soon"},
        {"jti": None},
        {"device_id": "../other"},
    ],
    ids=json.dumps,
)
async def test_a_token_that_claims_something_else_is_refused_even_with_the_right_signature(
    running: Running, forger: Forger, wrong: dict[str, str | None]
) -> None:
    headers = {"Authorization": f"Bearer {forger.signed(**wrong)}"}
    await assert_refused(running, headers, "not issued by this relay")


async def test_an_expired_token_is_refused_and_says_what_to_do(
    running: Running, forger: Forger
) -> None:
    headers = {"Authorization": f"Bearer {forger.signed(exp=int(time.time()) - 1)}"}
    await assert_refused(running, headers, "has expired: ask your backend")


async def test_the_forgers_token_without_a_fault_is_taken(running: Running, forger: Forger) -> None:
    """What shows that the tests above fail for their own reason and no other."""
    headers = {"Authorization": f"Bearer {forger.signed()}"}
    async with running.stranger() as http:
        answer = await http.get("/v1/calls", headers=headers)
    assert (answer.status_code, answer.json()["calls"]) == (200, [])


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({}, "show an API key or an access token"),
        ({"Authorization": ""}, "show an API key"),
        ({"Authorization": "Bearer"}, "show an API key"),
        ({"Authorization": "Basic YWxpY2U6c2VjcmV0"}, "show an API key"),
        ({"Authorization": "Bearer bwk_guessed"}, "API key is not known"),
        ({"X-API-Key": "guessed"}, "API key is not known"),
        ({"X-API-Key": ""}, "show an API key"),
        ({"Authorization": "Bearer a.b.c"}, "not issued by this relay"),
        ({"Authorization": "Bearer " + "x" * 8000}, "not issued by this relay"),
    ],
)
async def test_a_request_without_good_credentials_is_refused(
    running: Running, headers: dict[str, str], says: str
) -> None:
    await assert_refused(running, headers, says)


async def test_the_hash_that_the_relay_keeps_of_its_api_key_opens_nothing(running: Running) -> None:
    key = running.relay.access.api_key
    kept = hashlib.sha256(key.encode()).hexdigest()
    await assert_refused(running, {"X-API-Key": kept}, "API key is not known")
    await assert_refused(running, {"X-API-Key": key[:-1]}, "API key is not known")
    async with running.stranger() as http:
        assert (await http.get("/v1/calls", headers={"X-API-Key": key})).status_code == 200
