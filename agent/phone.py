"""What the device does: rings when it is called; answers, rejects, calls and hangs up when pressed.

The panel follows at once; the relay is told beside it, as often as it takes. One call at a time: a
second invite is answered `busy`.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import structlog

from agent.call import Call, CallStatus, Direction, ringing_time_left
from agent.link import Link, RequestRefused
from agent.live_settings import LiveSettings
from broker.session import Incoming
from config.agent import AgentSettings
from hardware.panel import (
    AnswerPressed,
    CallPressed,
    HangUpPressed,
    HookLifted,
    HookReplaced,
    Panel,
    PanelEvent,
)
from hardware.status_light import Pattern
from signaling.answers import CallAnswer
from signaling.calls import CallState, RejectStatus, UserState
from signaling.device_operations import (
    DeviceAccept,
    DeviceCancel,
    DeviceInvite,
    DeviceOperation,
    DeviceQuit,
    DeviceReceived,
    DeviceReject,
    DeviceShow,
)
from signaling.errors import CallError
from signaling.events import (
    CallCancelled,
    CallEnded,
    CallEvent,
    CallReceived,
    CallTimeout,
    CallUserStateChanged,
)
from signaling.identifiers import CallSid
from signaling.requests import GroupReference

log = structlog.get_logger(__name__)

_PERSISTENCE = timedelta(minutes=5)
"""How long a hang-up or rejection is repeated while the relay is away."""

_NEWS_IS_LATE = timedelta(seconds=5)
"""How long after an outgoing call's own end the relay's word of it may take."""

_TURNS = 3

Watcher = Callable[[Call], None]


class Phone:
    """One device.

    Args:
        settings: Who this device is, and whom its buttons call.
        link: Its way to the relay.
        panel: Its buttons, ringer and light.
        now: Tells the time.
        live: Whom its buttons call, and how long, as the fleet says now.
        sleep: Waits.
    """

    def __init__(
        self,
        settings: AgentSettings,
        link: Link,
        panel: Panel,
        *,
        now: Callable[[], datetime],
        live: LiveSettings,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._settings = settings
        self._live = live
        self._link = link
        self._panel = panel
        self._now = now
        self._sleep = sleep
        self._call: Call | None = None
        self._early: list[CallEvent] = []
        self._tasks: asyncio.TaskGroup | None = None
        self._tasks_of_call: set[asyncio.Task[None]] = set()
        self._watchers: list[Watcher] = []
        link.listen(self._take_event)
        link.on_connected(self._catch_up_soon)
        link.on_disconnected(self._show_status)

    @property
    def call(self) -> Call | None:
        """The call of this device, None while idle."""
        return self._call

    def watch(self, watcher: Watcher) -> None:
        """Has `watcher` called with a copy of the call at each change of its status."""
        self._watchers.append(watcher)

    async def run(self) -> None:
        """Follows panel and relay until cancelled; then the ringer is silent."""
        self._show_status()
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                async for event in self._panel.events():
                    self._take_press(event)
        finally:
            self._tasks = None
            self._silence()

    # What people do

    def _take_press(self, event: PanelEvent) -> None:
        match event:
            case AnswerPressed() | HookLifted():
                self._answer()
            case HangUpPressed() | HookReplaced():
                self._hang_up()
            case CallPressed(name=name):
                self._dial(name)
            case _:
                log.info("nothing to do for this press yet", pressed=type(event).__name__)

    def _answer(self) -> None:
        call = self._call
        if call is None or call.status is not CallStatus.PENDING:
            return
        self._silence()
        self._move(call, CallStatus.CONNECTING)
        self._spawn_for_call(self._accept(call))

    def _hang_up(self) -> None:
        call = self._call
        if call is None:
            return
        if call.status is CallStatus.PENDING:
            self._tell(DeviceReject(operation="reject", call_sid=call.sid))
            self._close(call, "rejected here")
        elif call.direction is Direction.OUTGOING and call.status is not CallStatus.OPEN:
            if call.sid:
                self._spawn(self._withdraw(call.sid))
            self._close(call, "cancelled here")
        else:
            self._spawn(self._leave(call.sid))
            self._close(call, "hung up here")

    def _dial(self, button: str) -> None:
        if self._call is not None:
            log.info("call button ignored: this device is in a call", button=button)
            return
        settings = self._live.now
        target = settings.panel.call_buttons.get(button)
        if target is None:
            return  # pressed just before the panel was rewired
        invite = DeviceInvite(
            operation="invite",
            to=list(target.to) if target.group is None else GroupReference(group=target.group),
            timeout=settings.call_timeout_s,
            custom_parameters=target.custom_parameters,
            idempotency_key=secrets.token_hex(16),
        )
        call = Call(
            sid=CallSid(""),
            direction=Direction.OUTGOING,
            from_=self._settings.identity,
            to=target.to,
            expires_at=self._now() + timedelta(seconds=settings.call_timeout_s),
            status=CallStatus.CONNECTING,
            custom_parameters=target.custom_parameters,
        )
        self._early.clear()
        self._call = call
        self._move(call, CallStatus.CONNECTING)
        # It lives on past a hang-up: only its answer tells which call is to be cancelled.
        self._spawn(self._invite(call, invite))
        ringing = timedelta(seconds=settings.call_timeout_s)
        self._spawn_for_call(self._give_up_after(call, ringing + _NEWS_IS_LATE))

    # What the relay says

    def _take_event(self, event: CallEvent, incoming: Incoming) -> None:
        if isinstance(event, CallReceived):
            self._take_invite(event, incoming)
            return
        call = self._call
        if call is None:
            return
        if not call.sid:
            self._early.append(event)
        elif call.sid == event.call_sid:
            self._follow(call, event)

    def _take_invite(self, event: CallReceived, incoming: Incoming) -> None:
        left = ringing_time_left(self._now(), event.expires_at, incoming.expires_in_s)
        sid = CallSid(event.call_sid)
        if left <= timedelta(0):
            log.info("invite came too late", call_sid=sid)
        elif self._call is None:
            self._ring(event, left)
        elif self._call.sid != sid:
            log.info("invite refused: this device is in a call", call_sid=sid)
            self._tell(DeviceReject(operation="reject", call_sid=sid, status=RejectStatus.BUSY))

    def _ring(self, event: CallReceived, left: timedelta) -> None:
        if self._panel.ringer is not None:
            self._panel.ringer.start()
        call = Call(
            sid=CallSid(event.call_sid),
            direction=Direction.INCOMING,
            from_=event.from_,
            to=(event.to,),
            expires_at=self._now() + left,
            status=CallStatus.PENDING,
            custom_parameters=event.custom_parameters,
        )
        self._call = call
        self._move(call, CallStatus.PENDING)
        self._spawn_for_call(self._confirm(call))
        self._spawn_for_call(self._give_up_after(call, left))

    def _follow(self, call: Call, event: CallEvent) -> None:
        match event:
            case CallUserStateChanged(identity=who, state=state) if who != self._settings.identity:
                self._follow_other(call, state)
            case CallCancelled(reason=reason):
                self._close(call, reason)
            case CallTimeout():
                self._close(call, "not answered in time")
            case CallEnded():
                self._close(call, "ended")
            case _:
                pass

    def _follow_other(self, call: Call, state: UserState) -> None:
        if call.direction is Direction.INCOMING:
            return
        if state is UserState.ACCEPTED:
            self._open(call)
        elif state is UserState.RECEIVED and call.status is CallStatus.CONNECTING:
            self._move(call, CallStatus.RINGING)

    async def _catch_up_soon(self) -> None:
        """Learns, after the broker was away, what became of the call meanwhile."""
        self._show_status()
        if self._call is not None and self._call.sid:
            self._spawn_for_call(self._catch_up(self._call))

    async def _catch_up(self, call: Call) -> None:
        show = DeviceShow(operation="show", call_sid=call.sid)
        try:
            shown = await self._link.ask(show, within=_PERSISTENCE)
        except RequestRefused as refused:
            self._close(call, str(refused))
            return
        except CallError as error:
            # Silence says nothing of the call: an open one goes on, a ringing one ends by itself.
            log.warning("state of the call not learnt", call_sid=call.sid, error=str(error))
            return
        own = next((u for u in shown.users if u.identity == self._settings.identity), None)
        here = own is not None and own.main_device in (None, self._settings.device_id)
        answered = any(user.state is UserState.ACCEPTED and user is not own for user in shown.users)
        if shown.state is CallState.ENDED or own is None:
            self._close(call, "ended")
        elif call.status is CallStatus.PENDING and not own.state.pending:
            self._close(call, f"{own.state} meanwhile")
        elif own.state is UserState.ACCEPTED and not here:
            self._close(call, "answered_elsewhere")
        elif call.direction is Direction.OUTGOING and answered:
            self._open(call)

    # What the relay is asked

    async def _confirm(self, call: Call) -> None:
        await self._ask(call, DeviceReceived(operation="received", call_sid=call.sid))

    async def _accept(self, call: Call) -> None:
        accepted = await self._ask(call, DeviceAccept(operation="accept", call_sid=call.sid))
        if accepted is not None:
            self._open(call)

    async def _invite(self, call: Call, invite: DeviceInvite) -> None:
        made = await self._ask(call, invite)
        if made is None:
            return
        call.sid = CallSid(made.call_sid)
        if self._call is not call:
            await self._withdraw(call.sid)
            return
        log.info("call made", call_sid=call.sid, to=call.to)
        for event in self._early:
            if self._call is call and event.call_sid == call.sid:
                self._follow(call, event)

    async def _ask(self, call: Call, operation: DeviceOperation) -> CallAnswer | None:
        """The relay's answer about the call in hand; without one the call is over here, and the
        relay is told so, in case it was the answer that was lost."""
        try:
            return await self._link.ask(operation, within=call.expires_at - self._now())
        except RequestRefused as error:
            log.warning("request refused", operation=operation.operation, error=str(error))
            reason = str(error)
        except CallError as error:
            log.warning("request not answered", operation=operation.operation, error=str(error))
            reason = str(error)
            if isinstance(operation, DeviceAccept):
                self._spawn(self._leave(call.sid))
        if self._call is call:
            self._close(call, reason)
        return None

    def _tell(self, operation: DeviceOperation) -> None:
        """Tells the relay something that holds here whatever it answers."""

        async def tell() -> None:
            await self._tell_until_heard(operation)

        self._spawn(tell())

    async def _tell_until_heard(self, operation: DeviceOperation) -> str | None:
        """Tells the relay something, again and again; returns the state that it refused it for."""
        try:
            await self._link.ask(operation, within=_PERSISTENCE)
        except RequestRefused as error:
            log.info("relay did not take it", operation=operation.operation, error=str(error))
            return error.problem.state or ""
        except CallError as error:
            log.warning("relay not told", operation=operation.operation, error=str(error))
        return None

    async def _withdraw(self, call_sid: CallSid) -> None:
        """Gives up an outgoing call; where somebody has just accepted it, hangs up."""
        if await self._tell_until_heard(DeviceCancel(operation="cancel", call_sid=call_sid)):
            await self._leave(call_sid)

    async def _leave(self, call_sid: CallSid) -> None:
        """Hangs up. An accept may still be on its way, so where the relay does not yet know of one
        the invite is rejected instead."""
        for _ in range(_TURNS):
            state = await self._tell_until_heard(DeviceQuit(operation="quit", call_sid=call_sid))
            if state is None or not UserState(state).pending:
                return
            state = await self._tell_until_heard(
                DeviceReject(operation="reject", call_sid=call_sid)
            )
            if state is None or UserState(state) is not UserState.ACCEPTED:
                return

    async def _give_up_after(self, call: Call, left: timedelta) -> None:
        await self._sleep(left.total_seconds())
        if call.status in (CallStatus.PENDING, CallStatus.CONNECTING, CallStatus.RINGING):
            if call.direction is Direction.OUTGOING and call.sid:
                self._spawn(self._withdraw(call.sid))
            self._close(call, "not answered in time")

    # Where the call stands

    def _open(self, call: Call) -> None:
        if call.status is CallStatus.OPEN:
            return
        self._move(call, CallStatus.OPEN)
        log.info("call is open, without media: this version carries no audio", call_sid=call.sid)

    def _close(self, call: Call, reason: str) -> None:
        self._silence()
        self._call = None
        asking = asyncio.current_task()
        for task in self._tasks_of_call:
            if task is not asking:
                task.cancel()
        self._tasks_of_call.clear()
        call.ended_because = reason
        self._move(call, CallStatus.CLOSED)

    def _move(self, call: Call, status: CallStatus) -> None:
        call.status = status
        self._show_status()
        log.info(
            "call status",
            call_sid=call.sid,
            status=status,
            direction=call.direction,
            from_=call.from_,
            reason=call.ended_because or None,
        )
        for watcher in self._watchers:
            watcher(replace(call))

    def _silence(self) -> None:
        if self._panel.ringer is not None:
            self._panel.ringer.stop()

    def _show_status(self) -> None:
        if self._panel.status_light is None:
            return
        if self._call is None:
            pattern = Pattern.IDLE if self._link.connected else Pattern.OFFLINE
        elif self._call.status is CallStatus.PENDING:
            pattern = Pattern.RINGING
        else:
            pattern = Pattern.IN_CALL
        self._panel.status_light.show(pattern)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        if self._tasks is None:
            work.close()
            return None
        return self._tasks.create_task(work)

    def _spawn_for_call(self, work: Coroutine[Any, Any, None]) -> None:
        """Does something that ends with the call in hand."""
        task = self._spawn(work)
        if task is not None:
            self._tasks_of_call.add(task)
            task.add_done_callback(self._tasks_of_call.discard)
