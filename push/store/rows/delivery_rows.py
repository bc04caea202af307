"""A call's deliveries as rows: those that are owed, and what became of the others."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Select, select

from bellwire.push.store.rows.result_rows import Result
from bellwire.push.store.tables import delivery_results, devices, outbox
from bellwire.signaling.identifiers import CallSid, Identity

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
        )
        for row in rows
    ]


def _of(query: Select[tuple[object, ...]], whose: Identity | None) -> Select[tuple[object, ...]]:
    if whose is not None:
        query = query.where(devices.c.identity == whose)
    return query.limit(_MOST)
