"""API keys with scopes: what each opens, how long it is good, and that it ends at once."""

import asyncio
import hashlib
import json
import sqlite3
import stat
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from bellwire.push.access.api_keys import ApiKeys, open_api_keys
from bellwire.push.access.revocation import open_access
from bellwire.push.access.tokens import AccessTokens, new_signing_key
from bellwire.push.metrics import Metrics
from bellwire.push.store import tables as migrate_module
from bellwire.push.store.engine.database import Database, open_database
from bellwire.push.store.engine.sqlite import sqlite_engine
from bellwire.push.store.rows.access import SigningKeyRow, advance_access
from bellwire.push.store.tables import api_keys
from bellwire.signaling.errors import Conflict, NotFound, Unauthenticated, Unavailable
from bellwire.signaling.identifiers import DeviceId, Identity
from bellwire.signaling.tokens import SCOPE_MEANINGS, Scope
from tests.conftest import PATIENCE_S
from tests.docs.documents import OPENAPI
from tests.forking import ForkedRelay
from tests.push.api.test_health_and_metrics import scrape
from tests.push.clock import Clock
from tests.push.streams import register_for_stream, stream_url, streaming
from tests.push.support import Running, assert_problem, fresh, serving

over_http = pytest.mark.asyncio(loop_scope="module")

OPEN_TO_ALL = {
    "GET /.well-known/jwks.json",
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
    "POST /v1/twilio/notifications",  # its signature is the credentials
}


def routes() -> dict[str, Scope | None]:
    """Every route of the HTTP interface, and the scope that it says it needs."""
    found: dict[str, Scope | None] = {}
    for path, methods in OPENAPI["paths"].items():
        for method, route in methods.items():
            scopes = {
                scope for way in route.get("security", []) for s in way.values() for scope in s
            }
            assert len(scopes) <= 1, (method, path)
            found[f"{method.upper()} {path}"] = Scope(scopes.pop()) if scopes else None
    return found


ROUTES = routes()


def test_every_route_says_one_scope_or_is_open_to_all() -> None:
    assert {route for route, scope in ROUTES.items() if scope is None} == OPEN_TO_ALL
    assert SCOPE_MEANINGS.keys() == set(Scope)


def path_of(route: str) -> tuple[str, str]:
    method, _, path = route.partition(" ")
    for name, value in (("call_sid", "CA" + "0" * 32), ("device_id", "none"), ("name", "none")):
        path = path.replace(f"{{{name}}}", value)
    return method, path


async def key_with(running: Running, *scopes: Scope, **more: Any) -> tuple[str, str]:  # noqa: ANN401
    """The name of a new key, and the key."""
    body = {"name": fresh("key"), "scopes": scopes, **more}
    answer = await running.http.post("/v1/keys", json=body)
    assert answer.status_code == 201, answer.text
    assert answer.json()["scopes"] == sorted(scopes)
    return body["name"], answer.json()["key"]


def shows(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@over_http
@pytest.mark.parametrize("scope", Scope)
async def test_a_key_reaches_exactly_the_routes_of_its_scope(
    running: Running, scope: Scope
) -> None:
    _, key = await key_with(running, scope)
    before = (await scrape(running)).get(REFUSED, 0)
    refused = 0
    for route, needed in ROUTES.items():
        method, path = path_of(route)
        answer = await running.http.request(method, path, headers=shows(key))
        if needed is None or scope in (needed, Scope.ADMIN):
            assert needed is None or answer.status_code != 401, (route, answer.text)
            assert needed is None or "scope `" not in answer.text, (route, answer.text)
            continue
        refused += 1
        problem = assert_problem(answer, 403, "forbidden")
        assert f"the scope `{needed}`" in problem["detail"], route
        assert f"this one has `{scope}`" in problem["detail"], route
    assert (await scrape(running)).get(REFUSED, 0) == before + refused


REFUSED = ("bellwire_refused_total", frozenset({("reason", "scope-missing")}))


@over_http
async def test_a_key_of_two_scopes_opens_both(running: Running) -> None:
    _, key = await key_with(running, Scope.GROUPS, Scope.DEVICES)
    for path, status in (("/v1/groups", 200), ("/v1/devices", 200), ("/v1/calls", 403)):
        assert (await running.http.get(path, headers=shows(key))).status_code == status


@over_http
async def test_only_an_admin_makes_sees_and_revokes_keys(running: Running) -> None:
    everything_else = [scope for scope in Scope if scope is not Scope.ADMIN]
    name, key = await key_with(running, *everything_else)
    for method, path, body in (
        ("GET", "/v1/keys", None),
        ("POST", "/v1/keys", {"name": "mine", "scopes": ["admin"]}),
        ("POST", f"/v1/keys/{name}/rotate", None),
        ("DELETE", f"/v1/keys/{name}", None),
    ):
        answer = await running.http.request(method, path, json=body, headers=shows(key))
        assert "`admin`" in assert_problem(answer, 403, "forbidden")["detail"]


@over_http
async def test_the_list_says_what_each_key_may_and_when_it_was_used_and_shows_none(
    running: Running,
) -> None:
    name, key = await key_with(running, Scope.GROUPS, expires_in=86_400)
    listed = await listed_keys(running)
    assert listed[name]["last_used_at"] is None
    assert listed[name]["scopes"] == ["groups"]
    made = datetime.fromisoformat(listed[name]["created_at"])
    assert datetime.fromisoformat(listed[name]["expires_at"]) - made == timedelta(days=1)
    await running.http.get("/v1/groups", headers=shows(key))
    used = datetime.fromisoformat((await listed_keys(running))[name]["last_used_at"])
    assert abs(used - datetime.now(UTC)) < timedelta(minutes=1)
    own = [one for one in listed.values() if one["name"].startswith("relay-")]
    assert [(one["scopes"], one["expires_at"]) for one in own] == [(["admin"], None)]
    assert key not in json.dumps(listed)
    assert key not in running.relay.log_path.read_text()
    assert key.encode() not in b"".join(
        path.read_bytes() for path in running.relay.data.glob("relay.db*")
    )


async def listed_keys(running: Running) -> dict[str, Any]:
    answer = await running.http.get("/v1/keys")
    return {one["name"]: one for one in answer.json()["keys"]}


@over_http
async def test_a_revoked_key_is_refused_at_once_and_its_name_is_free(running: Running) -> None:
    name, key = await key_with(running, Scope.GROUPS)
    assert (await running.http.get("/v1/groups", headers=shows(key))).status_code == 200
    assert (await running.http.delete(f"/v1/keys/{name}")).status_code == 204
    answer = await running.http.get("/v1/groups", headers=shows(key))
    assert "was revoked" in assert_problem(answer, 401, "unauthenticated")["detail"]
    assert_problem(await running.http.delete(f"/v1/keys/{name}"), 404, "not-found")
    again = await running.http.post("/v1/keys", json={"name": name, "scopes": ["groups"]})
    assert again.status_code == 201


@over_http
async def test_a_rotated_key_keeps_its_name_scopes_and_length_of_life(running: Running) -> None:
    name, old = await key_with(running, Scope.GROUPS, expires_in=3600)
    before = (await listed_keys(running))[name]
    answer = await running.http.post(f"/v1/keys/{name}/rotate")
    assert answer.status_code == 200, answer.text
    new = answer.json()["key"]
    assert (await running.http.get("/v1/groups", headers=shows(old))).status_code == 401
    assert (await running.http.get("/v1/groups", headers=shows(new))).status_code == 200
    after = (await listed_keys(running))[name]
    assert after["scopes"] == before["scopes"]
    lives = [
        datetime.fromisoformat(one["expires_at"]) - datetime.fromisoformat(one["created_at"])
        for one in (before, after)
    ]
    assert lives[0] == lives[1] == timedelta(hours=1)


@over_http
async def test_the_last_admin_key_is_not_revoked(running: Running) -> None:
    own = next(name for name in await listed_keys(running) if name.startswith("relay-"))
    others = [
        one["name"]
        for one in (await listed_keys(running)).values()
        if "admin" in one["scopes"] and one["name"] != own
    ]
    for name in others:
        assert (await running.http.delete(f"/v1/keys/{name}")).status_code == 204
    problem = assert_problem(await running.http.delete(f"/v1/keys/{own}"), 409, "conflict")
    assert "the last API key with the scope `admin`" in problem["detail"]


@over_http
@pytest.mark.parametrize(
    "body",
    [
        {"name": "a b", "scopes": ["calls"]},
        {"name": "a", "scopes": []},
        {"name": "a", "scopes": ["everything"]},
        {"name": "a", "scopes": ["calls"], "expires_in": 0},
        {"name": "a", "scopes": ["calls"], "key": "bwk_mine"},
        {"scopes": ["calls"]},
    ],
    ids=str,
)
async def test_a_key_that_cannot_be_is_refused(running: Running, body: dict[str, object]) -> None:
    assert_problem(await running.http.post("/v1/keys", json=body), 422, "invalid-input")


@over_http
async def test_a_name_stands_for_one_key(running: Running) -> None:
    name, _ = await key_with(running, Scope.CALLS)
    body = {"name": name, "scopes": ["calls"]}
    answers = await asyncio.gather(
        *(running.http.post("/v1/keys", json={**body, "name": f"{name}-x"}) for _ in range(8)),
        running.http.post("/v1/keys", json=body),
    )
    assert sorted(answer.status_code for answer in answers) == [201, *[409] * 8]


@over_http
async def test_an_api_key_in_a_url_is_refused_in_words_counted_and_not_logged(
    running: Running,
) -> None:
    device = fresh("web")
    await register_for_stream(running, device)
    key = running.relay.access.api_key
    before = (await scrape(running)).get(IN_URL, 0)
    with pytest.raises(InvalidStatus) as refused:
        await connect(stream_url(running, token=key, device_id=device))
    assert refused.value.response.status_code == 401
    problem = json.loads(refused.value.response.body)
    assert "an API key is not taken from a URL" in problem["detail"]
    assert (await scrape(running))[IN_URL] == before + 1
    assert key not in running.relay.log_path.read_text()
    async with connect(stream_url(running, device_id=device), additional_headers=shows(key)) as ws:
        assert json.loads(await ws.recv())["event"] == "stream.opened"


IN_URL = ("bellwire_refused_total", frozenset({("reason", "api-key-in-url")}))


@over_http
async def test_a_stream_opened_with_a_key_ends_with_it(running: Running) -> None:
    device = fresh("web")
    await register_for_stream(running, device)
    name, key = await key_with(running, Scope.CALLS)
    async with connect(stream_url(running, device_id=device), additional_headers=shows(key)) as ws:
        await ws.recv()
        assert (await running.http.delete(f"/v1/keys/{name}")).status_code == 204
        async with asyncio.timeout(PATIENCE_S):
            await ws.wait_closed()
        assert ws.close_code == 4002


@over_http
async def test_a_server_on_a_stream_calls_as_a_server(running: Running) -> None:
    """Else a stolen key of the scope `calls` would open doors as whoever owns the device."""
    device, neighbour = fresh("web"), fresh("neighbour")
    await register_for_stream(running, device)
    _, key = await key_with(running, Scope.CALLS)
    async with (
        streaming(running, neighbour) as rung,
        connect(stream_url(running, device_id=device), additional_headers=shows(key)) as ws,
    ):
        invite = {"request_id": "1", "operation": "invite", "to": [neighbour], "timeout": 600}
        await ws.send(json.dumps(invite))
        heard = await rung.until("call.received")
        assert heard["caller_info"]["attestation"] == "B"


async def opened(database: Database, file: Path, clock: Clock) -> ApiKeys:
    access = await open_access(database, Metrics(), now=clock.now)
    return await open_api_keys(database, file, access, clock.now)


async def test_a_key_is_good_until_its_last_moment(
    each_database: Database, tmp_path: Path, clock: Clock
) -> None:
    keys = await opened(each_database, tmp_path / "api-key", clock)
    made = await keys.add("short", [Scope.CALLS], timedelta(days=90))
    clock.advance(90 * 86_400 - 0.001)
    assert (await keys.check(made.key)).scopes == {Scope.CALLS}
    clock.advance(0.001)
    with pytest.raises(Unauthenticated, match=r"short has expired.*rotate"):
        await keys.check(made.key)


async def test_a_key_from_before_may_do_everything(
    each_database: Database, tmp_path: Path, clock: Clock
) -> None:
    """As the version before writes it, be it while this one runs."""
    (tmp_path / "api-key").write_text("bwk_from_before\n")
    digest = "c4d5ab3e0c0bb3bb5ba0e1a6ac0f4db4f4ed7a5f3fcdf5f3f3d1b0c9b6a1c9aa"
    await each_database.write(
        lambda c: c.execute(api_keys.insert(), {"key_hash": digest, "created_at_ms": 0})
    )
    keys = await opened(each_database, tmp_path / "api-key", clock)
    assert (await keys.check("bwk_from_before")).scopes == {Scope.ADMIN}
    shown = {key.name: key.scopes for key in await keys.all()}
    assert shown["relay-c4d5ab3e"] == (Scope.ADMIN,)
    await keys.revoke("relay-c4d5ab3e")
    # That relay starts once more, and puts it back.
    await each_database.write(
        lambda c: c.execute(api_keys.insert(), {"key_hash": digest, "created_at_ms": 0})
    )
    again = await opened(each_database, tmp_path / "api-key", clock)
    assert "relay-c4d5ab3e" not in {key.name for key in await again.all()}


async def test_a_relay_whose_own_key_was_revoked_makes_a_new_one_at_its_next_start(
    each_database: Database, tmp_path: Path, clock: Clock
) -> None:
    file = tmp_path / "api-key"
    keys = await opened(each_database, file, clock)
    leaked = file.read_text().strip()
    (own,) = await keys.all()
    with pytest.raises(Conflict, match="last API key"):
        await keys.revoke(own.name)
    await keys.add("mine", [Scope.ADMIN], None)
    await keys.revoke(own.name)
    with pytest.raises(Unauthenticated, match="was revoked"):
        await keys.check(leaked)
    again = await opened(each_database, file, clock)
    assert file.read_text().strip() != leaked
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert (await again.check(file.read_text().strip())).scopes == {Scope.ADMIN}
    with pytest.raises(Unauthenticated):
        await again.check(leaked)
    with pytest.raises(NotFound, match="keys list"):
        await again.revoke(own.name)


async def test_when_a_key_was_used_is_kept_once_a_minute(
    each_database: Database, tmp_path: Path, clock: Clock
) -> None:
    seconds = 0.0
    access = await open_access(
        each_database, Metrics(), now=clock.now, clock=lambda: seconds, sleep=clock.sleep
    )
    keys = await open_api_keys(each_database, tmp_path / "api-key", access, clock.now)
    key = (tmp_path / "api-key").read_text().strip()
    running = asyncio.create_task(access.run())
    try:
        used = []
        for second in range(121):
            seconds = float(second)
            await clock.until_asleep()
            await keys.check(key)
            clock.advance(1)
            await clock.until_asleep()
            (row,) = await keys.all()
            stranger = await open_access(each_database, Metrics(), now=clock.now)
            (kept,) = stranger.keys.values()
            used.append(kept.used_at_ms)
            assert row.last_used_at is not None
        assert len(set(used)) == 3, "never, and after one minute and two"
    finally:
        running.cancel()


async def test_a_relay_that_cannot_read_a_shared_database_believes_nobody(
    new_postgres_database: Any,  # noqa: ANN401 - a fixture's function
    tmp_path: Path,
    clock: Clock,
) -> None:
    database = await asyncio.to_thread(open_database, new_postgres_database(), tmp_path)
    try:
        seconds = 0.0
        access = await open_access(database, Metrics(), now=clock.now, clock=lambda: seconds)
        keys = await open_api_keys(database, tmp_path / "api-key", access, clock.now)
        key = (tmp_path / "api-key").read_text().strip()
        seconds = 4.9
        assert (await keys.check(key)).is_server
        seconds = 5.1
        with pytest.raises(Unavailable, match="database is away"):
            await keys.check(key)
        await access.look()
        assert (await keys.check(key)).is_server
    finally:
        await database.close()


async def test_changes_of_two_relays_at_once_are_numbered_one_after_the_other(
    each_database: Database,
) -> None:
    numbers = await asyncio.gather(*(each_database.write(advance_access) for _ in range(50)))
    assert sorted(numbers) == list(range(1, 51))


async def test_a_relay_of_the_version_before_is_upgraded_in_place(tmp_path: Path) -> None:
    data = tmp_path / "relay"
    data.mkdir(mode=0o700)
    key, phone = "bwk_of-the-version-before", DeviceId("phone")
    (data / "api-key").write_text(key + "\n")
    signing = new_signing_key()
    _database_of_before(data / "relay.db", hashlib.sha256(key.encode()).hexdigest(), signing)
    now = datetime.now(UTC)
    async with ForkedRelay(data) as relay, serving(relay) as running:
        # As the version before issues them: with no number in them.
        database = await asyncio.to_thread(open_database, None, data)
        tokens = AccessTokens(database, [signing], "bellwire", lambda: now)
        await database.close()
        for_phone, for_any = (tokens.issue(Identity("alice"), d, 600)[0] for d in (phone, None))
        assert (await running.http.get("/v1/devices")).json()["devices"][0]["device_id"] == phone
        (own,) = (await running.http.get("/v1/keys")).json()["keys"]
        assert own["scopes"] == ["admin"] and own["name"].startswith("relay-")
        for token in (for_phone, for_any):
            answer = await running.http.get("/v1/calls", headers=shows(token))
            assert answer.status_code == 200, answer.text
        assert (await running.http.delete(f"/v1/devices/{phone}")).status_code == 204
        answer = await running.http.get("/v1/calls", headers=shows(for_phone))
        assert_problem(answer, 401, "unauthenticated")
        assert (await running.http.get("/v1/calls", headers=shows(for_any))).status_code == 200


def _database_of_before(path: Path, key_hash: str, signing: SigningKeyRow) -> None:
    path.touch(mode=0o600)
    engine = sqlite_engine(path)
    configuration = Config()
    scripts = Path(migrate_module.__file__).parents[1] / "migrations"
    configuration.set_main_option("script_location", str(scripts))
    with engine.connect() as connection:
        configuration.attributes["connection"] = connection
        command.upgrade(configuration, "0004")
    engine.dispose()
    with closing(sqlite3.connect(path)) as file:
        file.execute("INSERT INTO api_keys VALUES (?, 0)", (key_hash,))
        file.execute(
            "INSERT INTO signing_keys VALUES (?, ?, 0)", (signing.kid, signing.private_key)
        )
        file.execute(
            "INSERT INTO devices (device_id, identity, registered_at_ms) VALUES ('phone', 'alice', 0)"
        )
        file.commit()
