"""What stations say of their doors: counted, and lock-outs told to backends as events.

A station speaks for itself alone: which device and identity it is says its connection, and it must be
in the call that it names. A call has few lock-outs; each is told once, however often it is said.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog
from sqlalchemy import Connection

from bellwire.push.access.tokens import Actor
from bellwire.push.calls.calls import Calls
from bellwire.push.delivery.webhook_events import OnEvent
from bellwire.push.metrics import Metrics
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.outbox import owe
from bellwire.push.store.tables import to_ms
from bellwire.signaling.calls.events import DoorLockedOut
from bellwire.signaling.errors import Forbidden, InvalidInput
from bellwire.signaling.identifiers import CallSid, DeviceId, Identity
from bellwire.signaling.wire.operations import DeviceDoorLockedOut, DeviceDoorNotVerified

log = structlog.get_logger(__name__)

LOCKED_OUT = "door-locked-out"
NOT_VERIFIED = "door-not-verified"
"""The reasons of `bellwire_refused_total`."""

_REMEMBERED = 4096


class DoorReports:
    """Takes what stations say of their doors.

    Args:
        database: The relay's.
        calls: Say who is in a call.
        metrics: Counts them.
        now: Tells the time.
        on_event: Makes what is owed to webhooks; None where there are none.
    """

    def __init__(
        self,
        database: Database,
        calls: Calls,
        metrics: Metrics,
        *,
        now: Callable[[], datetime],
        on_event: OnEvent | None = None,
    ) -> None:
        self._database = database
        self._calls = calls
        # Shown from the start, at 0: an alarm sees the first one, too.
        self._locked_out = metrics.refused.labels(LOCKED_OUT)
        self._not_verified = metrics.refused.labels(NOT_VERIFIED)
        self._now = now
        self._on_event = on_event
        self._told: OrderedDict[str, None] = OrderedDict()

    async def report(self, said: DeviceDoorLockedOut, actor: Actor) -> None:
        """Tells of a lock-out, unless that has been done.

        Raises:
            Forbidden: who asks is no device, or not in the call.
            CallNotFound: there is no such call.
            InvalidInput: who is said to be locked out is not in the call, or the station itself.
            Unavailable: the database is away.
        """
        identity, device, caller = await self._who_says_it(said, actor)
        event = self._event(said, identity, device)
        if event.id in self._told:
            return
        await self._database.write(lambda connection: self._owe(connection, event))
        self._remember(event.id)
        self._locked_out.inc()
        log.warning(
            "door locked out",
            device_id=device,
            identity=identity,
            call_sid=event.call_sid,
            caller=caller,
            doors=event.doors,
            wrong_codes=event.wrong_codes,
        )

    async def report_not_verified(self, said: DeviceDoorNotVerified, actor: Actor) -> None:
        """Counts a door that stayed shut for want of attestation, once for each of whom it is said in a
        call.

        Raises:
            Forbidden, CallNotFound, InvalidInput, Unavailable: as `report`.
        """
        identity, device, caller = await self._who_says_it(said, actor)
        named = f"{device}\n{said.call_sid}\n{caller}"
        if named in self._told:
            return
        self._remember(named)
        self._not_verified.inc()
        log.warning(
            "door not opened, since who asked is not verified",
            device_id=device,
            identity=identity,
            call_sid=said.call_sid,
            caller=caller,
        )

    async def _who_says_it(
        self, said: DeviceDoorLockedOut | DeviceDoorNotVerified, actor: Actor
    ) -> tuple[Identity, DeviceId, Identity | None]:
        """The identity and device of the station, and of whom it speaks."""
        identity, device = actor.acting_as(None, None)
        if actor.key_hash is not None:
            raise Forbidden("only the station itself says what happens at its door")
        if device is None:
            raise Forbidden("only a device has a door: connect with a token that names its device")
        call = await self._calls.show(CallSid(said.call_sid), actor)
        caller = None if said.caller is None else Identity(said.caller)
        if caller is not None and (caller == identity or call.user(caller) is None):
            raise InvalidInput(f"{caller[:40]!r} is no other user of this call: name one who is")
        return identity, device, caller

    def _event(
        self, said: DeviceDoorLockedOut, identity: Identity, device: DeviceId
    ) -> DoorLockedOut:
        at = self._now()
        named = f"{device}\n{said.call_sid}\n{said.lock_out}".encode()
        return DoorLockedOut(
            id=f"DL{hashlib.sha256(named).hexdigest()[:32]}",
            at=at,
            call_sid=said.call_sid,
            device_id=device,
            identity=identity,
            caller=said.caller,
            doors=said.doors,
            wrong_codes=said.wrong_codes,
            until=at + timedelta(seconds=said.locked_for_s),
        )

    def _owe(self, connection: Connection, event: DoorLockedOut) -> None:
        if self._on_event is None:
            return
        data = event.model_dump(mode="json", exclude_none=True)
        owed = self._on_event(connection, event.event, event.id, event.at, data)
        owe(connection, owed, leased_until_ms=to_ms(event.at))

    def _remember(self, event_id: str) -> None:
        self._told[event_id] = None
        if len(self._told) > _REMEMBERED:
            self._told.popitem(last=False)
