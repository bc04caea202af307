"""`/metrics/devices`: each device for a key that may know, and for nobody else."""

import asyncio
import json

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bellwire.push.devices import metrics
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import presence_topic, telemetry_topic
from tests.conftest import PATIENCE_S
from tests.push.streams import streaming
from tests.push.support import Running, assert_problem, fresh, listening, on_both_stores

pytestmark = [pytest.mark.asyncio(loop_scope="module"), on_both_stores]

KNOWN_FOR_S = f"{metrics.__name__}:KNOWN_FOR_S"
Samples = dict[tuple[str, str, str], float]
_TELEMETRY = {"at": "2026-11-30T12:00:00Z", "software": "1.0", "uptime_s": 1.0}


@pytest.fixture(scope="module")
def times() -> dict[str, float]:
    return {KNOWN_FOR_S: 0.2}


async def scraper(running: Running) -> httpx.AsyncClient:
    body = {"name": fresh("prometheus"), "scopes": ["metrics"]}
    key = (await running.http.post("/v1/keys", json=body)).json()["key"]
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.AsyncClient(base_url=running.relay.access.url, headers=headers, timeout=PATIENCE_S)


async def scrape(http: httpx.AsyncClient) -> Samples:
    answer = await http.get("/metrics/devices")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, sample.labels["device_id"], sample.labels["identity"]): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def until(http: httpx.AsyncClient, name: str, device: str, identity: str, at: float) -> float:
    """Waits until a metric of a device has a value, or more."""
    async with asyncio.timeout(PATIENCE_S):
        while (found := (await scrape(http)).get((name, device, identity), -1)) < at:  # noqa: ASYNC110 - a relay tells nobody
            await asyncio.sleep(0.2)
    return found


async def test_each_registered_device_is_shown_with_its_state_and_its_faults(
    running: Running,
) -> None:
    never, web, desk, owner = fresh("never"), fresh("web"), fresh("desk"), fresh('ow"n\\er')
    await running.register(never, owner)
    async with (
        await scraper(running) as http,
        streaming(running, web, owner),
        listening(running, desk, owner) as device,
    ):
        topic = telemetry_topic(DeviceId(desk))
        faults = [{"part": "audio", "reason": "no card"}, {"part": "door", "reason": "no pin"}]
        report = {"device_id": desk, **_TELEMETRY, "faults": faults}
        await device.mqtt.publish(topic, json.dumps(report), qos=1, retain=True)
        online = json.dumps({"online": True, "at": "2026-11-30T12:00:00Z", "software": "1"})
        await device.mqtt.publish(presence_topic(DeviceId(desk)), online, qos=1, retain=True)

        assert await until(http, "bellwire_device_faults", desk, owner, 2) == 2
        for there in (web, desk):
            assert await until(http, "bellwire_device_online", there, owner, 1) == 1
        samples = await scrape(http)
        assert samples["bellwire_device_online", never, owner] == 0
        assert ("bellwire_device_last_seen_seconds", never, owner) not in samples
        assert ("bellwire_device_faults", never, owner) not in samples
        now = asyncio.get_running_loop().time()
        seen = samples["bellwire_device_last_seen_seconds", web, owner]

        report["faults"] = []
        text = json.dumps(report, separators=(",", ":"))
        await device.mqtt.publish(topic, text, qos=1, retain=True)
        async with asyncio.timeout(PATIENCE_S):
            while (await scrape(http))["bellwire_device_faults", desk, owner] != 0:  # noqa: ASYNC110 - a relay tells nobody
                await asyncio.sleep(0.2)
        passed = asyncio.get_running_loop().time() - now
        later = (await scrape(http))["bellwire_device_last_seen_seconds", web, owner]
        assert seen <= later <= seen + passed + 1
    async with await scraper(running) as http:
        await running.http.delete(f"/v1/devices/{web}")
        async with asyncio.timeout(PATIENCE_S):
            while ("bellwire_device_online", web, owner) in await scrape(http):  # noqa: ASYNC110 - a relay tells nobody
                await asyncio.sleep(0.2)


async def test_nobody_else_learns_who_is_there(running: Running) -> None:
    async with running.stranger() as stranger:
        assert_problem(await stranger.get("/metrics/devices"), 401, "unauthenticated")
        assert (await stranger.get("/metrics")).status_code == 200
        as_bob = await running.token(fresh("bob"))
        answer = await stranger.get("/metrics/devices", headers=as_bob)
        assert_problem(answer, 403, "forbidden")
    assert "bellwire_device_online" not in (await running.http.get("/metrics")).text
