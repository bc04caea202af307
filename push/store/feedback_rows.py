"""What users said of the quality of their calls, as rows."""

from sqlalchemy import Connection, delete, insert, select

from push.store.tables import calls, feedback
from signaling.identifiers import CallSid, DeviceId, Identity
from signaling.requests import FeedbackFields


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
