"""What a station says of its door reaches the backend, in the station's own name and a few times only."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from websockets.asyncio.client import connect

from bellwire.push.devices.door_reports import NOT_VERIFIED
from bellwire.signaling.wire.operations import LOCK_OUTS_OF_A_CALL
from tests.conftest import PATIENCE_S
from tests.push.streams import Stream, register_for_stream, stream_url, streaming
from tests.push.support import Device, Running, fresh, listening, on_both_stores
from tests.push.webhook_receiver import Backend, backend, target

pytestmark = [pytest.mark.asyncio(loop_scope="module"), on_both_stores]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def receiver() -> AsyncIterator[Backend]:
    async with backend() as here:
        yield here


@pytest.fixture(scope="module")
def settings(receiver: Backend, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    wants = target(
        tmp_path_factory.mktemp("secrets"), receiver.url, events=["door.locked_out"]
    ).model_dump_json()
    return {"BELLWIRE_WEBHOOKS": json.dumps({"guard": json.loads(wants)})}


@pytest_asyncio.fixture(loop_scope="module")
async def gate(running: Running) -> AsyncIterator[Device]:
    async with listening(running, fresh("gate")) as at_work:
        yield at_work


def says(sid: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    return {
        "operation": "door_locked_out",
        "call_sid": sid,
        "doors": ["front"],
        "wrong_codes": 3,
        "locked_for_s": 300,
        **more,
    }


async def counted(running: Running, reason: str = "door-locked-out") -> float:
    exposition = (await running.http.get("/metrics")).text
    name = f'bellwire_refused_total{{reason="{reason}"}} '
    lines = [line for line in exposition.splitlines() if line.startswith(name)]
    return float(lines[0].removeprefix(name)) if lines else 0.0


async def test_the_backend_is_told_once_who_was_locked_out_where_and_until_when(
    running: Running, receiver: Backend, gate: Device
) -> None:
    visitor = fresh("visitor")
    await running.register(visitor)
    sid, before = await running.called(gate.name, visitor), await counted(running)
    for _ in range(2):  # it asks again where no answer came
        answer = await gate.ask(says(sid, caller=visitor))
        assert answer["status"] == 200, answer
    event = (await receiver.next()).verified()
    assert event["type"] == "door.locked_out"
    data = event["data"]
    assert data.pop("id").startswith("DL")
    assert data.pop("at") < data.pop("until")
    assert data == {
        "event": "door.locked_out",
        "call_sid": sid,
        "device_id": gate.name,
        "identity": gate.name,
        "caller": visitor,
        "doors": ["front"],
        "wrong_codes": 3,
    }
    assert await counted(running) == before + 1
    await gate.ask(says(sid, lock_out=2))  # somebody in a room
    assert "caller" not in (await receiver.next()).verified()["data"]
    assert receiver.came.empty()


async def test_a_device_speaks_only_of_its_own_calls_and_of_who_is_in_them(
    running: Running, receiver: Backend, gate: Device
) -> None:
    visitor, rogue = fresh("visitor"), fresh("rogue")
    await running.register(visitor)
    sid, before = await running.called(gate.name, visitor), await counted(running)
    async with listening(running, rogue) as elsewhere:
        refused = await elsewhere.ask(says(sid, caller=visitor))
        assert (refused["status"], refused["problem"]["type"]) == (403, "/problems/forbidden")
    for asked, status in (
        (says(sid, caller=rogue), 422),
        (says(sid, caller=gate.name), 422),
        (says("CA" + "0" * 32), 404),
        (says(sid, caller=visitor, identity="somebody-else"), 422),
        (says(sid, wrong_codes=0), 422),
        (says(sid, locked_for_s=1e9), 422),
        (says(sid, doors=["x" * 33]), 422),
        (says(sid, doors=[f"d{number}" for number in range(9)]), 422),
        (says(sid, lock_out=LOCK_OUTS_OF_A_CALL + 1), 422),
    ):
        answer = await gate.ask(asked)
        assert answer["status"] == status, answer
        assert answer["problem"]["detail"]
    assert receiver.came.empty()
    assert await counted(running) == before


async def test_a_station_on_a_stream_says_it_alike(running: Running, receiver: Backend) -> None:
    station = fresh("station")
    async with streaming(running, station) as stream:
        answer = await stream.ask(says(sid := await running.called(station)))
        assert answer["status"] == 200, answer
    data = (await receiver.next()).verified()["data"]
    assert (data["device_id"], data["call_sid"]) == (station, sid)


async def test_a_key_that_reads_a_stations_stream_says_nothing_of_its_door(
    running: Running, receiver: Backend
) -> None:
    station = fresh("station")
    await register_for_stream(running, station)
    headers = {"Authorization": f"Bearer {running.relay.access.api_key}"}
    async with connect(
        stream_url(running, device_id=station),
        additional_headers=headers,
        open_timeout=PATIENCE_S,
    ) as socket:
        stream = Stream(station, socket, json.loads(await socket.recv()))
        refused = await stream.ask(says(await running.called(station)))
    assert (refused["status"], refused["problem"]["type"]) == (403, "/problems/forbidden")
    assert receiver.came.empty()


async def test_a_door_that_stayed_shut_for_want_of_attestation_is_counted_once_for_each_caller(
    running: Running, receiver: Backend, gate: Device
) -> None:
    visitor, rogue = fresh("visitor"), fresh("rogue")
    await running.register(visitor)
    sid, before = await running.called(gate.name, visitor), await counted(running, NOT_VERIFIED)
    said = {"operation": "door_not_verified", "call_sid": sid, "caller": visitor}
    for _ in range(2):
        answer = await gate.ask(said)
        assert answer["status"] == 200, answer
    assert await counted(running, NOT_VERIFIED) == before + 1
    async with listening(running, rogue) as elsewhere:
        assert (await elsewhere.ask(said))["status"] == 403
    for asked in (said | {"caller": rogue}, said | {"caller": gate.name}, said | {"doors": []}):
        assert (await gate.ask(asked))["status"] == 422
    assert await counted(running, NOT_VERIFIED) == before + 1
    assert receiver.came.empty()
