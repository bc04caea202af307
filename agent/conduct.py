"""What this device does with those who call it, as its settings say at each moment: turns them away,
rings as loud as the hour has it, hears them early, answers by itself.

The decisions are `agent.behaviour`'s. Who is turned away never becomes a call, so that neither bell
nor light has to be taken back.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import structlog

from agent.behaviour import Invited, InviteDecision, decide_invite, ring_volume_at
from agent.call import Call, CallStatus
from agent.call_invite import CallInvite
from agent.device import Device
from agent.live_settings import LiveSettings
from signaling.calls import RejectStatus
from signaling.events import CallReceived

log = structlog.get_logger(__name__)

_LOOK_AGAIN_S = 1.0
"""How soon a device that rings notices that the hour has changed."""

OnLoudness = Callable[[], None]


class Conduct:
    """How one device treats its callers. Build it before what rings; `run` it beside the device.

    Args:
        live: How the device behaves, and how loud it rings.
        device: Its calls.
        now: Tells the time, with its zone.
        sleep: Waits.
    """

    def __init__(
        self,
        live: LiveSettings,
        device: Device,
        *,
        now: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._live = live
        self._device = device
        self._now = now
        self._sleep = sleep
        self._came_at: dict[Call, datetime] = {}  # of those that ring
        self._attending: dict[Call, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._listeners: list[OnLoudness] = []
        device.screen = self._screen
        device.on_change(self._follow)
        device.on_caller(self._attend)
        device.on_incoming(self._hear_early)
        live.watch(lambda _, __: self._attend_all())

    def on_loudness(self, listener: OnLoudness) -> None:
        """Has `listener` called, while something rings, whenever `ring_volume` may have changed."""
        self._listeners.append(listener)

    def ring_volume(self, call: Call) -> float:
        """How loud a pending call rings at this moment, 0.0 to 1.0; at 0 the light alone shows it."""
        settings = self._live.now
        return ring_volume_at(
            settings.behaviour, call.from_, self._now(), settings.audio.ring_volume
        )

    async def run(self) -> None:
        """Attends to the calls that ring, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                self._attend_all()
                await asyncio.Event().wait()
            finally:
                self._tasks = None

    # Who is turned away

    def _screen(self, invite: CallReceived, left: timedelta) -> RejectStatus | None:
        now = self._now()
        decision = self._decide(
            Invited(invite.from_, came_at=now, expires_at=now + left), bool(self._device.calls)
        )
        log.info(
            "invite screened",
            call_sid=invite.call_sid,
            from_=invite.from_,
            because=decision.because,
            rejected_as=decision.reject,
        )
        return decision.reject

    def _decide(self, invited: Invited, in_call: bool) -> InviteDecision:
        settings = self._live.now
        return decide_invite(
            settings.behaviour,
            invited,
            now=self._now(),
            in_call=in_call,
            ring_volume=settings.audio.ring_volume,
        )

    def _decide_call(self, call: Call) -> InviteDecision:
        info = call.caller_info
        invited = Invited(
            call.from_,
            came_at=self._came_at[call],
            expires_at=call.expires_at,
            verified=info is not None and info.is_verified,
        )
        return self._decide(invited, any(other is not call for other in self._device.calls))

    # Who rings

    def _follow(self, call: Call) -> None:
        if call.status() is CallStatus.PENDING:
            self._came_at[call] = self._now()
            self._attend(call)
        elif self._came_at.pop(call, None) is not None:
            self._leave(call)

    def _hear_early(self, invite: CallInvite) -> None:
        """Whoever is heard early is heard aloud: not in quiet hours, and not in another call."""
        if not self._live.now.behaviour.hear_early_media or len(self._device.calls) > 1:
            return
        if self.ring_volume(invite.call) > 0 and invite.hear_early_media():
            log.info("caller is heard before the call is answered", call_sid=invite.call_sid)

    def _attend_all(self) -> None:
        for call in tuple(self._came_at):
            self._attend(call)

    def _attend(self, call: Call) -> None:
        """Attends to a call that rings, anew where something has become known or changed."""
        self._leave(call)
        if self._tasks is not None and call in self._came_at:
            self._attending[call] = self._tasks.create_task(self._see_through(call))

    def _leave(self, call: Call) -> None:
        task = self._attending.pop(call, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    async def _see_through(self, call: Call) -> None:
        while call.status() is CallStatus.PENDING:
            for listener in self._listeners:
                listener()
            pause_s = _LOOK_AGAIN_S
            at = self._decide_call(call).auto_answer_at
            if at is not None:
                pause_s = min(pause_s, (at - self._now()).total_seconds())
                if pause_s <= 0:
                    log.info("answered by the device itself", call_sid=call.sid, from_=call.from_)
                    call.accept()
                    return
            await self._sleep(pause_s)
