"""This device as an application sees it (Twilio's Device): it calls, and tells of who calls.

A second invite is answered `busy` by itself while a call is on, unless call waiting is.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from os import PathLike
from pathlib import Path
from typing import Literal, Self, overload

import structlog

from bellwire.agent.calls.call import Call, CallerInfo, CallStatus, Direction, read_token
from bellwire.agent.calls.caller_verification import CallerVerification
from bellwire.agent.calls.course import CallResources, CallTerms
from bellwire.agent.calls.events import Listeners, Unsubscribe
from bellwire.agent.calls.insights import Insight
from bellwire.agent.calls.invite import CallInvite, ringing_time_left
from bellwire.agent.calls.requests import RelayRequests
from bellwire.agent.link import Link
from bellwire.agent.media.early_media import allows_early_media, with_early_media
from bellwire.agent.media.peer import MediaTiming
from bellwire.agent.media.sound import (
    AudioDevices,
    DeviceSound,
    told_and_configured,
    webrtc_engine,
)
from bellwire.agent.media.sound_card import NoCard, SoundCard
from bellwire.agent.tasks import Work
from bellwire.broker.session.address import parse_broker_url
from bellwire.broker.session.messages import Incoming
from bellwire.broker.session.session import NotAuthorized
from bellwire.config.agent.settings import load_agent_settings
from bellwire.config.waiting import Sleep
from bellwire.signaling.calls.calls import Mode, RejectStatus
from bellwire.signaling.calls.events import CallEvent, CallReceived
from bellwire.signaling.errors import CallError
from bellwire.signaling.identifiers import CallSid, DeviceId, Identity
from bellwire.signaling.wire.operations import DEFAULT_TIMEOUT_S, DeviceInvite, GroupReference

log = structlog.get_logger(__name__)

_EARLY_EVENTS = 256
_EVENTS = ("error", "incoming", "registered", "unregistered")
_EVENTS_OF_A_STATION = ("caller", "change", "connection")

VerifyCaller = Callable[[CallReceived, timedelta], Awaitable[CallerInfo | None]]
"""What is known of an invite's caller; the time is how long it may still ring."""

Screen = Callable[[CallReceived, timedelta], RejectStatus | None]
"""Says whether an invite is turned away, and how; the time is how long it may still ring."""

To = str | Sequence[str] | GroupReference
"""Who is called: an identity, several, or a named group."""


class Device:
    """One device. A program of one's own opens it (`Device.open`); the agent puts it together, with a
    panel and a door (`agent.main`).

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
        sleep: Sleep = asyncio.sleep,
        sound: DeviceSound | None = None,
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
        self._requests = RelayRequests(link)
        self._lent = CallResources(
            identity=identity,
            device=device,
            requests=self._requests,
            sound=sound,
            spawn=self._spawn,
            now=now,
            sleep=sleep,
            timing=timing or MediaTiming(),
            report=self._publish,
        )
        self._calls: list[Call] = []
        self._early: deque[CallEvent] = deque(maxlen=_EARLY_EVENTS)
        self._listeners = Listeners(_EVENTS, self._spawn)
        self._station = Listeners(_EVENTS_OF_A_STATION, self._spawn)
        self._tasks: asyncio.TaskGroup | None = None
        link.listen(self._take_event)
        link.on_connected(self._relay_is_back)
        link.on_disconnected(self._relay_is_lost)
        link.on_unreached(lambda error: self._listeners.tell("error", error))

    @classmethod
    @asynccontextmanager
    async def open(
        cls, file: str | PathLike[str], *, sound_card: bool = False
    ) -> AsyncGenerator[Self]:
        """The device of a file that `bellwire devices add` wrote, at work until the `async with` ends:

            async with Device.open("bot.toml") as device:
                device.on("incoming", lambda invite: invite.accept())
                await asyncio.Event().wait()

        It waits for the broker as long as it takes. Of the file it uses who it is, the broker, the ICE
        servers, call waiting and the sound: no panel, no door, nothing of the fleet's layers, which are
        the agent's. One device is for one program: a second under the same file takes its place.

        Args:
            file: The device's file.
            sound_card: Whether it has the microphone and the speaker that the file names, as the agent
                has. Without, it is heard by what it plays (`Call.play`), and hears by
                `Call.remote_stream`.

        Raises:
            InvalidInput: the file cannot be read, or something in it is wrong.
            CallError: 20151, the broker refuses its credentials.
        """
        settings = await asyncio.to_thread(load_agent_settings, Path(file), on_device=sound_card)
        broker = settings.broker
        address = parse_broker_url(
            broker.url,
            username=broker.username,
            password=broker.password.get_secret_value(),
            ca_file=broker.ca_file,
        )
        link = Link(address, DeviceId(settings.device_id))
        card = SoundCard(settings.audio) if sound_card else NoCard()
        # With the broker on this very machine, as where one tries it out, the others may be there too.
        sound = DeviceSound(
            lambda: webrtc_engine(allow_loopback=address.is_loopback),
            card,
            lambda: told_and_configured(link, settings.ice_servers),
        )
        device = cls(
            Identity(settings.identity),
            DeviceId(settings.device_id),
            link,
            now=lambda: datetime.now(UTC),
            sound=sound if settings.audio.enabled else None,
            verify_caller=CallerVerification(link.keys).verify,
            call_waiting=settings.behaviour.call_waiting,
        )
        parts = [device.run(), link.run()]
        if isinstance(card, SoundCard):
            parts.append(card.run())
        try:
            async with _at_work(parts):
                await link.wait_connected()
                yield device
        except NotAuthorized as error:
            raise CallError(20151, str(error)) from error

    def use_sound(self, sound: DeviceSound | None) -> None:
        """Has the calls that begin from now on use this sound, or none."""
        self._lent = replace(self._lent, sound=sound)

    @property
    def calls(self) -> tuple[Call, ...]:
        """Its calls that are not closed, the oldest first."""
        return tuple(self._calls)

    @property
    def connected(self) -> bool:
        """Whether it can reach its relay now."""
        return self._link.connected

    @overload
    def on(
        self, event: Literal["incoming"], listener: Callable[[CallInvite], object]
    ) -> Unsubscribe: ...
    @overload
    def on(
        self, event: Literal["registered", "unregistered"], listener: Callable[[], object]
    ) -> Unsubscribe: ...
    @overload
    def on(
        self, event: Literal["error"], listener: Callable[[CallError], object]
    ) -> Unsubscribe: ...
    def on(self, event: str, listener: Callable[..., object]) -> Unsubscribe:
        """Has `listener` called on the event loop at each `event`; what is returned ends that. It may be
        `async`. What goes wrong in it is logged and breaks nothing.

        Raises:
            InvalidInput: there is no such event; names those there are.
        """
        return self._listeners.add(event, listener)

    def on_caller(self, listener: Callable[[Call], object]) -> Unsubscribe:
        """Has `listener` called with an incoming call once its `caller_info` is known."""
        return self._station.add("caller", listener)

    def on_change(self, listener: Callable[[Call], object]) -> Unsubscribe:
        """Has `listener` called with a call at each change of its status, and as it begins."""
        return self._station.add("change", listener)

    def on_connection(self, listener: Callable[[bool], object]) -> Unsubscribe:
        """Has `listener` called with whether the relay can be reached, at each change of that."""
        return self._station.add("connection", listener)

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
            if self._lent.sound is not None:
                await self._lent.sound.close()

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
        terms = CallTerms(
            Direction.OUTGOING,
            from_=self.identity,
            to=tuple(identities),
            expires_at=self._now() + timedelta(seconds=timeout_s),
            custom_parameters=parameters,
            early_media=early_media,
            only_invited=mode is Mode.COMMON,
            audio_devices=audio_devices or AudioDevices(),
        )
        call = self._begin(terms)
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
        terms = CallTerms(
            Direction.OUTGOING,
            from_=self.identity,
            to=(),
            expires_at=self._now() + timedelta(seconds=DEFAULT_TIMEOUT_S),
            custom_parameters=parameters,
        )
        call = self._begin(terms, sid)
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
        terms = CallTerms(
            Direction.INCOMING,
            from_=event.from_,
            to=(event.to,),
            expires_at=self._now() + left,
            custom_parameters=event.custom_parameters,
            early_media=allows_early_media(event.extended_data),
            account_sid=event.account_sid,
            connect_token=event.connect_token,
        )
        call = self._begin(terms, CallSid(event.call_sid))
        call.signalling.ring()
        if self._verify_caller is not None:
            self._spawn(self._learn_caller(call, self._verify_caller(event, left)))
        self._listeners.tell("incoming", CallInvite(call))

    async def _learn_caller(self, call: Call, info: Awaitable[CallerInfo | None]) -> None:
        call.caller_info = await info
        if not call.is_over:
            self._station.tell("caller", call)

    def _relay_is_lost(self) -> None:
        self._listeners.tell("unregistered")
        self._station.tell("connection", False)
        for call in self.calls:
            call.course.relay_lost()

    async def _relay_is_back(self) -> None:
        self._listeners.tell("registered")
        self._station.tell("connection", True)
        for call in self.calls:
            call.course.relay_back()

    # Its calls

    def _call_of(self, sid: CallSid) -> Call | None:
        return next((call for call in self._calls if call.sid == sid), None)

    def _begin(self, terms: CallTerms, sid: CallSid | None = None) -> Call:
        if all(other.sid for other in self._calls):
            self._early.clear()
        call = Call(self._lent, terms, sid, made=self._catch_early, changed=self._take_change)
        self._calls.append(call)
        call.course.begin()
        return call

    def _take_change(self, call: Call) -> None:
        if call.status() is CallStatus.CLOSED:
            self._calls.remove(call)
        self._station.tell("change", call)

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


@asynccontextmanager
async def _at_work(parts: Sequence[Work]) -> AsyncGenerator[None]:
    """Has these done beside the body, and ended with it. What fails in one of them ends the body. It is
    raised by itself, as is what the body raises: not in a group, which every program would take apart."""
    try:
        async with asyncio.TaskGroup() as tasks:
            working = [tasks.create_task(part) for part in parts]
            try:
                yield
            finally:
                for task in working:
                    task.cancel()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors.exceptions[0].__cause__
