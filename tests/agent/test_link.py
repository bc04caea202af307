"""What a device asks of its relay, and what it makes of the answers."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio

from bellwire.agent.link import Link, RequestRefused
from bellwire.broker.accounts.dynamic_security import CONTROL_TOPIC, device_acls, device_role_name
from bellwire.broker.session.address import BrokerAddress
from bellwire.signaling.calls.events import CallEnded
from bellwire.signaling.errors import CallError
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import request_topic
from bellwire.signaling.wire.answers import DeviceResponse
from bellwire.signaling.wire.operations import DeviceShow
from tests.agent.desk import Exchange
from tests.agent.scripted_relay import (
    ScriptedRelay,
    about,
    call_answer,
    fresh_sid,
    refused,
    scripted_relay,
)
from tests.broker.running import soon
from tests.conftest import PATIENCE_S

pytestmark = pytest.mark.asyncio(loop_scope="module")


def now() -> datetime:
    return datetime.now(UTC)


def in_s(seconds: float) -> datetime:
    return now() + timedelta(seconds=seconds)


@dataclass
class Ends:
    link: Link
    relay: ScriptedRelay


@pytest_asyncio.fixture(loop_scope="module")
async def ends(exchange: Exchange) -> AsyncIterator[Ends]:
    address = await exchange.admit()
    device = DeviceId(str(address.username))
    async with scripted_relay(exchange.broker.address, device) as relay:
        link = Link(address, device, sleep=soon)
        running = asyncio.create_task(link.run())
        await asyncio.wait_for(link.wait_connected(), PATIENCE_S)
        yield Ends(link, relay)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_an_answer_is_the_call(ends: Ends) -> None:
    sid = fresh_sid()
    answer = call_answer(sid)
    ends.relay.answers["show"] = lambda _: DeviceResponse(status=200, call=answer)
    show = DeviceShow(operation="show", call_sid=sid)
    assert (await ends.link.ask(show, within=timedelta(seconds=PATIENCE_S))).call_sid == sid


async def test_a_refusal_carries_the_relays_problem(ends: Ends) -> None:
    ends.relay.answers["show"] = refused(404, "no such call")
    with pytest.raises(RequestRefused, match="no such call") as raised:
        await ends.link.ask(
            DeviceShow(operation="show", call_sid=fresh_sid()), within=timedelta(seconds=PATIENCE_S)
        )
    assert raised.value.problem.status == 404


async def test_an_answer_that_holds_nothing_is_a_bad_gateway(ends: Ends) -> None:
    ends.relay.answers["show"] = lambda _: DeviceResponse(status=200)
    with pytest.raises(CallError) as raised:
        await ends.link.ask(
            DeviceShow(operation="show", call_sid=fresh_sid()), within=timedelta(seconds=PATIENCE_S)
        )
    assert raised.value.code == 31502


async def test_no_answer_in_time_is_a_request_timeout(ends: Ends) -> None:
    ends.relay.answers["show"] = lambda _: None
    asked_at = now()
    with pytest.raises(CallError) as raised:
        await ends.link.ask(
            DeviceShow(operation="show", call_sid=fresh_sid()), within=timedelta(seconds=0.2)
        )
    assert raised.value.code == 31408
    assert now() - asked_at < timedelta(seconds=1)


async def test_a_relay_that_cannot_now_is_asked_again_for_a_while(ends: Ends) -> None:
    """It is stopping, since it is upgraded, or its database is moving to a standby."""
    sid, answered = fresh_sid(), iter([503, 503, 200])

    def answer(request: object) -> DeviceResponse | None:
        if (status := next(answered)) == 200:
            return DeviceResponse(status=200, call=call_answer(sid))
        return refused(status, "the relay is stopping")(request)  # type: ignore[arg-type]

    ends.relay.answers["show"] = answer
    show = DeviceShow(operation="show", call_sid=sid)
    assert (await ends.link.ask(show, within=timedelta(seconds=PATIENCE_S))).call_sid == sid
    ends.relay.answers["show"] = refused(503, "the database is away")
    with pytest.raises(RequestRefused, match="the database is away"):
        await ends.link.ask(show, within=timedelta(seconds=0.2))


async def test_asking_without_a_broker_waits_for_it_no_longer_than_it_may() -> None:
    link = Link(BrokerAddress("127.0.0.1", 1), DeviceId("nobody"), sleep=soon)
    with pytest.raises(CallError) as raised:
        await link.ask(
            DeviceShow(operation="show", call_sid=fresh_sid()), within=timedelta(seconds=0.1)
        )
    assert raised.value.code == 31009


@pytest.mark.parametrize(("host", "code"), [("127.0.0.1", 31005), ("nowhere.invalid", 31530)])
async def test_who_cannot_reach_the_broker_is_told_why_each_time(host: str, code: int) -> None:
    link = Link(BrokerAddress(host, 1), DeviceId("nobody"), sleep=soon)
    errors: asyncio.Queue[CallError] = asyncio.Queue()
    link.on_unreached(errors.put_nowait)
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(link.run())
        assert [(await errors.get()).code for _ in range(2)] == [code, code]
        running.cancel()


async def test_each_event_is_heard_once_however_often_it_is_delivered(ends: Ends) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    ends.link.listen(lambda event, _: heard.put_nowait(event.id))
    first, second = (CallEnded(**about(fresh_sid())) for _ in range(2))
    for event in (first, first, first, second):
        await ends.relay.say(event)
    async with asyncio.timeout(PATIENCE_S):
        assert [await heard.get(), await heard.get()] == [first.id, second.id]


async def test_two_links_of_one_fleet_do_not_hear_each_other(
    ends: Ends, exchange: Exchange
) -> None:
    address = await exchange.admit()
    other = Link(address, DeviceId(str(address.username)), sleep=soon)
    heard: asyncio.Queue[str] = asyncio.Queue()
    other.listen(lambda event, _: heard.put_nowait(event.id))
    running = asyncio.create_task(other.run())
    async with (
        scripted_relay(exchange.broker.address, DeviceId(str(address.username))) as relay,
        asyncio.timeout(PATIENCE_S),
    ):
        await other.wait_connected()
        await ends.relay.say(CallEnded(**about(fresh_sid())))
        own = CallEnded(**about(fresh_sid()))
        await relay.say(own)
        assert await heard.get() == own.id
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_device_that_may_not_ask_is_told_so(exchange: Exchange) -> None:
    address = await exchange.admit()
    device = DeviceId(str(address.username))
    rights = [acl for acl in device_acls(device) if acl["topic"] != request_topic(device)]
    command = {
        "command": "modifyRole",
        "rolename": device_role_name(device),
        "acls": rights,
    }
    document = json.dumps({"commands": [command]}).encode()
    await exchange.session.publish(CONTROL_TOPIC, document)
    link = Link(address, device, sleep=soon)
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(link.run())
        with pytest.raises(CallError, match="refuses a message") as raised:
            await link.ask(
                DeviceShow(operation="show", call_sid=fresh_sid()),
                within=timedelta(seconds=PATIENCE_S),
            )
        running.cancel()
    assert raised.value.code == 31201
