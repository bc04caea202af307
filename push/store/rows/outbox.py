"""Deliveries owed, as rows: written with the change that owes them, deleted once delivered.

`due_ms` is when somebody is to try next. Whoever tries puts it off first by a lease, so a process
that dies while trying loses nothing: when its lease is over, another takes the row.
"""

import itertools
import json
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    and_,
    bindparam,
    delete,
    exists,
    func,
    not_,
    or_,
    select,
    update,
)

from bellwire.push.store.prepared import PreparedForList, insert_each
from bellwire.push.store.rows.connections import is_online
from bellwire.push.store.tables import channels, device_events, outbox
from bellwire.signaling.identifiers import DeviceId

_NUMBER_BITS = 20
_INSERT = insert_each(
    outbox,
    (
        "delivery_id",
        "event_id",
        "call_sid",
        "device_id",
        "kind",
        "app",
        "payload",
        "expires_at_ms",
        "due_ms",
    ),
)
# Who has a row locked is about to delete it, or to send it: waiting could end in a deadlock.
_FORGET = PreparedForList(
    lambda events: (
        delete(outbox)
        .where(
            outbox.c.delivery_id.in_(
                select(outbox.c.delivery_id)
                .where(
                    outbox.c.event_id.in_(events),
                    outbox.c.device_id.is_not(None),
                )
                .with_for_update(skip_locked=True)
            )
        )
        .returning(
            outbox.c.event_id,
            outbox.c.device_id,
            outbox.c.kind,
            outbox.c.app,
            outbox.c.call_sid,
            outbox.c.attempts,
            outbox.c.reason,
            outbox.c.tries,
            outbox.c.due_ms,
            outbox.c.expires_at_ms,
        )
    )
)
_DELETE = PreparedForList(
    lambda ids: delete(outbox).where(outbox.c.delivery_id.in_(ids)), BigInteger
)
_DUE = (
    select(outbox, channels.c.environment, channels.c.token, channels.c.kind.label("way"))
    .select_from(
        outbox.outerjoin(
            channels,
            and_(
                channels.c.device_id == outbox.c.device_id,
                channels.c.kind == outbox.c.kind,
                channels.c.app == outbox.c.app,
            ),
        )
    )
    .where(outbox.c.due_ms <= bindparam("now"))
    .order_by(outbox.c.due_ms, outbox.c.delivery_id)
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True, of=outbox)
)


_numbers = itertools.count(secrets.randbits(_NUMBER_BITS))


def _new_id() -> int:
    """An id in the order of time. Two processes that make the same one, which is rare, collide in
    the database, and one of them tries again."""
    number = next(_numbers) & ((1 << _NUMBER_BITS) - 1)
    return (time.time_ns() // 1_000_000 << _NUMBER_BITS) | number


@dataclass(slots=True, unsafe_hash=True)  # frozen, it is made eight times slower
class Delivery:
    """One event on its way to one device over one kind of channel; to a webhook where `device_id` is
    empty. `app` is the push channel's app, or the webhook's name. `delivery_id` 0: not kept yet.
    `gone`: the device no longer has this channel. Not kept yet, it has an id already."""

    event_id: str
    device_id: DeviceId
    kind: str
    payload: str
    expires_at_ms: int
    call_sid: str = ""
    app: str = ""
    environment: str | None = None
    token: str | None = None
    attempts: int = 0
    reason: str | None = None
    delivery_id: int = field(default_factory=_new_id)
    gone: bool = False
    tries: str | None = None
    """The attempts that failed, as `tries_with` writes them."""
    taken_back: bool = field(default=False, compare=False)
    """Not to be sent after all: found out in the transaction that owes it."""


_TRIES_KEPT = 20
_ANSWER_KEPT = 200


def tries_with(tries: str | None, at_ms: int, answer: str) -> str:
    """What is kept of failed attempts, with one more: the first and the last of them, as JSON."""
    so_far: list[list[int | str]] = [] if tries is None else json.loads(tries)
    so_far.append([at_ms, answer[:_ANSWER_KEPT]])
    kept = so_far if len(so_far) <= _TRIES_KEPT else [so_far[0], *so_far[1 - _TRIES_KEPT :]]
    return json.dumps(kept, ensure_ascii=False, separators=(",", ":"))


def owe(connection: Connection, deliveries: Sequence[Delivery], leased_until_ms: int) -> None:
    """Keeps new deliveries, leased to the process that is about to try them."""
    _INSERT.run(
        connection,
        [
            {
                "delivery_id": delivery.delivery_id,
                "event_id": delivery.event_id,
                "call_sid": delivery.call_sid,
                "device_id": delivery.device_id or None,
                "kind": delivery.kind,
                "app": delivery.app,
                "payload": delivery.payload,
                "expires_at_ms": delivery.expires_at_ms,
                "due_ms": leased_until_ms,
            }
            for delivery in deliveries
        ],
    )


def owed_already(
    connection: Connection, event_ids: Iterable[str], device: DeviceId, kind: str
) -> set[str]:
    """Which of the events are on their way to the device over a kind of channel."""
    rows = connection.execute(
        select(outbox.c.event_id).where(
            outbox.c.device_id == device,
            outbox.c.kind == kind,
            outbox.c.event_id.in_(list(event_ids)),
        )
    )
    return set(rows.scalars())


def take_due(
    connection: Connection, now_ms: int, leased_until_ms: int, limit: int
) -> list[Delivery]:
    """Leases up to `limit` deliveries that are due, each with its device's token of now."""
    rows = connection.execute(_DUE, {"now": now_ms, "most": limit}).all()
    if not rows:
        return []
    connection.execute(
        update(outbox)
        .where(outbox.c.delivery_id.in_([row.delivery_id for row in rows]))
        .values(due_ms=leased_until_ms)
    )
    return [
        Delivery(
            event_id=row.event_id,
            device_id=DeviceId(row.device_id or ""),
            kind=row.kind,
            payload=row.payload,
            expires_at_ms=row.expires_at_ms,
            call_sid=row.call_sid,
            app=row.app,
            environment=row.environment,
            token=row.token,
            attempts=row.attempts,
            reason=row.reason,
            delivery_id=row.delivery_id,
            gone=row.device_id is not None and row.way is None,
            tries=row.tries,
        )
        for row in rows
    ]


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A delivery to a device that was forgotten since its event is no longer wanted."""

    event_id: str
    device_id: str
    kind: str
    app: str
    call_sid: str
    attempts: int
    reason: str | None
    tries: str | None
    due_ms: int
    expires_at_ms: int


def forget_events(
    connection: Connection, event_ids: Sequence[str]
) -> Callable[[], list[Forgotten]]:
    """Forgets the deliveries to devices of events that are no longer wanted: what has failed so far,
    and what a process that died did not come to send. One that is being sent arrives all the same,
    as does what is owed to webhooks, which are told of everything. Returns what tells which they were."""
    rows = _FORGET.begin(connection, event_ids)
    return lambda: [Forgotten(*row) for row in rows()]


def settle(connection: Connection, delivery_ids: Sequence[int]) -> None:
    """Forgets deliveries that were made, or that are too late to make."""
    _DELETE.run(connection, delivery_ids)


def put_off_until_there(
    connection: Connection,
    delivery_id: int,
    due_ms: int,
    at_latest_ms: int,
    reason: str,
    tries: str | None = None,
) -> bool:
    """Counts an attempt that failed since the device was away: it is due when the device comes, or
    at the latest then. Should the device have come meanwhile, it is due at `due_ms`. Returns as
    `put_off`."""
    row = connection.execute(
        select(outbox.c.device_id, outbox.c.kind).where(outbox.c.delivery_id == delivery_id)
    ).one_or_none()
    came = row is not None and is_online(connection, DeviceId(row.device_id), row.kind)
    return put_off(connection, delivery_id, due_ms if came else at_latest_ms, reason, tries)


def put_off(
    connection: Connection, delivery_id: int, due_ms: int, reason: str, tries: str | None = None
) -> bool:
    """Counts a failed attempt and why it failed; the next is due at `due_ms`. Returns whether it is
    still owed."""
    changed = connection.execute(
        update(outbox)
        .where(outbox.c.delivery_id == delivery_id)
        .values(attempts=outbox.c.attempts + 1, due_ms=due_ms, reason=reason, tries=tries)
    )
    return changed.rowcount > 0


def needless(connection: Connection, notices: Sequence[Delivery]) -> set[int]:
    """Which of some pushes say what their devices know: the same event was read from the device's
    stream, or has been taken from the broker."""
    return {notice.delivery_id for notice in notices if _is_known(connection, notice)}


def _is_known(connection: Connection, notice: Delivery) -> bool:
    def has(kind: str) -> ColumnElement[bool]:
        return exists().where(channels.c.device_id == notice.device_id, channels.c.kind == kind)

    unread = exists().where(
        device_events.c.event_id == notice.event_id,
        device_events.c.device_id == notice.device_id,
    )
    untaken = exists().where(
        outbox.c.event_id == notice.event_id,
        outbox.c.device_id == notice.device_id,
        outbox.c.kind == "mqtt",
    )
    known = or_(and_(has("websocket"), not_(unread)), and_(has("mqtt"), not_(untaken)))
    return bool(connection.execute(select(known)).scalar_one())


def make_all_due(connection: Connection, now_ms: int) -> None:
    """Makes every delivery due now: for a process that knows that no other holds a lease."""
    connection.execute(update(outbox).values(due_ms=now_ms).where(outbox.c.due_ms > now_ms))


def make_failed_due(
    connection: Connection, kind: str, now_ms: int, device: DeviceId | None = None
) -> None:
    """Makes the deliveries of a kind that have failed before due now: all, or those to one device."""
    failed = (outbox.c.kind == kind) & (outbox.c.attempts > 0) & (outbox.c.due_ms > now_ms)
    if device is not None:
        failed &= outbox.c.device_id == device
    connection.execute(update(outbox).values(due_ms=now_ms).where(failed))


def next_due_ms(connection: Connection) -> int | None:
    """When the next delivery is due, None where none is owed."""
    due: int | None = connection.execute(select(func.min(outbox.c.due_ms))).scalar_one()
    return due


def count_owed(connection: Connection) -> int:
    """How many deliveries are owed."""
    owed: int = connection.execute(select(func.count()).select_from(outbox)).scalar_one()
    return owed
