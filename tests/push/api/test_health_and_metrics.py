"""What supervisors and monitoring see of a relay, without credentials and without anything secret."""

import asyncio
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import aiomqtt
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bellwire.broker.embedded import EmbeddedBroker
from bellwire.broker.session.address import parse_broker_url
from tests.broker.running import raw_client
from tests.conftest import PATIENCE_S
from tests.forking import ForkedRelay
from tests.push.support import Running, assert_problem, fresh, listening, serving

of_module = pytest.mark.asyncio(loop_scope="module")

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scrape(running: Running) -> Samples:
    async with running.stranger() as http:
        answer = await http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def grown(running: Running, before: Samples, name: str, by: float, **labels: str) -> None:
    """Waits until a counter has grown by this much since; it must not grow by more."""
    sample = (name, frozenset(labels.items()))
    async with asyncio.timeout(PATIENCE_S):
        while (value := (await scrape(running)).get(sample, 0) - before.get(sample, 0)) < by:
            pass
    assert value == by, sample


@of_module
async def test_a_healthy_relay_says_so_to_anybody(running: Running) -> None:
    async with running.stranger() as http:
        health, ready = await http.get("/healthz"), await http.get("/readyz")
    assert (health.status_code, health.json()) == (200, {"status": "ok"})
    assert (ready.status_code, ready.json()) == (
        200,
        {"database": True, "broker": True, "disk": True},
    )


@of_module
async def test_a_call_is_counted_from_its_creation_to_its_end(running: Running) -> None:
    alice, bob = fresh("alice"), fresh("bob")
    async with listening(running, bob) as at_bob:
        before = await scrape(running)
        sid = await running.called(bob, **{"from": alice})
        await at_bob.until("call.received", sid)
        open_calls = "bellwire_calls_with_open_invitations"
        await grown(running, before, "bellwire_calls_created_total", 1)
        await grown(running, before, open_calls, 1)
        sent = {"channel": "mqtt", "result": "sent"}
        await grown(running, before, "bellwire_deliveries_total", 1, **sent)
        await grown(running, before, "bellwire_delivery_seconds_count", 1, channel="mqtt")

        await at_bob.ask({"operation": "accept", "call_sid": sid})
        await at_bob.ask({"operation": "accept", "call_sid": sid})
        await grown(running, before, "bellwire_call_user_states_total", 1, state="Accepted")
        asked = {"operation": "accept", "status": "200"}
        await grown(running, before, "bellwire_device_requests_total", 2, **asked)
        await at_bob.ask(b"nonsense")
        refused = {"operation": "unknown", "status": "422"}
        await grown(running, before, "bellwire_device_requests_total", 1, **refused)
        assert (await scrape(running))[open_calls, frozenset()] == before[open_calls, frozenset()]


@of_module
async def test_requests_are_counted_by_route_and_never_by_path(running: Running) -> None:
    before = await scrape(running)
    for _ in range(3):
        await running.http.get("/v1/calls/CA" + "0" * 32)
    await running.http.get(f"/{fresh('scan')}")
    requests = "bellwire_http_requests_total"
    route = {"method": "GET", "route": "/v1/calls/{call_sid}", "status": "404"}
    await grown(running, before, requests, 3, **route)
    unmatched = {"method": "any", "route": "unmatched", "status": "404"}
    await grown(running, before, requests, 1, **unmatched)
    seconds = {"method": "GET", "route": "/v1/calls/{call_sid}"}
    await grown(running, before, "bellwire_http_request_seconds_count", 3, **seconds)


@of_module
async def test_metrics_name_no_person_no_call_and_no_secret(running: Running) -> None:
    bob = fresh("bob")
    password = (await running.register(bob))["password"]
    token = (await running.token(bob))["Authorization"].removeprefix("Bearer ")
    sid = await running.called(bob)
    async with running.stranger() as http:
        page = (await http.get("/metrics")).text
    for secret in (bob, sid, password, token, running.relay.access.api_key):
        assert secret not in page
    assert "bellwire_broker_connected 1.0" in page


@of_module
async def test_who_logs_in_at_the_broker_under_a_client_id_of_their_own_choice_is_counted(
    running: Running,
) -> None:
    before = await scrape(running)
    mqtt = await running.register(fresh("bob"))
    address = parse_broker_url(mqtt["url"], username=mqtt["username"], password=mqtt["password"])
    for client_id, password in (("a-second-one", None), (mqtt["client_id"], "wrong")):
        tried = address if password is None else replace(address, password=password)
        with pytest.raises(aiomqtt.MqttError, match="authori"):
            async with raw_client(tried, client_id=client_id):
                pass
    await grown(running, before, "bellwire_refused_total", 2, reason="broker-login")


@of_module
async def test_the_description_names_every_route_and_its_refusals(running: Running) -> None:
    async with running.stranger() as http:
        document = (await http.get("/openapi.json")).json()
        page = await http.get("/docs")
    assert (page.status_code, page.headers["content-type"].partition(";")[0]) == (200, "text/html")
    paths = document["paths"]
    assert paths.keys() >= {
        "/v1/calls",
        "/v1/calls/{call_sid}",
        *(
            f"/v1/calls/{{call_sid}}/{operation}"
            for operation in ("received", "accept", "reject", "cancel", "quit", "end")
        ),
        "/v1/devices/{device_id}",
        "/v1/tokens",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    body = paths["/v1/calls"]["post"]["requestBody"]["content"]
    assert body.keys() == {"application/json", "application/xml", "text/xml"}
    for operation in (paths["/v1/calls"]["post"], paths["/v1/calls/{call_sid}/accept"]["post"]):
        for status in ("401", "403", "404", "409", "413", "422"):
            assert operation["responses"][status]["content"].keys() == {"application/problem+json"}
    for reference in _references(document):
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"]


def _references(document: object) -> list[str]:
    if isinstance(document, dict):
        own = [document["$ref"]] if isinstance(document.get("$ref"), str) else []
        return own + [ref for value in document.values() for ref in _references(value)]
    if isinstance(document, list):
        return [reference for value in document for reference in _references(value)]
    return []


async def test_a_relay_without_its_broker_is_alive_but_not_ready_until_it_is_back(
    tmp_path: Path,
) -> None:
    broker = EmbeddedBroker(tmp_path / "broker")
    address = broker.prepare()
    assert address.username is not None and address.password is not None
    environment = {
        "BELLWIRE_BROKER_USERNAME": address.username,
        "BELLWIRE_BROKER_PASSWORD": address.password,
    }
    relay = ForkedRelay(
        tmp_path / "data", arguments=("--broker", address.url), environment=environment
    )
    async with asyncio.TaskGroup() as tasks:
        mosquitto = tasks.create_task(broker.run())
        async with relay, serving(relay) as running:
            mosquitto.cancel()
            problem = assert_problem(await until_readiness(running, is_503), 503, "unavailable")
            assert (problem["database"], problem["broker"]) == (True, False)
            assert (await running.http.get("/healthz")).status_code == 200
            assert (await scrape(running))["bellwire_broker_connected", frozenset()] == 0
            refused = await running.http.put(
                "/v1/devices/bob", json={"identity": "bob", "channels": [{"kind": "mqtt"}]}
            )
            assert assert_problem(refused, 503, "unavailable")["code"] == 31503
            assert refused.headers["retry-after"] == "1"
            assert_problem(await running.http.get("/v1/devices/bob"), 404)

            mosquitto = tasks.create_task(broker.run())
            await until_readiness(running, lambda answer: answer.status_code == 200)
            assert await running.register("bob")
        mosquitto.cancel()


def is_503(answer: httpx.Response) -> bool:
    return answer.status_code == 503


async def until_readiness(
    running: Running, holds: Callable[[httpx.Response], bool]
) -> httpx.Response:
    """Asks as a load balancer does, until the answer is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds(answer := await running.http.get("/readyz")):
            pass
    return answer


@of_module
async def test_an_idle_connection_is_kept_longer_than_clients_keep_theirs(running: Running) -> None:
    # Where both close it in the same moment, as httpx would after 5 s, a request is lost.
    where = httpx.URL(running.relay.access.url)
    reader, writer = await asyncio.open_connection(where.host, where.port)
    with closing(writer):
        for idle_s in (5.5, 0):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n")
            async with asyncio.timeout(PATIENCE_S):
                await reader.readuntil(b'{"status":"ok"}')
            if idle_s:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(reader.read(1), idle_s)
