"""One call between this device and the relay: what is asked of it, what it tells, and what that
means for the call. It knows nothing of sound.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from bellwire.agent.calls.record import Acceptance, Direction
from bellwire.agent.calls.requests import PERSISTENCE, RelayRequests, error_of
from bellwire.agent.link import RequestRefused
from bellwire.agent.tasks import CallTasks
from bellwire.config.waiting import Sleep
from bellwire.signaling.calls.calls import CallState, RejectStatus, UserState
from bellwire.signaling.calls.events import (
    CallCancelled,
    CallEnded,
    CallEvent,
    CallMessage,
    CallTimeout,
    CallUserStateChanged,
)
from bellwire.signaling.errors import CallError
from bellwire.signaling.identifiers import (
    CallSid,
    DeviceId,
    Identity,
    parse_identity,
)
from bellwire.signaling.wire.answers import CallAnswer
from bellwire.signaling.wire.operations import (
    DeviceAccept,
    DeviceIgnore,
    DeviceInvite,
    DeviceJoin,
    DeviceOperation,
    DeviceReceived,
    DeviceShow,
)

log = structlog.get_logger(__name__)

NEWS_IS_LATE = timedelta(seconds=5)
"""How long after an outgoing call's own end the relay's word of it may take."""

_NOT_ANSWERED = "not answered in time"
_IN_VAIN = frozenset({UserState.REJECTED, UserState.TIMEOUT, UserState.CANCELED})


class CallNews(Protocol):
    """Who is told what became of the call."""

    @property
    def is_over(self) -> bool:
        """Whether the call is closed here."""
        ...

    def was_made(self) -> None:
        """An outgoing call has its SID."""
        ...

    def rings_there(self) -> None:
        """An outgoing call has reached somebody."""
        ...

    def was_answered(self, caller: Identity | None, others: Sequence[Identity]) -> None:
        """The call is on, with these others in it who have a device there: this device's accept was
        taken, or somebody has accepted this device's call."""
        ...

    def learnt(self, custom_parameters: Mapping[str, str]) -> None:
        """The call that this device has come into carries these."""
        ...

    def has_joined(self, who: Identity) -> None:
        """Somebody else is in the call now."""
        ...

    def has_left(self, who: Identity) -> None:
        """Somebody else is not in the call any more."""
        ...

    def was_said(self, message: CallMessage) -> None:
        """Somebody says something."""
        ...

    def ended(self, reason: str, error: CallError | None = None) -> None:
        """The call is over, for `reason`; an error, where it was no normal end."""
        ...


class CallSignalling:
    """The signalling of one call.

    Args:
        requests: The way to the relay.
        news: Who is told what became of the call.
        tasks: Who does the call's work.
        me: This device's identity.
        device: This device.
        now: Tells the time.
        sleep: Waits.
    """

    def __init__(
        self,
        requests: RelayRequests,
        news: CallNews,
        tasks: CallTasks,
        *,
        me: Identity,
        device: DeviceId,
        direction: Direction,
        sid: CallSid,
        expires_at: datetime,
        now: Callable[[], datetime],
        sleep: Sleep,
    ) -> None:
        self.sid = sid
        self.answered = False
        self.parties: set[Identity] = set()
        """Everybody else who has been in the call: who left it may still be heard for a moment."""
        self.acceptances: dict[Identity, Acceptance] = {}
        """How each of them last came into it, by the relay's word."""
        self._accepting = False
        self._joining = False
        self._requests = requests
        self._news = news
        self._tasks = tasks
        self._me = me
        self._device = device
        self._direction = direction
        self._expires_at = expires_at
        self._now = now
        self._sleep = sleep
        self._rejected: set[str] = set()
        self._followed = 0
        self._rang_out = self._refused = self._withdrawn = False
        self._parting = ""

    @property
    def unanswered(self) -> bool:
        """Whether an outgoing call was in vain because nobody was there: it rang out, or devices
        rejected it by themselves; no person accepted or rejected it, and it was not given up here."""
        return self._rang_out and not (self.answered or self._refused or self._withdrawn)

    # What this device does

    def ring(self) -> None:
        """Confirms the invite, and sees to it that it ends."""
        self._tasks.start(self._confirm())
        self._tasks.start(self._give_up_at(self._expires_at))

    def dial(self, invite: DeviceInvite) -> None:
        """Invites, and sees to it that it ends. It lives on past a hang-up: only its answer tells
        which call is to be cancelled."""
        self._tasks.outlive(self._invite(invite))
        self._tasks.start(self._give_up_at(self._expires_at + NEWS_IS_LATE))

    def accept(self, extended_data: str) -> None:
        """Asks the relay to accept the invite for this device."""
        self._accepting = True
        self._tasks.start(
            self._enter(
                DeviceAccept(operation="accept", call_sid=self.sid, extended_data=extended_data)
            )
        )

    def join(self) -> None:
        """Comes back into the call."""
        self._joining = True
        self._tasks.start(self._enter(DeviceJoin(operation="join", call_sid=self.sid)))

    def reject(self, status: RejectStatus, extended_data: str = "") -> None:
        """Tells the relay that nobody here wants the call, however long that takes."""
        self._tasks.outlive(self._requests.reject(self.sid, status, extended_data))

    def ignore(self) -> None:
        """Says that this device alone does not ring on."""

        async def ignore() -> None:
            await self._requests.tell_until_heard(
                DeviceIgnore(operation="ignore", call_sid=self.sid)
            )

        self._tasks.outlive(ignore())

    def withdraw(self, extended_data: str = "") -> None:
        """Gives up an outgoing call. One without a SID yet is given up once it has it."""
        self._withdrawn, self._parting = True, extended_data
        if self.sid:
            self._tasks.outlive(self._requests.withdraw(self.sid, extended_data))

    def leave(self, extended_data: str = "") -> None:
        """Tells the relay that this identity has hung up, however long that takes."""
        self._tasks.outlive(self._requests.leave(self.sid, extended_data))

    # What the relay says

    def follow(self, event: CallEvent) -> None:
        """Takes an event of this call."""
        if not isinstance(event, CallMessage):
            self._followed += 1
        match event:
            case CallUserStateChanged(identity=who) if who != self._me:
                self._follow_other(event)
            case CallMessage():
                self._news.was_said(event)
            case CallCancelled(reason=reason):
                self._news.ended(reason)
            case CallTimeout():
                self._news.ended(_NOT_ANSWERED)
            case CallEnded():
                self._news.ended("ended", self._why_in_vain())
            case _:
                pass

    def _follow_other(self, event: CallUserStateChanged) -> None:
        who = Identity(event.identity)
        outgoing = self._direction is Direction.OUTGOING
        if event.state is UserState.ACCEPTED:
            self.parties.add(who)
            self.acceptances[who] = Acceptance(who, event.attestation, event.main_device)
            if outgoing and not self.answered:
                self.answered = True
                self._news.was_answered(self._me, [who])
            elif self.answered:
                self._news.has_joined(who)
        elif event.state is UserState.RECEIVED and outgoing:
            self._news.rings_there()
        elif event.state in _IN_VAIN:
            if event.state is UserState.REJECTED:
                self._rejected.add(who)
                # What a station does by itself is nobody's no: for whoever called, nobody was there.
                if event.automatic or event.reject_status is RejectStatus.BUSY:
                    self._rang_out = True
                else:
                    self._refused = True
            elif event.state is UserState.TIMEOUT:
                self._rang_out = True
        elif event.state is UserState.QUIT:
            self._news.has_left(who)

    def _why_in_vain(self) -> CallError | None:
        if self._direction is Direction.INCOMING or self.answered or not self._rejected:
            return None
        return CallError(31600, f"rejected by {', '.join(sorted(self._rejected))}")

    async def catch_up(self) -> None:
        """Learns, after the broker was away, what became of the call meanwhile."""
        try:
            shown = await self._show()
        except RequestRefused as refused:
            self._news.ended(str(refused), error_of(refused))
            return
        except CallError as error:
            # Silence says nothing of the call: an open one goes on, a ringing one ends by itself.
            log.warning("state of the call not learnt", call_sid=self.sid, error=str(error))
            return
        own = next((u for u in shown.users if u.identity == self._me), None)
        here = own is not None and own.main_device in (None, self._device)
        if own is not None and self._is_pending and not own.state.pending:
            self._news.ended(_why_over(own.state, here=here))
        elif own is None or shown.state is CallState.ENDED:
            self._news.ended("ended")
        elif own.state is UserState.ACCEPTED and not here and not self._joining:
            self._news.ended("answered_elsewhere")
        else:
            self._learn_who_is_there(shown)

    async def _show(self) -> CallAnswer:
        """How the call stands, as of no earlier than this device's own last step and the last event:
        an answer that either has overtaken is out of date."""
        show = DeviceShow(operation="show", call_sid=self.sid)
        while True:
            asked_at = self._standing
            shown = await self._requests.ask(show, within=PERSISTENCE)
            if self._standing == asked_at:
                return shown

    @property
    def _standing(self) -> tuple[bool, bool, bool, int]:
        return self._accepting, self._joining, self.answered, self._followed

    @property
    def _is_pending(self) -> bool:
        waiting = self._direction is Direction.INCOMING and not self.answered
        return waiting and not self._accepting

    def _learn_who_is_there(self, shown: CallAnswer) -> None:
        others = [user for user in shown.users if user.identity != self._me]
        there = [user for user in others if user.state is UserState.ACCEPTED]
        self._note_parties(shown)
        if self._direction is Direction.OUTGOING and there and not self.answered:
            self.answered = True
            self._news.was_answered(self._me, [Identity(user.identity) for user in there])
        if not self.answered:
            return
        for who in self._with_a_device(shown):
            self._news.has_joined(who)
        for user in others:
            if user.state is not UserState.ACCEPTED:
                self._news.has_left(Identity(user.identity))

    # What the relay is asked

    async def _confirm(self) -> None:
        await self._ask(DeviceReceived(operation="received", call_sid=self.sid))

    async def _enter(self, operation: DeviceAccept | DeviceJoin) -> None:
        accepted = await self._ask(operation)
        if accepted is not None and not self._news.is_over:
            self.answered, self._joining = True, False
            caller = None if accepted.from_ is None else parse_identity(accepted.from_)
            self._note_parties(accepted)
            self._news.learnt(accepted.custom_parameters)
            self._news.was_answered(caller, self._with_a_device(accepted))

    def _note_parties(self, shown: CallAnswer) -> None:
        for user in shown.users:
            who = Identity(user.identity)
            if user.state is UserState.ACCEPTED and who != self._me:
                self.parties.add(who)
                self.acceptances[who] = Acceptance(who, user.attestation, user.main_device)

    def _with_a_device(self, call: CallAnswer) -> list[Identity]:
        """The others in the call for whom a device speaks: a server may act for somebody too."""
        return [
            Identity(user.identity)
            for user in call.users
            if user.identity != self._me
            and user.state is UserState.ACCEPTED
            and user.main_device is not None
        ]

    async def _invite(self, invite: DeviceInvite) -> None:
        made = await self._ask(invite)
        if made is None:
            return
        self.sid = CallSid(made.call_sid)
        if self._news.is_over:
            await self._requests.withdraw(self.sid, self._parting)
        else:
            self._news.was_made()

    async def _ask(self, operation: DeviceOperation) -> CallAnswer | None:
        """The relay's answer; without one the call is over here, and the relay is told so, in case
        it was the answer that was lost."""
        try:
            return await self._requests.ask(operation, within=self._expires_at - self._now())
        except RequestRefused as refused:
            reason, error = str(refused), error_of(refused)
        except CallError as unanswered:
            reason, error = str(unanswered), unanswered
            if isinstance(operation, DeviceAccept | DeviceJoin):
                self.leave()
        log.warning("request failed", operation=operation.operation, error=reason)
        self._news.ended(reason, error)
        return None

    async def _give_up_at(self, moment: datetime) -> None:
        await self._sleep((moment - self._now()).total_seconds())
        if self.answered or self._news.is_over:
            return
        if self._direction is Direction.OUTGOING:
            self.withdraw()
        elif self._accepting:
            self.leave()
        self._news.ended(_NOT_ANSWERED)


def _why_over(state: UserState, *, here: bool) -> str:
    """Why a call rings no more, by its user's state, in the words of the event that says the same:
    which of the two comes first is chance."""
    match state:
        case UserState.ACCEPTED | UserState.QUIT if not here:
            return "answered_elsewhere"
        case UserState.REJECTED if not here:
            return "rejected_elsewhere"
        case UserState.CANCELED:
            return "cancelled"
        case UserState.TIMEOUT:
            return _NOT_ANSWERED
        case _:
            return f"{state} meanwhile"
