"""Connections to FCM that break, stall and fill up: nothing hangs, nothing is lost, nothing is sent
after its deadline, and the next push goes through."""

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from bellwire.push.channels.channel import ATTEMPT_S, DeliveryFailed
from bellwire.push.channels.fcm.channel import FcmChannel
from bellwire.push.delivery.outbox import LEASE_S
from tests.conftest import PATIENCE_S
from tests.push.fcm_parts import APP, app_at, google_in, running_channel, to
from tests.push.fcm_server import FcmServer, Push

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def another(tmp_path: Path) -> AsyncIterator[FcmServer]:
    async with google_in(tmp_path) as serving:
        yield serving


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def one(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[FcmServer, FcmChannel]]:
    """One server and one channel for all: what one test has broken, the next must not notice."""
    async with (
        google_in(tmp_path_factory.mktemp("google")) as google,
        running_channel(google) as channel,
    ):
        yield google, channel


@pytest_asyncio.fixture(loop_scope="module")
async def google(one: tuple[FcmServer, FcmChannel]) -> FcmServer:
    google, channel = one
    google.hold, google.max_streams = False, 100
    answer: object = ""
    while isinstance(answer, str):  # until the channel has noticed that it has no connection
        for connection in google.connections:
            connection.drop()
            await connection.closed.wait()
        google.connections.clear()
        (answer,) = await asyncio.gather(channel.send(to("before"), 30), return_exceptions=True)
    google.pushes = asyncio.Queue()
    google.count = 0
    return google


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt may take as long as a busy machine needs; a test of its end says how long itself."""
    monkeypatch.setattr("bellwire.push.channels.fcm.channel.ATTEMPT_S", PATIENCE_S)


@pytest.fixture
def channel(one: tuple[FcmServer, FcmChannel]) -> FcmChannel:
    return one[1]


def sending(channel: FcmChannel, number: int, left_s: float = 30) -> list[asyncio.Task[str]]:
    """Pushes on their way."""
    return [asyncio.create_task(channel.send(to(f"phone-{n}"), left_s)) for n in range(number)]


async def arrived(google: FcmServer, number: int) -> list[Push]:
    """So many pushes, held by the server."""
    return [await google.next_push() for _ in range(number)]


async def held(
    google: FcmServer, channel: FcmChannel, number: int
) -> tuple[list[asyncio.Task[str]], list[Push]]:
    """So many pushes under way, which the server has and does not answer."""
    google.hold = True
    under_way = sending(channel, number)
    return under_way, await arrived(google, number)


async def goes_through(google: FcmServer, channel: FcmChannel) -> None:
    """A further push is delivered at the first attempt."""
    google.hold = False
    assert await channel.send(to("after"), 30)


async def test_pushes_share_one_connection(google: FcmServer, channel: FcmChannel) -> None:
    await asyncio.gather(*sending(channel, 50))
    await goes_through(google, channel)
    assert (google.count, len(google.connections)) == (51, 1)


async def test_goaway_in_mid_flight_fails_what_was_taken_and_the_next_push_goes_through(
    google: FcmServer, channel: FcmChannel
) -> None:
    under_way, pushes = await held(google, channel, 3)
    pushes[0].connection.go_away()
    for answer in await asyncio.gather(*under_way, return_exceptions=True):
        assert type(answer) is DeliveryFailed
    await goes_through(google, channel)
    assert (google.count, len(google.connections)) == (4, 2)


async def test_what_goaway_says_was_not_taken_is_sent_again_at_once(
    google: FcmServer, channel: FcmChannel
) -> None:
    under_way, pushes = await held(google, channel, 3)
    google.hold = False
    taken = pushes[0]
    taken.connection.go_away(last_stream_id=taken.stream_id)
    answers = await asyncio.gather(*under_way, return_exceptions=True)
    assert [type(answer) for answer in answers] == [DeliveryFailed, str, str]
    again = [push.message["token"] for push in await arrived(google, 2)]
    assert sorted(again) == ["phone-1", "phone-2"]


async def test_reset_stream_fails_one_push_alone(google: FcmServer, channel: FcmChannel) -> None:
    under_way, pushes = await held(google, channel, 3)
    pushes[1].reset()
    with pytest.raises(DeliveryFailed, match="FCM unreachable: RemoteProtocolError"):
        await under_way[1]
    pushes[0].answer()
    pushes[2].answer()
    assert await under_way[0]
    assert await under_way[2]
    await goes_through(google, channel)


async def test_stalled_stream_ends_at_the_deadline_and_delays_no_other(
    google: FcmServer, channel: FcmChannel
) -> None:
    google.hold = True
    (stalled,) = sending(channel, 1, left_s=1.5)
    (push,) = await arrived(google, 1)
    await goes_through(google, channel)
    assert not stalled.done()
    with pytest.raises(DeliveryFailed, match=r"did not answer within 1\.5 s"):
        await stalled
    push.answer()  # too late: nobody is there to take it, and nothing breaks
    await goes_through(google, channel)


async def test_no_attempt_outlives_its_lease(
    google: FcmServer, channel: FcmChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ATTEMPT_S < LEASE_S
    monkeypatch.setattr("bellwire.push.channels.fcm.channel.ATTEMPT_S", 0.3)
    google.hold = True
    with pytest.raises(DeliveryFailed, match=r"did not answer within 0\.3 s"):
        await channel.send(to(), 600)


@pytest.mark.parametrize("allowed", [1, 100])
async def test_streams_that_are_given_up_never_use_up_what_the_server_allows(
    google: FcmServer, channel: FcmChannel, allowed: int
) -> None:
    google.max_streams = allowed
    for _ in range(2):
        google.hold = True
        under_way = sending(channel, allowed)
        await arrived(google, allowed)
        for task in under_way:
            task.cancel()
        for answer in await asyncio.gather(*under_way, return_exceptions=True):
            assert type(answer) is asyncio.CancelledError
        await goes_through(google, channel)
        await arrived(google, 1)


async def test_connection_lost_in_mid_flight_fails_its_pushes_at_once(
    google: FcmServer, channel: FcmChannel
) -> None:
    under_way, pushes = await held(google, channel, 3)
    pushes[0].connection.drop()
    for answer in await asyncio.gather(*under_way, return_exceptions=True):
        assert type(answer) is DeliveryFailed
    await goes_through(google, channel)


async def test_connection_lost_while_idle_costs_at_most_one_attempt(
    google: FcmServer, channel: FcmChannel
) -> None:
    await channel.send(to(), 30)
    google.connections[0].drop()
    await google.connections[0].closed.wait()
    (first,) = await asyncio.gather(channel.send(to(), 30), return_exceptions=True)
    assert isinstance(first, str | DeliveryFailed)
    await goes_through(google, channel)


async def test_server_that_allows_one_stream_gets_one_at_a_time(
    google: FcmServer, channel: FcmChannel
) -> None:
    google.max_streams, google.hold = 1, True
    under_way = sending(channel, 10)
    for _ in range(10):
        push = await google.next_push()
        assert google.pushes.empty()
        push.answer()
    assert all(await asyncio.gather(*under_way))
    assert len(google.connections) == 1


async def test_server_that_allows_a_thousand_streams_gets_a_hundred_at_a_time(
    google: FcmServer, channel: FcmChannel
) -> None:
    google.max_streams, google.hold = 1000, True
    under_way = sending(channel, 150)
    pushes = await arrived(google, 100)
    assert google.pushes.empty()
    google.hold = False
    for push in pushes:
        push.answer()
    assert all(await asyncio.gather(*under_way))


async def test_push_that_waits_for_its_turn_is_not_sent_after_its_deadline(
    google: FcmServer, channel: FcmChannel
) -> None:
    google.max_streams, google.hold = 1, True
    first = asyncio.create_task(channel.send(to("first"), 30))
    (held,) = await arrived(google, 1)
    with pytest.raises(DeliveryFailed):
        await channel.send(to("too late"), 0.2)
    cancelled = asyncio.create_task(channel.send(to("cancelled"), 30))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    held.answer()
    assert await first
    await goes_through(google, channel)
    assert [push.message["token"] for push in await arrived(google, 1)] == ["after"]
    assert google.count == 2


async def test_one_app_that_hangs_delays_no_other(google: FcmServer, another: FcmServer) -> None:
    google.hold = True
    apps = {APP: app_at(google), "b": app_at(another)}
    async with running_channel(apps=apps) as channel:
        under_way = sending(channel, 150, left_s=20)
        await arrived(google, 100)
        for _ in range(3):
            assert await channel.send(to(app="b"), 30)
        assert not any(task.done() for task in under_way)
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


async def test_channel_ends_while_pushes_are_under_way(google: FcmServer) -> None:
    google.hold = True
    async with running_channel(google) as channel:
        under_way = sending(channel, 3)
        await arrived(google, 3)
    for task in under_way:
        task.cancel()
    answers = await asyncio.gather(*under_way, return_exceptions=True)
    assert all(isinstance(a, DeliveryFailed | asyncio.CancelledError) for a in answers)
    await asyncio.wait_for(google.connections[0].closed.wait(), 10)
    with pytest.raises(DeliveryFailed):
        await channel.send(to(), 30)
    assert google.count == 3


async def test_server_that_nobody_serves_or_that_is_not_trusted_fails_the_push(
    google: FcmServer,
) -> None:
    apps = {APP: app_at(google, server="https://127.0.0.1:1")}
    async with running_channel(apps=apps) as channel:
        for _ in range(2):
            with pytest.raises(DeliveryFailed, match="FCM unreachable: ConnectError"):
                await channel.send(to(), 30)
    async with running_channel(apps={APP: app_at(google, ca_file=None)}) as channel:
        with pytest.raises(DeliveryFailed):
            await channel.send(to(), 30)
    assert google.count == 0


async def test_nothing_grows_with_the_number_of_pushes(
    google: FcmServer, channel: FcmChannel
) -> None:
    async def alive_after(number: int) -> int:
        for _ in range(number // 50):
            await asyncio.gather(*sending(channel, 50))
            while not google.pushes.empty():
                google.pushes.get_nowait()
        gc.collect()
        return len(gc.get_objects())

    before = await alive_after(200)
    after = await alive_after(600)
    assert after - before < 60  # a tenth of an object for each push
