"""Deliveries owed are made: at once, by whoever takes over, again after a failure, until they
expire. On a real database, with a clock that the test moves and a channel that obeys it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from sqlalchemy import Connection, select, update

from bellwire.push.channels.channel import Addressee, DeliveryFailed
from bellwire.push.delivery.outbox import LEASE_S, Outbox
from bellwire.push.metrics import Metrics
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.devices import ChannelRow, DeviceRow, put_device
from bellwire.push.store.rows.outbox import Delivery, count_owed, make_all_due, owe
from bellwire.push.store.tables import outbox, to_ms
from bellwire.signaling.calls.events import CallEvent, event_document
from bellwire.signaling.identifiers import DeviceId, Identity
from tests.conftest import PATIENCE_S
from tests.push.clock import START, Clock

DESK = DeviceId("desk")
LIFE_S = 60
SWEEP_S = 2
"""How often an outbox looks of itself for what is due."""


class Wire:
    """A channel that takes each delivery over, or refuses it while it is `down`."""

    kind = "mqtt"

    def __init__(self) -> None:
        self.down = False
        self.tried: asyncio.Queue[tuple[Delivery, float]] = asyncio.Queue()

    def compose(self, event: CallEvent, to: Addressee) -> str:
        del to
        return event_document(event)

    async def send(self, delivery: Delivery, left_s: float) -> str:
        self.tried.put_nowait((delivery, left_s))
        if self.down:
            raise DeliveryFailed("the broker is away")
        return ""

    async def next(self) -> tuple[Delivery, float]:
        async with asyncio.timeout(PATIENCE_S):
            return await self.tried.get()


class Scene:
    """An outbox on a database, and what a test does to both."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self.database = database
        self.clock = clock
        self.wire = Wire()
        self.metrics = Metrics()
        self.outbox = self.another()

    def another(self) -> Outbox:
        """The outbox of a further process on the same database."""
        channels = {"mqtt": self.wire}
        clock = self.clock
        return Outbox(self.database, channels, self.metrics, now=clock.now, sleep=clock.sleep)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(self.outbox.run())
            yield
            running.cancel()

    async def owe(self, *events: str, life_s: float = LIFE_S) -> list[Delivery]:
        """Has deliveries owed and leased, as a command does that is about to dispatch them."""
        expires_ms = to_ms(self.clock.now() + timedelta(seconds=life_s))
        new = [Delivery(event, DESK, "mqtt", f"payload of {event}", expires_ms) for event in events]
        leased_ms = self.outbox.leased_until_ms
        await self.database.write(lambda c: owe(c, new, leased_ms))
        return new

    async def owed(self) -> int:
        return await self.database.read(count_owed)

    async def until_nothing_is_owed(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while await self.owed():
                pass

    async def until_failed(self, attempts: int) -> float:
        """Waits until this many attempts are on record; returns in how many seconds the next is due."""
        async with asyncio.timeout(PATIENCE_S):
            while (row := await self.database.read(_only_row))[0] < attempts:
                pass
        return (row[1] - to_ms(self.clock.now())) / 1000

    def counted(self, result: str) -> float:
        labels = {"channel": "mqtt", "result": result}
        return self.metrics.registry.get_sample_value("bellwire_deliveries_total", labels) or 0


def _only_row(connection: Connection) -> Sequence[int]:
    row = connection.execute(select(outbox.c.attempts, outbox.c.due_ms)).one()
    return row.attempts, row.due_ms


@pytest.fixture
async def database(each_database: Database) -> Database:
    """The same tests on each kind of store."""
    return each_database


@pytest.fixture
async def scene(database: Database, clock: Clock) -> Scene:
    desk = DeviceRow(DESK, Identity("bob"), (ChannelRow("mqtt"),))
    await database.write(lambda c: put_device(c, desk, to_ms(START)))
    return Scene(database, clock)


async def test_what_is_dispatched_is_sent_at_once_and_then_forgotten(scene: Scene) -> None:
    deliveries = await scene.owe("event-1")
    async with scene.running():
        await asyncio.sleep(0)  # it runs now, and takes what is dispatched
        scene.clock.advance(1.5)
        scene.outbox.dispatch(deliveries)
        sent, left_s = await scene.wire.next()
        assert (sent.event_id, sent.device_id) == ("event-1", DESK)
        assert sent.payload == "payload of event-1"
        assert left_s == LIFE_S - 1.5
        await scene.until_nothing_is_owed()
    assert scene.counted("sent") == 1
    assert scene.wire.tried.empty()


async def test_what_was_sent_counts_as_owed_no_more_once_settled(scene: Scene) -> None:
    clock = scene.clock
    scene.outbox = Outbox(
        scene.database,
        {"mqtt": scene.wire},
        scene.metrics,
        now=clock.now,
        sleep=clock.sleep,
        settle_after_s=3600,  # longer than a device takes to lose what it was sent, and be back
    )
    deliveries = await scene.owe("event-1")
    async with scene.running():
        await asyncio.sleep(0)
        scene.outbox.dispatch(deliveries)
        await scene.wire.next()
        await clock.until_asleep()
        assert await scene.owed() == 1
        await scene.outbox.settle()
        assert await scene.owed() == 0


async def test_what_a_dead_process_left_is_taken_when_its_lease_is_over(scene: Scene) -> None:
    await scene.owe("event-1")  # and the process dies before it sends
    async with scene.running():
        for part in (LEASE_S / 2, LEASE_S / 2 - 0.001):
            await scene.clock.until_asleep()
            scene.clock.advance(part)
        await scene.clock.until_asleep()
        assert scene.wire.tried.empty()
        scene.clock.advance(0.001)
        assert (await scene.wire.next())[0].event_id == "event-1"
        await scene.until_nothing_is_owed()
    assert scene.wire.tried.empty()


async def test_a_process_that_knows_itself_alone_need_not_wait_for_a_lease(scene: Scene) -> None:
    await scene.owe("event-1")
    await scene.database.write(lambda c: make_all_due(c, to_ms(scene.clock.now())))
    async with scene.running():
        assert (await scene.wire.next())[0].event_id == "event-1"
        await scene.until_nothing_is_owed()


async def test_two_processes_share_what_is_due_and_send_each_delivery_once(scene: Scene) -> None:
    events = {f"event-{n}" for n in range(30)}
    await scene.owe(*events)
    scene.clock.advance(LEASE_S)
    async with asyncio.TaskGroup() as tasks:
        both = [tasks.create_task(process.run()) for process in (scene.outbox, scene.another())]
        await scene.until_nothing_is_owed()
        for process in both:
            process.cancel()
    sent = [scene.wire.tried.get_nowait()[0].event_id for _ in range(scene.wire.tried.qsize())]
    assert sorted(sent) == sorted(events)


async def test_a_failed_delivery_is_tried_again_ever_later_until_it_expires(scene: Scene) -> None:
    scene.wire.down = True
    (delivery,) = await scene.owe("event-1")
    waits: list[float] = []
    async with scene.running():
        await asyncio.sleep(0)
        scene.outbox.dispatch([delivery])
        while True:
            tried, left_s = await scene.wire.next()
            assert (tried.event_id, tried.payload) == (delivery.event_id, delivery.payload)
            assert 0 < left_s <= LIFE_S
            wait_s = await scene.until_failed(len(waits) + 1)
            waits.append(wait_s)
            await scene.clock.until_asleep()
            scene.clock.advance(wait_s)
            if wait_s >= left_s:
                break
        await scene.until_nothing_is_owed()
    longest = [min(15.0, 0.5 * 2**n) for n in range(len(waits))]
    assert len(waits) >= 7
    assert all(0.5 * high - 0.01 <= w <= high for w, high in zip(waits, longest, strict=True))
    assert scene.counted("failed") == len(waits)
    assert (scene.counted("expired"), scene.counted("sent")) == (1, 0)
    assert scene.wire.tried.empty()


async def test_a_failure_is_tried_again_in_time_though_its_record_is_confirmed_late(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, confirm = scene.database.write, asyncio.Event()
    scene.wire.down = True
    (delivery,) = await scene.owe("event-1")
    async with scene.running():
        await scene.clock.until_asleep()

        async def confirmed_late(work: Callable[[Connection], object]) -> object:
            monkeypatch.setattr(scene.database, "write", write)
            done = await write(work)
            await confirm.wait()
            return done

        monkeypatch.setattr(scene.database, "write", confirmed_late)
        scene.outbox.dispatch([delivery])
        await scene.wire.next()
        assert await scene.until_failed(1) < SWEEP_S
        scene.clock.advance(SWEEP_S)
        await scene.wire.next()
        confirm.set()
        assert await scene.until_failed(2) > 0
    assert scene.wire.tried.empty()


async def test_a_way_that_opens_again_is_used_at_once(scene: Scene) -> None:
    scene.wire.down = True
    deliveries = await scene.owe("event-1")
    async with scene.running():
        await asyncio.sleep(0)
        scene.outbox.dispatch(deliveries)
        await scene.wire.next()
        assert await scene.until_failed(1) > 0
        scene.wire.down = False
        await scene.outbox.retry_now("mqtt")
        assert (await scene.wire.next())[0].event_id == "event-1"
        await scene.until_nothing_is_owed()
    assert scene.clock.now() == START


async def test_a_way_that_opens_again_leaves_alone_what_is_being_tried(scene: Scene) -> None:
    await scene.owe("leased")
    async with scene.running():
        await scene.clock.until_asleep()
        await scene.outbox.retry_now("mqtt")
        for _ in range(3):  # longer than the sweep that this has rung for
            await scene.database.write(lambda _: None)
        assert scene.wire.tried.empty()
        assert await scene.owed() == 1


async def test_a_way_that_opens_while_the_database_is_away_does_no_harm(scene: Scene) -> None:
    await scene.database.close()
    await scene.outbox.retry_now("mqtt")


async def test_an_expired_delivery_is_never_sent(scene: Scene) -> None:
    await scene.owe("too late", life_s=5)
    scene.clock.advance(LEASE_S)
    async with scene.running():
        await scene.until_nothing_is_owed()
    assert scene.wire.tried.empty()
    assert scene.counted("expired") == 1


async def test_more_than_one_sweep_can_hold_is_all_sent(scene: Scene) -> None:
    events = [f"event-{n}" for n in range(450)]
    await scene.owe(*events)
    scene.clock.advance(LEASE_S)
    async with scene.running():
        await scene.until_nothing_is_owed()
    sent = {scene.wire.tried.get_nowait()[0].event_id for _ in range(scene.wire.tried.qsize())}
    assert sent == set(events)


async def test_what_is_dispatched_before_the_start_waits_for_the_sweeper(scene: Scene) -> None:
    deliveries = await scene.owe("event-1")
    scene.outbox.dispatch(deliveries)
    assert scene.wire.tried.empty()
    await scene.database.write(lambda c: c.execute(update(outbox).values(due_ms=0)))
    async with scene.running():
        assert (await scene.wire.next())[0].event_id == "event-1"
        await scene.until_nothing_is_owed()
