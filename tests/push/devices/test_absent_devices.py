"""Devices that are registered and have not come: operators see them, and no call is lost by it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bellwire.broker.embedded import embedded_address
from bellwire.broker.session.session import Session
from bellwire.push.store.engine.sqlite import SqliteDatabase
from bellwire.push.store.rows.connections import ConnectionRow, absent_devices, put_connection
from bellwire.push.store.rows.devices import ChannelRow, DeviceRow, put_device
from bellwire.signaling.identifiers import DeviceId, Identity
from bellwire.signaling.topics import PRESENCE_OF_ALL, presence_topic
from bellwire.signaling.wire.station import Presence, parse_presence, presence_document
from tests.broker.running import held, raw_client, soon
from tests.conftest import PATIENCE_S, register_station, running_station
from tests.forking import ForkedRelay
from tests.push.support import listening, serving
from tests.system.scene import Record

BELIEVED_SOON = {"bellwire.push.devices.requests:_GRACE_S": 0.3}
"""Where a device that goes does not come back."""


class Watcher:
    """Hears presence as an operator does: by one wildcard."""

    def __init__(self, relay: ForkedRelay) -> None:
        self.heard = Record()
        self.session = Session(embedded_address(relay.data / "broker"), "watcher", sleep=soon)
        self.session.subscribe(
            PRESENCE_OF_ALL,
            lambda m: self.heard.note((m.topic.split("/")[3], m.payload and json.loads(m.payload))),
        )

    async def until(self, device: str, **members: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
        _, presence = await self.heard.until(
            lambda said: said[0] == device and bool(said[1]) and members.items() <= said[1].items(),
            f"{device}: {members}",
        )
        assert isinstance(presence, dict)
        return presence


@asynccontextmanager
async def watching(relay: ForkedRelay) -> AsyncIterator[Watcher]:
    watcher = Watcher(relay)
    async with held(watcher.session):
        yield watcher


async def test_a_device_that_never_came_is_retained_as_registered_until_it_comes(
    tmp_path: Path,
) -> None:
    async with ForkedRelay(tmp_path / "relay") as relay, serving(relay) as running:
        settings = await register_station(running.http, "gate")
        async with watching(relay) as watcher:
            presence = await watcher.until("gate")
            assert presence.keys() == {"online", "registered_at"}
            assert presence["online"] is None
            async with running_station(settings):
                await watcher.until("gate", online=True)
            await watcher.until("gate", online=False)


async def test_a_start_retains_what_the_broker_lacks_and_leaves_alone_what_it_has(
    tmp_path: Path,
) -> None:
    """Devices of older versions, a broker that lost its disk, and one that is there."""
    async with ForkedRelay(tmp_path / "relay", times=BELIEVED_SOON) as relay:
        async with serving(relay) as running:
            never = await register_station(running.http, "never")
            was = await register_station(running.http, "was")
            there = await register_station(running.http, "there")
            async with running_station(was), watching(relay) as watcher:
                await watcher.until("was", online=True)
            await noted_as_gone(relay, "was")
        address = embedded_address(relay.data / "broker")
        async with raw_client(address) as client:
            for device in ("never", "was"):
                await client.publish(presence_topic(DeviceId(device)), b"", qos=1, retain=True)
        await relay.stop()
        await relay.start()
        async with (
            running_station(there.model_copy(update={"broker": moved(relay, there.broker)})),
            watching(relay) as watcher,
        ):
            await watcher.until("there", online=True)
            assert (await watcher.until("never"))["online"] is None
            assert await watcher.until("was", online=False) == {"online": False}
        assert never.device_id == "never"


async def noted_as_gone(relay: ForkedRelay, device: str) -> None:
    """Waits until the relay has noted that a device is not there: it had a moment to be back."""

    def is_noted() -> bool:
        lines = relay.log_path.read_text().splitlines()
        return any(
            '"event": "device presence"' in line
            and f'"{device}"' in line
            and '"online": false' in line
            for line in lines
        )

    async with asyncio.timeout(PATIENCE_S):
        while not await asyncio.to_thread(is_noted):  # noqa: ASYNC110 - a log tells no event
            await asyncio.sleep(0.05)


def moved(relay: ForkedRelay, broker: Any) -> Any:  # noqa: ANN401 - the same, by its port
    return broker.model_copy(update={"url": embedded_address(relay.data / "broker").url})


async def test_that_a_device_was_registered_ends_no_call_of_its_identity(tmp_path: Path) -> None:
    async with (
        ForkedRelay(tmp_path / "relay", times=BELIEVED_SOON) as relay,
        serving(relay) as running,
        listening(running, "desk") as desk,
        watching(relay) as watcher,
    ):
        token = await running.token("lobby")
        made = await running.http.post("/v1/calls", json={"to": ["desk"]}, headers=token)
        sid = made.json()["call_sid"]
        await desk.until("call.received", sid)
        await running.register("lobby-2", "lobby")
        await watcher.until("lobby-2")
        # What is said after it of another device is noted after it: both have had their moment.
        async with raw_client(embedded_address(relay.data / "broker")) as client:
            gone = presence_document(Presence(online=False))
            await client.publish(presence_topic(DeviceId("desk")), gone, qos=1)
        await noted_as_gone(relay, "desk")
        assert (await running.call(sid))["state"] == "ringing"


async def test_only_devices_of_the_broker_that_are_not_there_are_absent(
    database: SqliteDatabase,
) -> None:
    mqtt, app = ChannelRow("mqtt"), ChannelRow("fcm", "com.example", None, "token")
    rows = {"never": (mqtt,), "was": (mqtt, app), "there": (mqtt,), "phone": (app,)}
    for at_ms, (name, channels) in enumerate(rows.items()):
        row = DeviceRow(DeviceId(name), Identity(name), channels)
        await database.write(lambda c, row=row, at_ms=at_ms: put_device(c, row, at_ms))
    for name, online in (("was", False), ("there", True)):
        came = ConnectionRow(DeviceId(name), "mqtt", "session", online=online)
        await database.write(lambda c, came=came: put_connection(c, came, 5))
    found = {each.device: each.was_seen for each in await database.read(absent_devices)}
    assert found == {"never": False, "was": True}


def test_relays_and_operators_of_older_versions_pass_over_it() -> None:
    """They take `online: false` of such a device for a loss, which may end calls."""
    registered = parse_presence(b'{"online": null, "registered_at": "2026-11-30T12:00:00Z"}')
    assert registered.never_seen
    assert json.loads(presence_document(registered))["online"] is None, "a bool was required"
    assert not Presence(online=True, registered_at=registered.registered_at).never_seen
    assert presence_document(Presence(online=False)) == b'{"online":false}'
