"""A session that publishes over a connection of its own: on a real broker, and on rough ones."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest

from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.connection import BrokerConnection, let_in
from bellwire.broker.session.publishing import PublishingSession
from bellwire.broker.session.session import (
    Farewell,
    NobodyListens,
    NotAuthorized,
    NotConnected,
    PublishRefused,
    Session,
)
from tests.broker.rough import RoughBroker, whole_packets
from tests.broker.running import Inbox, RunningBroker, held, raw_client, soon
from tests.conftest import PATIENCE_S

TOPIC = "bellwire/v1/test"
LET_IN = b"\x20\x03\0\0\0"


def session(address: BrokerAddress, name: str) -> PublishingSession:
    return PublishingSession(address, name, response_topic=f"{TOPIC}/{name}/answers", sleep=soon)


@asynccontextmanager
async def heard(address: BrokerAddress, topic: str) -> AsyncIterator[Inbox]:
    inbox = Inbox()
    listener = Session(address, f"hears {topic}", sleep=soon)
    listener.subscribe(topic, inbox.take)
    async with held(listener):
        yield inbox


async def test_what_is_published_arrives_whole_whatever_its_length(broker: RunningBroker) -> None:
    topic = f"{TOPIC}/läuten"
    async with heard(broker.address, topic) as inbox, held(session(broker.address, "l")) as here:
        for length in (0, 1, 127, 128, 16_383, 16_384, 80_000):
            await here.publish(topic, b"x" * length, expires_in_s=9.2, correlation=b"\0\1")
            came = await inbox.next()
            assert came.payload == b"x" * length
            assert came.topic == topic
            assert came.correlation == b"\0\1"
            assert came.expires_in_s in (9, 10)
            assert not came.retained


async def test_more_at_once_than_the_broker_wants_all_arrive_once_and_in_order(
    broker: RunningBroker,
) -> None:
    numbers = [b"%d" % number for number in range(2000)]
    async with heard(broker.address, TOPIC) as inbox, held(session(broker.address, "m")) as here:
        async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
            for number in numbers:
                tasks.create_task(here.publish(TOPIC, number))
        assert await inbox.until(numbers[-1]) == numbers


async def test_who_publishes_learns_that_nobody_listens_and_what_is_refused(
    broker: RunningBroker,
) -> None:
    async with held(session(broker.address, "learns")) as here:
        await here.publish(f"{TOPIC}/void", b"x")
        with pytest.raises(NobodyListens, match=f"nobody listens on {TOPIC}/void"):
            await here.publish(f"{TOPIC}/void", b"x", to_somebody=True)
        with pytest.raises(PublishRefused, match="refuses a message on elsewhere: Not authorized"):
            await here.publish("elsewhere", b"x")


async def test_it_keeps_asks_and_says_farewell_as_any_session(broker: RunningBroker) -> None:
    questions = Inbox()
    there = session(broker.address, "answers")
    there.subscribe(f"{TOPIC}/ask", questions.take)
    farewell = Farewell(f"{TOPIC}/kept", b"gone")
    here = PublishingSession(
        broker.address, "asks", farewell=farewell, response_topic=f"{TOPIC}/re", sleep=soon
    )
    async with held(there):
        async with held(here):
            asking = asyncio.create_task(here.request(f"{TOPIC}/ask", b"?", timeout_s=PATIENCE_S))
            question = await questions.next()
            assert question.response_topic is not None
            await there.publish(question.response_topic, b"!", correlation=question.correlation)
            assert await asking == b"!"
            await here.publish(farewell.topic, b"here", retain=True)
        async with heard(broker.address, farewell.topic) as inbox:
            kept = await inbox.next()
    assert (kept.payload, kept.retained) == (b"gone", True)


async def test_what_was_on_its_way_when_the_broker_died_is_reported_unsent(
    broker: RunningBroker,
) -> None:
    here = session(broker.address, "interrupted")
    async with held(here):
        broker.send(signal.SIGSTOP)
        publishing = [asyncio.create_task(here.publish(TOPIC, b"x")) for _ in range(100)]
        await asyncio.sleep(0)
        await broker.kill()
        async with asyncio.timeout(PATIENCE_S):
            results = await asyncio.gather(*publishing, return_exceptions=True)
        assert [type(result) for result in results] == [NotConnected] * 100
        with pytest.raises(NotConnected):
            await here.publish(TOPIC, b"x")
        await broker.start()
        await asyncio.wait_for(here.wait_connected(), PATIENCE_S)
        await here.publish(TOPIC, b"x")


async def test_where_only_the_connection_that_publishes_is_lost_both_begin_anew(
    broker: RunningBroker,
) -> None:
    here = session(broker.address, "taken")
    losses = asyncio.Event()
    here.on_disconnected(losses.set)
    async with held(here):
        # The broker ends a connection whose name another takes (MQTT 5, 3.1.4).
        async with raw_client(broker.address, client_id="taken-out"):
            await asyncio.wait_for(losses.wait(), PATIENCE_S)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                await here.wait_connected()
                with suppress(NotConnected):  # the two may take the name from each other once more
                    await here.publish(TOPIC, b"x")
                    break


async def test_a_session_with_a_wrong_password_ends_and_says_so(broker: RunningBroker) -> None:
    wrong = replace(broker.address, password="wrong")
    with pytest.raises(NotAuthorized, match="refuses the credentials of"):
        await asyncio.wait_for(session(wrong, "guesses").run(), PATIENCE_S)


async def test_a_publish_that_is_given_up_leaves_the_others_alone(broker: RunningBroker) -> None:
    async with heard(broker.address, TOPIC) as inbox, held(session(broker.address, "g")) as here:
        broker.send(signal.SIGSTOP)
        publishing = [asyncio.create_task(here.publish(TOPIC, b"%d" % n)) for n in range(50)]
        await asyncio.sleep(0)
        for task in publishing[::2]:
            task.cancel()
        broker.send(signal.SIGCONT)
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*publishing, return_exceptions=True)
        came = await inbox.until(b"49")
    assert set(came) >= {b"%d" % n for n in range(1, 50, 2)}
    assert all(task.cancelled() for task in publishing[::2])


async def lost(connection: BrokerConnection) -> str:
    """Why a connection is lost, once it is."""
    return await asyncio.wait_for(asyncio.shield(connection.lost), PATIENCE_S)


async def test_not_more_is_on_its_way_than_the_broker_wants() -> None:
    rough = RoughBroker(b"\x20\x06\0\0\x03\x21\0\x02")  # Receive Maximum 2
    async with (
        rough.address() as address,
        let_in(BrokerConnection(address, "bounded")) as connection,
    ):
        confirmed = [connection.publish(TOPIC, b"%d" % n) for n in range(5)]
        await rough.until(0x32, 2)
        rough.say(b"\x40\x02\0\x02")  # The second is confirmed: there is room for the third.
        await rough.until(0x32, 3)
        await asyncio.wait_for(confirmed[1], PATIENCE_S)
        assert rough.count(0x32) == 3
        assert [future.done() for future in confirmed] == [False, True, False, False, False]
    for future in confirmed[::2]:
        assert isinstance(future.exception(), NotConnected)
    confirmed[3].exception()


async def test_what_is_not_confirmed_in_time_fails_and_the_connection_stays() -> None:
    rough = RoughBroker(LET_IN)
    async with (
        rough.address() as address,
        let_in(BrokerConnection(address, "late", confirm_s=0.1)) as connection,
    ):
        with pytest.raises(NotConnected, match=r"did not confirm within 0\.1 s"):
            await asyncio.wait_for(connection.publish(TOPIC, b"x"), PATIENCE_S)
        rough.say(b"\x40\x02\0\x01")  # Too late, and nobody's any more.
        following = connection.publish(TOPIC, b"x")
        rough.say(b"\x40\x02\0\x02")
        await asyncio.wait_for(following, PATIENCE_S)


async def test_an_idle_connection_is_kept_alive_and_one_that_falls_silent_is_ended() -> None:
    rough = RoughBroker(b"\x20\x06\0\0\x03\x13\0\x01")  # Server Keep Alive 1 s
    async with (
        rough.address() as address,
        let_in(BrokerConnection(address, "silent")) as connection,
    ):
        assert await lost(connection) == "the broker does not answer any more"
        assert rough.count(0xC0) >= 1
        refused = connection.publish(TOPIC, b"x")
        assert isinstance(refused.exception(), NotConnected)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"\x20\x03\0\x87\0", "does not let out in: Not authorized"),
        (b"\x20\x03\0\xfa\0", "is no MQTT 5 broker: Invalid ConnAckReasonCode value: 250"),
        (b"\x20\x01\0", "is no MQTT 5 broker"),
        (b"\x20\x06\0\0\x03\x21\0\0", "is no MQTT 5 broker"),
        (b"HTTP/1.1 400 Bad Request\r\n" + b"Server: x\r\n" * 8, "is no MQTT 5 broker"),
        (b"\x20\xff\xff\xff\xff\x01", "a packet whose length has no end"),
        (b"\x30\xff\xff\x7f", "a packet of 2097151 bytes"),
    ],
)
async def test_a_broker_that_does_not_let_it_in_or_is_none_is_left(said: bytes, why: str) -> None:
    async with RoughBroker(said).address() as address:
        with pytest.raises(NotConnected, match=why):
            async with asyncio.timeout(PATIENCE_S), let_in(BrokerConnection(address, "out")):
                raise AssertionError("it was let in")


async def test_a_broker_that_ends_the_connection_is_heard_out() -> None:
    rough = RoughBroker(LET_IN)
    async with rough.address() as address, let_in(BrokerConnection(address, "ended")) as connection:
        rough.say(b"\xe0\x01\x8b")
        assert await lost(connection) == "the broker ends the connection: Server shutting down"


async def test_a_message_that_no_broker_takes_is_refused_and_the_next_is_published() -> None:
    rough = RoughBroker(LET_IN)
    async with rough.address() as address, let_in(BrokerConnection(address, "odd")) as connection:
        for topic in (f"{TOPIC}/+", "", "x" * 65_536):
            with pytest.raises(PublishRefused, match="cannot be published"):
                await connection.publish(topic, b"x")
        following = connection.publish(TOPIC, b"x")
        rough.say(b"\x40\x02\0\x01")
        await asyncio.wait_for(following, PATIENCE_S)


# What is not UTF-8 has mqtt5 panic, which is an exception that Python is told of twice.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_packet_that_a_library_cannot_bear_ends_the_connection() -> None:
    rough = RoughBroker(LET_IN)
    loop, said = asyncio.get_running_loop(), asyncio.Event()
    loop.set_exception_handler(lambda *_: said.set())
    async with rough.address() as address, let_in(BrokerConnection(address, "hurt")) as connection:
        rough.say(b"\xe0\x07\x8b\x05\x1f\0\x02\xff\xff")  # a reason that is not UTF-8
        assert "the broker was lost" in await lost(connection)
    assert said.is_set()


async def test_what_is_owed_is_published_before_the_other_connection_stands() -> None:
    rough = RoughBroker(LET_IN, only_first=True)
    async with (
        rough.address() as address,
        asyncio.timeout(PATIENCE_S),
        asyncio.TaskGroup() as tasks,
    ):
        here = session(address, "half")
        running = tasks.create_task(here.run())
        publishing = tasks.create_task(publish_once_it_can(here))
        await rough.until(0x32, 1)
        rough.say(b"\x40\x02\0\x01", to=0)
        await publishing
        assert not here.connected
        running.cancel()


async def publish_once_it_can(here: PublishingSession) -> None:
    while True:
        try:
            return await here.publish(TOPIC, b"x")
        except NotConnected:
            await asyncio.sleep(0)


async def test_nobody_is_there() -> None:
    with pytest.raises(OSError, match=r"refused|Connect call failed"):
        async with let_in(BrokerConnection(BrokerAddress("127.0.0.1", 1), "nobody")):
            raise AssertionError("somebody is")


async def test_what_speaks_no_tls_is_not_let_see_a_password() -> None:
    rough = RoughBroker(LET_IN)
    async with rough.address() as address:
        with pytest.raises(OSError, match=r"(?i)ssl"):
            async with let_in(
                BrokerConnection(replace(address, tls=True, password="secret"), "tls")
            ):
                raise AssertionError("it was let in")
    assert b"secret" not in rough.came


def test_packets_are_taken_once_they_are_whole_however_they_arrive() -> None:
    packets = [
        LET_IN,
        b"\x40\x02\0\x07",
        b"\x40\x03\0\x08\x10",
        b"\xd0\0",
        b"\x30\x81\x01" + b"x" * 129,
    ]
    ends = [sum(map(len, packets[: n + 1])) for n in range(len(packets))]
    data = b"".join(packets)
    for length in range(len(data) + 1):
        whole = whole_packets(data[:length])
        assert [end for _, end in whole] == [end for end in ends if end <= length]
        assert [at for at, _ in whole] == [0, *ends][: len(whole)]
