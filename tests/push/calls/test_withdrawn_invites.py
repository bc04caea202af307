"""An invite that is over is not sent any more, whether it was tried before or not; and who may not
invite is told so before anything is looked up."""

from datetime import timedelta

import pytest
from sqlalchemy import Connection, select

from bellwire.push.access.tokens import Actor
from bellwire.push.calls.invites import Invite
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.devices import ChannelRow, DeviceRow, put_device
from bellwire.push.store.tables import outbox, to_ms
from bellwire.signaling.calls.calls import Mode
from bellwire.signaling.calls.commands import Invitee, InviteMore, NewCall, Reject
from bellwire.signaling.errors import Forbidden, NobodyToCall, OperationRefused
from bellwire.signaling.identifiers import CallSid, DeviceId, Identity
from tests.push.clock import START, Clock
from tests.push.parts import Parts, parts_on

ALICE, BOB, CAROL, EVE = map(Identity, ("alice", "bob", "carol", "eve"))
DESK, DOOR = DeviceId("desk"), DeviceId("door")


@pytest.fixture
async def parts(each_database: Database, clock: Clock) -> Parts:
    """A relay that has never sent anything: its outbox does not run."""
    for device, identity in ((DESK, BOB), (DOOR, BOB), (DeviceId("alice"), ALICE)):
        row = DeviceRow(device, identity, (ChannelRow("mqtt"),))
        await each_database.write(lambda c, row=row: put_device(c, row, to_ms(START)))
    return parts_on(each_database, clock)


async def called(parts: Parts, mode: Mode = Mode.COMMON) -> CallSid:
    new = NewCall(parts.calls.new_sid(), ALICE, (), parts.calls.now(), 60, mode=mode)
    return (await parts.calls.create(Invite(new, (BOB,), {}, Actor()))).call.call_sid


def owed_to(connection: Connection) -> list[tuple[str, str]]:
    rows = connection.execute(select(outbox.c.device_id, outbox.c.payload))
    return [(row.device_id, row.payload) for row in rows]


async def test_an_invite_that_was_never_tried_is_forgotten_once_another_device_has_answered(
    parts: Parts,
) -> None:
    sid = await called(parts)
    assert "call.received" in "".join(p for _, p in await parts.database.read(owed_to))
    await parts.calls.carry_out(sid, Reject(BOB, DESK, parts.calls.now()))
    owed = await parts.database.read(owed_to)
    assert not [payload for _, payload in owed if '"call.received"' in payload]
    assert [device for device, payload in owed if '"rejected_elsewhere"' in payload] == [DOOR]


@pytest.mark.parametrize(
    ("inviter", "mode", "refusal"),
    [
        (ALICE, Mode.COMMON, OperationRefused),
        (BOB, Mode.ADVANCED, OperationRefused),
        (EVE, Mode.ADVANCED, Forbidden),
        (ALICE, Mode.ADVANCED, NobodyToCall),
    ],
)
async def test_who_may_not_invite_is_told_so_even_where_nobody_could_be_reached(
    parts: Parts, inviter: Identity, mode: Mode, refusal: type[Exception]
) -> None:
    sid = await called(parts, mode)
    at = parts.calls.now() + timedelta(seconds=1)
    with pytest.raises(refusal):
        await parts.calls.carry_out(sid, InviteMore(inviter, None, (Invitee(CAROL),), at, 60))
