"""What a station does with those who call it, as its settings say at each moment (spec §5 "Behaviour"):
turns them away, rings as loud as the hour has it, hears them early, answers by itself.

`decide_invite` and `ring_volume_at` decide, `IncomingCalls` carries it out. Who is turned away never
becomes a call, so that neither bell nor light has to be taken back.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar
from zoneinfo import ZoneInfo

import structlog

from bellwire.agent.calls.call import Call, CallStatus
from bellwire.agent.calls.device import Device
from bellwire.agent.calls.invite import CallInvite
from bellwire.agent.fleet.live_settings import LiveSettings
from bellwire.config.agent.behaviour import (
    WEEKDAYS,
    AutoAnswer,
    BehaviourSettings,
    DoNotDisturb,
    Hours,
    Quiet,
)
from bellwire.config.waiting import Sleep
from bellwire.signaling.calls.calls import RejectStatus
from bellwire.signaling.calls.events import CallReceived
from bellwire.signaling.identifiers import parse_identity

log = structlog.get_logger(__name__)

_LOOK_AGAIN_S = 1.0
"""How soon a device that rings notices that the hour has changed."""

OnLoudness = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Invited:
    """An invite as it reached this device, its moments by this device's clock. `caller` is as on the
    wire or not, None where unknown; `verified`: whether the relay vouches for them."""

    caller: str | None
    came_at: datetime
    expires_at: datetime
    verified: bool = False


@dataclass(frozen=True, slots=True)
class InviteDecision:
    """What becomes of an invite. With `reject` set nothing else happens; `because` is for the log.

    `ring_volume` is 0.0 to 1.0; at 0 neither speaker nor bell sounds, while the light shows the call.
    `auto_answer_at` may be past: then it is answered now.
    """

    because: str
    reject: RejectStatus | None = None
    ring_volume: float = 0.0
    auto_answer_at: datetime | None = None


class IncomingCalls:
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
        sleep: Sleep = asyncio.sleep,
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
        device.on("incoming", self._hear_early)
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


def decide_invite(
    settings: BehaviourSettings,
    invited: Invited,
    *,
    now: datetime,
    in_call: bool,
    ring_volume: float,
) -> InviteDecision:
    """What this device does with an invite.

    Args:
        settings: How it behaves.
        invited: The invite.
        now: The moment, with its time zone.
        in_call: Whether it has a call already, ringing or open.
        ring_volume: `audio.ring_volume`, for the hours that name none.

    Raises:
        ValueError: `now` has no time zone.
    """
    caller = _identity(invited.caller)
    if in_call and not settings.call_waiting:
        return InviteDecision("in a call, and call waiting is off", reject=RejectStatus.BUSY)
    quiet = _quiet_at(settings, caller, _local(settings, now))
    # Neither a device that is to keep quiet nor one in a call opens its microphone by itself.
    if quiet is not None:
        turned_away = RejectStatus.REJECTED if quiet.treatment == "reject" else None
        return InviteDecision(_name(quiet), reject=turned_away)
    return InviteDecision(
        "it may ring",
        ring_volume=ring_volume_at(settings, invited.caller, now, ring_volume),
        auto_answer_at=None if in_call else _auto_answer_at(settings.auto_answer, caller, invited),
    )


def ring_volume_at(
    settings: BehaviourSettings, caller: str | None, now: datetime, otherwise: float
) -> float:
    """How loud it rings for a caller at a moment, 0.0 to 1.0; 0 where it is to keep quiet. It may
    change while it rings.

    Raises:
        ValueError: `now` has no time zone.
    """
    local = _local(settings, now)
    if _quiet_at(settings, _identity(caller), local) is not None:
        return 0.0
    hours = _first_at(settings.ring_volume_hours, local)
    return otherwise if hours is None else hours.volume


def within(hours: Hours, local: datetime) -> bool:
    """Whether a moment, on the clock on the wall, is in a weekly range."""
    clock = local.time().replace(tzinfo=None)
    today = WEEKDAYS[local.weekday()] in hours.days
    yesterday = WEEKDAYS[local.weekday() - 1] in hours.days
    if hours.start < hours.end:
        return today and hours.start <= clock < hours.end
    return (today and clock >= hours.start) or (yesterday and clock < hours.end)


def _local(settings: BehaviourSettings, now: datetime) -> datetime:
    if now.tzinfo is None:
        raise ValueError(f"the moment {now.isoformat()} has no time zone: give an aware datetime")
    return now.astimezone(ZoneInfo(settings.time_zone))


_Range = TypeVar("_Range", bound=Hours)


def _first_at(ranges: Iterable[_Range], local: datetime) -> _Range | None:
    return next((hours for hours in ranges if within(hours, local)), None)


def _quiet_at(settings: BehaviourSettings, caller: str | None, local: datetime) -> Quiet | None:
    """Why it is to keep quiet for a caller, None where it is not."""
    quiet: Quiet | None = settings.do_not_disturb
    if not settings.do_not_disturb.enabled:
        quiet = _first_at(settings.quiet_hours, local)
    return None if quiet is None or caller in quiet.except_callers else quiet


def _name(quiet: Quiet) -> str:
    return f"{'do not disturb' if isinstance(quiet, DoNotDisturb) else 'quiet hours'}: {quiet.treatment}"


def _identity(address: str | None) -> str | None:
    try:
        return None if address is None else parse_identity(address)
    except ValueError:
        return None  # nobody whom a list could name


def _auto_answer_at(auto: AutoAnswer, caller: str | None, invited: Invited) -> datetime | None:
    if caller not in auto.callers or (auto.verified_only and not invited.verified):
        return None
    at = invited.came_at + timedelta(seconds=auto.after_s)
    return at if at < invited.expires_at else None
