"""This device as an application sees it (Twilio's Device): it calls, and tells of who calls.

A second invite is answered `busy` by itself while a call is on, unless call waiting is.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from bellwire.agent.calls.call import Call, CallContext, CallerInfo, CallStatus, Direction
from bellwire.agent.calls.call_invite import CallInvite, ringing_time_left
from bellwire.agent.calls.insights import Insight
from bellwire.agent.calls.listeners import Listeners, Unsubscribe
from bellwire.agent.calls.signalling import CallRequests, read_token
from bellwire.agent.link import Link
from bellwire.agent.media.early_media import allows_early_media, with_early_media
from bellwire.agent.media.media_news import MediaTiming, Work
from bellwire.agent.media.sound import Sound
from bellwire.agent.media.voice import AudioDevices
from bellwire.broker.session.messages import Incoming
from bellwire.signaling.calls.calls import Mode, RejectStatus
from bellwire.signaling.calls.events import CallEvent, CallReceived
from bellwire.signaling.identifiers import CallSid, DeviceId, Identity
from bellwire.signaling.wire.operations import DEFAULT_TIMEOUT_S, DeviceInvite, GroupReference

log = structlog.get_logger(__name__)

_EARLY_EVENTS = 256

VerifyCaller = Callable[[CallReceived, timedelta], Awaitable[CallerInfo | None]]
"""What is known of an invite's caller; the time is how long it may still ring."""

Screen = Callable[[CallReceived, timedelta], RejectStatus | None]
"""Says whether an invite is turned away, and how; the time is how long it may still ring."""

To = str | Sequence[str] | GroupReference
"""Who is called: an identity, several, or a named group."""


class Device:
    """One device.

    Args:
        identity: Whose it is.
        device: Its id.
        link: Its way to the relay.
        now: Tells the time.
        sleep: Waits.
        sound: Its sound; None where it has none: calls are then opened without.
        timing: How long the parts of a call's sound may take.
        verify_caller: Checks who calls; None: nothing is known of callers.
        call_waiting: Whether a second call rings while one is on.
    """

    def __init__(
        self,
        identity: Identity,
        device: DeviceId,
        link: Link,
        *,
        now: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        sound: Sound | None = None,
        timing: MediaTiming | None = None,
        verify_caller: VerifyCaller | None = None,
        call_waiting: bool = False,
    ) -> None:
        self.identity = identity
        self.call_waiting = call_waiting
        self.screen: Screen = lambda _, __: None
        """Asked of each invite before it becomes a call: who is turned away is never heard or seen."""
        self._now = now
        self._link = link
        self._verify_caller = verify_caller
        self._requests = CallRequests(link)
        self._context = CallContext(
            identity=identity,
            device=device,
            requests=self._requests,
            sound=sound,
            spawn=self._spawn,
            now=now,
            sleep=sleep,
            timing=timing or MediaTiming(),
            made=self._catch_early,
            changed=self._take_change,
            report=self._publish,
        )
        self._calls: list[Call] = []
        self._early: deque[CallEvent] = deque(maxlen=_EARLY_EVENTS)
        self._listeners = Listeners()
        self._tasks: asyncio.TaskGroup | None = None
        link.listen(self._take_event)
        link.on_connected(self._relay_is_back)
        link.on_disconnected(self._relay_is_lost)

    def use_sound(self, sound: Sound | None) -> None:
        """Has the calls that begin from now on use this sound, or none."""
        self._context = replace(self._context, sound=sound)

    @property
    def calls(self) -> tuple[Call, ...]:
        """Its calls that are not closed, the oldest first."""
        return tuple(self._calls)

    @property
    def connected(self) -> bool:
        """Whether it can reach its relay now."""
        return self._link.connected

    def on_incoming(self, listener: Callable[[CallInvite], object]) -> Unsubscribe:
        """Has `listener` called with each invite that is to ring here."""
        return self._listeners.add("incoming", listener)

    def on_caller(self, listener: Callable[[Call], object]) -> Unsubscribe:
        """Has `listener` called with an incoming call once its `caller_info` is known."""
        return self._listeners.add("caller", listener)

    def on_change(self, listener: Callable[[Call], object]) -> Unsubscribe:
        """Has `listener` called with a call at each change of its status, and as it begins."""
        return self._listeners.add("change", listener)

    def on_connection(self, listener: Callable[[bool], object]) -> Unsubscribe:
        """Has `listener` called with whether the relay can be reached, at each change of that."""
        return self._listeners.add("connection", listener)

    async def run(self) -> None:
        """Follows the relay until cancelled; then its calls' work has ended."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                try:
                    await asyncio.Event().wait()
                finally:
                    self._tasks = None  # a group that ends takes no more
        finally:
            if self._context.sound is not None:
                await self._context.sound.close()

    def connect(
        self,
        to: To,
        custom_parameters: Mapping[str, str] | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        mode: Mode = Mode.COMMON,
        extended_data: str = "",
        early_media: bool = False,
        audio_devices: AudioDevices | None = None,
    ) -> Call:
        """Calls somebody, and returns the call at once; it may later fail, and says so.

        Args:
            to: Whom.
            custom_parameters: What the called side is told with the invite.
            timeout_s: How long it rings, 1 to 600 s.
            mode: How long the call lives.
            extended_data: More that the called side is told.
            early_media: Whether the called side may hear this device before it answers.
            audio_devices: Sound devices in place of the configured ones, as in `AcceptOptions`.

        Raises:
            pydantic.ValidationError: nobody can be called so.
            InvalidInput: `early_media`, and `extended_data` is no JSON object that it could join.
        """
        identities = (to,) if isinstance(to, str) else () if isinstance(to, GroupReference) else to
        parameters = dict(custom_parameters or {})
        invite = DeviceInvite(
            operation="invite",
            to=to if isinstance(to, GroupReference) else list(identities),
            timeout=timeout_s,
            mode=mode,
            custom_parameters=parameters,
            extended_data=with_early_media(extended_data) if early_media else extended_data,
            idempotency_key=secrets.token_hex(16),
        )
        call = Call(
            self._context,
            Direction.OUTGOING,
            from_=self.identity,
            to=tuple(identities),
            expires_at=self._now() + timedelta(seconds=timeout_s),
            custom_parameters=parameters,
            early_media=early_media,
            audio_devices=audio_devices,
        )
        call.only_invited = mode is Mode.COMMON
        self._add(call)
        call.signalling.dial(invite)
        return call

    def reconnect(self, connect_token: str) -> Call:
        """Comes back into a call of this identity, or takes it over from another device of it.

        Raises:
            InvalidInput: the token is none of `Call.connect_token`.
        """
        sid, parameters = read_token(connect_token)
        known = self._call_of(sid)
        if known is not None:
            return known
        call = Call(
            self._context,
            Direction.OUTGOING,
            from_=self.identity,
            to=(),
            expires_at=self._now() + timedelta(seconds=DEFAULT_TIMEOUT_S),
            custom_parameters=parameters,
            sid=sid,
        )
        self._add(call)
        call.signalling.join()
        return call

    # What the relay says

    def _take_event(self, event: CallEvent, incoming: Incoming) -> None:
        if isinstance(event, CallReceived):
            self._take_invite(event, incoming)
            return
        call = self._call_of(CallSid(event.call_sid))
        if call is not None:
            call.signalling.follow(event)
        elif any(not call.sid for call in self._calls):
            self._early.append(event)

    def _take_invite(self, event: CallReceived, incoming: Incoming) -> None:
        left = ringing_time_left(self._now(), event.expires_at, incoming.expires_in_s)
        sid = CallSid(event.call_sid)
        if left <= timedelta(0):
            log.info("invite came too late", call_sid=sid)
        elif self._call_of(sid) is not None:
            return
        elif self._calls and not self.call_waiting:
            log.info("invite refused: this device is in a call", call_sid=sid)
            self._spawn(self._requests.turn_away(sid, RejectStatus.BUSY))
        elif (turned_away := self.screen(event, left)) is not None:
            self._spawn(self._requests.turn_away(sid, turned_away))
        else:
            self._ring(event, left)

    def _ring(self, event: CallReceived, left: timedelta) -> None:
        call = Call(
            self._context,
            Direction.INCOMING,
            from_=event.from_,
            to=(event.to,),
            expires_at=self._now() + left,
            custom_parameters=event.custom_parameters,
            sid=CallSid(event.call_sid),
            early_media=allows_early_media(event.extended_data),
        )
        self._add(call)
        call.signalling.ring()
        if self._verify_caller is not None:
            self._spawn(self._learn_caller(call, self._verify_caller(event, left)))
        self._listeners.tell("incoming", CallInvite(call))

    async def _learn_caller(self, call: Call, info: Awaitable[CallerInfo | None]) -> None:
        call.caller_info = await info
        if not call.is_over:
            self._listeners.tell("caller", call)

    def _relay_is_lost(self) -> None:
        self._listeners.tell("connection", False)
        for call in self.calls:
            call.relay_lost()

    async def _relay_is_back(self) -> None:
        self._listeners.tell("connection", True)
        for call in self.calls:
            call.relay_back()

    # Its calls

    def _call_of(self, sid: CallSid) -> Call | None:
        return next((call for call in self._calls if call.sid == sid), None)

    def _add(self, call: Call) -> None:
        if all(other.sid for other in self._calls):
            self._early.clear()
        self._calls.append(call)
        call.begin()

    def _take_change(self, call: Call) -> None:
        if call.status() is CallStatus.CLOSED:
            self._calls.remove(call)
        self._listeners.tell("change", call)

    def _catch_early(self, call: Call) -> None:
        """What was said of a call before it was known to be this one."""
        for event in tuple(self._early):
            if not call.is_over and event.call_sid == call.sid:
                call.signalling.follow(event)

    def _publish(self, insight: Insight) -> None:
        self._spawn(self._link.publish_insight(insight.document()))

    def _spawn(self, work: Work) -> "asyncio.Task[None] | None":
        if self._tasks is None:
            work.close()
            return None
        return self._tasks.create_task(work)
