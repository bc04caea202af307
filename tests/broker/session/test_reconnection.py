"""A session whose broker, or the way to it, goes away and comes back."""

import asyncio
import os
import signal
from contextlib import suppress
from dataclasses import replace

import pytest

from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.session import NotAuthorized, NotConnected, Session
from bellwire.config.waiting import backoff_s
from tests.broker.running import Inbox, RunningBroker, Wire, held, soon
from tests.conftest import PATIENCE_S

TOPIC = "bellwire/v1/test"


def kill_and_wait(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):  # it is dead, and whose child it was knows
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def longest_s(attempt: int) -> float:
    return min(30.0, 0.25 * 2.0**attempt)


def test_the_backoff_doubles_up_to_half_a_minute_and_jitters_down_to_zero() -> None:
    asked = [backoff_s(attempt, lambda *limits: limits[1]) for attempt in range(2000)]
    assert asked[:4] == [0.25, 0.5, 1.0, 2.0]
    assert set(asked[7:]) == {30.0}
    assert {backoff_s(attempt, lambda *limits: limits[0]) for attempt in range(2000)} == {0.0}


def test_a_fleet_that_lost_its_broker_comes_back_spread_over_the_whole_time() -> None:
    waits = [backoff_s(5) for _ in range(1000)]
    assert 0 <= min(waits) < 0.5
    assert 7.5 < max(waits) <= longest_s(5)
    assert sum(waits) / len(waits) == pytest.approx(longest_s(5) / 2, abs=1)


async def test_the_waits_between_attempts_grow_and_start_anew_after_a_connection(
    broker: RunningBroker,
) -> None:
    waits: list[float] = []
    enough, go_on = asyncio.Event(), asyncio.Event()

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) >= 12:
            enough.set()
            await go_on.wait()

    await broker.kill()
    session = Session(broker.address, "waits", sleep=sleep)
    running = asyncio.create_task(session.run())
    async with asyncio.timeout(PATIENCE_S):
        await enough.wait()
        assert all(0 <= wait <= longest_s(n) for n, wait in enumerate(waits)), waits
        assert max(waits) > 1, waits

        await broker.start()
        waits.clear()
        enough.clear()
        go_on.set()
        await session.wait_connected()
        await broker.kill()
        await enough.wait()
        assert all(wait <= longest_s(n) for n, wait in enumerate(waits[:12])), waits
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_session_subscribes_again_at_a_broker_that_has_forgotten_it(
    broker: RunningBroker,
) -> None:
    inbox = Inbox()
    here = Session(broker.address, "resubscribes", session_expiry_s=60, sleep=soon)
    there = Session(broker.address, "publishes", sleep=soon)
    here.subscribe(f"{TOPIC}/+", inbox.take)
    losses = asyncio.Event()
    here.on_disconnected(losses.set)

    async def greet() -> None:
        await here.publish(f"{TOPIC}/greeting", b"connected")

    here.on_connected(greet)
    async with held(here), held(there):
        await inbox.until(b"connected")
        await broker.restart(signal.SIGKILL)  # it had no time to write anything down
        await inbox.until(b"connected")
        assert losses.is_set()
        async with asyncio.timeout(PATIENCE_S):
            await there.wait_connected()
            await there.publish(f"{TOPIC}/news", b"news")
        await inbox.until(b"news")


async def test_no_message_is_lost_while_a_device_is_away(broker: RunningBroker) -> None:
    inbox, lost = Inbox(), asyncio.Event()
    there = Session(broker.address, "publishes", sleep=soon)
    async with Wire(broker.address) as wire:
        here = Session(wire.address, "resumes", session_expiry_s=60, sleep=soon)
        here.subscribe(TOPIC, inbox.take)
        here.on_disconnected(lost.set)
        async with held(there), held(here):
            for number in range(300):
                if number % 100 == 50:
                    await asyncio.wait_for(here.wait_connected(), PATIENCE_S)
                    wire.cut()
                    await asyncio.wait_for(lost.wait(), PATIENCE_S)
                    lost.clear()
                elif number % 100 == 90:
                    await wire.mend()
                await there.publish(TOPIC, b"%d" % number)
            came = await inbox.until(b"299")
    # At least once: what was on the way when the wire was cut may come twice.
    assert list(dict.fromkeys(came)) == [b"%d" % number for number in range(300)]


async def test_messages_outlive_a_restart_of_the_broker(broker: RunningBroker) -> None:
    inbox, lost = Inbox(), asyncio.Event()
    there = Session(broker.address, "publishes", sleep=soon)
    async with Wire(broker.address) as wire:
        here = Session(wire.address, "resumes", session_expiry_s=60, sleep=soon)
        here.subscribe(TOPIC, inbox.take)
        here.on_disconnected(lost.set)
        async with held(here), held(there):
            wire.cut()
            await asyncio.wait_for(lost.wait(), PATIENCE_S)
            for number in range(20):
                await there.publish(TOPIC, b"%d" % number)
            await broker.restart(signal.SIGTERM)
            await wire.mend()
            await inbox.until(b"19")
    assert inbox.taken == [b"%d" % number for number in range(20)]


async def test_a_message_past_its_life_is_not_delivered_on_return(broker: RunningBroker) -> None:
    inbox, lost = Inbox(), asyncio.Event()
    there = Session(broker.address, "publishes", sleep=soon)
    async with Wire(broker.address) as wire:
        here = Session(wire.address, "late", session_expiry_s=60, sleep=soon)
        here.subscribe(TOPIC, inbox.take)
        here.on_disconnected(lost.set)
        async with held(here), held(there):
            wire.cut()
            await asyncio.wait_for(lost.wait(), PATIENCE_S)
            await there.publish(TOPIC, b"short", expires_in_s=1)
            await there.publish(TOPIC, b"long", expires_in_s=60)
            await asyncio.sleep(2.1)  # mosquitto counts in whole seconds
            await wire.mend()
            came = await inbox.next()
    assert came.payload == b"long"
    assert came.expires_in_s is not None
    assert 50 <= came.expires_in_s <= 58


async def test_what_was_being_published_when_the_broker_died_is_reported_unsent(
    broker: RunningBroker,
) -> None:
    here = Session(broker.address, "interrupted", sleep=soon)
    async with held(here):
        broker.send(signal.SIGSTOP)
        publishing = [asyncio.create_task(here.publish(TOPIC, b"x")) for _ in range(3)]
        await asyncio.sleep(0)
        await broker.kill()
        results = await asyncio.wait_for(
            asyncio.gather(*publishing, return_exceptions=True), PATIENCE_S
        )
        assert [type(result) for result in results] == [NotConnected] * 3
        with pytest.raises(NotConnected):
            await here.publish(TOPIC, b"x")
        assert not here.connected


async def test_a_request_whose_connection_breaks_is_answered_over_the_next(
    broker: RunningBroker,
) -> None:
    heard = Inbox()
    there = Session(broker.address, "answers", sleep=soon)
    there.subscribe(f"{TOPIC}/ask", heard.take)
    async with Wire(broker.address) as wire:
        here = Session(
            wire.address, "asks", session_expiry_s=60, response_topic=f"{TOPIC}/re", sleep=soon
        )
        async with held(there), held(here):
            asking = asyncio.create_task(here.request(f"{TOPIC}/ask", b"?", timeout_s=PATIENCE_S))
            question = await heard.next()
            await here.publish(f"{TOPIC}/fence", b"")  # what came before it is confirmed too
            wire.cut()
            await there.publish(f"{TOPIC}/re", b"!", correlation=question.correlation)
            await wire.mend()
            assert await asking == b"!"


async def test_a_session_with_a_wrong_password_ends_and_says_so(broker: RunningBroker) -> None:
    wrong: BrokerAddress = replace(broker.address, password="wrong")
    with pytest.raises(NotAuthorized, match="refuses the credentials of"):
        await asyncio.wait_for(Session(wrong, "guesses").run(), PATIENCE_S)


async def test_a_session_that_was_let_in_before_goes_on_trying(broker: RunningBroker) -> None:
    refused = asyncio.Event()

    async def sleep(_: float) -> None:
        if session.address.password == "wrong":
            refused.set()
        await asyncio.sleep(0.02)

    session = Session(broker.address, "let-in", sleep=sleep)
    async with held(session):
        session.address = replace(broker.address, password="wrong")
        await broker.restart()
        await asyncio.wait_for(refused.wait(), PATIENCE_S)
        assert not session.connected
        session.address = broker.address
        await asyncio.wait_for(session.wait_connected(), PATIENCE_S)


async def test_who_publishes_again_at_once_when_the_broker_is_lost_neither_spins_nor_blocks(
    broker: RunningBroker,
) -> None:
    tries = 0

    async def publish_until_confirmed() -> None:
        nonlocal tries
        while True:
            await session.wait_connected()
            tries += 1
            try:
                await session.publish(TOPIC, b"again")
            except NotConnected:
                continue
            return

    session = Session(broker.address, "tries-again", sleep=soon)
    lost = asyncio.Event()
    session.on_disconnected(lost.set)
    async with held(session), asyncio.timeout(PATIENCE_S):
        await session.wait_connected()
        pid = broker.pid
        assert pid is not None
        # The loop stands still until it is dead, so that writing finds the socket broken before the
        # loop is told that it is.
        kill_and_wait(pid)
        async with asyncio.TaskGroup() as tasks:
            publishing = [tasks.create_task(publish_until_confirmed()) for _ in range(5)]
            await lost.wait()
            await broker.kill()
            await broker.start()
    assert all(task.done() for task in publishing)
    assert tries <= 5 * 4
