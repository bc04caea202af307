"""The parts of one relay with webhooks, on a database of its own and a clock that a test moves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select

from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.session import Session
from bellwire.config.relay import WebhookTarget
from bellwire.push.access.tokens import Actor
from bellwire.push.calls.calls import Calls
from bellwire.push.calls.invites import Invite
from bellwire.push.calls.rate_limits import RateLimits
from bellwire.push.channels.webhook.channel import WebhookChannel
from bellwire.push.channels.websocket import StreamReaders
from bellwire.push.delivery.outbox import Outbox
from bellwire.push.delivery.owed import Deliveries
from bellwire.push.delivery.webhook_events import KEPT, Replayed, Webhooks
from bellwire.push.metrics import Metrics
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.devices import ChannelRow, DeviceRow, put_device
from bellwire.push.store.rows.outbox import count_owed
from bellwire.push.store.tables import delivery_results, outbox, webhook_events
from bellwire.signaling.calls.calls import Call
from bellwire.signaling.calls.commands import Cancel, NewCall
from bellwire.signaling.identifiers import DeviceId, Identity
from tests.conftest import PATIENCE_S
from tests.push.clock import Clock
from tests.push.webhook_receiver import Backend, Received, target

ALICE, BOB, PHONE = Identity("alice"), Identity("bob"), DeviceId("phone")


class Scene:
    """The parts of one relay with webhooks; `another` is a further process on its database."""

    def __init__(self, database: Database, clock: Clock, targets: dict[str, WebhookTarget]) -> None:
        self.database, self.clock, self.targets = database, clock, targets
        self.metrics = Metrics()
        self.webhooks = Webhooks(targets, now=clock.now)
        self.channel = WebhookChannel(targets, now=clock.now)
        channels = {"webhook": self.channel}
        self.outbox = Outbox(database, channels, self.metrics, now=clock.now, sleep=clock.sleep)
        streams = StreamReaders(Session(BrokerAddress("127.0.0.1", 1), "no-broker"), alone=True)
        deliveries = Deliveries(self.outbox, {}, streams, now=clock.now, webhooks=self.webhooks)
        rate_limits = RateLimits(1000, 1000)
        self.calls = Calls(database, deliveries, self.metrics, rate_limits, now=clock.now)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with aclosing(self.channel), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(self.outbox.run())
            await asyncio.sleep(0)
            yield
            running.cancel()

    def another(self) -> "Scene":
        return Scene(self.database, self.clock, self.targets)

    async def call(self, caller: Identity | None = ALICE) -> Call:
        """A call to bob that rings."""
        for identity in (ALICE, BOB):
            device = DeviceRow(DeviceId(f"{identity}-1"), identity, (ChannelRow("mqtt"),))
            await self.database.write(partial(put_device, device=device, at_ms=0))
        new = NewCall(self.calls.new_sid(), caller, (), self.clock.now(), 600)
        return (await self.calls.create(Invite(new, (BOB,), {}, Actor(caller)))).call

    async def cancelled(self, call: Call) -> None:
        await self.calls.carry_out(call.call_sid, Cancel(None, self.clock.now()))

    async def owed(self) -> int:
        return await self.database.read(count_owed)

    async def results(self) -> list[Any]:
        """What is on record of deliveries."""
        return await self.database.read(lambda c: list(c.execute(select(delivery_results))))

    async def until_nothing_is_owed(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while await self.owed():
                await self._passes_a_little()

    async def until_failed(self, attempts: int = 1) -> None:
        """Waits until this many attempts have failed, and that is on record."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.database.read(_failed) < attempts:
                await self._passes_a_little()

    async def next_after(self, wait_s: float, receiver: Backend) -> Received:
        """What comes first once this time has passed."""
        self.clock.advance(wait_s)
        async with asyncio.timeout(PATIENCE_S):
            while receiver.came.empty():
                await self._passes_a_little()
        return receiver.came.get_nowait()

    async def _passes_a_little(self) -> None:
        """Lets the others work, and time pass for a sweeper that was just about to sleep."""
        await asyncio.sleep(0.002)
        self.clock.advance(0.05)

    async def replay(self, name: str, **how: Any) -> Replayed:  # noqa: ANN401
        since = how.pop("since", self.clock.now() - KEPT)
        asked = {"until": None, "call_sid": None, **how}
        return await self.database.write(
            partial(self.webhooks.replay, name=name, since=since, **asked)
        )

    async def kept(self) -> int:
        return await self.database.read(
            lambda c: c.execute(select(func.count()).select_from(webhook_events)).scalar_one()
        )


def _failed(connection: Connection) -> int:
    attempts: int | None = connection.execute(select(func.sum(outbox.c.attempts))).scalar_one()
    return int(attempts or 0)


def webhook_scene(
    database: Database, clock: Clock, folder: Path, **targets: Backend | dict[str, Any]
) -> Scene:
    settings = {
        name: target(folder, **({"url": given.url} if isinstance(given, Backend) else given))
        for name, given in targets.items()
    }
    return Scene(database, clock, settings)


def types(came: list[Received]) -> list[str]:
    return sorted(one.event["type"] for one in came)


CALLED = ["call.created", "call.received"]
CANCELLED = ["call.cancelled", "call.ended", "call.user_state_changed"]
