"""A session that hears over a connection of its own, on a real broker."""

import asyncio

from bellwire.broker.session.connection import let_in
from bellwire.broker.session.receiving import ReceivingConnection, ReceivingSession, Route
from bellwire.broker.session.session import Session
from tests.broker.rough import RoughBroker
from tests.broker.running import Inbox, RunningBroker, held, soon
from tests.conftest import PATIENCE_S

TOPIC = "bellwire/v1/test"
ECHO = "bellwire/v1/test-echo"


async def test_what_comes_is_whole_whatever_its_length_and_has_all_its_properties(
    broker: RunningBroker,
) -> None:
    inbox = Inbox()
    here = ReceivingSession(broker.address, "hears", sleep=soon)
    here.receive(f"{TOPIC}/+", inbox.take)
    there = Session(broker.address, "says", response_topic=f"{TOPIC}/ä", sleep=soon)
    async with held(here), held(there):
        for length in (0, 1, 127, 128, 16_383, 16_384, 80_000):
            await there.publish(
                f"{TOPIC}/läuten",
                b"x" * length,
                expires_in_s=9.2,
                response_topic=f"{TOPIC}/ä",
                correlation=b"\0\1",
            )
            came = await inbox.next()
            assert came.payload == b"x" * length
            assert came.topic == f"{TOPIC}/läuten"
            assert (came.response_topic, came.correlation) == (f"{TOPIC}/ä", b"\0\1")
            assert came.expires_in_s in (9, 10)
            assert not came.retained


async def test_who_says_no_by_the_topic_is_not_handed_the_message_and_it_does_not_come_again(
    broker: RunningBroker,
) -> None:
    inbox, asked = Inbox(), []

    def admit(topic: str) -> bool:
        asked.append(topic)
        return topic.endswith("/wanted")

    here = ReceivingSession(broker.address, "admits", sleep=soon)
    here.receive(f"{TOPIC}/+", inbox.take, admit=admit)
    there = Session(broker.address, "says", sleep=soon)
    async with held(here), held(there):
        for number in range(100):
            await there.publish(f"{TOPIC}/flood", b"%d" % number)
        await there.publish(f"{TOPIC}/wanted", b"here")
        assert await inbox.until(b"here") == [b"here"]
    assert asked == [f"{TOPIC}/flood"] * 100 + [f"{TOPIC}/wanted"]


async def test_a_message_that_cannot_be_read_is_acknowledged_and_the_next_is_heard() -> None:
    unreadable = b"\x32\x08\0\x01a\0\x07\x02\x01\x09"  # a payload format indicator without an end
    rough = RoughBroker(b"\x20\x03\0\0\0")
    inbox = Inbox()
    async with rough.address() as address:
        hears = ReceivingConnection(address, "hears", [Route("a", inbox.take)])
        async with let_in(hears):
            rough.say(unreadable + b"\x32\x06\0\x01a\0\x08\0")
            assert (await inbox.next()).payload == b""
            await rough.until(0x40, 2)
            assert rough.came.endswith(b"\x40\x02\0\x07\x40\x02\0\x08")
            assert not hears.lost.done()


async def test_all_that_is_retained_has_come_once_it_is_read_also_after_the_broker_fell(
    broker: RunningBroker,
) -> None:
    inbox = Inbox()
    here = ReceivingSession(broker.address, "reads", echo_topic=ECHO, sleep=soon)
    here.hear(f"{TOPIC}/+", inbox.take)
    there = Session(broker.address, "says", sleep=soon)
    async with held(here), held(there), asyncio.timeout(PATIENCE_S):
        for number in range(300):
            await there.publish(f"{TOPIC}/{number}", b"%d" % number, retain=True)
        await here.read_retained(*(f"{TOPIC}/{number}" for number in range(300)))
        assert sorted(map(int, inbox.taken)) == list(range(300))
        await broker.restart()
        await here.wait_connected()
        await there.wait_connected()
        await there.publish(f"{TOPIC}/301", b"301", retain=True)
        inbox.taken.clear()
        await here.read_retained(f"{TOPIC}/+")
        assert b"301" in inbox.taken
