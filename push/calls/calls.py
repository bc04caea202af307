"""Calls in the relay: each command's new state and the deliveries it owes are kept in one transaction,
with other commands' that wait; what it owes is sent once it is committed. The transaction holds the
call's row, so the first of two commands wins (`signaling.calls.rules`, "Who wins a race").
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache, partial

import structlog
from sqlalchemy import Connection

from bellwire.config.call_policy import PolicySettings
from bellwire.push.access.tokens import Actor
from bellwire.push.backend.callbacks import Callbacks, DialledCall
from bellwire.push.calls.deadlines import Deadlines
from bellwire.push.calls.invites import Denied, Invite, find_reach, nobody, with_reach
from bellwire.push.calls.policy import CallPolicy
from bellwire.push.calls.rate_limits import Caller, RateLimits
from bellwire.push.delivery.owed import Deliveries, Owed
from bellwire.push.metrics import Metrics
from bellwire.push.store.engine.database import Database
from bellwire.push.store.engine.unit_of_work import CallWork, Kept, UnitOfWork
from bellwire.push.store.rows.calls import (
    ALL_CALLS,
    CallFilter,
    IdempotencyRow,
    all_deadlines,
    forget_idempotent,
    list_calls,
    load_call,
    overdue_calls,
)
from bellwire.push.store.rows.deliveries import Confirmed
from bellwire.push.store.rows.quality import (
    FeedbackRow,
    InsightRow,
    feedback_of,
    insights_of,
    put_feedback,
)
from bellwire.push.store.tables import to_ms
from bellwire.signaling.calls.calls import (
    DEFAULT_MAX_INVITEES,
    Attestation,
    Call,
    CallState,
    NotCancelled,
    User,
)
from bellwire.signaling.calls.commands import (
    Command,
    Expire,
    InviteMore,
    Join,
    Received,
    Say,
)
from bellwire.signaling.calls.events import CallFeedback
from bellwire.signaling.calls.rules import BACKEND, Outcome, apply, check_inviter, create_call
from bellwire.signaling.errors import CallNotFound, Conflict, Forbidden, InvalidInput, NotFound
from bellwire.signaling.identifiers import CallSid, ChannelKind, DeviceId, Identity, new_call_sid
from bellwire.signaling.wire.operations import FeedbackFields

log = structlog.get_logger(__name__)

LIST_LIMIT = 100
_INSIGHTS_SHOWN = 2000


@dataclass(frozen=True, slots=True)
class Created:
    """A call that was made, or `repeated`: had been, under the same Idempotency-Key."""

    call: Call
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Moved:
    """A call before and after a command, what is owed for it, and whom a cancel has left as they were."""

    before: Call
    call: Call
    owed: Owed
    not_cancelled: tuple[tuple[Identity, NotCancelled], ...] = ()


@dataclass(frozen=True, slots=True)
class _Receipt:
    """A device's confirmation of its invite over a channel, and the time from the invite to it. `kept`
    alone tells, once its unit is written, whether it was the first."""

    kind: ChannelKind
    latency_s: float
    kept: Kept


class Calls:
    """Makes calls, moves them, and tells who is to know."""

    def __init__(
        self,
        database: Database,
        deliveries: Deliveries,
        metrics: Metrics,
        rate_limits: RateLimits,
        policy: CallPolicy = CallPolicy(PolicySettings()),  # noqa: B008 - it never changes
        callbacks: Callbacks | None = None,
        *,
        now: Callable[[], datetime],
        max_invitees: int = DEFAULT_MAX_INVITEES,
    ) -> None:
        self._max_invitees = max_invitees
        self._database = database
        self._rate_limits = rate_limits
        self._policy = policy
        self._deliveries = deliveries
        self._callbacks = callbacks
        self._metrics = metrics
        self._user_states = cache(metrics.user_states.labels)
        self._now = now
        self.deadlines = Deadlines(self.expire, now=now)
        metrics.ringing.set_function(lambda: len(self.deadlines))

    def now(self) -> datetime:
        """The relay's time, to the millisecond, as it is stored."""
        now = self._now()
        return now.replace(microsecond=now.microsecond // 1000 * 1000)

    def new_sid(self) -> CallSid:
        """A SID for a new call."""
        return new_call_sid(to_ms(self.now()), secrets.token_bytes(10))

    async def load_deadlines(self) -> None:
        """Takes up the deadlines of calls that an earlier process left."""
        self.deadlines.refill(await self._database.read(all_deadlines))

    async def overdue(self, by: timedelta, limit: int) -> list[CallSid]:
        """Calls whose deadline came `by` ago or earlier and that nobody has moved since."""
        before_ms = to_ms(self._now() - by)
        return await self._database.read(lambda c: overdue_calls(c, before_ms, limit))

    async def create(self, invite: Invite) -> Created:
        """Makes a call.

        Raises:
            NobodyToCall: none of the invitees has a device; nothing was made.
            Forbidden: the call policy lets the caller ring none of them.
            NotFound: there is no such group.
            InvalidInput: as `signaling.calls.rules.create_call`.
            TooLarge: the invite is over a channel's limit.
            Conflict: the Idempotency-Key was used with another request.
            TooManyRequests: the caller calls too often, or an app or a device of the invitees is invited
                too often.
        """
        created, owed = await self._database.write_calls(
            CallWork(partial(self._create, invite=invite), identities=_concerned(invite))
        )
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

    async def made_before(self, invite: Invite) -> Created | None:
        """The call that was made under an invite's Idempotency-Key, or None.

        Raises:
            Conflict: the key was used with another request.
        """
        return await self._database.read(lambda c: _made_before(UnitOfWork(c), invite))

    async def carry_out(self, call_sid: CallSid, command: Command) -> Call:
        """Moves a call by a command of the rules, as `moved` does, and returns it."""
        return (await self.moved(call_sid, command)).call

    async def moved(self, call_sid: CallSid, command: Command) -> Moved:
        """Moves a call by a command of the rules.

        Raises:
            CallNotFound: there is no such call.
            NobodyToCall: none of those who are to be invited more has a device.
            Conflict: another message was said under this message's SID.
            TooManyRequests: the same as when a call is made, of those who are to be invited more.
            OperationRefused, Forbidden, InvalidInput: as `signaling.calls.rules.apply`; Forbidden too where
                the call policy does not let somebody in, or invite anybody.
        """
        moved, receipt = await self._database.write_calls(
            CallWork(partial(self._carry_out, call_sid=call_sid, command=command), (call_sid,))
        )
        self.settle([moved])
        if receipt is not None and receipt.kept.is_new:
            self._metrics.invite_received_seconds.labels(receipt.kind).observe(receipt.latency_s)
        return moved

    async def expire(self, call_sid: CallSid) -> None:
        """Carries out a deadline that has come."""
        await self.carry_out(call_sid, Expire(at=self.now()))

    async def show(self, call_sid: CallSid, actor: Actor) -> Call:
        """A call, to a server or to one of its users.

        Raises:
            CallNotFound: there is no such call.
            Forbidden: the actor is not in it.
        """
        return await self._database.read(lambda c: _visible(c, call_sid, actor.identity))

    async def list_of(
        self,
        identity: Identity | None,
        *,
        count: int,
        before: int,
        only: CallFilter = ALL_CALLS,
    ) -> tuple[list[Call], int]:
        """Calls of an identity, or of all for None, newest first, and the next cursor.

        Raises:
            InvalidInput: what is looked for ends before it begins.
        """
        if only.since is not None and only.until is not None and only.until < only.since:
            raise InvalidInput("until is before since: no call was made in that time")
        limit = min(count, LIST_LIMIT)
        return await self._database.read(
            lambda c: list_calls(c, identity, count=limit, before=before, only=only)
        )

    async def rate(
        self,
        call_sid: CallSid,
        identity: Identity,
        device: DeviceId | None,
        given: FeedbackFields,
        attestation: Attestation | None = None,
    ) -> Call:
        """Keeps what a user says of a call's quality, and has webhooks told.

        Raises:
            CallNotFound: there is no such call.
            Forbidden: the user is not in it.
        """

        def work(connection: Connection) -> Call:
            call = _visible(connection, call_sid, identity)
            at = self.now()
            put_feedback(connection, call_sid, identity, device, given, to_ms(at))
            event = CallFeedback(
                id=f"FB{secrets.token_hex(16)}",
                call_sid=call_sid,
                at=at,
                identity=identity,
                device_id=device,
                score=given.score,
                issue=given.issue,
                attestation=attestation,
            )
            self._deliveries.tell_backends(connection, event)
            return call

        call = await self._database.write(work)
        log.info(
            "call rated",
            call_sid=call_sid,
            identity=identity,
            score=given.score,
            issue=given.issue,
        )
        return call

    async def feedback_of(self, call_sid: CallSid, actor: Actor) -> list[FeedbackRow]:
        """What was said of a call's quality: to a server all, to a user its own.

        Raises:
            CallNotFound, Forbidden: as `show`.
        """

        def work(connection: Connection) -> list[FeedbackRow]:
            _visible(connection, call_sid, actor.identity)
            return feedback_of(connection, call_sid, actor.identity)

        return await self._database.read(work)

    async def insights_of(self, call_sid: CallSid, actor: Actor) -> Sequence[InsightRow]:
        """What devices told of a call: to a server all, to a user its own devices'.

        Raises:
            CallNotFound, Forbidden: as `show`.
        """

        def work(connection: Connection) -> Sequence[InsightRow]:
            _visible(connection, call_sid, actor.identity)
            return insights_of(connection, call_sid, actor.identity, _INSIGHTS_SHOWN)

        return await self._database.read(work)

    async def forget_old(self, keep_idempotency: timedelta) -> None:
        """Forgets Idempotency-Keys that are older than `keep_idempotency`."""
        before_ms = to_ms(self._now() - keep_idempotency)
        await self._database.write(lambda c: forget_idempotent(c, before_ms))

    def move(self, unit: UnitOfWork, call: Call, command: Command) -> Moved:
        """Moves a call in a unit that holds it. What it owes is sent by `settle`, once the unit is
        committed.

        Raises:
            OperationRefused, Forbidden, InvalidInput: as `signaling.calls.rules.apply`; nothing was put into
                the unit, as with the next.
            TooLarge: an event is over a channel's limit.
        """
        outcome = apply(call, command)
        owed = self._deliveries.owe(unit, outcome.call, outcome.notices)
        owed = self._with_callbacks(unit, outcome, owed)
        if outcome.call != call:
            known = {user.identity for user in call.users}
            joined = [u.identity for u in outcome.call.users if u.identity not in known]
            unit.save_call(outcome.call, joined)
            for user in _invites_over(call, outcome.call):
                told = partial(self._deliveries.note_forgotten, user=user, at=command.at)
                unit.forget_events([user.invite_id], told)
        return Moved(call, outcome.call, owed, outcome.not_cancelled)

    def settle(self, moves: Iterable[Moved]) -> None:
        """Sends what moves have owed, once they are committed, and sets the calls' deadlines."""
        for moved in moves:
            self._after(moved.call, moved.owed)
            self._count(moved.before, moved.call)

    def _after(self, call: Call, owed: Owed) -> None:
        self._deliveries.send(owed)
        self.deadlines.set(call.call_sid, call.next_deadline)

    def _create(self, unit: UnitOfWork, invite: Invite) -> tuple[Created, Owed]:
        repeated = _made_before(unit, invite)
        if repeated is not None:
            return repeated, Owed()
        new = invite.request
        itself = new.attestation is Attestation.FULL
        denied = nobody if invite.routed else self._denied(unit, new.caller, itself=itself)
        reach = find_reach(unit, invite.to, new.caller, invite.parameters, denied)
        reach.must_reach_somebody(new.caller)
        outcome = create_call(
            replace(
                new,
                invitees=reach.invitees,
                unreachable=reach.unreachable,
                max_invitees=self._max_invitees,
            )
        )
        call = outcome.call
        rung = [device for device in reach.devices if device.identity != new.caller]
        unit.if_not_kept(self._rate_limits.take(rung, Caller(new.caller, itself=itself)))
        owed = self._deliveries.owe(unit, call, outcome.notices, reach.devices)
        owed = self._with_callbacks(unit, outcome, owed)
        unit.add_call(call)
        if invite.idempotency_key is not None:
            unit.keep_idempotent(
                IdempotencyRow(
                    invite.actor.name,
                    invite.idempotency_key,
                    invite.fingerprint,
                    call.call_sid,
                    to_ms(new.at),
                )
            )
        return Created(call), owed

    def _with_callbacks(self, unit: UnitOfWork, outcome: Outcome, owed: Owed) -> Owed:
        """Owes a backend what has come of its dial, beside what devices are owed."""
        call = outcome.call
        if not outcome.dial_news or call.dial is None or self._callbacks is None:
            return owed
        of = DialledCall(call.call_sid, call.caller, call.dial)
        deliveries = self._callbacks.deliveries(of, outcome.dial_news)
        unit.owe(deliveries, self._callbacks.leased_until_ms)
        return replace(owed, deliveries=(*owed.deliveries, *deliveries))

    def _carry_out(
        self, unit: UnitOfWork, call_sid: CallSid, command: Command
    ) -> tuple[Moved, _Receipt | None]:
        call = unit.call(call_sid)
        if call is None:
            raise CallNotFound(f"there is no call {call_sid}")
        if isinstance(command, Say):
            return self._say(unit, call, command), None
        if isinstance(command, InviteMore):
            check_inviter(call, command)
            itself = command.attestation is Attestation.FULL
            denied = self._denied(unit, command.identity, itself=itself)
            command, invited = with_reach(unit, call, command, denied)
            caller = Caller(command.identity, itself=itself)
            unit.if_not_kept(self._rate_limits.take(invited, caller))
        if isinstance(command, Join):
            self._policy.check_join(unit.connection, call, command)
        moved = self.move(unit, call, command)
        if isinstance(command, Received):
            return moved, _keep_receipt(unit, call, command)
        return moved, None

    def _denied(self, unit: UnitOfWork, caller: Identity | None, *, itself: bool) -> Denied:
        """Whom the call policy does not let a caller ring who asks itself: a server is not asked."""
        if caller is None or not itself:
            return nobody
        return lambda wanted: self._policy.denied(unit.connection, caller, wanted)

    def _say(self, unit: UnitOfWork, call: Call, said: Say) -> Moved:
        """Passes a message on, once for each SID.

        Raises:
            Conflict: another was said under this one's.
            NotFound: it is for the backend alone, and no webhook is told of messages.
        """
        sid, fingerprint = said.voice_event_sid, _fingerprint(said)
        kept = unit.find_idempotent(call.call_sid, sid)
        if kept is not None and kept[0] != fingerprint:
            raise Conflict(
                "another message of this call was said under this SID or Idempotency-Key"
            )
        if kept is not None:
            return Moved(call, call, Owed())
        if (
            said.to == (BACKEND,)
            and call.user(BACKEND) is None
            and not self._deliveries.backend_hears
        ):
            raise NotFound(
                "the relay has no webhook that is told of call.message: its operator adds one under"
                " [webhooks] of the relay's settings"
            )
        moved = self.move(unit, call, said)
        unit.keep_idempotent(
            IdempotencyRow(call.call_sid, sid, fingerprint, call.call_sid, to_ms(said.at))
        )
        return moved

    def _count(self, before: Call, after: Call) -> None:
        for new in after.users:
            old = before.user(new.identity)
            if old is None or old.state is not new.state:
                self._user_states(new.state).inc()
                log.info(
                    "user state changed",
                    call_sid=after.call_sid,
                    identity=new.identity,
                    state=new.state,
                    device_id=new.main_device,
                    call_state=after.state,
                )


def _concerned(invite: Invite) -> tuple[Identity, ...]:
    """Whose devices are needed, as far as it is known: who is in a group is not."""
    invited = () if isinstance(invite.to, str) else invite.to
    caller = invite.request.caller
    return invited if caller is None else (*invited, caller)


def _made_before(unit: UnitOfWork, invite: Invite) -> Created | None:
    """The call that was made under the same Idempotency-Key, or None.

    Raises:
        Conflict: the key was used with another request.
    """
    key = invite.idempotency_key
    kept = None if key is None else unit.find_idempotent(invite.actor.name, key)
    if kept is None:
        return None
    kept_fingerprint, call_sid = kept
    if kept_fingerprint != invite.fingerprint:
        raise Conflict("this Idempotency-Key was used with another request")
    call = unit.call_as_it_is(CallSid(call_sid))
    if call is None:
        raise CallNotFound(f"the call {call_sid} made under this Idempotency-Key is gone")
    return Created(call, repeated=True)


def _keep_receipt(unit: UnitOfWork, call: Call, command: Received) -> _Receipt | None:
    """Keeps that a device got its invite, where it has not said so before; None where it says not over
    which of its channels."""
    user = call.user(command.identity)
    if command.channel is None or command.device is None or user is None:
        return None
    if user.invited_at is None:
        return None
    kept = unit.confirm(
        Confirmed(
            user.invite_id,
            command.identity,
            command.device,
            command.channel,
            command.app,
            call.call_sid,
            to_ms(command.at),
        )
    )
    waited_s = (command.at - user.invited_at).total_seconds()
    return _Receipt(command.channel, max(0.0, waited_s), kept)


def _fingerprint(said: Say) -> str:
    what = [said.identity, said.content, said.message_type, said.content_type, said.to]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _invites_over(before: Call, after: Call) -> list[User]:
    """Whose invites a change has made an end of."""
    pending = set() if after.state is CallState.ENDED else {u.invite_id for u in after.pending}
    return [user for user in before.pending if user.invite_id not in pending]


def _visible(connection: Connection, call_sid: CallSid, identity: Identity | None) -> Call:
    call = load_call(connection, call_sid)
    if call is None:
        raise CallNotFound(f"there is no call {call_sid}")
    if identity is not None and call.user(identity) is None:
        raise Forbidden("this call is somebody else's")
    return call
