"""Calls in the relay: each command is one transaction of new state and deliveries owed; what it
owes is sent once it is committed."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

import structlog
from sqlalchemy import Connection

from push.auth import Actor
from push.channels.channel import Channel
from push.deadlines import Deadlines
from push.metrics import Metrics
from push.outbox import Outbox
from push.store.call_rows import (
    all_deadlines,
    find_idempotent,
    forget_idempotent,
    insert_call,
    keep_idempotent,
    list_calls,
    live_calls_of,
    load_call,
    save_call,
    to_ms,
)
from push.store.database import Database
from push.store.device_rows import DeviceRow, devices_of, find_device
from push.store.outbox_rows import Delivery, owe, owed_already
from signaling.calls import Call, Unreachable
from signaling.errors import CallNotFound, Conflict, Forbidden, NobodyToCall
from signaling.events import CallReceived
from signaling.identifiers import CallSid, DeviceId, Identity, new_call_sid
from signaling.rules import (
    Command,
    Expire,
    Invitee,
    NewCall,
    Notice,
    Outcome,
    Recipient,
    apply,
    create_call,
    invite_event,
)

log = structlog.get_logger(__name__)

EVENT_LIFE = timedelta(hours=1)
"""How long an event that is no invite waits for a device that is away."""

LIST_LIMIT = 100


@dataclass(frozen=True, slots=True)
class Invite:
    """A call that somebody asks for. `parameters` are an invitee's own, where they are not the call's."""

    request: NewCall
    to: tuple[Identity, ...]
    parameters: Mapping[Identity, Mapping[str, str]]
    actor: Actor
    idempotency_key: str | None = None
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Created:
    """A call that was made, or `repeated`: had been, under the same Idempotency-Key."""

    call: Call
    repeated: bool = False


class Calls:
    """Makes calls, moves them, and tells who is to know."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        channels: Mapping[str, Channel],
        metrics: Metrics,
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._channels = channels
        self._metrics = metrics
        self._now = now
        self.deadlines = Deadlines(self.expire, now=now)
        metrics.ringing.set_function(lambda: len(self.deadlines))

    def now(self) -> datetime:
        """The relay's time, to the millisecond, as it is stored."""
        now = self._now()
        return now.replace(microsecond=now.microsecond // 1000 * 1000)

    def new_sid(self) -> CallSid:
        """A SID for a new call."""
        return new_call_sid(to_ms(self._now()), secrets.token_bytes(10))

    async def load_deadlines(self) -> None:
        """Takes up the deadlines of calls that an earlier process left."""
        self.deadlines.refill(await self._database.read(all_deadlines))

    async def create(self, invite: Invite) -> Created:
        """Makes a call.

        Raises:
            NobodyToCall: none of the invitees has a device; nothing was made.
            InvalidInput: as `signaling.rules.create_call`.
            TooLarge: the invite is over a channel's limit.
            Conflict: the Idempotency-Key was used with another request.
        """
        created, owed = await self._database.write(partial(self._create, invite=invite))
        self._after(created.call, owed)
        if not created.repeated:
            self._metrics.calls_created.inc()
            log.info(
                "call created",
                call_sid=created.call.call_sid,
                caller=created.call.caller,
                invitees=[user.identity for user in created.call.pending],
                error_invitees=[identity for identity, _ in created.call.unreachable],
            )
        return created

    async def carry_out(self, call_sid: CallSid, command: Command) -> Call:
        """Moves a call by a command of the rules.

        Raises:
            CallNotFound: there is no such call.
            OperationRefused, Forbidden: as `signaling.rules.apply`.
        """
        call, owed = await self._database.write(
            partial(self._carry_out, call_sid=call_sid, command=command)
        )
        self._after(call, owed)
        return call

    async def expire(self, call_sid: CallSid) -> None:
        """Carries out a deadline that has come."""
        await self.carry_out(call_sid, Expire(at=self.now()))

    async def show(self, call_sid: CallSid, actor: Actor) -> Call:
        """A call, to a server or to one of its users.

        Raises:
            CallNotFound: there is no such call.
            Forbidden: the actor is not in it.
        """
        call = await self._database.read(lambda c: load_call(c, call_sid))
        if call is None:
            raise CallNotFound(f"there is no call {call_sid}")
        if actor.identity is not None and call.user(actor.identity) is None:
            raise Forbidden("this call is somebody else's")
        return call

    async def list_of(
        self, identity: Identity | None, *, count: int, before: int
    ) -> tuple[list[Call], int]:
        """Calls of an identity, or of all for None, newest first, and the next cursor."""
        limit = min(count, LIST_LIMIT)
        return await self._database.read(
            lambda c: list_calls(c, identity, count=limit, before=before)
        )

    async def device_of(self, device: DeviceId) -> DeviceRow | None:
        """The registered device with this id, or None."""
        return await self._database.read(lambda c: find_device(c, device))

    async def send_live_invites(self, device_id: DeviceId) -> None:
        """Sends a device that came online the invites of its identity that are still alive, and what
        did not reach it while it was away."""
        owed = await self._database.write(partial(self._owe_live_invites, device_id=device_id))
        self._outbox.dispatch(owed)
        await self._outbox.retry_now("mqtt", device_id)

    async def forget_old(self, keep_idempotency: timedelta) -> None:
        """Forgets Idempotency-Keys that are older than `keep_idempotency`."""
        before_ms = to_ms(self._now() - keep_idempotency)
        await self._database.write(lambda c: forget_idempotent(c, before_ms))

    def _after(self, call: Call, owed: list[Delivery]) -> None:
        self._outbox.dispatch(owed)
        self.deadlines.set(call.call_sid, call.next_deadline)

    def _create(self, connection: Connection, invite: Invite) -> tuple[Created, list[Delivery]]:
        repeated = self._repeated(connection, invite)
        if repeated is not None:
            return repeated, []
        new = invite.request
        identities = [*invite.to, *([new.caller] if new.caller is not None else [])]
        devices = devices_of(connection, identities)
        new = _with_invitees(new, invite, devices)
        outcome = create_call(new)
        insert_call(connection, outcome.call)
        if invite.idempotency_key is not None:
            keep_idempotent(
                connection,
                invite.actor.name,
                invite.idempotency_key,
                invite.fingerprint,
                outcome.call.call_sid,
                to_ms(new.at),
            )
        owed = self._owe(connection, outcome.notices, devices)
        return Created(outcome.call), owed

    def _repeated(self, connection: Connection, invite: Invite) -> Created | None:
        key = invite.idempotency_key
        kept = None if key is None else find_idempotent(connection, invite.actor.name, key)
        if kept is None:
            return None
        kept_fingerprint, call_sid = kept
        if kept_fingerprint != invite.fingerprint:
            raise Conflict("this Idempotency-Key was used with another request")
        call = load_call(connection, CallSid(call_sid))
        if call is None:
            raise CallNotFound(f"the call {call_sid} made under this Idempotency-Key is gone")
        return Created(call, repeated=True)

    def _carry_out(
        self, connection: Connection, call_sid: CallSid, command: Command
    ) -> tuple[Call, list[Delivery]]:
        call = load_call(connection, call_sid, for_update=True)
        if call is None:
            raise CallNotFound(f"there is no call {call_sid}")
        outcome = apply(call, command)
        if outcome.call == call:
            return call, []
        save_call(connection, outcome.call)
        self._count(call, outcome)
        identities = {r.identity for notice in outcome.notices for r in notice.recipients}
        devices = devices_of(connection, identities)
        return outcome.call, self._owe(connection, outcome.notices, devices)

    def _owe(
        self, connection: Connection, notices: tuple[Notice, ...], devices: list[DeviceRow]
    ) -> list[Delivery]:
        deliveries = [
            delivery
            for notice in notices
            for device in devices
            if _is_meant(device, notice.recipients)
            for delivery in self._deliveries(notice, device)
        ]
        return owe(connection, deliveries, self._outbox.leased_until_ms)

    def _deliveries(self, notice: Notice, device: DeviceRow) -> list[Delivery]:
        event = notice.event
        expires = event.expires_at if isinstance(event, CallReceived) else event.at + EVENT_LIFE
        return [
            Delivery(
                event.id,
                device.device_id,
                channel.kind,
                self._channels[channel.kind].compose(event, channel),
                to_ms(expires),
            )
            for channel in device.channels
        ]

    def _owe_live_invites(self, connection: Connection, device_id: DeviceId) -> list[Delivery]:
        device = find_device(connection, device_id)
        if device is None:
            return []
        now = self._now()
        notices = [
            Notice(invite_event(call, user), (Recipient(user.identity),))
            for call in live_calls_of(connection, device.identity)
            for user in call.pending
            if user.identity == device.identity and user.expires_at > now
        ]
        under_way = owed_already(connection, [n.event.id for n in notices], device_id)
        missing = tuple(n for n in notices if n.event.id not in under_way)
        return self._owe(connection, missing, [device])

    def _count(self, before: Call, outcome: Outcome) -> None:
        for old, new in zip(before.users, outcome.call.users, strict=True):
            if old.state is not new.state:
                self._metrics.user_states.labels(new.state).inc()
                log.info(
                    "user state changed",
                    call_sid=before.call_sid,
                    identity=new.identity,
                    state=new.state,
                    device_id=new.main_device,
                    call_state=outcome.call.state,
                )


def _with_invitees(new: NewCall, invite: Invite, devices: list[DeviceRow]) -> NewCall:
    """The call with who of the invited can be called, and who cannot and why."""
    channels: dict[Identity, set[str]] = {}
    for device in devices:
        kinds = channels.setdefault(device.identity, set())
        kinds.update(channel.kind for channel in device.channels)
    reachable = tuple(
        Invitee(identity, tuple(sorted(channels[identity])), invite.parameters.get(identity))
        for identity in invite.to
        if channels.get(identity)
    )
    unreachable: tuple[tuple[Identity, Unreachable], ...] = tuple(
        (identity, "no_device" if identity in channels else "unknown")
        for identity in invite.to
        if not channels.get(identity)
    )
    if not reachable:
        raise NobodyToCall(
            "none of the invitees has a device: register one with `PUT /v1/devices/{id}`",
            error_invitees=[{"identity": i, "reason": reason} for i, reason in unreachable],
        )
    return replace(new, invitees=reachable, unreachable=unreachable)


def _is_meant(device: DeviceRow, recipients: tuple[Recipient, ...]) -> bool:
    return any(
        recipient.identity == device.identity and recipient.reaches(device.device_id)
        for recipient in recipients
    )
