"""What became of a call's deliveries, device by device and channel by channel."""

from datetime import datetime

from sqlalchemy import Connection

from push.store.call_rows import from_ms, to_ms
from push.store.delivery_rows import DeliveryRow, owed_of_call, results_of_call
from signaling.answers import CallDeliveriesAnswer, DeliveryAnswer
from signaling.calls import Call
from signaling.identifiers import Identity

_EVENTS = 200
"""Of how many of a call's newest events it is told what is owed."""


def report_deliveries(
    connection: Connection, call: Call, whose: Identity | None, now: datetime
) -> CallDeliveriesAnswer:
    """The deliveries of a call to the devices of one identity, or to all."""
    first = max(1, call.events - _EVENTS + 1)
    events = [f"{call.call_sid}-{number}" for number in range(first, call.events + 1)]
    # In this order: what is settled meanwhile is found twice, and never missed.
    owed = owed_of_call(connection, call.call_sid, events, whose, to_ms(now))
    results = results_of_call(connection, call.call_sid, whose)
    by_way = {_way(row): row for row in owed}
    answers = {_way(row): _answer(row, None, call) for row in owed}
    answers |= {_way(row): _answer(row, by_way.get(_way(row)), call) for row in results}
    return CallDeliveriesAnswer(
        call_sid=call.call_sid,
        deliveries=tuple(answers[way] for way in sorted(answers)),
    )


def _way(row: DeliveryRow) -> tuple[str, str, str, int, str]:
    number = row.event_id.rpartition("-")[2]
    place = int(number) if number.isdigit() else 0
    return row.device_id, row.kind, row.app, place, row.event_id


def _answer(row: DeliveryRow, owed: DeliveryRow | None, call: Call) -> DeliveryAnswer:
    """What one row says; `owed` says more where only the confirmation is known."""
    still_owed = owed if row.result is None else None
    received_ms, latency_ms = row.received_at_ms, None
    invited = next((user for user in call.users if user.invite_id == row.event_id), None)
    if received_ms is not None and invited is not None and invited.invited_at is not None:
        latency_ms = max(0, received_ms - to_ms(invited.invited_at))
    # A device may have been given to somebody else since.
    is_in_call = row.identity is not None and call.user(row.identity) is not None
    return DeliveryAnswer.model_validate(
        {
            "device_id": row.device_id,
            "identity": row.identity if is_in_call else None,
            "channel": row.kind,
            "app": row.app or None,
            "event_id": row.event_id,
            "state": "received" if received_ms is not None else row.result or "owed",
            "detail": row.detail if still_owed is None else still_owed.detail,
            "attempts": row.attempts if still_owed is None else still_owed.attempts,
            "at": None if row.at_ms is None else from_ms(row.at_ms),
            "received_at": None if received_ms is None else from_ms(received_ms),
            "latency_ms": latency_ms,
        }
    )
