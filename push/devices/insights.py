"""What devices tell of their calls (insights): heard over the broker, kept with the call for a month, and
told to webhooks.

A device speaks for itself alone, as the broker's rights see to, and only of calls of its identity. What it
tells is bounded, for each call and over time, and heard over a session of its own, so that it never queues
before calls. What is too much of one device is thrown away unread: it costs neither the others' place nor
the database a look.
"""

import asyncio
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

import structlog
from pydantic import ValidationError
from sqlalchemy import Connection

from bellwire.broker.session.messages import Incoming
from bellwire.broker.session.receiving import ReceivingSession
from bellwire.push.delivery.webhook_events import OnEvent
from bellwire.push.metrics import Metrics
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.calls import load_call
from bellwire.push.store.rows.devices import find_device
from bellwire.push.store.rows.outbox import owe
from bellwire.push.store.rows.quality import InsightRow, keep_insight
from bellwire.push.store.tables import from_ms, to_ms
from bellwire.signaling.calls.events import CallInsight, rfc3339
from bellwire.signaling.errors import InvalidInput, Unavailable
from bellwire.signaling.identifiers import CallSid, DeviceId, Identity
from bellwire.signaling.topics import INSIGHTS_OF_ALL, device_of
from bellwire.signaling.wire.insights import ToldInsight

log = structlog.get_logger(__name__)

INSIGHTS_KEPT = timedelta(days=30)
MOST_OF_A_CALL = 200
"""Of one device, of one call: a call of an hour has some dozens."""
LIMIT_BYTES = 4096

NOT_KEPT = "insight"
"""The reason of `bellwire_refused_total`."""

AT_ONCE_OF_ONE = 200
"""How many one device may tell at once, as after a time without a broker."""
_AGAIN_S = 10.0
"""In how many seconds it may tell one more: 35 MB a day, of one that never stops."""
_FEW = 1024

_WAITING = 1000
_AT_ONCE = 50


def insights_document(call_sid: str, rows: Iterable[InsightRow]) -> str:
    """`CallInsightsAnswer` of rows, as JSON. What a device said was read when it came, and written as it is
    answered: to read hundreds again for each who asks would hold up the relay for half a second."""
    told = ",".join(
        f'{{"identity":{json.dumps(row.identity)},"device_id":{json.dumps(row.device_id)},'
        f'"at":"{rfc3339(from_ms(row.at_ms))}",{row.document[1:]}'
        for row in rows
    )
    return f'{{"call_sid":"{call_sid}","insights":[{told}]}}'


class Insights:
    """Hears, keeps and tells what devices tell of their calls. `run` must be running.

    Args:
        database: The relay's.
        session: A connection to the broker, for this alone.
        metrics: Counts what is not kept.
        now: Tells the time.
        on_event: Makes what is owed to webhooks; None where there are none.
        clock: Tells the time, in seconds that only grow.
    """

    def __init__(
        self,
        database: Database,
        session: ReceivingSession,
        metrics: Metrics,
        *,
        now: Callable[[], datetime],
        on_event: OnEvent | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._session = session
        self._not_kept = metrics.refused.labels(NOT_KEPT)
        self._now = now
        self._on_event = on_event
        self._clock = clock
        self._full_at_s: dict[DeviceId, float] = {}
        """When each device may tell `AT_ONCE_OF_ONE` at once again."""
        self._look_at_size = _FEW
        self._waiting: deque[tuple[DeviceId, bytes]] = deque()
        self._come = asyncio.Event()
        # Not shared among relays: for that a broker of before gives them no right. Each is kept once.
        session.receive(INSIGHTS_OF_ALL, self._take)

    async def run(self) -> None:
        """Hears them until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._session.run())
            tasks.create_task(self._keep_what_comes())

    def _take(self, message: Incoming) -> None:
        if not message.payload:
            return
        if len(self._waiting) >= _WAITING or len(message.payload) > LIMIT_BYTES:
            self._not_kept.inc()
            return
        try:
            device = device_of(message.topic)
        except InvalidInput:
            return
        if not self._may_tell(device):
            self._not_kept.inc()
            return
        self._waiting.append((device, message.payload))
        self._come.set()

    def _may_tell(self, device: DeviceId) -> bool:
        """Takes one from a device's bucket, if it holds one."""
        now_s = self._clock()
        full_at_s = max(self._full_at_s.get(device, now_s), now_s)
        if full_at_s - now_s > (AT_ONCE_OF_ONE - 1) * _AGAIN_S:
            return False
        self._full_at_s[device] = full_at_s + _AGAIN_S
        if len(self._full_at_s) > self._look_at_size:
            self._full_at_s = {one: at_s for one, at_s in self._full_at_s.items() if at_s > now_s}
            self._look_at_size = max(_FEW, 2 * len(self._full_at_s))
        return True

    async def _keep_what_comes(self) -> None:
        while True:
            await self._come.wait()
            self._come.clear()
            while self._waiting:
                some = [self._waiting.popleft() for _ in range(min(_AT_ONCE, len(self._waiting)))]
                try:
                    await self.keep(some)
                except Unavailable as error:
                    log.warning("insights not kept", count=len(some), error=str(error))
                    self._not_kept.inc(len(some))

    async def keep(self, told: list[tuple[DeviceId, bytes]]) -> None:
        """Keeps what some devices have told, as far as it is of calls of theirs.

        Raises:
            Unavailable: the database is away.
        """

        def work(connection: Connection) -> int:
            return sum(not self._keep(connection, device, document) for device, document in told)

        not_kept = await self._database.write(work)
        if not_kept:
            self._not_kept.inc(not_kept)

    def _keep(self, connection: Connection, device: DeviceId, document: bytes) -> bool:
        """Keeps one; whether it was good."""
        try:
            insight = ToldInsight.model_validate_json(document)
            call_sid = insight.call_sid
        except ValidationError as error:
            log.info("insight not understood", device_id=device, errors=error.error_count())
            return False
        if call_sid is None:
            return True  # of a call that was never made
        identity = _who(connection, device, CallSid(call_sid))
        if identity is None:
            return False
        row = InsightRow(
            call_sid,
            identity,
            device,
            to_ms(self._now()),
            hashlib.sha256(document).hexdigest()[:32],
            insight.model_dump_json(),
        )
        if keep_insight(connection, row, MOST_OF_A_CALL) and self._on_event is not None:
            self._tell(connection, self._on_event, row, insight)
        return True

    def _tell(
        self, connection: Connection, on_event: OnEvent, row: InsightRow, insight: ToldInsight
    ) -> None:
        named = f"{row.call_sid}\n{row.device_id}\n{row.fingerprint}".encode()
        event = CallInsight(
            id=f"IN{hashlib.sha256(named).hexdigest()[:32]}",
            call_sid=row.call_sid,
            at=from_ms(row.at_ms),
            identity=row.identity,
            device_id=row.device_id,
            level=insight.level,
            group=insight.group,
            name=insight.name,
            timestamp=insight.timestamp,
            payload=insight.payload,
        )
        data = event.model_dump(mode="json")
        owed = on_event(connection, event.event, event.id, event.at, data)
        owe(connection, owed, leased_until_ms=row.at_ms)


def _who(connection: Connection, device: DeviceId, call_sid: CallSid) -> Identity | None:
    """Whose device it is; None where its identity is not in the call."""
    row = find_device(connection, device)
    call = None if row is None else load_call(connection, call_sid)
    if row is None or call is None or call.user(row.identity) is None:
        log.info("insight of no call of the device's", device_id=device, call_sid=call_sid)
        return None
    return row.identity
