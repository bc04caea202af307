"""What became of deliveries, as far as it is worth knowing: of pushes always, of others where they
failed; and which channels' invites their devices confirmed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from push.store.outbox_rows import Delivery
from push.store.tables import delivery_results

Result = Literal["sent", "refused", "expired"]


@dataclass(frozen=True, slots=True)
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
                }
                for r in results
            ],
            ("result", "detail", "at_ms"),
        )


def put_received(
    connection: Connection,
    event_id: str,
    device_id: str,
    kind: str,
    app: str,
    call_sid: str,
    at_ms: int,
) -> None:
    """Keeps that a device has confirmed an invite that came over a channel: the first time counts."""
    known = connection.execute(
        select(delivery_results.c.received_at_ms).where(
            delivery_results.c.event_id == event_id,
            delivery_results.c.device_id == device_id,
            delivery_results.c.kind == kind,
            delivery_results.c.app == app,
        )
    ).scalar_one_or_none()
    if known is None:
        row = {
            "event_id": event_id,
            "device_id": device_id,
            "kind": kind,
            "app": app,
            "call_sid": call_sid,
            "at_ms": at_ms,
            "received_at_ms": at_ms,
        }
        _upsert(connection, [row], ("received_at_ms",))


def results_of(connection: Connection, call_sid: str) -> list[DeliveryResult]:
    """What is known of a call's deliveries, oldest first."""
    rows = connection.execute(
        select(delivery_results)
        .where(delivery_results.c.call_sid == call_sid)
        .order_by(delivery_results.c.at_ms, delivery_results.c.event_id)
    )
    return [
        DeliveryResult(
            row.event_id,
            row.device_id,
            row.kind,
            row.app,
            row.call_sid,
            row.result,
            row.detail,
            row.at_ms,
            row.received_at_ms,
        )
        for row in rows
    ]


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
