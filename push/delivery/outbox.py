"""Sends the deliveries that committed commands owe, and retries those that failed.

The process that committed tries at once. What fails, and what a dead process left leased, comes due
again in the table and is taken by the sweeper, with backoff and jitter, until it expires.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import cache, partial

import structlog
from sqlalchemy import Connection

from bellwire.config.waiting import Alarm, Sleep, backoff_s
from bellwire.push.channels.channel import (
    Channel,
    ChannelAtFault,
    DeliveryFailed,
    DeliveryRefused,
    DeviceAway,
    TokenDead,
)
from bellwire.push.channels.payload import is_invite
from bellwire.push.delivery.undelivered import Undelivered
from bellwire.push.delivery.webhook_events import OnEvent
from bellwire.push.metrics import Metrics
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.deliveries import DeliveryResult, Result, put_results, result_of
from bellwire.push.store.rows.outbox import (
    Delivery,
    make_failed_due,
    needless,
    next_due_ms,
    put_off,
    put_off_until_there,
    settle,
    take_due,
    tries_with,
)
from bellwire.push.store.tables import to_ms
from bellwire.signaling.errors import Unavailable
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.wire.requests import PUSH_KINDS

log = structlog.get_logger(__name__)

LEASE_S = 5.0
_SWEEP_LIMIT = 200
_LONGEST_SWEEP_WAIT_S = 2.0
_DATABASE_AWAY_S = 1.0
_RETRY_FIRST_S = 0.5
_RETRY_LONGEST_S = 15.0
NOT_NEEDED = "not needed any more: the device knew by then"
_AT_FAULT_S = 30.0
"""How often a delivery is tried whose channel an operator has to mend first."""

_AWAY_S = 30.0
"""A device that is away says when it comes; should that be lost, this is how long it may cost."""


class Outbox:
    """Sends deliveries over their channels. `run` must be running for anything to move.

    Args:
        database: Where deliveries are owed.
        channels: The ways to send them, by kind.
        metrics: Counts the attempts.
        now: Tells the time.
        sleep: Waits.
        on_dead_token: Told of each token that is dead; raises DeliveryFailed where the device has
            been registered again since, so that the delivery is tried with what is registered now.
        on_event: Makes what is owed to webhooks of an invite that never arrived; None where there are none.
    """

    def __init__(
        self,
        database: Database,
        channels: Mapping[str, Channel],
        metrics: Metrics,
        *,
        now: Callable[[], datetime],
        sleep: Sleep = asyncio.sleep,
        settle_after_s: float = 0.0,
        on_dead_token: Callable[[Delivery, TokenDead], Awaitable[None]] | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        self.undelivered = Undelivered(metrics, now=now, on_event=on_event)
        self._on_dead_token = on_dead_token
        self._settle_after_s = settle_after_s
        self._database = database
        self._channels = channels
        # Looked up once: their labels are few, and looking them up costs more than counting.
        self._deliveries = cache(metrics.deliveries.labels)
        self._delivery_seconds = cache(metrics.delivery_seconds.labels)
        self._now = now
        self._tasks: asyncio.TaskGroup | None = None
        self._sleep = sleep
        self._alarm = Alarm(sleep)
        self._in_flight: set[int] = set()
        self._done: list[int] = []
        self._results: list[DeliveryResult] = []
        self._lost: list[DeliveryResult] = []
        self._done_wake = asyncio.Event()
        self._settling = asyncio.Lock()

    @property
    def leased_until_ms(self) -> int:
        """Until when a delivery that is tried now belongs to this process."""
        return to_ms(self._now()) + int(LEASE_S * 1000)

    def dispatch(self, deliveries: Sequence[Delivery]) -> None:
        """Tries deliveries at once, each in a task of its own. They must be committed."""
        if self._tasks is None:
            return  # Stopping, or not started: the sweeper of the next run takes them.
        for delivery in deliveries:
            if delivery.delivery_id not in self._in_flight and not delivery.taken_back:
                self._in_flight.add(delivery.delivery_id)
                self._tasks.create_task(self._try(delivery))

    async def retry_now(self, kind: str, device: DeviceId | None = None) -> None:
        """Makes what failed over a kind of channel due, to all devices or to one: its way is open.
        While the database is away it does nothing: what failed comes due by itself."""
        at_ms = to_ms(self._now())
        try:
            await self._database.write(lambda c: make_failed_due(c, kind, at_ms, device))
        except Unavailable as error:
            log.warning("failed deliveries not made due", channel=kind, error=str(error))
        self._alarm.ring()

    async def settle(self) -> None:
        """Deletes what was delivered so far: on return nothing of it counts as owed any more.

        Raises:
            Unavailable: the database is away; they are settled later.
        """
        async with self._settling:
            done, self._done = self._done, []
            results, self._results = self._results, []
            lost, self._lost = self._lost, []
            if not done:
                return
            try:
                await self._database.write(
                    partial(self._keep, delivery_ids=done, results=results, lost=lost)
                )
            except Unavailable:
                self._done = done + self._done
                self._results = results + self._results
                self._lost = lost + self._lost
                raise
            if lost:
                self._alarm.ring()  # what is owed to webhooks is due

    def _keep(
        self,
        connection: Connection,
        delivery_ids: Sequence[int],
        results: Sequence[DeliveryResult],
        lost: Sequence[DeliveryResult],
    ) -> None:
        settle(connection, delivery_ids)
        put_results(connection, results)
        self.undelivered.tell(connection, lost)

    async def run(self) -> None:
        """Sends, sweeps and settles until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                tasks.create_task(self._settle())
                await self._sweep()
            finally:
                self._tasks = None
                with suppress(Unavailable):  # then some arrive twice, under the same id
                    await self.settle()

    async def _try(self, delivery: Delivery) -> None:
        try:
            failure = await self._send(delivery)
        finally:
            self._in_flight.discard(delivery.delivery_id)
        if failure is not None:
            # No longer in flight: once this is committed the sweeper may take it, before it is known here.
            await self._put_off(delivery, failure)

    async def _send(self, delivery: Delivery) -> DeliveryFailed | None:
        """Sends it, and returns why it is to be tried again, if it is."""
        left_s = (delivery.expires_at_ms - to_ms(self._now())) / 1000
        channel = self._channels.get(delivery.kind)
        if left_s <= 0:
            log.info("delivery expired", event_id=delivery.event_id, device_id=delivery.device_id)
            self._done_with(delivery, "expired", delivery.reason or "")
            return None
        if channel is None or delivery.gone:
            self._done_with(delivery, "refused", "the device no longer has this channel")
            return None
        started = time.perf_counter()
        try:
            try:
                detail = await channel.send(delivery, left_s)
            finally:
                self._delivery_seconds(delivery.kind).observe(time.perf_counter() - started)
        except DeliveryFailed as error:
            away = isinstance(error, DeviceAway)
            self._deliveries(delivery.kind, "away" if away else "failed").inc()
            return error
        except DeliveryRefused as error:
            log.warning(
                "delivery refused",
                event_id=delivery.event_id,
                device_id=delivery.device_id,
                channel=delivery.kind,
                reason=str(error),
            )
            return await self._refused(delivery, error)
        self._done_with(delivery, "sent", detail)
        return None

    async def _refused(self, delivery: Delivery, error: DeliveryRefused) -> DeliveryFailed | None:
        if isinstance(error, TokenDead) and self._on_dead_token is not None:
            try:
                await self._on_dead_token(delivery, error)
            except DeliveryFailed as registered_again:
                self._deliveries(delivery.kind, "failed").inc()
                return registered_again
            except Unavailable as away:
                log.warning("dead token not removed, trying again", error=str(away))
                return None  # its lease ends, and the token is found dead once more
            self._alarm.ring()  # what the report owes is due
        self._done_with(delivery, "refused", str(error))
        return None

    async def _put_off(self, delivery: Delivery, error: DeliveryFailed) -> None:
        reason, away = str(error), isinstance(error, DeviceAway)
        now_ms = to_ms(self._now())
        wait_s = _wait_s(delivery.attempts, error)
        due_ms = now_ms + int(wait_s * 1000)
        log.warning(
            "delivery failed",
            event_id=delivery.event_id,
            device_id=delivery.device_id,
            channel=delivery.kind,
            attempt=delivery.attempts + 1,
            next_in_s="when the device comes" if away else round(wait_s, 2),
            reason=reason,
        )
        id_, latest_ms = delivery.delivery_id, now_ms + int(_AWAY_S * 1000)
        tries = tries_with(delivery.tries, now_ms, reason)

        def work(connection: Connection) -> None:
            if away:
                owed = put_off_until_there(connection, id_, due_ms, latest_ms, reason, tries)
            else:
                owed = put_off(connection, id_, due_ms, reason, tries)
            if not owed and delivery.device_id:
                self._keep_failed(connection, replace(delivery, tries=tries), reason)

        with suppress(Unavailable):  # its lease ends all the same
            await self._database.write(work)
        self._alarm.ring()

    def _keep_failed(self, connection: Connection, delivery: Delivery, reason: str) -> None:
        """Keeps what became of a delivery that was taken back while it was tried."""
        now_ms = to_ms(self._now())
        result: Result = "expired" if delivery.expires_at_ms <= now_ms else "failed"
        self.undelivered.keep_failed(
            connection,
            result_of(delivery, result, reason, now_ms),
            is_invite=is_invite(delivery.payload),
        )

    def _done_with(self, delivery: Delivery, result: Result, detail: str) -> None:
        self._deliveries(delivery.kind, result).inc()
        self._done.append(delivery.delivery_id)
        if result != "sent" and delivery.device_id:
            self.undelivered.count(delivery.kind, result)
            if is_invite(delivery.payload):
                self._lost.append(result_of(delivery, result, detail, to_ms(self._now())))
        if (
            result != "sent" or delivery.kind in PUSH_KINDS
        ):  # of others nothing but the device tells
            self._results.append(result_of(delivery, result, detail, to_ms(self._now())))
        self._done_wake.set()

    async def _settle(self) -> None:
        """Deletes what was delivered, in one write for all that comes up in a while: nobody waits for
        it, and a command that came behind it would."""
        while True:
            await self._done_wake.wait()
            if self._settle_after_s:
                await self._sleep(self._settle_after_s)
            self._done_wake.clear()
            try:
                await self.settle()
            except Unavailable as error:
                log.warning("deliveries not settled, trying again", error=str(error))
                await self._sleep(_DATABASE_AWAY_S)
                self._done_wake.set()

    async def _sweep(self) -> None:
        while True:
            try:
                wait_s = await self._send_due()
            except Unavailable as error:
                log.warning("outbox not read, trying again", error=str(error))
                wait_s = _DATABASE_AWAY_S
            await self._alarm.wait(wait_s)

    def _take_due(self, connection: Connection) -> tuple[list[Delivery], set[int]]:
        """What is due, leased; and which of it would tell a device what it knows."""
        due = take_due(connection, to_ms(self._now()), self.leased_until_ms, limit=_SWEEP_LIMIT)
        return due, needless(connection, [delivery for delivery in due if _is_notice(delivery)])

    def _not_needed(self, delivery: Delivery) -> None:
        log.info(
            "push not needed any more", event_id=delivery.event_id, device_id=delivery.device_id
        )
        self._done.append(delivery.delivery_id)
        self._results.append(result_of(delivery, "expired", NOT_NEEDED, to_ms(self._now())))
        self._done_wake.set()

    async def _send_due(self) -> float:
        """Sends what is due; returns in how many seconds to look again."""
        due, known = await self._database.write(self._take_due)
        for delivery in due:
            if delivery.delivery_id in known:
                self._not_needed(delivery)
        self.dispatch([delivery for delivery in due if delivery.delivery_id not in known])
        if len(due) == _SWEEP_LIMIT:
            return 0.0
        following = await self._database.read(next_due_ms)
        if following is None:
            return _LONGEST_SWEEP_WAIT_S
        return min(_LONGEST_SWEEP_WAIT_S, max(0.0, (following - to_ms(self._now())) / 1000))


def _is_notice(delivery: Delivery) -> bool:
    """Whether it is a push that says that an invite of a call of ours is over, as a device's stream does."""
    is_ours = bool(delivery.call_sid) and delivery.event_id.startswith(f"{delivery.call_sid}-")
    return delivery.kind in PUSH_KINDS and is_ours and not is_invite(delivery.payload)


def _wait_s(attempts: int, error: DeliveryFailed) -> float:
    """How long to wait after so many failed attempts, and at least as long as the other side asks."""
    first_s, longest_s = _RETRY_FIRST_S, _RETRY_LONGEST_S
    if isinstance(error, ChannelAtFault):
        first_s = longest_s = _AT_FAULT_S
    wait_s = backoff_s(attempts, first_s=first_s, longest_s=longest_s, least=0.5)
    return max(wait_s, error.retry_after_s or 0.0)
