"""What became of deliveries, as far as it is worth knowing: of pushes always, of others where they
failed; and which channels' invites their devices confirmed. A call's deliveries are these, and those
that are still owed.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sqlalchemy import BigInteger, Connection, Select, String, bindparam, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from bellwire.push.store.prepared import Prepared
from bellwire.push.store.rows.outbox import Delivery
from bellwire.push.store.tables import channels, delivery_results, device_events, devices, outbox
from bellwire.signaling.identifiers import CallSid, Identity

Result = Literal["sent", "refused", "expired", "failed"]


@dataclass(slots=True, unsafe_hash=True)  # frozen, it is made eight times slower
class DeliveryResult:
    """What became of one delivery. `result` is None where only the confirmation is known."""

    event_id: str
    device_id: str
    kind: str
    app: str
    call_sid: str
    result: Result | None
    detail: str
    at_ms: int
    received_at_ms: int | None = None
    tries: str | None = None
    """The attempts before, as `outbox.tries_with` writes them."""


@dataclass(frozen=True, slots=True)
class Confirmed:
    """A device's word that an invite came over one of its channels."""

    event_id: str
    identity: str
    device_id: str
    kind: str
    app: str
    call_sid: str
    at_ms: int


def result_of(delivery: Delivery, result: Result, detail: str, at_ms: int) -> DeliveryResult:
    """What became of this delivery."""
    return DeliveryResult(
        delivery.event_id,
        delivery.device_id,
        delivery.kind,
        delivery.app,
        delivery.call_sid,
        result,
        detail,
        at_ms,
        tries=delivery.tries,
    )


def put_results(connection: Connection, results: Sequence[DeliveryResult]) -> None:
    """Keeps what became of deliveries, in place of what was known of them."""
    if results:
        _upsert(
            connection,
            [
                {
                    "event_id": r.event_id,
                    "device_id": r.device_id,
                    "kind": r.kind,
                    "app": r.app,
                    "call_sid": r.call_sid,
                    "result": r.result,
                    "detail": r.detail,
                    "at_ms": r.at_ms,
                    "tries": r.tries,
                }
                # In one order everywhere, so that two transactions never wait for each other.
                for r in sorted(results, key=lambda r: (r.event_id, r.device_id, r.kind, r.app))
            ],
            ("result", "detail", "at_ms", "tries"),
        )


def is_known(connection: Connection, result: DeliveryResult) -> bool:
    """Whether it is on record what became of this delivery."""
    found = connection.execute(
        select(delivery_results.c.result).where(
            delivery_results.c.event_id == result.event_id,
            delivery_results.c.device_id == result.device_id,
            delivery_results.c.kind == result.kind,
            delivery_results.c.app == result.app,
        )
    ).scalar()
    return found is not None


def put_received(connection: Connection, confirmed: Confirmed) -> bool:
    """Keeps that a device has confirmed an invite that came over one of its channels. Whether this
    was the first time, which alone counts."""
    statement = _RECEIVED[connection.dialect.name]
    return statement.one(connection, **asdict(confirmed)) is not None


def refuse_owed(
    connection: Connection, device: str, kind: str, app: str, why: str, at_ms: int
) -> None:
    """Forgets what a device is owed over a channel, and keeps that it was refused, and why. What is
    just being sent arrives all the same."""
    # Who has a row locked is about to delete it, or to send it: waiting could end in a deadlock.
    owed = (
        select(outbox.c.delivery_id)
        .where(outbox.c.device_id == device, outbox.c.kind == kind, outbox.c.app == app)
        .with_for_update(skip_locked=True)
    )
    rows = connection.execute(
        delete(outbox)
        .where(outbox.c.delivery_id.in_(owed))
        .returning(outbox.c.event_id, outbox.c.call_sid)
    ).all()
    put_results(
        connection,
        [
            DeliveryResult(row.event_id, device, kind, app, row.call_sid, "refused", why, at_ms)
            for row in rows
        ],
    )


def forget_results(connection: Connection, before_ms: int) -> None:
    """Forgets what became of deliveries before a moment."""
    connection.execute(delete(delivery_results).where(delivery_results.c.at_ms < before_ms))


def _upsert(connection: Connection, rows: list[dict[str, object]], replaced: Sequence[str]) -> None:
    insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert
    statement = insert(delivery_results)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["event_id", "device_id", "kind", "app"],
            set_={name: statement.excluded[name] for name in replaced},
        ),
        rows,
    )


def _received(insert: Any) -> Any:  # noqa: ANN401 - each dialect has an insert of its own
    """Keeps the moment of a confirmation where there is none yet, if the device is the identity's
    and has such a channel: a device can fill the table with no others."""
    text = {name: bindparam(name, type_=String) for name in ("event_id", "call_sid")}
    at = bindparam("at_ms", type_=BigInteger)
    confirmed = (
        select(
            text["event_id"],
            channels.c.device_id,
            channels.c.kind,
            channels.c.app,
            text["call_sid"],
            at,
            at,
        )
        .select_from(channels.join(devices))
        .where(
            channels.c.device_id == bindparam("device_id"),
            channels.c.kind == bindparam("kind"),
            channels.c.app == bindparam("app"),
            devices.c.identity == bindparam("identity"),
        )
    )
    names = ["event_id", "device_id", "kind", "app", "call_sid", "at_ms", "received_at_ms"]
    statement = insert(delivery_results).from_select(names, confirmed)
    return statement.on_conflict_do_update(
        index_elements=names[:4],
        set_={"received_at_ms": statement.excluded.received_at_ms},
        where=delivery_results.c.received_at_ms.is_(None),
    ).returning(delivery_results.c.event_id)


_RECEIVED = {
    "sqlite": Prepared(_received(sqlite.insert)),
    "postgresql": Prepared(_received(postgresql.insert)),
}

_MOST = 1000


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """What is known of one delivery. `identity` is None where the device is gone; `result` and
    `at_ms` where it is owed, or where only the confirmation is known."""

    event_id: str
    device_id: str
    identity: Identity | None
    kind: str
    app: str
    detail: str
    result: Result | None = None
    at_ms: int | None = None
    received_at_ms: int | None = None
    attempts: int | None = None
    """How many have failed, of one that is owed."""
    tries: str | None = None
    """Those that failed before the last, as `outbox.tries_with` writes them."""


def owed_of_call(
    connection: Connection,
    call_sid: CallSid,
    event_ids: Sequence[str],
    whose: Identity | None,
    now_ms: int,
) -> list[DeliveryRow]:
    """What devices are owed of a call's events: of one identity's, or of all. What has run out is
    expired, though nobody has come to note it."""
    rows = connection.execute(
        _of(
            select(outbox, devices.c.identity)
            .join(devices)
            .where(outbox.c.event_id.in_(event_ids), outbox.c.call_sid == call_sid)
            .order_by(outbox.c.delivery_id.desc()),
            whose,
        )
    )
    return [
        DeliveryRow(
            row.event_id,
            row.device_id,
            Identity(row.identity),
            row.kind,
            row.app,
            row.reason or "",
            "expired" if row.expires_at_ms <= now_ms else None,
            row.expires_at_ms if row.expires_at_ms <= now_ms else None,
            attempts=row.attempts,
            tries=row.tries,
        )
        for row in rows
    ]


def unread_of_call(
    connection: Connection, event_ids: Sequence[str], whose: Identity | None, now_ms: int
) -> list[DeliveryRow]:
    """Which of some events stand unread in the streams of devices: of one identity's, or of all."""
    rows = connection.execute(
        _of(
            select(device_events.c.event_id, device_events.c.expires_at_ms, devices)
            .join(devices)
            .where(device_events.c.event_id.in_(event_ids)),
            whose,
        )
    )
    return [
        DeliveryRow(
            row.event_id,
            row.device_id,
            Identity(row.identity),
            "websocket",
            "",
            "the device has not read its stream",
            "expired" if row.expires_at_ms <= now_ms else None,
            row.expires_at_ms if row.expires_at_ms <= now_ms else None,
            attempts=0,
        )
        for row in rows
    ]


def results_of_call(
    connection: Connection, call_sid: CallSid, whose: Identity | None
) -> list[DeliveryRow]:
    """What became of a call's deliveries to devices: to one identity's, or to all."""
    rows = connection.execute(
        _of(
            select(delivery_results, devices.c.identity)
            .outerjoin(devices, devices.c.device_id == delivery_results.c.device_id)
            .where(delivery_results.c.call_sid == call_sid, delivery_results.c.device_id != "")
            .order_by(delivery_results.c.at_ms.desc()),
            whose,
        )
    )
    return [
        DeliveryRow(
            row.event_id,
            row.device_id,
            None if row.identity is None else Identity(row.identity),
            row.kind,
            row.app,
            row.detail,
            row.result,
            None if row.result is None else row.at_ms,
            row.received_at_ms,
            tries=row.tries,
        )
        for row in rows
    ]


def _of(query: Select[tuple[object, ...]], whose: Identity | None) -> Select[tuple[object, ...]]:
    if whose is not None:
        query = query.where(devices.c.identity == whose)
    return query.limit(_MOST)
