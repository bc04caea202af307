"""What backends are owed: every event once, through failures and restarts, and again when asked."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection

from bellwire.push.channels.webhook.channel import LIFE_S
from bellwire.push.delivery.outbox import LEASE_S
from bellwire.push.delivery.webhook_events import KEPT, Webhooks
from bellwire.push.store.rows.outbox import make_all_due, owe
from bellwire.push.store.tables import to_ms
from bellwire.signaling.calls.commands import Accept, Quit, Reject
from bellwire.signaling.calls.events import parse_event
from bellwire.signaling.errors import InvalidInput
from tests.push.clock import Clock
from tests.push.webhook_receiver import Backend, backend, hang, status, target
from tests.push.webhook_scene import BOB, CALLED, CANCELLED, PHONE, Scene, types


async def test_a_backend_is_told_of_each_event_of_a_call_in_the_events_own_words(
    webhook_scene_on_each: Callable[..., Scene], receiver: Backend
) -> None:
    scene = webhook_scene_on_each(billing=receiver)
    async with scene.running():
        call = await scene.call()
        came = {one.event["type"]: one for one in await receiver.next_few(2)}
        await scene.until_nothing_is_owed()
    assert sorted(came) == CALLED
    for name, recipients in (("call.received", ["bob"]), ("call.created", ["alice"])):
        body = came[name].event
        assert list(body) == ["type", "timestamp", "data"]
        event = parse_event(came[name].body.split(b'"data":', 1)[1][:-1])
        assert event.event == name
        assert event.call_sid == call.call_sid
        assert event.id == came[name].id
        assert body["timestamp"] == body["data"]["at"] == "2026-03-01T12:00:00.000Z"
        assert body["data"]["recipients"] == recipients
    assert receiver.came.empty()


async def test_a_backend_that_called_hears_how_it_ends_though_nobody_else_does(
    webhook_scene_of: Callable[..., Scene], receiver: Backend
) -> None:
    scene = webhook_scene_of(billing=receiver)
    now = scene.clock.now()
    async with scene.running():
        rejected = await scene.call(caller=None)
        await scene.calls.carry_out(rejected.call_sid, Reject(BOB, PHONE, now))
        came = await receiver.next_few(5)
        assert types(came) == [
            "call.cancelled",
            "call.created",
            "call.ended",
            "call.received",
            "call.user_state_changed",
        ]
        answered = await scene.call(caller=None)
        await scene.calls.carry_out(answered.call_sid, Accept(BOB, PHONE, now))
        await scene.calls.carry_out(answered.call_sid, Quit(BOB, PHONE, now))
        came = await receiver.next_few(6)
        assert "call.ended" in types(came)
        states = [one.event["data"].get("state") for one in came]
        assert {"Accepted", "Quit"} <= set(states)
        await scene.until_nothing_is_owed()
    assert receiver.came.empty()


async def test_a_target_gets_the_events_that_it_wants_and_another_gets_its_own(
    webhook_scene_of: Callable[..., Scene], receiver: Backend
) -> None:
    async with backend() as other:
        scene = webhook_scene_of(
            billing={"url": receiver.url, "events": ["call.received", "call.ended"]}, crm=other
        )
        async with scene.running():
            call = await scene.call()
            await scene.cancelled(call)
            await scene.until_nothing_is_owed()
        came = [receiver.came.get_nowait() for _ in range(receiver.came.qsize())]
        assert types(came) == ["call.ended", "call.received"]
        everything = [other.came.get_nowait() for _ in range(other.came.qsize())]
        assert types(everything) == sorted(CALLED + CANCELLED)


async def test_what_no_target_wants_is_not_kept(
    webhook_scene_on_each: Callable[..., Scene], receiver: Backend
) -> None:
    nowhere = webhook_scene_on_each()
    await nowhere.cancelled(await nowhere.call())
    assert (await nowhere.owed(), await nowhere.kept()) == (0, 0)
    picky = webhook_scene_on_each(billing={"url": receiver.url, "events": ["call.ended"]})
    await picky.cancelled(await picky.call())
    assert (await picky.owed(), await picky.kept()) == (1, 1)


async def test_what_a_killed_relay_owed_is_sent_after_its_restart(
    webhook_scene_on_each: Callable[..., Scene], receiver: Backend
) -> None:
    dead = webhook_scene_on_each(billing=receiver)
    call = await dead.call()  # committed; its outbox does not run: it was killed before it sent
    await dead.cancelled(call)
    assert receiver.came.empty()
    scene = dead.another()
    scene.clock.advance(LEASE_S)
    async with scene.running():
        assert types(await receiver.next_few(5)) == sorted(CALLED + CANCELLED)
        await scene.until_nothing_is_owed()
    assert receiver.came.empty()


async def test_an_event_is_tried_over_hours_the_same_each_time_though_the_call_is_long_over(
    webhook_scene_on_each: Callable[..., Scene], receiver: Backend
) -> None:
    scene = webhook_scene_on_each(billing={"url": receiver.url, "events": ["call.received"]})
    receiver.answer = status(500)
    async with scene.running():
        call = await scene.call()
        first = await receiver.next()
        await scene.until_failed()
        await scene.cancelled(call)
        for attempts, wait_s in enumerate((6, 60, 3600, 5 * 3600), start=2):
            again = await scene.next_after(wait_s, receiver)
            assert (again.id, again.body) == (first.id, first.body)
            await scene.until_failed(attempts)
        receiver.answer = status(200)
        last = await scene.next_after(14 * 3600, receiver)
        assert (last.id, last.body) == (first.id, first.body)
        await scene.until_nothing_is_owed()


async def test_a_hanging_backend_holds_up_neither_another_nor_the_relay(
    webhook_scene_of: Callable[..., Scene], receiver: Backend
) -> None:
    async with backend() as hanging:
        hanging.answer = hang
        scene = webhook_scene_of(hanging=hanging, billing=receiver)
        async with scene.running():
            for _ in range(20):
                await scene.cancelled(await scene.call())
            assert len(await receiver.next_few(100)) == 100
        assert await scene.owed() >= 100  # all that the hanging one is owed


async def test_an_event_nobody_takes_is_given_up_after_three_days_and_that_is_on_record(
    webhook_scene_of: Callable[..., Scene], receiver: Backend
) -> None:
    scene = webhook_scene_of(billing={"url": receiver.url, "events": ["call.received"]})
    receiver.answer = status(500)
    async with scene.running():
        call = await scene.call()
        await receiver.next()
        await scene.until_failed()
        scene.clock.advance(LIFE_S)
        await scene.until_nothing_is_owed()
    (result,) = await scene.results()
    assert result.call_sid == call.call_sid
    assert (result.kind, result.app, result.device_id) == ("webhook", "billing", "")
    assert (result.result, result.detail) == ("expired", "webhook billing: answered 500")
    assert receiver.came.empty()


async def test_what_a_backend_refuses_for_good_is_not_tried_again(
    webhook_scene_of: Callable[..., Scene], receiver: Backend
) -> None:
    scene = webhook_scene_of(billing={"url": receiver.url, "events": ["call.received"]})
    receiver.answer = status(410)
    async with scene.running():
        call = await scene.call()
        await receiver.next()
        await scene.until_nothing_is_owed()
    (result,) = await scene.results()
    assert result.call_sid == call.call_sid
    assert (result.result, result.detail) == ("refused", "webhook billing: answered 410")


async def test_an_event_that_is_no_calls_is_owed_once_like_any_other(
    webhook_scene_on_each: Callable[..., Scene], receiver: Backend
) -> None:
    scene = webhook_scene_on_each(
        billing=receiver, calls={"url": receiver.url, "events": ["call.received"]}
    )
    at, data = scene.clock.now(), {"device_id": "phone", "kind": "apns"}

    def removed(connection: Connection) -> int:
        new = scene.webhooks.event(connection, "device.channel_removed", "removed-1", at, data)
        owe(connection, new, to_ms(at))
        return len(new)

    assert await scene.database.write(removed) == 1
    assert await scene.database.write(removed) == 0
    async with scene.running():
        came = await receiver.next()
        await scene.until_nothing_is_owed()
    assert came.id == "removed-1"
    assert came.event == {
        "type": "device.channel_removed",
        "timestamp": "2026-03-01T12:00:00.000Z",
        "data": data,
    }
    assert (await scene.replay("billing")).count == 1


async def test_events_are_forgotten_when_they_can_no_longer_be_replayed(
    webhook_scene_of: Callable[..., Scene], receiver: Backend
) -> None:
    scene = webhook_scene_of(billing=receiver)
    await scene.call()
    scene.clock.advance(KEPT.total_seconds())
    await scene.database.write(scene.webhooks.forget_old)
    assert await scene.kept() == 2
    scene.clock.advance(0.001)
    await scene.database.write(scene.webhooks.forget_old)
    assert await scene.kept() == 0


async def test_a_test_event_goes_to_its_target_alone_whatever_that_wants(
    webhook_scene_of: Callable[..., Scene], receiver: Backend
) -> None:
    async with backend() as other:
        scene = webhook_scene_of(billing={"url": receiver.url, "events": ["call.ended"]}, crm=other)
        event_id = await scene.database.write(partial(scene.webhooks.test, name="billing"))
        async with scene.running():
            came = await receiver.next()
            await scene.until_nothing_is_owed()
        assert came.event["type"] == "webhook.test"
        assert came.event["data"] == {"id": event_id, "webhook": "billing"}
        assert came.id == event_id
        assert other.came.empty()
        assert await scene.kept() == 0


async def test_a_relay_alone_on_its_database_sends_at_once_what_it_owed_before_it_was_killed(
    webhook_scene_of: Callable[..., Scene], receiver: Backend
) -> None:
    dead = webhook_scene_of(billing=receiver)
    await dead.call()
    scene = dead.another()
    await scene.database.write(lambda c: make_all_due(c, to_ms(scene.clock.now())))
    async with scene.running():
        assert types(await receiver.next_few(2)) == CALLED
        await scene.until_nothing_is_owed()


@pytest.mark.parametrize("events", [["call.recieved"], ["webhook.test"], []])
def test_an_event_that_there_is_not_is_named(tmp_path: Path, events: list[str]) -> None:
    settings = {"billing": target(tmp_path, "http://127.0.0.1/", events=events)}
    with pytest.raises(InvalidInput, match=r"webhooks\.billing\.events: .* call\.received"):
        Webhooks(settings, now=Clock().now)
