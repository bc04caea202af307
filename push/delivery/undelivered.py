"""Deliveries to devices that never arrived: kept with the reason of the last attempt, counted, and, where it
was an invite, told to webhooks as `delivery.failed`.

An invite that has not arrived when it is over is `expired` where its time has run out, `failed` where the
call was answered or withdrawn before. What a service refuses for good is `refused`.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from typing import cast

from sqlalchemy import Connection

from bellwire.push.delivery.webhook_events import OnEvent
from bellwire.push.metrics import Metrics
from bellwire.push.store.rows.deliveries import DeliveryResult, is_known, put_results
from bellwire.push.store.rows.devices import identities_of
from bellwire.push.store.rows.events import Unread
from bellwire.push.store.rows.outbox import Delivery, Forgotten, owe
from bellwire.push.store.tables import from_ms, to_ms
from bellwire.signaling.calls.events import InviteNotDelivered, NeverArrived, Try
from bellwire.signaling.identifiers import ChannelKind

NEVER_TRIED = "the relay that had it stopped before it was sent"
UNREAD = "the device has not read its stream"

_READ_WITHIN_MS = 5000
"""A device that is there has read its stream by then."""


class Undelivered:
    """Keeps, counts and tells what never arrived.

    Args:
        metrics: Counts it.
        now: Tells the time.
        on_event: Makes what is owed to webhooks; None where there are none.
    """

    def __init__(
        self, metrics: Metrics, *, now: Callable[[], datetime], on_event: OnEvent | None = None
    ) -> None:
        self._counted = cache(metrics.undelivered.labels)
        self._now = now
        self._on_event = on_event

    def count(self, kind: str, result: str) -> None:
        """Counts one."""
        self._counted(kind, result).inc()

    def tell(self, connection: Connection, invites: Sequence[DeliveryResult]) -> None:
        """Has webhooks told of invites that never arrived, in the transaction that keeps it."""
        if self._on_event is None or not invites:
            return
        owners = identities_of(connection, {invite.device_id for invite in invites})
        owed: list[Delivery] = []
        for invite in invites:
            event = _event(invite, owners.get(invite.device_id))
            data = event.model_dump(mode="json", exclude_none=True)
            owed += self._on_event(connection, event.event, event.id, event.at, data)
        owe(connection, owed, leased_until_ms=to_ms(self._now()))

    def keep_failed(
        self, connection: Connection, result: DeliveryResult, *, is_invite: bool
    ) -> None:
        """Keeps what an attempt says of a delivery that was forgotten while it was made, unless it is known
        what became of that."""
        if is_known(connection, result):
            return
        put_results(connection, [result])
        self.count(result.kind, result.result or "")
        if is_invite:
            self.tell(connection, [result])

    def keep_forgotten(
        self,
        connection: Connection,
        forgotten: Sequence[Forgotten],
        unread: Sequence[Unread],
        *,
        call_sid: str,
        invited_ms: int,
        at_ms: int,
    ) -> list[DeliveryResult]:
        """Keeps which invites never arrived of those that were taken back since they are over. What is
        just being sent for the first time, or read, is not among them."""
        results = [
            DeliveryResult(
                row.event_id,
                row.device_id,
                row.kind,
                row.app,
                row.call_sid,
                "expired" if row.expires_at_ms <= at_ms else "failed",
                row.reason or NEVER_TRIED,
                at_ms,
                tries=row.tries,
            )
            for row in forgotten
            if row.attempts > 0 or row.due_ms <= at_ms
        ]
        if at_ms - invited_ms >= _READ_WITHIN_MS:
            results += [
                DeliveryResult(
                    row.event_id,
                    row.device_id,
                    "websocket",
                    "",
                    call_sid,
                    "expired" if row.expires_at_ms <= at_ms else "failed",
                    UNREAD,
                    at_ms,
                )
                for row in unread
            ]
        put_results(connection, results)
        for result in results:
            self.count(result.kind, result.result or "")
        self.tell(connection, results)
        return results


def _event(result: DeliveryResult, identity: str | None) -> InviteNotDelivered:
    named = "\n".join((result.event_id, result.device_id, result.kind, result.app))
    return InviteNotDelivered(
        id=f"DF{hashlib.sha256(named.encode()).hexdigest()[:32]}",
        at=from_ms(result.at_ms),
        call_sid=result.call_sid,
        event_id=result.event_id,
        device_id=result.device_id,
        identity=identity,
        channel=cast("ChannelKind", result.kind),
        app=result.app or None,
        state=cast("NeverArrived", result.result or "failed"),
        detail=result.detail,
        tries=tries_of(result.tries),
    )


def tries_of(kept: str | None) -> tuple[Try, ...]:
    """The failed attempts that are kept of a delivery."""
    if kept is None:
        return ()
    return tuple(
        Try(at=from_ms(at_ms), result="failed", answer=answer) for at_ms, answer in json.loads(kept)
    )
