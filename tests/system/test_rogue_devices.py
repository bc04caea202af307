"""Devices that lie about a rollout, at a real relay: who is not registered, or not meant, pauses nothing."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import httpx

from bellwire.broker.fleet.layer_register import LayerRegister
from bellwire.broker.session.session import Session
from bellwire.config.fleet.layer import LayerProblem, Reported, Rollout
from bellwire.config.fleet.writing import NOTHING, Draft
from bellwire.signaling.topics import REPORTED_OF_ALL, LayerName, group_layer
from tests.broker.running import held, raw_client, soon
from tests.conftest import PATIENCE_S, register_station
from tests.system.mqtt_ear import address_of_own_broker

AT = datetime(2026, 11, 21, tzinfo=UTC)
NORTH, SOUTH = group_layer("north"), group_layer("south")


async def test_only_registered_devices_of_the_group_take_its_rollout_back(
    http: httpx.AsyncClient, tmp_path: Path
) -> None:
    address = address_of_own_broker(tmp_path / "relay")
    for name in ("north-1", "north-2", "south-1", "south-2", "liar-1", "liar-2"):
        await register_station(http, name)
    session = Session(address, "operator", sleep=soon)
    register = LayerRegister(session, "ann", histories=[NORTH, SOUTH], now=lambda: AT)
    draft = Draft({"audio": {"ring_volume": 6}}, Rollout(pause_at_errors=1))
    async with held(session), raw_client(address) as client:
        await register.read()
        for name in (NORTH, SOUTH):
            await register.write(name, draft, on=NOTHING)

        async def refuse(device: str, layer: LayerName, group: str) -> None:
            problem = LayerProblem(layer=layer, revision=1, path="audio", reason="no")
            said = Reported(
                device_id=device,
                software="0",
                at=AT,
                hash="",
                effective={},
                sources={},
                revisions={},
                local={"groups": [group]},
                errors=(problem,),
            )
            topic = REPORTED_OF_ALL.replace("+", device)
            await client.publish(topic, said.model_dump_json().encode(), qos=1, retain=True)

        for ghost in range(5):  # registered nowhere, but in the group
            await refuse(f"ghost-{ghost}", NORTH, "north")
        for device in ("liar-1", "liar-2"):  # registered, but of another group
            await refuse(device, NORTH, "south")
        for device in ("south-1", "south-2"):  # of their own: when that is counted, so is the rest
            await refuse(device, SOUTH, "south")
        await until_paused(register, SOUTH)
        north = register.held(NORTH).layer
        assert north is not None and north.revision == 1, "neither ghosts nor others took it back"
        counted = (await http.get("/metrics")).text
        assert 'bellwire_refused_total{reason="rollout-of-others"} 1.0' in counted
        for device in ("north-1", "north-2"):
            await refuse(device, NORTH, "north")
        await until_paused(register, NORTH)


async def until_paused(register: LayerRegister, name: LayerName) -> None:
    news = asyncio.Event()
    register.listen(lambda _: news.set())
    async with asyncio.timeout(PATIENCE_S):
        while (now := register.held(name).layer) is None or now.rollout.paused_at is None:
            news.clear()
            await news.wait()
