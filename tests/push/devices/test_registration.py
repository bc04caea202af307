"""Registration of push tokens: replaced, taken over by another device, registered again; and what
was on its way meanwhile. On each kind of store."""

import asyncio

import pytest

from bellwire.push.channels.channel import DeliveryFailed
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.devices import ChannelRow, remove_channel
from bellwire.signaling.errors import NobodyToCall
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.wire.requests import ChannelRequest
from tests.push.clock import Clock
from tests.push.push_service import APP, STREAM, PushingRelay, fcm

AWAY = DeliveryFailed("the push service is away", retry_after_s=30)


@pytest.fixture
async def relay(each_database: Database, clock: Clock) -> PushingRelay:
    return PushingRelay(each_database, clock)


async def test_a_device_rings_over_all_of_its_channels_at_once(relay: PushingRelay) -> None:
    voip = ChannelRequest(kind="apns", app=APP, token="ab" * 32)
    await relay.register("phone", "bob", voip, fcm("t1"), fcm("t2", "com.example.other"), STREAM)
    async with relay.running():
        call = await relay.call("bob")
        pushed = {(await relay.service.next()).token for _ in range(2)}
        assert pushed == {"t1", "t2"}
        assert (await relay.apns.next()).environment == "production"
        (event,) = await relay.stream_of("phone")
        assert event.event_id == call.users[0].invite_id


async def test_what_has_failed_is_tried_at_once_with_the_token_that_replaces(
    relay: PushingRelay,
) -> None:
    await relay.register("phone", "bob", fcm("old"))
    relay.service.says["old"] = AWAY
    async with relay.running():
        await relay.call("bob")
        assert (await relay.service.next()).token == "old"
        await relay.until_failed()
        await relay.register("phone", "bob", fcm("new"))
        await relay.clock.until_asleep()
        relay.clock.advance(2)  # a sweep later, and long before the 30 s it was told to wait
        assert (await relay.service.next()).token == "new"
        await relay.until_owed(0)


async def test_registering_the_same_channels_again_loses_and_hurries_nothing(
    relay: PushingRelay,
) -> None:
    await relay.register("phone", "bob", fcm("t1"), STREAM)
    relay.service.says["t1"] = AWAY
    async with relay.running():
        await relay.call("bob")
        await relay.service.next()
        await relay.until_failed()
        await relay.register("phone", "bob", fcm("t1"), STREAM)
        assert (await relay.owed(), len(await relay.stream_of("phone"))) == (1, 1)
        relay.service.says.clear()
        for _ in range(14):
            await relay.clock.until_asleep()
            relay.clock.advance(2)
        await relay.clock.until_asleep()
        assert relay.service.tried.empty()
        relay.clock.advance(3)
        assert (await relay.service.next()).token == "t1"
        await relay.until_owed(0)


@pytest.mark.parametrize("new_owner", ["carol", "bob"])
async def test_a_token_that_another_device_registers_is_its_alone(
    relay: PushingRelay, new_owner: str
) -> None:
    await relay.register("old-phone", "bob", fcm("t1"), fcm("t2", "com.example.other"))
    relay.service.says["t1"] = AWAY
    async with relay.running():
        call = await relay.call("bob")
        sent = {(await relay.service.next()).token for _ in range(2)}
        assert sent == {"t1", "t2"}
        await relay.until_owed(1)
        await relay.until_failed()
        await relay.register("new-phone", new_owner, fcm("t1"))
        assert [c.token for c in await relay.channels_of("old-phone")] == ["t2"]
        assert [c.token for c in await relay.channels_of("new-phone")] == ["t1"]
        assert await relay.owed() == 0
        lost, kept = await relay.deliveries(call, "bob")
        assert (lost.device_id, lost.app, lost.state) == ("old-phone", APP, "refused")
        assert lost.detail == "another device has registered this token"
        assert (kept.app, kept.state) == ("com.example.other", "sent")
        # Nor does it come later, when the old device has a token again.
        relay.service.says.clear()
        await relay.register("old-phone", "bob", fcm("t3"))
        for _ in range(31):
            await relay.clock.until_asleep()
            relay.clock.advance(2)
        assert relay.service.tried.empty()


async def test_an_identity_whose_only_token_was_taken_over_cannot_be_called(
    relay: PushingRelay,
) -> None:
    await relay.register("phone", "bob", fcm("t1"))
    await relay.register("other", "carol", fcm("t1"))
    with pytest.raises(NobodyToCall):
        await relay.call("bob")


async def test_what_is_being_sent_while_its_token_is_taken_over_is_not_sent_again(
    relay: PushingRelay,
) -> None:
    await relay.register("phone", "bob", fcm("t1"))
    relay.service.open.clear()
    relay.service.says["t1"] = DeliveryFailed("the connection was lost")
    async with relay.running():
        await relay.call("bob")
        await relay.service.next()
        await relay.register("other", "carol", fcm("t1"))
        relay.service.open.set()
        await relay.until_owed(0)
        for _ in range(10):
            await relay.clock.until_asleep()
            relay.clock.advance(2)
        assert relay.service.tried.empty()


async def test_one_token_under_another_app_or_kind_is_another_token(relay: PushingRelay) -> None:
    token = "ab" * 32
    await relay.register("one", "bob", fcm(token))
    await relay.register("two", "carol", fcm(token, "com.example.other"))
    await relay.register("three", "dave", ChannelRequest(kind="apns", app=APP, token=token))
    for device in ("one", "two", "three"):
        assert [c.token for c in await relay.channels_of(device)] == [token]


async def test_an_apns_token_is_the_same_in_either_case(relay: PushingRelay) -> None:
    await relay.register("one", "bob", ChannelRequest(kind="apns", app=APP, token="AB" * 32))
    await relay.register("two", "carol", ChannelRequest(kind="apns", app=APP, token="ab" * 32))
    assert await relay.channels_of("one") == ()
    assert [c.token for c in await relay.channels_of("two")] == ["ab" * 32]


async def test_of_many_devices_that_register_a_token_at_once_one_has_it(
    relay: PushingRelay,
) -> None:
    devices = [f"phone-{n}" for n in range(8)]
    for token in ("t1", "t2", "t3"):
        async with asyncio.TaskGroup() as tasks:
            for device in devices:
                tasks.create_task(relay.register(device, device, fcm(token)))
        owners = [d for d in devices if any(c.token == token for c in await relay.channels_of(d))]
        assert len(owners) == 1


async def test_each_registration_counts_as_one_so_a_revived_token_is_kept(
    relay: PushingRelay,
) -> None:
    """Apple: remove a token only if it was registered before the timestamp of the 410."""
    await relay.register("phone", "bob", fcm("t1"))
    dies_ms = int(relay.clock.now().timestamp() * 1000) + 5000
    relay.clock.advance(5.001)
    await relay.register("phone", "bob", fcm("t1"))
    row, phone = ChannelRow("fcm", APP, token="t1"), DeviceId("phone")
    removes = relay.database.write
    assert not await removes(lambda c: remove_channel(c, phone, row, dies_ms))
    assert await removes(lambda c: remove_channel(c, phone, row, dies_ms + 1))
