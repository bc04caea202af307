"""What the tests of the relay share: a real relay for a whole module, devices on raw MQTT, and a
view into its tables that does not go through the relay."""

import asyncio
import hashlib
import itertools
import json
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiomqtt
import httpx
import psycopg
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from psycopg import sql

from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import call_topic, request_topic, response_topic
from tests.conftest import PATIENCE_S
from tests.forking import ForkedRelay

on_both_stores = pytest.mark.parametrize("store", ["sqlite", "postgres"], indirect=True)
"""For tests on `running` or `database`: the same on SQLite and on PostgreSQL."""

on_both_stores_in_full = pytest.mark.parametrize(
    "store", ["sqlite", pytest.param("postgres", marks=pytest.mark.full)], indirect=True
)
"""The same, on PostgreSQL in a `--full` run only: what is asked of the store there, other tests ask of
PostgreSQL in each run."""

PROBLEM_TYPE = "application/problem+json"
_numbers = itertools.count(1)


def fresh(name: str) -> str:
    """A name that no other test of this run uses."""
    return f"{name}-{next(_numbers)}"


@dataclass(frozen=True)
class Running:
    """A relay at work, the operator's HTTP client of it, and the URL of its database where that is
    not its own SQLite."""

    relay: ForkedRelay
    http: httpx.AsyncClient
    database: str | None = None
    gone: set[str] = field(default_factory=set)
    """Devices that earlier tests have disconnected: the relay finds them offline in its own time."""

    def tables(self) -> dict[str, tuple[int, str]]:
        """Each table's row count and a digest of its rows. Left out is what moves by itself: the
        outbox and what became of its deliveries, but not whether one was ever owed; who is connected;
        when keys were used; and what speaks of a device that is gone."""
        tables = {
            name: [row for row in rows if not self._is_of_one_gone(row)]
            for name, rows in self._rows().items()
            if name not in ("outbox", "delivery_results", "connections", "key_uses")
        }
        return {
            name: (len(kept), hashlib.sha256(repr(sorted(kept)).encode()).hexdigest())
            for name, kept in tables.items()
        }

    def _is_of_one_gone(self, row: str) -> bool:
        return any(name in row and re.search(rf"{name}(?!\d)", row) for name in self.gone)

    async def until_nothing_is_owed(self) -> None:
        """Waits until nothing is owed: what became of deliveries so far stands in the tables."""
        async with asyncio.timeout(PATIENCE_S):
            while self._rows()["outbox"]:  # noqa: ASYNC110 - the database tells nobody
                await asyncio.sleep(0.01)

    def _rows(self) -> dict[str, list[str]]:
        if self.database is None:
            return _sqlite_rows(self.relay.data / "relay.db")
        return _postgres_rows(self.database)

    async def token(self, identity: str, device: str | None = None) -> dict[str, str]:
        """The header that shows an access token of this identity."""
        body = {"identity": identity} | ({} if device is None else {"device_id": device})
        answer = await self.http.post("/v1/tokens", json=body)
        assert answer.status_code == 201, answer.text
        return {"Authorization": f"Bearer {answer.json()['token']}"}

    async def register(self, device: str, identity: str | None = None) -> dict[str, str]:
        """Registers a device with the MQTT channel; returns its broker access."""
        answer = await self.http.put(
            f"/v1/devices/{device}",
            json={
                "identity": identity or device,
                "channels": [{"kind": "mqtt"}],
                "rotate_credentials": True,
            },
        )
        assert answer.is_success, answer.text
        access: dict[str, str] = answer.json()["mqtt"]
        return access

    async def called(self, *invitees: str, **body: Any) -> str:  # noqa: ANN401 - JSON
        """Makes a call that rings longer than any test; returns its SID."""
        invite = {"to": list(invitees), "timeout": 600, **body}
        answer = await self.http.post("/v1/calls", json=invite)
        assert answer.status_code == 201, answer.text
        sid: str = answer.json()["call_sid"]
        return sid

    async def end_calls_of(self, identity: str) -> None:
        """Ends all its calls, so that nobody is told any more of who leaves them or goes offline."""
        page = (await self.http.get("/v1/calls", params={"identity": identity})).json()
        for call in page["calls"]:
            by = {} if call["from"] is None else {"identity": call["from"]}
            for operation in ("cancel", "end"):  # while it rings, and later
                if (await self.do(call["call_sid"], operation, **by)).is_success:
                    break

    async def do(self, sid: str, operation: str, **body: Any) -> httpx.Response:  # noqa: ANN401
        """Does an operation with the API key."""
        return await self.http.post(f"/v1/calls/{sid}/{operation}", json=body)

    async def call(self, sid: str) -> dict[str, Any]:
        """A call as it stands."""
        call: dict[str, Any] = (await self.http.get(f"/v1/calls/{sid}")).json()
        return call

    def stranger(self) -> httpx.AsyncClient:
        """A client without credentials."""
        return httpx.AsyncClient(base_url=self.relay.access.url, timeout=PATIENCE_S)


def _sqlite_rows(path: Path) -> dict[str, list[str]]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as file:
        # Among them is `sqlite_sequence`, which counts what the outbox ever held.
        names = file.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {
            name: [repr(row) for row in file.execute(f"SELECT * FROM {name}")]  # noqa: S608
            for (name,) in names
        }


def _postgres_rows(url: str) -> dict[str, list[str]]:
    with psycopg.connect(url) as connection:
        names = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        ).fetchall()
        # Of the sequences only this: that of the calls is moved by a refused one too.
        tables = [name for (name,) in names] + ["outbox_delivery_id_seq"]
        return {name: _rows_of(connection, name) for name in tables}


def _rows_of(connection: psycopg.Connection[tuple[object, ...]], table: str) -> list[str]:
    rows = connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(table)))
    values = [row[:1] if table.endswith("_seq") else row for row in rows]  # last_value alone
    return [repr(row) for row in values]


@asynccontextmanager
async def serving(relay: ForkedRelay, database: str | None = None) -> AsyncIterator[Running]:
    """A relay that runs, with a client; `database` is its URL where it is not its own SQLite."""
    access = relay.access
    headers = {"Authorization": f"Bearer {access.api_key}"}
    async with httpx.AsyncClient(base_url=access.url, headers=headers, timeout=PATIENCE_S) as http:
        yield Running(relay, http, database)


class Device:
    """A device on raw MQTT: what came on its call topic, in order, and the answers it got."""

    def __init__(self, name: str, client: aiomqtt.Client) -> None:
        self.name = name
        self.mqtt = client
        self.events: list[dict[str, Any]] = []
        self._read = 0

    async def until(self, event: str, call_sid: str | None = None) -> dict[str, Any]:
        """Waits for an event (of a call); what came before stays in `events`."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                while self._read < len(self.events):
                    document = self.events[self._read]
                    self._read += 1
                    if document["event"] == event and call_sid in (None, document["call_sid"]):
                        return document
                await self._take()

    async def until_seen(self, event: str, call_sid: str) -> None:
        """Waits until an event of a call has come, whether before or after what was waited for."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.seen(event, call_sid):
                await self._take()

    async def ask(self, document: object) -> dict[str, Any]:
        """Sends a request (bytes as they are) and returns its answer."""
        request = document if isinstance(document, bytes) else json.dumps(document).encode()
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ResponseTopic = response_topic(DeviceId(self.name))
        await self.mqtt.publish(
            request_topic(DeviceId(self.name)), request, qos=1, properties=properties
        )
        async with asyncio.timeout(PATIENCE_S):
            while (answer := await self._take()) is None:
                pass
            return answer

    def seen(self, event: str, call_sid: str | None = None) -> int:
        """How often an event (of a call) has come so far."""
        return sum(
            document["event"] == event and call_sid in (None, document["call_sid"])
            for document in self.events
        )

    async def _take(self) -> dict[str, Any] | None:
        """The next message: an answer is returned, an event is kept."""
        message = await anext(aiter(self.mqtt.messages))
        assert isinstance(message.payload, bytes)
        document: dict[str, Any] = json.loads(message.payload)
        if message.topic.matches(response_topic(DeviceId(self.name))):
            return document
        self.events.append(document)
        return None


def broker_client(
    access: dict[str, str], name: str, *, will: aiomqtt.Will | None = None
) -> aiomqtt.Client:
    """An MQTT 5 client that shows these credentials; `name` is its client id where the relay names none."""
    host, _, port = access["url"].removeprefix("mqtt://").partition(":")
    return aiomqtt.Client(
        host,
        int(port),
        username=access["username"],
        password=access["password"],
        identifier=access.get("client_id") or name,
        protocol=aiomqtt.ProtocolVersion.V5,
        will=will,
    )


@asynccontextmanager
async def listening(
    running: Running, device: str, identity: str | None = None
) -> AsyncIterator[Device]:
    """A registered device that hears its call topic and its answers."""
    running.gone.discard(device)
    async with broker_client(await running.register(device, identity), device) as client:
        await client.subscribe(call_topic(DeviceId(device)), qos=1)
        await client.subscribe(response_topic(DeviceId(device)), qos=1)
        try:
            yield Device(device, client)
        finally:
            running.gone.add(device)


def assert_problem(answer: httpx.Response, status: int, slug: str | None = None) -> dict[str, Any]:
    """The problem document of a refusal, checked for its form."""
    assert answer.status_code == status, f"{answer.status_code} {answer.text[:500]}"
    assert answer.headers["content-type"].partition(";")[0] == PROBLEM_TYPE
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    assert isinstance(problem["title"], str) and problem["title"]
    assert isinstance(problem["detail"], str) and problem["detail"]
    assert problem["type"].startswith("/problems/")
    if slug is not None:
        assert problem["type"] == f"/problems/{slug}"
    return problem


def states(call: dict[str, Any]) -> dict[str, str]:
    """Each user's state."""
    return {user["identity"]: user["state"] for user in call["users"]}
