"""A session while its broker is there: publishing, requests, presence, its end."""

import asyncio
import signal
import time

import pytest

from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.session import (
    Farewell,
    Incoming,
    NotConnected,
    RequestTimeout,
    Session,
)
from tests.broker.running import Inbox, RunningBroker, Wire, held, raw_client, soon
from tests.conftest import PATIENCE_S

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOPIC = "bellwire/v1/test"
ANSWERS = f"{TOPIC}/answers"
AWAY = b'{"online":false}'


def session(address: BrokerAddress, name: str, farewell: Farewell | None = None) -> Session:
    return Session(address, name, farewell=farewell, response_topic=ANSWERS, sleep=soon)


async def test_what_is_published_reaches_a_subscriber_with_all_it_carries(
    shared_broker: RunningBroker,
) -> None:
    inbox = Inbox()
    here = session(shared_broker.address, "carries")
    here.subscribe(f"{TOPIC}/carries", inbox.take)
    async with held(here):
        await here.publish(
            f"{TOPIC}/carries", b"x", expires_in_s=9.2, response_topic="a/b", correlation=b"\0\1"
        )
        came = await inbox.next()
    assert came == Incoming(f"{TOPIC}/carries", b"x", False, "a/b", b"\0\1", came.expires_in_s)
    assert came.expires_in_s in (9, 10)


async def test_requests_in_flight_each_get_their_own_answer(shared_broker: RunningBroker) -> None:
    here = session(shared_broker.address, "asks")
    there = session(shared_broker.address, "answers")
    waiting: list[Incoming] = []
    tasks: set[asyncio.Task[None]] = set()

    def answer_in_reverse(request: Incoming) -> None:
        waiting.append(request)
        if len(waiting) == 20:
            for each in reversed(waiting):
                assert each.response_topic is not None
                answering = there.publish(
                    each.response_topic, b"re " + each.payload, correlation=each.correlation
                )
                tasks.add(asyncio.create_task(answering))

    there.subscribe(f"{TOPIC}/questions", answer_in_reverse)
    async with held(there), held(here):
        answers = await asyncio.gather(
            *(
                here.request(f"{TOPIC}/questions", b"%d" % i, timeout_s=PATIENCE_S)
                for i in range(20)
            )
        )
        await asyncio.gather(*tasks)
    assert answers == [b"re %d" % i for i in range(20)]


async def test_an_answer_with_foreign_correlation_data_is_nobodys(
    shared_broker: RunningBroker,
) -> None:
    here = session(shared_broker.address, "foreign")
    heard = Inbox()
    there = session(shared_broker.address, "elsewhere")
    there.subscribe(f"{TOPIC}/secret", heard.take)
    async with held(here), held(there):
        asking = asyncio.create_task(here.request(f"{TOPIC}/secret", b"?", timeout_s=PATIENCE_S))
        request = await heard.next()
        await there.publish(ANSWERS, b"forged", correlation=b"a guess")
        await there.publish(ANSWERS, b"forged")
        await there.publish(ANSWERS, b"true", correlation=request.correlation)
        assert await asking == b"true"


async def test_a_request_that_nobody_answers_ends_in_its_time(
    shared_broker: RunningBroker,
) -> None:
    here = session(shared_broker.address, "unanswered")
    async with held(here):
        with pytest.raises(RequestTimeout, match=f"no answer on {TOPIC}/void within 0.1 s"):
            await here.request(f"{TOPIC}/void", b"?", timeout_s=0.1)


async def test_a_session_without_response_topic_cannot_ask(shared_broker: RunningBroker) -> None:
    with pytest.raises(ValueError, match="no response topic"):
        await Session(shared_broker.address, "mute").request(TOPIC, b"?")


async def test_publishing_before_the_connection_is_refused(shared_broker: RunningBroker) -> None:
    here = session(shared_broker.address, "early")
    with pytest.raises(NotConnected, match="no connection to the broker mqtt://127"):
        await here.publish(TOPIC, b"x")


async def test_a_session_that_ends_says_farewell_for_all_who_come_later(
    shared_broker: RunningBroker,
) -> None:
    topic = f"{TOPIC}/leaves"
    async with held(session(shared_broker.address, "leaves", Farewell(topic, AWAY))) as here:
        await here.publish(topic, b"here", retain=True)
    assert await retained(shared_broker.address, topic) == AWAY


async def test_a_session_whose_connection_breaks_leaves_its_last_will(
    shared_broker: RunningBroker,
) -> None:
    topic = f"{TOPIC}/breaks"
    watch = Inbox()
    watcher = session(shared_broker.address, "watches")
    watcher.subscribe(topic, watch.take)
    async with Wire(shared_broker.address) as wire, held(watcher):
        here = Session(wire.address, "breaks", farewell=Farewell(topic, AWAY), sleep=soon)
        async with held(here):
            wire.cut()
            assert (await watch.next()).payload == AWAY
            assert await retained(shared_broker.address, topic) == AWAY


async def test_a_session_that_is_back_in_time_is_never_called_away(
    shared_broker: RunningBroker,
) -> None:
    topic = f"{TOPIC}/blips"
    watch = Inbox()
    watcher = session(shared_broker.address, "watches blips")
    watcher.subscribe(topic, watch.take)
    async with Wire(shared_broker.address) as wire, held(watcher):
        here = Session(
            wire.address,
            "blips",
            farewell=Farewell(topic, AWAY, 1),
            session_expiry_s=60,
            sleep=soon,
        )
        lost = asyncio.Event()
        here.on_disconnected(lost.set)
        async with held(here):
            wire.cut()
            await lost.wait()
            await wire.mend()
            await asyncio.wait_for(here.wait_connected(), PATIENCE_S)
            await asyncio.sleep(1.3)  # past the moment at which the broker would have said so
            await here.publish(topic, b"still here")
            assert await watch.until(b"still here") == [b"still here"]


async def test_a_session_ends_within_a_second(shared_broker: RunningBroker) -> None:
    here = session(shared_broker.address, "ends", Farewell(f"{TOPIC}/ends", AWAY))
    running = asyncio.create_task(here.run())
    await here.wait_connected()
    assert await seconds_to_cancel(running) < 1
    assert not here.connected


async def test_a_session_in_its_backoff_ends_at_once() -> None:
    asleep = asyncio.Event()

    async def sleep(_: float) -> None:
        asleep.set()
        await asyncio.Event().wait()

    nowhere = BrokerAddress("127.0.0.1", 1)
    running = asyncio.create_task(Session(nowhere, "lost", sleep=sleep).run())
    await asleep.wait()
    assert await seconds_to_cancel(running) < 1


async def test_publishing_and_asking_can_be_cancelled(broker: RunningBroker) -> None:
    here = session(broker.address, "cancelled")
    async with held(here):
        broker.send(signal.SIGSTOP)
        publishing = asyncio.create_task(here.publish(TOPIC, b"x"))
        asking = asyncio.create_task(here.request(TOPIC, b"x", timeout_s=PATIENCE_S))
        await asyncio.sleep(0)
        assert await seconds_to_cancel(publishing) < 1
        assert await seconds_to_cancel(asking) < 1
        broker.send(signal.SIGCONT)
        await here.publish(TOPIC, b"the session still works")


async def seconds_to_cancel(task: "asyncio.Task[object]") -> float:
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return time.monotonic() - began


async def retained(address: BrokerAddress, topic: str) -> bytes:
    async with raw_client(address) as client, asyncio.timeout(PATIENCE_S):
        await client.subscribe(topic, qos=1)
        message = await anext(aiter(client.messages))
        assert message.retain
        assert isinstance(message.payload, bytes)
        return message.payload
