"""Lists of calls by who, state and time: what is found, page by page, with no table read whole for it."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from itertools import product

import pytest
from sqlalchemy import Connection, insert, text

from bellwire.push.store.engine.database import Database
from bellwire.push.store.engine.unit_of_work import UnitOfWork, in_a_unit
from bellwire.push.store.rows.calls import CallFilter, calls_query, list_calls
from bellwire.push.store.tables import call_users, calls, to_ms
from bellwire.signaling.calls.calls import Call, CallState
from bellwire.signaling.calls.commands import Invitee, NewCall
from bellwire.signaling.calls.rules import create_call
from bellwire.signaling.identifiers import Identity, new_call_sid
from tests.push.clock import START

ALICE, BOB, CAROL = map(Identity, ("alice", "bob", "carol"))
RINGING, OPEN, ENDED = CallState.RINGING, CallState.OPEN, CallState.ENDED


def call_of(number: int, invitee: Identity, state: CallState, at: datetime) -> Call:
    sid = new_call_sid(to_ms(at), number.to_bytes(10, "big"))
    new = create_call(NewCall(sid, ALICE, (Invitee(invitee),), at, 60)).call
    return replace(new, state=state)


@pytest.fixture
async def kept(each_database: Database) -> list[Call]:
    """Forty, half of them of Bob: one a minute, as a relay with a clock of its own keeps them, too."""
    made = []
    for number in range(40):
        state = OPEN if number in (3, 30) else RINGING if number in (38, 39) else ENDED
        skew = timedelta(seconds=-50 if number % 7 == 0 else 0)
        at = START + timedelta(minutes=number) + skew
        made.append(call_of(number, BOB if number % 2 else CAROL, state, at))
    for call in made:
        await each_database.write(in_a_unit(partial(UnitOfWork.add_call, call=call)))
    return made


def minute(number: float) -> datetime:
    return START + timedelta(minutes=number)


FILTERS = [
    CallFilter(),
    CallFilter(state=RINGING),
    CallFilter(state=OPEN),
    CallFilter(state=ENDED),
    CallFilter(since=minute(10)),
    CallFilter(until=minute(10)),
    CallFilter(since=minute(5), until=minute(9.5)),
    CallFilter(since=minute(50)),
    CallFilter(until=minute(-50)),
    CallFilter(state=OPEN, since=minute(4)),
    CallFilter(state=ENDED, since=minute(20), until=minute(38.5)),
]


async def test_a_list_holds_what_is_asked_for_newest_first_page_by_page(
    each_database: Database, kept: list[Call]
) -> None:
    for whose, only in product((None, BOB, CAROL), FILTERS):
        found, cursor = [], 0
        while True:
            page, cursor = await each_database.read(
                partial(list_calls, identity=whose, count=3, before=cursor, only=only)
            )
            assert len(page) <= 3
            found += page
            if cursor == 0:
                break
        asked_for = [call for call in reversed(kept) if is_asked_for(call, whose, only)]
        assert found == asked_for, (whose, only)


def is_asked_for(call: Call, whose: Identity | None, only: CallFilter) -> bool:
    return (
        (whose is None or call.user(whose) is not None)
        and (only.state in (None, call.state))
        and (only.since is None or call.created_at >= only.since)
        and (only.until is None or call.created_at < only.until)
    )


def plan_of(connection: Connection, whose: Identity | None, only: CallFilter) -> str:
    query = calls_query(whose, count=20, before=0, only=only)
    written = str(query.compile(connection, compile_kwargs={"literal_binds": True}))
    explain = "EXPLAIN" if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
    rows: Iterable[tuple[object, ...]] = connection.execute(text(f"{explain} {written}"))
    return "\n".join(" ".join(map(str, row)) for row in rows)


def _fill(connection: Connection, many: int) -> None:
    """Ended calls without end, one a second, but for a few; few of them are Bob's."""
    first = to_ms(START)
    numbers = range(1, many + 1)
    connection.execute(
        insert(calls),
        [
            {
                "number": number,
                "call_sid": new_call_sid(first + number * 1000, bytes(10)),
                "state": OPEN if number % 5000 == 0 else ENDED,
                "document": "{}",
            }
            for number in numbers
        ],
    )
    connection.execute(
        insert(call_users),
        [{"identity": BOB if n % 1000 == 0 else CAROL, "call_number": n} for n in numbers],
    )
    connection.execute(text("ANALYZE"))


async def test_no_list_reads_a_table_whole(each_database: Database) -> None:
    await each_database.write(partial(_fill, many=20_000))
    late = START + timedelta(seconds=15_000)
    for whose in (None, BOB, CAROL):
        for only in (
            CallFilter(state=OPEN),
            CallFilter(state=RINGING),
            CallFilter(until=START + timedelta(seconds=500)),
            CallFilter(since=late, until=late + timedelta(seconds=60)),
            CallFilter(state=OPEN, until=START + timedelta(seconds=500)),
        ):
            plan = await each_database.read(partial(plan_of, whose=whose, only=only))
            for whole in ("SCAN calls\n", "SCAN call_users", "Seq Scan"):
                assert whole not in f"{plan}\n", (whose, only, plan)
