"""Events are sent to a backend again when it asks."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, select

from bellwire.push.delivery import webhook_events as webhooks_module
from bellwire.push.delivery.webhook_events import KEPT, Replayed
from bellwire.push.store.tables import outbox, to_ms
from bellwire.signaling.errors import NotFound
from tests.push.webhook_receiver import Backend, backend
from tests.push.webhook_scene import (
    Scene,
)


async def test_events_can_be_replayed_as_they_were(
    webhook_scene_of: Callable[..., Scene], receiver: Backend
) -> None:
    scene = webhook_scene_of(billing=receiver)
    async with scene.running():
        await scene.call()
        before = {one.id: one.body for one in await receiver.next_few(2)}
        await scene.until_nothing_is_owed()
        scene.clock.advance(KEPT.total_seconds() - 10)
        assert await scene.replay("billing") == Replayed(2, None)
        again = [await scene.next_after(0, receiver), await receiver.next()]
        assert {one.id: one.body for one in again} == before
        await scene.until_nothing_is_owed()
    assert receiver.came.empty()


async def test_a_replay_is_of_the_time_the_call_and_the_events_that_are_meant(
    webhook_scene_on_each: Callable[..., Scene], receiver: Backend
) -> None:
    scene = webhook_scene_on_each(
        billing=receiver, ends={"url": receiver.url, "events": ["call.ended"]}
    )
    start = scene.clock.now()
    first = await scene.call()
    scene.clock.advance(60)
    later = scene.clock.now()
    second = await scene.call()
    await scene.cancelled(second)
    await scene.database.write(lambda c: c.execute(outbox.delete()))

    async def replayed(name: str = "billing", **how: Any) -> int:  # noqa: ANN401
        count = (await scene.replay(name, **how)).count
        await scene.database.write(lambda c: c.execute(outbox.delete()))
        return count

    assert await replayed() == 7
    assert await replayed("ends") == 1
    assert await replayed(since=later) == 5
    assert await replayed(since=start, until=later) == 2
    assert await replayed(since=later + timedelta(milliseconds=1)) == 0
    assert await replayed(call_sid=first.call_sid) == 2
    assert await replayed(call_sid=second.call_sid, until=later) == 0
    with pytest.raises(NotFound, match="no webhook crm"):
        await scene.replay("crm")


async def test_a_replay_does_not_double_what_is_still_owed_nor_does_a_second_replay_at_once(
    webhook_scene_on_each: Callable[..., Scene], receiver: Backend
) -> None:
    async with backend() as other:
        scene = webhook_scene_on_each(billing=receiver, crm=other)
        call = await scene.call()
        assert (await scene.replay("billing")).count == 0
        await scene.database.write(
            lambda c: c.execute(outbox.delete().where(outbox.c.app == "billing"))
        )
        at_once = await asyncio.gather(*(scene.replay("billing") for _ in range(4)))
        assert sorted(replayed.count for replayed in at_once) == [0, 0, 0, 2]
        counted = await scene.database.read(scene.webhooks.owed)
        assert counted == {"billing": 2, "crm": 2}
        await scene.cancelled(call)  # what is owed to webhooks is not withdrawn with the invite
        counted = await scene.database.read(scene.webhooks.owed)
        assert counted == {"billing": 5, "crm": 5}


async def test_a_large_replay_is_bounded_and_is_sent_little_by_little(
    webhook_scene_of: Callable[..., Scene], receiver: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks_module, "REPLAY_LIMIT", 120)
    scene = webhook_scene_of(billing=receiver)
    start = scene.clock.now()

    def events(connection: Connection) -> None:
        for number in range(130):
            at = start + timedelta(seconds=number)
            scene.webhooks.event(
                connection, "device.channel_removed", f"event-{number}", at, {"n": number}
            )

    await scene.database.write(events)
    replayed = await scene.replay("billing")
    assert replayed == Replayed(120, start + timedelta(seconds=120))
    due_ms = await scene.database.read(
        lambda c: list(c.execute(select(outbox.c.due_ms).order_by(outbox.c.due_ms)).scalars())
    )
    now_ms = to_ms(scene.clock.now())
    assert due_ms == [now_ms] * 50 + [now_ms + 500] * 50 + [now_ms + 1000] * 20
    assert (await scene.replay("billing", since=replayed.next_since)).count == 10
