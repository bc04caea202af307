"""Calls as rows: the document that the rules made, and what it is found by."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import TypeAdapter
from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Text,
    bindparam,
    delete,
    exists,
    func,
    insert,
    select,
    text,
    update,
)

from bellwire.push.store.prepared import Prepared, PreparedForEach, PreparedForList, insert_each
from bellwire.push.store.tables import call_users, calls, idempotency_keys, to_ms
from bellwire.signaling.calls.calls import Call, CallState
from bellwire.signaling.identifiers import CallSid, Identity

_DOCUMENT: TypeAdapter[Call] = TypeAdapter(Call)

_SELECT = select(calls.c.document).where(calls.c.call_sid == bindparam("sid"))
_LOAD = Prepared(_SELECT)
_HOLD = PreparedForList(
    lambda sids: (
        select(calls.c.call_sid, calls.c.document)
        .where(calls.c.call_sid.in_(sids))
        .order_by(calls.c.call_sid)
        .with_for_update()
    )
)
_INSERT = insert_each(calls, ("call_sid", "state", "deadline_ms", "document"))
_INSERT_USERS = PreparedForEach(
    lambda given: insert(call_users).from_select(
        ["identity", "call_number"],
        select(
            given["identity"],
            select(calls.c.number).where(calls.c.call_sid == given["sid"]).scalar_subquery(),
        ),
    ),
    {"identity": Text(), "sid": Text()},
)
# One after the other on PostgreSQL too: a plan that joins them was made while the table was small, and
# would read all of a table that has grown since.
_SAVE = Prepared(
    update(calls)
    .where(calls.c.call_sid == bindparam("sid"))
    .values(
        state=bindparam("new_state"),
        deadline_ms=bindparam("deadline"),
        document=bindparam("new_document"),
    )
)
_FIND_KEY = Prepared(
    select(idempotency_keys.c.fingerprint, idempotency_keys.c.call_sid).where(
        idempotency_keys.c.actor == bindparam("actor"), idempotency_keys.c.key == bindparam("key")
    )
)
_KEEP_KEYS = insert_each(
    idempotency_keys, ("actor", "key", "fingerprint", "call_sid", "created_at_ms")
)


@dataclass(frozen=True, slots=True)
class CallFilter:
    """Which calls are looked for: those in a state; those made from `since` on, and before `until`."""

    state: CallState | None = None
    since: datetime | None = None
    until: datetime | None = None


ALL_CALLS = CallFilter()

_OUT_OF_ORDER_MS = 60_000
"""A call's number is given to it when it is kept, its SID holds when it was made: by as much as this one
may run ahead of the other, where relays' clocks differ or a transaction takes its time."""
_LIVE = text("calls.state <> 'ended'")
"""As the index of those has it, letter by letter: SQLite would not see that it is meant."""


@dataclass(frozen=True, slots=True)
class IdempotencyRow:
    """What a request under an actor's Idempotency-Key made, and when."""

    actor: str
    key: str
    fingerprint: str
    call_sid: CallSid
    at_ms: int


def insert_calls(connection: Connection, new: Sequence[Call]) -> None:
    """Keeps new calls, without their users."""
    _INSERT.run(
        connection,
        [
            {
                "call_sid": call.call_sid,
                "state": call.state,
                "deadline_ms": _deadline(call),
                "document": _DOCUMENT.dump_json(call).decode(),
            }
            for call in new
        ],
    )


def insert_users(connection: Connection, users: Sequence[tuple[CallSid, Identity]]) -> None:
    """Keeps who is in which call, so that the calls of an identity are found."""
    _INSERT_USERS.run(connection, [{"sid": sid, "identity": identity} for sid, identity in users])


def load_call(connection: Connection, call_sid: CallSid) -> Call | None:
    """The call with this SID, or None."""
    row = _LOAD.one(connection, sid=call_sid)
    return None if row is None else _DOCUMENT.validate_json(row[0])


def hold_calls(connection: Connection, call_sids: Sequence[CallSid]) -> dict[CallSid, Call]:
    """Those of some calls that there are, held against other writers until the transaction ends, one
    after the other in the order of their SIDs."""
    return {
        CallSid(sid): _DOCUMENT.validate_json(document)
        for sid, document in _HOLD.rows(connection, sorted(call_sids))
    }


def save_calls(connection: Connection, changed: Sequence[Call]) -> None:
    """Keeps calls that have changed."""
    _SAVE.run_each(
        connection,
        [
            {
                "sid": call.call_sid,
                "new_state": call.state,
                "deadline": _deadline(call),
                "new_document": _DOCUMENT.dump_json(call).decode(),
            }
            for call in changed
        ],
    )


def list_calls(
    connection: Connection,
    identity: Identity | None,
    *,
    count: int,
    before: int,
    only: CallFilter = ALL_CALLS,
) -> tuple[list[Call], int]:
    """Up to `count` calls, newest first, of one identity or of all, older than the cursor `before`
    (0: from the newest); and the cursor of the next page, 0 at the end."""
    rows = connection.execute(calls_query(identity, count=count, before=before, only=only)).all()
    page = rows[:count]
    following = page[-1].number if len(rows) > count else 0
    return [_DOCUMENT.validate_json(row.document) for row in page], following


def calls_query(
    identity: Identity | None, *, count: int, before: int, only: CallFilter
) -> Select[tuple[int, str]]:
    """Finds a page of calls, and one more. No table is read whole for it: the calls that go on have an
    index of their own, those of an identity another, and times are looked up among the SIDs."""
    query: Select[tuple[int, str]] = select(calls.c.number, calls.c.document)
    number: ColumnElement[int] = calls.c.number
    if only.state is not None:
        query = query.where(calls.c.state == only.state)
    if only.state not in (None, CallState.ENDED):
        query = query.where(_LIVE)
        if identity is not None:
            query = query.where(
                exists().where(
                    call_users.c.identity == identity, call_users.c.call_number == calls.c.number
                )
            )
    elif identity is not None:
        query = query.join(call_users).where(call_users.c.identity == identity)
        number = call_users.c.call_number
    if before:
        query = query.where(number < before)
    # Whether it is in time is looked at call by call, between two numbers, so that no index of all that
    # time is sorted for the few that are on the page.
    sid = calls.c.call_sid.concat("")
    if only.since is not None:
        query = query.where(
            sid >= _first_sid(to_ms(only.since)),
            number > _last_number_before(to_ms(only.since) - _OUT_OF_ORDER_MS),
        )
    if only.until is not None:
        query = query.where(
            sid < _first_sid(to_ms(only.until)),
            number < _first_number_from(to_ms(only.until) + _OUT_OF_ORDER_MS),
        )
    return query.order_by(number.desc()).limit(count + 1)


def _first_sid(at_ms: int) -> str:
    """What no SID of a call made from then on is less than."""
    return f"CA{min(max(at_ms, 0), (1 << 48) - 1):012x}"


def _last_number_before(at_ms: int) -> ColumnElement[int]:
    last = (
        select(calls.c.number)
        .where(calls.c.call_sid < _first_sid(at_ms))
        .order_by(calls.c.call_sid.desc())
        .limit(1)
    )
    return func.coalesce(last.scalar_subquery(), 0)


def _first_number_from(at_ms: int) -> ColumnElement[int]:
    first = (
        select(calls.c.number)
        .where(calls.c.call_sid >= _first_sid(at_ms))
        .order_by(calls.c.call_sid)
        .limit(1)
    )
    return func.coalesce(first.scalar_subquery(), (1 << 63) - 1)


def live_calls_of(connection: Connection, identity: Identity) -> list[Call]:
    """The calls of an identity that time still moves, such as by an open invitation's end."""
    rows = connection.execute(
        select(calls.c.document)
        .join(call_users)
        .where(call_users.c.identity == identity, calls.c.deadline_ms.is_not(None))
    )
    return [_DOCUMENT.validate_json(row.document) for row in rows]


def ringing_calls_of(connection: Connection, identity: Identity) -> list[Call]:
    """The calls of an identity that nobody has accepted, held against other writers."""
    rows = connection.execute(
        select(calls.c.document)
        .join(call_users)
        .where(call_users.c.identity == identity, calls.c.state == CallState.RINGING)
        .order_by(calls.c.call_sid)
        .with_for_update(of=calls)
    )
    return [_DOCUMENT.validate_json(row.document) for row in rows]


def overdue_calls(connection: Connection, before_ms: int, limit: int) -> list[CallSid]:
    """Up to `limit` calls whose deadline came before a moment, in Unix milliseconds."""
    rows = connection.execute(
        select(calls.c.call_sid)
        .where(calls.c.deadline_ms <= before_ms)
        .order_by(calls.c.deadline_ms)
        .limit(limit)
    )
    return [CallSid(sid) for sid in rows.scalars()]


def all_deadlines(connection: Connection) -> Iterable[tuple[CallSid, int]]:
    """Each call that time will move, and when, in Unix milliseconds."""
    rows = connection.execute(
        select(calls.c.call_sid, calls.c.deadline_ms).where(calls.c.deadline_ms.is_not(None))
    )
    return [(CallSid(row.call_sid), row.deadline_ms) for row in rows]


def find_idempotent(connection: Connection, actor: str, key: str) -> Sequence[str] | None:
    """The fingerprint and call SID that were kept under an actor's key, or None."""
    return _FIND_KEY.one(connection, actor=actor, key=key)


def keep_idempotent(connection: Connection, kept: Sequence[IdempotencyRow]) -> None:
    """Keeps what requests under actors' keys made."""
    _KEEP_KEYS.run(
        connection,
        [
            {
                "actor": row.actor,
                "key": row.key,
                "fingerprint": row.fingerprint,
                "call_sid": row.call_sid,
                "created_at_ms": row.at_ms,
            }
            for row in kept
        ],
    )


def forget_idempotent(connection: Connection, before_ms: int) -> None:
    """Forgets the keys that are older than a moment."""
    connection.execute(delete(idempotency_keys).where(idempotency_keys.c.created_at_ms < before_ms))


def _deadline(call: Call) -> int | None:
    deadline = call.next_deadline
    return None if deadline is None else to_ms(deadline)
