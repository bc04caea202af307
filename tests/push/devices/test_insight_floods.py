"""A device that tells of calls without end: what is too much is thrown away unread, and others are heard."""

import asyncio
import json
import time
from contextlib import suppress
from functools import partial
from typing import Any

from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.messages import Incoming
from bellwire.broker.session.receiving import ReceivingSession
from bellwire.push.access.tokens import Actor
from bellwire.push.calls.invites import Invite
from bellwire.push.devices.insights import (
    AT_ONCE_OF_ONE,
    MOST_OF_A_CALL,
    Insights,
    insights_document,
)
from bellwire.push.metrics import Metrics
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.devices import ChannelRow, DeviceRow, put_device
from bellwire.push.store.rows.quality import InsightRow
from bellwire.signaling.calls.commands import NewCall
from bellwire.signaling.identifiers import CallSid, DeviceId, Identity
from bellwire.signaling.topics import insights_topic
from bellwire.signaling.wire.answers import CallInsightsAnswer
from bellwire.signaling.wire.insights import ToldInsight
from tests.conftest import PATIENCE_S
from tests.push.clock import Clock
from tests.push.parts import parts_on

BOB, EVE = Identity("bob"), Identity("eve")


class _Heard(ReceivingSession):
    """A session at no broker, whose messages a test brings."""

    def receive(self, topic_filter: str, handler: Any, **_: Any) -> None:  # noqa: ANN401
        del topic_filter
        self.bring = handler

    async def run(self) -> None:
        await asyncio.Event().wait()


def _tells(device: str, sid: CallSid, number: int) -> Incoming:
    document = {
        "group": "settings",
        "name": "codec",
        "timestamp": "2026-11-30T12:00:00Z",
        "payload": {"call_sid": sid, "number": number},
    }
    payload = json.dumps(document).encode()
    return Incoming(insights_topic(DeviceId(device)), payload, False, None, None, None)


async def test_a_device_that_tells_without_end_takes_no_place_of_others_and_no_disk(
    database: Database, clock: Clock
) -> None:
    parts, metrics, elapsed_s = parts_on(database, clock), Metrics(), 0.0
    for name in (BOB, EVE):
        row = DeviceRow(DeviceId(name), name, (ChannelRow("mqtt"),))
        await database.write(partial(put_device, device=row, at_ms=0))
    new = partial(NewCall, invitees=(), at=clock.now(), timeout_s=60)
    sids = []
    for _ in range(2):
        invite = Invite(
            new(call_sid=parts.calls.new_sid(), caller=EVE), (BOB,), {}, Actor(EVE, None)
        )
        sids.append((await parts.calls.create(invite)).call.call_sid)
    session = _Heard(BrokerAddress("127.0.0.1", 1), "no-broker")
    insights = Insights(database, session, metrics, now=clock.now, clock=lambda: elapsed_s)
    for number in range(1500):
        session.bring(_tells("eve", sids[number % 2], number))
    session.bring(_tells("bob", sids[0], 0))
    running = asyncio.create_task(insights.run())

    async def kept(sid: CallSid) -> list[str]:
        rows = await parts.calls.insights_of(sid, Actor())
        return [row.device_id for row in rows]

    try:
        async with asyncio.timeout(PATIENCE_S):
            while "bob" not in await kept(sids[0]):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
        told = [*await kept(sids[0]), *await kept(sids[1])]
        assert told.count("eve") == AT_ONCE_OF_ONE, "of all its calls together"
        elapsed_s = 10.0
        session.bring(_tells("eve", sids[1], 9999))
        async with asyncio.timeout(PATIENCE_S):
            while (await kept(sids[1])).count("eve") <= AT_ONCE_OF_ONE // 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


def test_who_asks_again_and_again_for_all_that_a_device_has_told_holds_up_no_relay() -> None:
    """A device may tell what takes long to read."""
    sid = "CA" + "1" * 32
    payload: dict[str, Any] = {"call_sid": sid, "x": [[]] * 1300}
    told = ToldInsight.model_validate(
        {"group": "g", "name": "n", "timestamp": "2026-11-30T12:00:00Z", "payload": payload}
    )
    row = InsightRow(sid, 'b"ob', "bob-1", 0, "", told.model_dump_json())
    began_s = time.process_time()
    document = insights_document(sid, [row] * MOST_OF_A_CALL)
    written_s = time.process_time()
    answer = CallInsightsAnswer.model_validate_json(document)
    read_s = time.process_time()
    assert answer.model_dump_json() == document
    assert (written_s - began_s) * 5 < read_s - written_s
