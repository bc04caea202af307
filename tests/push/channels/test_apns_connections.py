"""Connections to APNs: warm before they are needed, spread, replaced when they die; and whatever the
server does, each push ends, none is lost, and none goes out too late."""

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hyperframe.frame import HeadersFrame

from bellwire.push.channels.apns.channel import ApnsChannel
from bellwire.push.channels.apns.connection import KeepAlive
from bellwire.push.channels.channel import DeliveryFailed
from tests.push.apns_scene import BUNDLE, Apns, at_work, delivery, send_all
from tests.push.apns_server import Authority, Pushed, Reply, apns_server

BRISK = KeepAlive(idle_s=0.05, suspect_s=0.05, answer_s=1.0, look_every_s=0.01)
NEVER = KeepAlive(idle_s=600, suspect_s=600, answer_s=600, look_every_s=600)


@pytest.fixture
async def apns(tmp_path: Path) -> AsyncIterator[Apns]:
    authority = Authority(tmp_path)
    async with apns_server(authority) as server:
        yield Apns(server, authority, tmp_path)


def four(apns: Apns) -> dict[str, Any]:
    return {BUNDLE: apns.app(connections=4)}


async def test_all_connections_are_open_before_the_first_push_and_share_the_pushes(
    apns: Apns,
) -> None:
    async with apns.running(four(apns), warm=4) as channel:
        for number in range(40):
            await channel.send(delivery(f"one-{number}"), 30)
        await send_all(channel, 160)
        assert apns.server.opened == 4
        spread = Counter(id(push.connection) for push in apns.server.pushes)
    assert sum(spread.values()) == 200
    assert all(40 <= pushes <= 60 for pushes in spread.values()), spread


async def test_all_connections_of_a_key_show_the_same_token(apns: Apns) -> None:
    apps = {BUNDLE: apns.app(connections=2), "com.example.other": apns.app(connections=2)}
    async with apns.running(apps, warm=4) as channel:
        for number in range(4):
            await channel.send(delivery(f"a{number}"), 30)
            await channel.send(delivery(f"b{number}", app="com.example.other"), 30)
    assert len({push.connection for push in apns.server.pushes}) == 4
    assert len({push.header("authorization") for push in apns.server.pushes}) == 1


async def test_idle_connections_are_kept_by_pings_and_cost_no_handshake(apns: Apns) -> None:
    async with apns.running(keep=BRISK) as channel:
        await channel.send(delivery(), 30)
        (connection,) = apns.server.connections
        await apns.server.until(lambda: connection.pings >= 3)
        await channel.send(delivery("event-2"), 30)
        assert apns.server.opened == 1


async def test_a_connection_that_answers_no_ping_is_replaced_before_a_push_needs_it(
    apns: Apns,
) -> None:
    async with apns.running(keep=BRISK) as channel:
        (dead,) = apns.server.connections
        dead.deaf = True
        await apns.server.until(lambda: apns.server.opened == 2)
        await channel.send(delivery(), 30)
        assert apns.server.pushes[0].connection is not dead


async def test_a_push_on_a_dead_connection_fails_long_before_its_attempt_ends(apns: Apns) -> None:
    keep = KeepAlive(idle_s=600, suspect_s=0.05, answer_s=0.5, look_every_s=0.01)
    async with apns.running(keep=keep) as channel:
        apns.server.connections[0].deaf = True
        with pytest.raises(DeliveryFailed, match="lost: no answer to a PING"):
            await channel.send(delivery(), 30)
        await channel.send(delivery(), 30)
        assert len(apns.server.pushes) == 1


async def test_a_lost_connection_fails_what_was_in_flight_and_is_replaced(apns: Apns) -> None:
    apns.server.answer = lambda _: None
    async with apns.running() as channel:
        sending = [asyncio.create_task(channel.send(delivery(f"e{n}"), 30)) for n in range(5)]
        await apns.server.until(lambda: len(apns.server.pushes) == 5)
        apns.server.answer = lambda _: Reply()
        apns.server.connections[0].drop()
        outcomes = await asyncio.gather(*sending, return_exceptions=True)
        assert all(isinstance(outcome, DeliveryFailed) for outcome in outcomes)
        await channel.send(delivery(), 30)
        assert apns.server.opened == 2


async def test_a_push_waits_for_the_connection_and_goes_when_it_comes(apns: Apns) -> None:
    async with apns_server(apns.authority) as other:
        free = other.port
    channel = apns.channel({BUNDLE: apns.app(server=f"127.0.0.1:{free}")})
    async with at_work(channel):
        sending = asyncio.create_task(channel.send(delivery(), 30))
        await asyncio.sleep(0)
        async with apns_server(apns.authority, port=free) as late:
            await sending
            assert len(late.pushes) == 1


async def test_without_a_connection_a_push_fails_in_time_and_is_never_sent_later(
    apns: Apns,
) -> None:
    async with apns_server(apns.authority) as other:
        free = other.port
    channel = apns.channel({BUNDLE: apns.app(server=f"127.0.0.1:{free}")})
    async with at_work(channel):
        with pytest.raises(DeliveryFailed, match="too late to send"):
            await channel.send(delivery("late"), 0.2)
        async with apns_server(apns.authority, port=free) as late:
            await channel.send(delivery("in time"), 30)
            assert len(late.pushes) == 1


async def test_a_stalled_stream_ends_in_time_and_stops_no_other(apns: Apns) -> None:
    apns.server.answer = lambda _: None
    async with apns.running(keep=NEVER) as channel:
        stalled = asyncio.create_task(channel.send(delivery("stalled"), 1.5))
        await apns.server.until(lambda: len(apns.server.pushes) == 1)
        apns.server.answer = lambda _: Reply()
        await send_all(channel, 20)
        assert not stalled.done()
        with pytest.raises(DeliveryFailed, match=r"did not answer within 1\.\d s"):
            await stalled
        (connection,) = apns.server.connections
        await apns.server.until(lambda: connection.resets == [1])
        await channel.send(delivery("after"), 30)
        assert apns.server.opened == 1


async def test_an_answer_too_late_harms_nothing(apns: Apns) -> None:
    apns.server.answer = lambda _: None
    async with apns.running(keep=NEVER) as channel:
        connection = apns.server.connections[0]
        # Answered by hand once given up: in the frames that were on their way already.
        with pytest.raises(DeliveryFailed):
            await channel.send(delivery("late"), 0.05)
        headers = connection.h2.encoder.encode([(":status", "200"), ("apns-id", "x" * 36)])
        frame = HeadersFrame(1, headers)
        frame.flags |= {"END_HEADERS", "END_STREAM"}
        connection.transport.write(frame.serialize())
        apns.server.answer = lambda _: Reply()
        await send_all(channel, 10)
        assert apns.server.opened == 1


async def test_a_cancelled_push_harms_nothing(apns: Apns) -> None:
    apns.server.answer = lambda _: None
    async with apns.running(keep=NEVER) as channel:
        sending = asyncio.create_task(channel.send(delivery("cancelled"), 30))
        await apns.server.until(lambda: len(apns.server.pushes) == 1)
        sending.cancel()
        await asyncio.wait([sending])
        apns.server.pushes[0].reply(Reply())
        apns.server.answer = lambda _: Reply()
        await send_all(channel, 10)
        assert apns.server.opened == 1


async def test_a_connection_that_answers_nothing_any_more_is_replaced(apns: Apns) -> None:
    apns.server.answer = lambda push: None if push.connection is stuck else Reply()
    async with apns.running(keep=NEVER) as channel:
        (stuck,) = apns.server.connections
        for _ in range(3):
            with pytest.raises(DeliveryFailed):
                await channel.send(delivery(), 0.05)
        await channel.send(delivery(), 30)
        assert apns.server.opened == 2


async def test_a_slow_server_gets_its_time(apns: Apns) -> None:
    def answer_later(push: Pushed) -> None:
        asyncio.get_running_loop().call_later(0.4, push.reply, Reply())

    apns.server.answer = answer_later
    async with apns.running(keep=BRISK) as channel:
        assert len(set(await send_all(channel, 30))) == 30
        assert apns.server.opened == 1


async def test_a_server_without_http2_is_no_connection(apns: Apns) -> None:
    async with apns_server(apns.authority, protocols=("http/1.1",)) as old:
        app = apns.app(server=f"127.0.0.1:{old.port}")
        async with at_work(channel := apns.channel({BUNDLE: app})):
            with pytest.raises(DeliveryFailed, match="does not speak HTTP/2"):
                await channel.send(delivery(), 0.8)


async def test_connections_close_in_order_when_the_relay_stops(apns: Apns) -> None:
    apns.server.answer = lambda _: None
    channel = apns.channel()
    async with at_work(channel):
        sending = asyncio.create_task(channel.send(delivery(), 30))
        await apns.server.until(lambda: len(apns.server.pushes) == 1)
    with pytest.raises(DeliveryFailed):
        await sending
    with pytest.raises(DeliveryFailed, match="stopping"):
        await channel.send(delivery(), 30)
    await apns.server.until(lambda: not apns.server.connections)


async def test_nothing_grows_with_the_pushes(apns: Apns) -> None:
    async with apns.running() as channel:
        await send_all(channel, 200)
        apns.server.pushes.clear()
        apns.server.connections[0].pushes.clear()
        before = _held(channel)
        for round_ in range(5):
            for number in range(200):
                await channel.send(delivery(f"{round_}-{number}"), 30)
        after = _held(channel)
    assert after == before


def _held(channel: ApnsChannel) -> int:
    """How many values the channel and all that it refers to hold in collections."""
    gc.collect()
    seen: set[int] = set()
    held = 0
    reached: list[Any] = [channel]
    while reached:
        value = reached.pop()
        if id(value) in seen or isinstance(value, type | str | bytes):
            continue
        seen.add(id(value))
        name = type(value).__module__
        if isinstance(value, dict):
            held += len(value)
            reached += value.values()
        elif isinstance(value, list | tuple | set) or type(value).__name__ == "deque":
            held += len(value)
            reached += value
        elif name.startswith(("bellwire.push", "aioapns", "hpack")):
            slots = [s for k in type(value).__mro__ for s in getattr(k, "__slots__", ())]
            reached += [getattr(value, s, None) for s in slots]
            reached += vars(value).values() if hasattr(value, "__dict__") else []
    return held
