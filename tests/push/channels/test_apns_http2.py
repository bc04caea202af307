"""HTTP/2 to APNs: what the server allows is kept to, what it takes back is sent again, and what it
breaks costs a connection at most."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from h2.settings import SettingCodes
from hyperframe.frame import ContinuationFrame, HeadersFrame

from bellwire.push.channels.apns.connection import KeepAlive
from bellwire.push.channels.channel import DeliveryFailed
from tests.push.apns_scene import BODY, BUNDLE, Apns, delivery, send_all
from tests.push.apns_server import Authority, Pushed, Reply, apns_server

MAX_STREAMS, WINDOW, TABLE = (
    SettingCodes.MAX_CONCURRENT_STREAMS,
    SettingCodes.INITIAL_WINDOW_SIZE,
    SettingCodes.HEADER_TABLE_SIZE,
)
NEVER = KeepAlive(idle_s=600, suspect_s=600, answer_s=600, look_every_s=600)


@pytest.fixture
async def apns(tmp_path: Path) -> AsyncIterator[Apns]:
    authority = Authority(tmp_path)
    async with apns_server(authority) as server:
        yield Apns(server, authority, tmp_path)


async def test_goaway_in_mid_flight_loses_nothing_and_sends_nothing_twice_that_was_taken(
    apns: Apns,
) -> None:
    apns.server.answer = lambda _: None
    async with apns.running(keep=NEVER) as channel:
        sending = asyncio.create_task(send_all(channel, 20))
        await apns.server.until(lambda: len(apns.server.pushes) == 20)
        (first,) = apns.server.connections
        taken = list(apns.server.pushes)
        last = taken[11].stream_id
        apns.server.answer = lambda _: Reply()
        first.goaway(last, "Shutdown")
        await apns.server.until(lambda: len(apns.server.pushes) == 28)
        for push in taken[:12]:  # The connection ends with the last of them, not before.
            push.reply(Reply())
        await sending
        again = apns.server.pushes[20:]
        assert {push.connection for push in again}.isdisjoint({first})
        assert [push.header("apns-id") for push in again] == [
            push.header("apns-id") for push in taken[12:]
        ]
        await apns.server.until(lambda: first not in apns.server.connections)
        await channel.send(delivery("after"), 30)
        assert (apns.server.opened, len(apns.server.pushes)) == (2, 29)


async def test_a_server_that_announces_its_end_and_then_names_the_last_stream_is_understood(
    apns: Apns,
) -> None:
    apns.server.answer = lambda _: None
    async with apns.running(keep=NEVER) as channel:
        sending = asyncio.create_task(send_all(channel, 4))
        await apns.server.until(lambda: len(apns.server.pushes) == 4)
        (first,) = apns.server.connections
        taken = list(apns.server.pushes)
        apns.server.answer = lambda _: Reply()
        first.goaway(2**31 - 1)
        await apns.server.until(lambda: apns.server.opened == 2)
        await channel.send(delivery("new"), 30)
        assert apns.server.pushes[4].connection is not first
        first.goaway(taken[1].stream_id)
        taken[0].reply(Reply())
        taken[1].reply(Reply())
        await sending
        assert len(apns.server.pushes) == 7


async def test_a_refused_stream_is_sent_again_but_not_for_ever(apns: Apns) -> None:
    refused: list[Pushed] = []

    def refuse(push: Pushed) -> None:
        refused.append(push)
        push.connection.reset(push, 7)

    apns.server.answer = lambda push: refuse(push) if len(refused) < 2 else Reply()
    async with apns.running() as channel:
        await channel.send(delivery(), 30)
        assert len({push.header("apns-id") for push in apns.server.pushes}) == 1
        apns.server.answer = refuse
        with pytest.raises(DeliveryFailed, match="RST_STREAM 7"):
            await channel.send(delivery(), 30)


async def test_a_reset_stream_fails_at_once(apns: Apns) -> None:
    apns.server.answer = lambda push: push.connection.reset(push, 2)
    async with apns.running() as channel:
        with pytest.raises(DeliveryFailed, match="RST_STREAM 2"):
            await channel.send(delivery(), 30)


async def test_streams_stay_within_one_and_then_within_a_thousand(apns: Apns) -> None:
    most = 0
    waiting: list[Pushed] = []

    def note(push: Pushed) -> None:
        nonlocal most
        waiting.append(push)
        most = max(most, len(waiting))

    apns.server.settings[MAX_STREAMS] = 1
    apns.server.answer = note
    async with apns.running(keep=NEVER) as channel:
        sending = asyncio.create_task(send_all(channel, 300))
        for _ in range(3):
            await apns.server.until(lambda: bool(waiting))
            waiting.pop().reply(Reply())
        assert most == 1
        apns.server.connections[0].change({MAX_STREAMS: 1000})
        await apns.server.until(lambda: len(waiting) == 297)
        for push in waiting:
            push.reply(Reply())
        await sending
        assert apns.server.opened == 1


async def test_a_window_that_becomes_full_holds_pushes_back_whole(apns: Apns) -> None:
    apns.server.credits_at_once = False
    apns.server.answer = lambda _: None
    body = BODY[:-1] + ',"fill":"' + "x" * 1300 + '"}'
    fit = 65_535 // len(body.encode())
    async with apns.running(keep=NEVER) as channel:
        async with asyncio.TaskGroup() as tasks:
            for number in range(200):
                tasks.create_task(channel.send(delivery(f"e{number}", payload=body), 30))
            done = 0
            while done < 200:
                seen = done
                await apns.server.until(lambda n=seen: len(apns.server.pushes) > n)  # type: ignore[misc]
                await asyncio.sleep(0)
                assert len(apns.server.pushes) - done <= fit
                begun = apns.server.connections[0].h2.open_inbound_streams
                assert begun == len(apns.server.pushes) - done  # None waits half sent.
                for push in apns.server.pushes[done:]:
                    push.reply(Reply())
                    done += 1
        assert {push.body for push in apns.server.pushes} == {body.encode()}
        assert (len(apns.server.pushes), apns.server.opened) == (200, 1)


async def test_a_stream_window_smaller_than_a_push_is_filled_as_it_grows(apns: Apns) -> None:
    apns.server.settings[WINDOW] = 10
    apns.server.credits_streams = True
    async with apns.running() as channel:
        await send_all(channel, 200)
        assert {push.body for push in apns.server.pushes} == {BODY.encode()}
        (connection,) = apns.server.connections
        connection.change({WINDOW: 0})
        await apns.server.until(lambda: connection.h2.local_settings.initial_window_size == 0)
        stuck = asyncio.create_task(channel.send(delivery("stuck"), 30))
        await apns.server.until(lambda: connection.h2.open_inbound_streams == 1)
        connection.change({WINDOW: 65_535})
        await stuck
        assert apns.server.opened == 1


@pytest.mark.parametrize("size", [0, 100, 4096, 65_536])
async def test_headers_are_read_whatever_table_the_server_keeps(apns: Apns, size: int) -> None:
    apns.server.settings[TABLE] = size
    async with apns.running() as channel:
        await send_all(channel, 3)
        (connection,) = apns.server.connections
        kept = connection.h2.local_settings
        for changed in (0, 4096):
            connection.change({TABLE: changed})
            await apns.server.until(lambda n=changed: kept.header_table_size == n)  # type: ignore[misc]
            await send_all(channel, 3)
    assert {push.header("apns-topic") for push in apns.server.pushes} == {f"{BUNDLE}.voip"}
    assert len(apns.server.pushes) == 9


async def test_headers_in_several_frames_and_padding_are_read(apns: Apns) -> None:
    def answer(push: Pushed) -> None:
        h2 = push.connection.h2
        block = h2.encoder.encode([(":status", "429"), ("retry-after", "3"), ("x", "y" * 100)])
        first = HeadersFrame(push.stream_id, block[:5], pad_length=7)
        first.flags |= {"PADDED", "END_STREAM"}
        rest = ContinuationFrame(push.stream_id, block[5:])
        rest.flags.add("END_HEADERS")
        push.connection.transport.write(first.serialize() + rest.serialize())

    apns.server.answer = answer
    async with apns.running() as channel:
        with pytest.raises(DeliveryFailed, match="429") as e:
            await channel.send(delivery(), 30)
        assert e.value.retry_after_s == 3


@pytest.mark.parametrize(
    "nonsense",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\xff" * 64,
        b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00",  # A window that grows by nothing.
        b"\x00\x00\x01\x01\x04\x00\x00\x00\x01\xff",  # Headers that cannot be read.
        b"\x00\x00\x02\x03\x00\x00\x00\x00\x01ab",  # A RST_STREAM too short.
        b"\x00\x00\x00\x09\x04\x00\x00\x00\x01",  # CONTINUATION of nothing.
        b"\x00\x00\x01\x01\x04\x00\x00\x00\x63\x88",  # An answer on a stream never opened.
    ],
)
async def test_a_server_that_breaks_http2_costs_its_connection_and_no_more(
    apns: Apns, nonsense: bytes
) -> None:
    apns.server.answer = lambda push: push.connection.transport.write(nonsense)
    async with apns.running() as channel:
        with pytest.raises(DeliveryFailed, match="lost"):
            await channel.send(delivery(), 30)
        apns.server.answer = lambda _: Reply()
        await channel.send(delivery(), 30)
        assert apns.server.opened == 2
