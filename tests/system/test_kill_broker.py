"""The broker is lost, the relay's own or an external one: relay and agents come back by themselves,
the call goes on, and what people did meanwhile takes effect.

A killed broker forgets its sessions. What is said to a station is asserted once it is back; what
was said to it before, by the state that the relay keeps.
"""

import asyncio
import os
import signal
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from bellwire.agent.calls.call import CallStatus
from bellwire.signaling.calls.events import CallReceived
from tests.conftest import PATIENCE_S
from tests.system.mosquitto import Mosquitto, running_mosquitto
from tests.system.scene import Scene, mosquitto_pid, scene

CONNACK_SERVER_UNAVAILABLE = b"\x20\x03\x00\x88\x00"


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[Scene]:
    """A relay with a broker of its own."""
    async with scene(tmp_path) as stage:
        yield stage


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    async with running_mosquitto(tmp_path / "broker") as running:
        yield running


@pytest.fixture
async def external(tmp_path: Path, broker: Mosquitto) -> AsyncIterator[Scene]:
    """A relay on an external broker."""
    async with scene(tmp_path, broker=broker) as stage:
        yield stage


async def kill_own_broker(stage: Scene) -> int:
    """kill -9 of the relay's mosquitto; waits until all stations have lost it. Its process id."""
    pid = mosquitto_pid(stage.relay.data)
    assert pid is not None
    lost = losses(stage)
    os.kill(pid, signal.SIGKILL)
    await all_of(lost)
    return pid


async def outage(stage: Scene, broker: Mosquitto) -> None:
    """kill -9 of the external mosquitto; waits until all stations have lost it."""
    lost = losses(stage)
    await broker.kill()
    await all_of(lost)


def losses(stage: Scene) -> list[asyncio.Event]:
    """An event for each station, set when it loses the broker."""
    lost = [asyncio.Event() for _ in stage.stations]
    for event, diary in zip(lost, stage.stations.values(), strict=True):
        diary.station.agent.link.on_disconnected(event.set)
    return lost


async def all_of(events: list[asyncio.Event]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        for event in events:
            await event.wait()


async def test_relay_starts_its_own_broker_again_and_the_ringing_call_is_answered(
    own: Scene,
) -> None:
    sid = await own.invite()
    await own.desk.until(sid, CallStatus.PENDING)
    killed = await kill_own_broker(own)
    assert not own.desk.is_silent()
    await own.all_connected()
    assert mosquitto_pid(own.relay.data) not in (None, killed)
    await own.answer_and_hang_up(sid)
    await own.must_have_kept_everything()


async def test_open_call_survives_the_relays_own_broker_and_is_hung_up_afterwards(
    own: Scene,
) -> None:
    sid = await own.invite()
    await own.desk.until(sid, CallStatus.PENDING)
    await own.desk.station.fingers.press("a")
    await own.desk.until(sid, CallStatus.OPEN)
    await kill_own_broker(own)
    await own.all_connected()
    await own.hang_up_once_open(sid)
    await own.must_have_kept_everything()


async def test_answer_pressed_while_the_broker_is_away_settles_the_call_afterwards(
    external: Scene, broker: Mosquitto
) -> None:
    sid = await external.invite()
    await external.desk.until(sid, CallStatus.PENDING)
    await outage(external, broker)
    await external.desk.station.fingers.press("a")
    await external.desk.until(sid, CallStatus.CONNECTING)
    assert external.desk.is_silent()
    assert (await external.show(sid))["state"] == "ringing"
    await broker.start()
    await external.all_connected()
    await external.hang_up_once_open(sid)
    await external.must_have_kept_everything()


async def test_hang_up_pressed_while_the_broker_is_away_ends_the_call_afterwards(
    external: Scene, broker: Mosquitto
) -> None:
    sid = await external.invite()
    await external.desk.until(sid, CallStatus.PENDING)
    await external.desk.station.fingers.press("a")
    await external.desk.until(sid, CallStatus.OPEN)
    await outage(external, broker)
    await external.desk.station.fingers.press("h")
    await external.desk.until(sid, CallStatus.CLOSED)
    await broker.start()
    await until_ended(external, sid)
    assert await external.state_of(sid) == "Quit"
    await external.must_have_kept_everything()


async def test_cancel_while_the_broker_is_away_reaches_the_device_afterwards(
    external: Scene, broker: Mosquitto
) -> None:
    sid = await external.invite()
    await external.desk.until(sid, CallStatus.PENDING)
    await outage(external, broker)
    await external.operate(sid, "cancel")
    assert not external.desk.is_silent()
    await broker.start()
    await external.desk.until(sid, CallStatus.CLOSED)
    assert external.desk.is_silent()
    assert await external.state_of(sid) == "Canceled"
    await external.must_have_kept_everything()


async def test_invite_made_while_the_broker_is_away_is_kept_and_rings_once_afterwards(
    external: Scene, broker: Mosquitto
) -> None:
    await outage(external, broker)
    sid = await external.invite()
    assert await external.state_of(sid) == "Inviting"
    await broker.start()
    await external.all_connected()
    await external.answer_and_hang_up(sid)
    assert external.desk.rings(sid) == 1
    await external.must_have_kept_everything()


async def test_call_that_runs_out_while_the_broker_is_away_falls_silent_by_itself(
    external: Scene, broker: Mosquitto
) -> None:
    sid = await external.invite(timeout_s=2)
    await external.desk.until(sid, CallStatus.PENDING)
    await outage(external, broker)
    await external.desk.until(sid, CallStatus.CLOSED)
    assert external.desk.is_silent()
    await until_ended(external, sid)
    assert await external.state_of(sid) == "Timeout"
    await broker.start()
    await external.all_connected()
    assert external.desk.rings(sid) == 1
    await external.must_have_kept_everything()


async def test_relay_says_that_it_is_not_ready_while_the_broker_is_away(
    external: Scene, broker: Mosquitto
) -> None:
    assert (await external.ask("GET", "/readyz")).status_code == 200
    await outage(external, broker)
    answer = await until_ready_is(external, ready=False)
    assert answer.status_code == 503
    assert "broker" in answer.json()["detail"]
    await broker.start()
    await until_ready_is(external, ready=True)


async def until_ended(stage: Scene, sid: str) -> None:
    async with asyncio.timeout(2 * PATIENCE_S):
        while (await stage.show(sid))["state"] != "ended":  # noqa: ASYNC110 - HTTP tells no event
            await asyncio.sleep(0.02)


async def until_ready_is(stage: Scene, *, ready: bool) -> httpx.Response:
    async with asyncio.timeout(2 * PATIENCE_S):
        while (answer := await stage.ask("GET", "/readyz")).is_success is not ready:  # noqa: ASYNC110 - HTTP tells no event
            await asyncio.sleep(0.02)
        return answer


async def test_clients_try_again_ever_more_rarely_while_the_broker_is_away(
    external: Scene, broker: Mosquitto
) -> None:
    await outage(external, broker)
    loop = asyncio.get_running_loop()
    tried: defaultdict[bytes, list[float]] = defaultdict(list)
    most_eager = loop.create_future()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):  # also where the test ends before this client has spoken
            its = tried[
                await reader.read(1024)
            ]  # a client says the same each time, and no other does
            its.append(loop.time())
            writer.write(CONNACK_SERVER_UNAVAILABLE)
            await writer.drain()
        if len(its) == 5 and not most_eager.done():
            most_eager.set_result(its)

    address = broker.address
    async with await asyncio.start_server(refuse, address.host, address.port):
        its = await asyncio.wait_for(most_eager, 2 * PATIENCE_S)
    # Without backoff five attempts take some milliseconds.
    assert its[-1] - its[0] > 0.1
    assert len(tried) >= 3, "the agent, the relay and the test"


async def test_broker_that_forgot_everything_but_its_accounts_still_rings_the_desk(
    external: Scene, broker: Mosquitto
) -> None:
    await outage(external, broker)
    (broker.folder / "mosquitto.db").unlink(missing_ok=True)
    await broker.start()
    await external.all_connected()
    sid = await external.invite()
    await external.answer_and_hang_up(sid)
    heard = [event for event in external.desk.heard.noted if isinstance(event, CallReceived)]
    assert [event.call_sid for event in heard] == [sid]
    await external.must_have_kept_everything()
