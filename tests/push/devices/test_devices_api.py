"""`/v1/devices`: registered, given access to the broker, removed."""

import asyncio

import aiomqtt
import pytest

from tests.conftest import PATIENCE_S
from tests.push.support import Running, assert_problem, broker_client, fresh, listening

pytestmark = pytest.mark.asyncio(loop_scope="module")

MQTT = {"channels": [{"kind": "mqtt"}]}


async def test_a_new_device_is_given_access_to_the_broker_once(running: Running) -> None:
    bob = fresh("bob")
    path = f"/v1/devices/{bob}"
    made = await running.http.put(path, json={"identity": f"client:{bob}"} | MQTT)
    assert made.status_code == 201
    device = made.json()
    assert (device["device_id"], device["identity"]) == (bob, bob)
    assert [channel["kind"] for channel in device["channels"]] == ["mqtt"]
    assert device["mqtt"]["url"].startswith("mqtt://")
    assert device["mqtt"]["username"] == bob
    assert len(device["mqtt"]["password"]) >= 32

    shown = await running.http.get(path)
    again = await running.http.put(path, json={"identity": bob} | MQTT)
    assert (shown.status_code, again.status_code) == (200, 200)
    for answer in (shown, again, await running.http.get("/v1/devices")):
        assert device["mqtt"]["password"] not in answer.text
    async with broker_client(device["mqtt"], bob):
        pass  # Registered again, it kept its password.


async def test_rotated_credentials_take_the_place_of_the_old(running: Running) -> None:
    bob = fresh("bob")
    old = await running.register(bob)
    new = await running.register(bob)
    assert new["password"] != old["password"]
    with pytest.raises(aiomqtt.MqttError, match=r"(?i)not authori"):
        await broker_client(old, bob).__aenter__()
    async with broker_client(new, bob):
        pass


async def test_devices_are_listed_by_id(running: Running) -> None:
    names = sorted((fresh("zoe"), fresh("adam"), fresh("mia")))
    for name in reversed(names):
        await running.register(name)
    devices = (await running.http.get("/v1/devices")).json()["devices"]
    listed = [device["device_id"] for device in devices]
    assert listed == sorted(listed)
    assert [name for name in listed if name in names] == names


async def test_a_removed_device_is_disconnected_and_never_rings_again(running: Running) -> None:
    bob = fresh("bob")
    access = await running.register(bob)
    async with broker_client(access, bob) as client, asyncio.timeout(PATIENCE_S):
        sid = await running.called(bob)
        answer = await running.http.delete(f"/v1/devices/{bob}")
        assert (answer.status_code, answer.content) == (204, b"")
        with pytest.raises(aiomqtt.MqttError):
            await anext(aiter(client.messages))
    with pytest.raises(aiomqtt.MqttError, match=r"(?i)not authori"):
        await broker_client(access, bob).__aenter__()
    assert_problem(await running.http.get(f"/v1/devices/{bob}"), 404, "not-found")
    assert_problem(await running.http.delete(f"/v1/devices/{bob}"), 404, "not-found")
    answer = await running.http.post("/v1/calls", json={"to": [bob]})
    assert_problem(answer, 404, "nobody-to-call")
    assert (await running.do(sid, "cancel")).json()["state"] == "ended"


async def test_a_device_that_gives_up_mqtt_loses_its_access(running: Running) -> None:
    bob = fresh("bob")
    access = await running.register(bob)
    answer = await running.http.put(f"/v1/devices/{bob}", json={"identity": bob, "channels": []})
    assert answer.json() == {"device_id": bob, "identity": bob, "channels": [], "mqtt": None}
    with pytest.raises(aiomqtt.MqttError, match=r"(?i)not authori"):
        await broker_client(access, bob).__aenter__()


async def test_a_device_moved_to_another_identity_rings_for_that_one(running: Running) -> None:
    phone, bob, carol = fresh("phone"), fresh("bob"), fresh("carol")
    await running.register(phone, bob)
    async with listening(running, phone, carol) as at_phone:
        answer = await running.http.post("/v1/calls", json={"to": [bob]})
        assert_problem(answer, 404, "nobody-to-call")
        sid = await running.called(carol)
        assert (await at_phone.until("call.received", sid))["to"] == f"client:{carol}"


async def test_a_device_that_is_not_there_is_not_found(running: Running) -> None:
    for answer in (
        await running.http.get("/v1/devices/nobody"),
        await running.http.delete("/v1/devices/nobody"),
    ):
        assert "nobody" in assert_problem(answer, 404, "not-found")["detail"]


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({}, "identity"),
        ({"identity": "two words"}, "identity"),
        ({"identity": "bob", "channels": [{"kind": "pigeon"}]}, "channels.0.kind"),
        ({"identity": "bob", "channels": [{"kind": "mqtt"}] * 2}, "channels"),
        ({"identity": "bob", "channels": [{"kind": "mqtt"}, {"kind": "mqtt", "app": ""}]}, "twice"),
        (
            {"identity": "bob", "channels": [{"kind": "mqtt"}, {"kind": "mqtt", "app": "a"}]},
            "twice",
        ),
        (
            {"identity": "bob", "channels": [{"kind": "apns", "token": "ab" * 32, "app": "x"}]},
            "channel kind apns",
        ),
        (
            {"identity": "bob", "channels": [{"kind": "apns", "token": "t"}]},
            "its token and its app",
        ),
        ({"identity": "bob", "color": "red"}, "color"),
    ],
)
async def test_a_bad_registration_is_refused_and_changes_nothing(
    running: Running, body: dict[str, object], place: str
) -> None:
    before = running.tables()
    device = fresh("device")
    answer = await running.http.put(f"/v1/devices/{device}", json=body)
    assert place in assert_problem(answer, 422, "invalid-input")["detail"]
    assert running.tables() == before


async def test_a_device_cannot_take_the_account_of_the_relay_at_the_broker(
    running: Running,
) -> None:
    before = running.tables()
    answer = await running.http.put("/v1/devices/bellwire-relay", json={"identity": "bob"} | MQTT)
    assert "bellwire-relay" in assert_problem(answer, 422, "invalid-input")["detail"]
    assert running.tables() == before
    await running.register(fresh("device"))  # the relay still reaches its broker


@pytest.mark.parametrize("device", ["-front", "a b", "a%0A", "%23", "+", "x" * 65, "d%C3%BCr"])
async def test_an_id_that_is_no_level_of_a_topic_is_refused(running: Running, device: str) -> None:
    before = running.tables()
    answer = await running.http.put(f"/v1/devices/{device}", json={"identity": "bob"} | MQTT)
    assert_problem(answer, 422, "invalid-input")
    assert running.tables() == before


async def test_devices_are_managed_by_servers_only(running: Running) -> None:
    bob = fresh("bob")
    await running.register(bob)
    as_bob = await running.token(bob, bob)
    before = running.tables()
    path = f"/v1/devices/{bob}"
    for answer in (
        await running.http.get("/v1/devices", headers=as_bob),
        await running.http.get(path, headers=as_bob),
        await running.http.put(path, json={"identity": bob} | MQTT, headers=as_bob),
        await running.http.delete(path, headers=as_bob),
    ):
        assert "needs an API key" in assert_problem(answer, 403, "forbidden")["detail"]
    assert running.tables() == before
