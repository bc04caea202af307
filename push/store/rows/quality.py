"""What users said of a call's quality, and what their devices told of it (insights), as rows."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, delete, func, insert, select

from bellwire.push.store.tables import calls, feedback, insights
from bellwire.signaling.identifiers import CallSid, DeviceId, Identity
from bellwire.signaling.wire.operations import FeedbackFields, FeedbackIssue


@dataclass(frozen=True, slots=True)
class FeedbackRow:
    """What was said of a call, on a device; `device_id` is empty where a server said it."""

    identity: str
    device_id: str
    score: int | None
    issue: FeedbackIssue | None
    at_ms: int


@dataclass(frozen=True, slots=True)
class InsightRow:
    """What a device told of a call: its document, and a fingerprint of that, under which it is kept once."""

    call_sid: str
    identity: str
    device_id: str
    at_ms: int
    fingerprint: str
    document: str


def put_feedback(
    connection: Connection,
    call_sid: CallSid,
    identity: Identity,
    device: DeviceId | None,
    given: FeedbackFields,
    at_ms: int,
) -> None:
    """Keeps what a device says of a call, in place of what it said before."""
    number = connection.execute(
        select(calls.c.number).where(calls.c.call_sid == call_sid)
    ).scalar_one()
    key = {"call_number": number, "identity": identity, "device_id": device or ""}
    connection.execute(
        delete(feedback).where(
            feedback.c.call_number == number,
            feedback.c.identity == identity,
            feedback.c.device_id == key["device_id"],
        )
    )
    connection.execute(
        insert(feedback), {**key, "score": given.score, "issue": given.issue, "at_ms": at_ms}
    )


def feedback_of(
    connection: Connection, call_sid: CallSid, whose: Identity | None
) -> list[FeedbackRow]:
    """What was said of a call, in its order: by one identity, or by all."""
    query = (
        select(feedback)
        .join(calls)
        .where(calls.c.call_sid == call_sid)
        .order_by(feedback.c.at_ms, feedback.c.identity, feedback.c.device_id)
    )
    if whose is not None:
        query = query.where(feedback.c.identity == whose)
    return [
        FeedbackRow(
            row.identity,
            row.device_id,
            row.score,
            None if row.issue is None else FeedbackIssue(row.issue),
            row.at_ms,
        )
        for row in connection.execute(query)
    ]


def keep_insight(connection: Connection, row: InsightRow, most: int) -> bool:
    """Keeps what a device told; whether it is new. Over `most` of one device and call nothing is kept."""
    mine = (insights.c.call_sid == row.call_sid) & (insights.c.device_id == row.device_id)
    known = connection.execute(
        select(insights.c.number).where(mine, insights.c.fingerprint == row.fingerprint)
    ).first()
    if known is not None:
        return False
    many: int = connection.execute(
        select(func.count()).select_from(insights).where(mine)
    ).scalar_one()
    if many >= most:
        return False
    connection.execute(insert(insights), asdict(row))
    return True


def insights_of(
    connection: Connection, call_sid: CallSid, whose: Identity | None, limit: int
) -> Sequence[InsightRow]:
    """What devices told of a call, in the order in which it was heard: one identity's, or all."""
    query = (
        select(insights)
        .where(insights.c.call_sid == call_sid)
        .order_by(insights.c.number)
        .limit(limit)
    )
    if whose is not None:
        query = query.where(insights.c.identity == whose)
    return [
        InsightRow(
            row.call_sid, row.identity, row.device_id, row.at_ms, row.fingerprint, row.document
        )
        for row in connection.execute(query)
    ]


def forget_insights(connection: Connection, before_ms: int) -> None:
    """Forgets what was heard before a moment."""
    connection.execute(delete(insights).where(insights.c.at_ms < before_ms))
