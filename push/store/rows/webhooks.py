"""The events that webhooks were told of, each once, kept for a while so that they can be replayed.
What is still owed to a target stands in the outbox, under the target's name."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, bindparam, delete, func, select

from bellwire.push.store.prepared import PreparedForList, insert_each
from bellwire.push.store.tables import outbox, webhook_events

KIND = "webhook"
"""Of deliveries to webhooks."""

_OWED = select(outbox.c.event_id).where(
    outbox.c.kind == KIND,
    outbox.c.app == bindparam("target"),
    outbox.c.event_id.in_(bindparam("events", expanding=True)),
)
_KNOWN = PreparedForList(
    lambda events: select(webhook_events.c.event_id).where(webhook_events.c.event_id.in_(events))
)
_KEEP = insert_each(webhook_events, ("event_id", "event", "call_sid", "at_ms", "document"))


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """One event, as it is sent. `call_sid` is empty where it is about no call."""

    event_id: str
    event: str
    call_sid: str
    at_ms: int
    document: str


def keep_events(connection: Connection, events: Sequence[WebhookEvent]) -> set[str]:
    """Keeps events, each once; returns the ids of those that are new."""
    ids = [event.event_id for event in events]
    known = {event_id for (event_id,) in _KNOWN.rows(connection, ids)}
    new = {event.event_id: event for event in events if event.event_id not in known}
    _KEEP.run(connection, [asdict(event) for event in new.values()])
    return set(new)


def events_between(
    connection: Connection,
    since_ms: int,
    until_ms: int | None,
    *,
    call_sid: str | None,
    names: Iterable[str] | None,
    limit: int,
) -> list[WebhookEvent]:
    """Up to `limit` kept events from a moment on, until before another, oldest first: of one call or
    all, of some names or all. Others who ask for the same wait until this transaction has ended."""
    wanted = webhook_events.c.at_ms >= since_ms
    if until_ms is not None:
        wanted &= webhook_events.c.at_ms < until_ms
    if call_sid is not None:
        wanted &= webhook_events.c.call_sid == call_sid
    if names is not None:
        wanted &= webhook_events.c.event.in_(sorted(names))
    rows = connection.execute(
        select(webhook_events)
        .where(wanted)
        .order_by(webhook_events.c.at_ms, webhook_events.c.number)
        .limit(limit)
        .with_for_update()
    )
    return [
        WebhookEvent(row.event_id, row.event, row.call_sid, row.at_ms, row.document) for row in rows
    ]


def owed_to(connection: Connection, target: str, event_ids: Iterable[str]) -> set[str]:
    """Which of the events are still owed to a target."""
    rows = connection.execute(_OWED, {"target": target, "events": list(event_ids)})
    return set(rows.scalars())


def count_owed_by_target(connection: Connection) -> dict[str, int]:
    """How many events are owed to each target that is owed any."""
    rows = connection.execute(
        select(outbox.c.app, func.count()).where(outbox.c.kind == KIND).group_by(outbox.c.app)
    )
    return {row[0]: row[1] for row in rows}


def forget_events_before(connection: Connection, before_ms: int) -> None:
    """Forgets events of before a moment. What is owed of them is sent all the same."""
    connection.execute(delete(webhook_events).where(webhook_events.c.at_ms < before_ms))
