"""A call to or from this device, with the meaning and the names of Twilio's (seed 003, spec §4).

What is done here holds at once; the relay is told beside it, as often as it takes. Its methods belong
on the event loop.

How a call goes: what relay, sound and time do to it. What people do with it is in `agent.calls.call`.

The insights into one call, as they are told to the operator.

What a device lends its calls.

What a call tells of (seed 003, "Events"), each event with the listener it takes.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, cast, overload

import structlog
from pydantic import JsonValue

from bellwire.agent.calls import insights
from bellwire.agent.calls.insights import Insight
from bellwire.agent.calls.listeners import Listeners, Unsubscribe
from bellwire.agent.calls.messages import (
    as_received,
    as_sent,
    deliver,
    media_in,
    new_message,
    rate,
    say_media,
    sender_of,
)
from bellwire.agent.calls.record import CallerInfo, CallRecord, CallStatus, Direction, Message
from bellwire.agent.calls.signalling import CallRequests, CallSignalling, write_token
from bellwire.agent.media.call_media import CallMedia, NoMedia
from bellwire.agent.media.dtmf import check_digits
from bellwire.agent.media.engine.engine import IceServer
from bellwire.agent.media.media_news import CallTasks, MediaNews, MediaOptions, MediaTiming, Spawn
from bellwire.agent.media.sound import Sound
from bellwire.agent.media.voice import AudioDevices, AudioStream
from bellwire.agent.quality.meter import CallMeter
from bellwire.agent.quality.sample import Sample
from bellwire.agent.quality.warnings import WarningCleared, WarningData, WarningName, WarningRaised
from bellwire.signaling.calls.calls import Attestation, RejectStatus
from bellwire.signaling.calls.events import CallMessage
from bellwire.signaling.errors import CallError
from bellwire.signaling.identifiers import CallSid, DeviceId, Identity, parse_identity
from bellwire.signaling.wire.media import MEDIA_MESSAGE_TYPE, MediaDocument
from bellwire.signaling.wire.operations import DeviceMessage

CallEventName = Literal[
    "accept",
    "audio",
    "cancel",
    "digit",
    "disconnect",
    "error",
    "messageReceived",
    "messageSent",
    "mute",
    "reconnected",
    "reconnecting",
    "reject",
    "ringing",
    "sample",
    "volume",
    "warning",
    "warning-cleared",
]


class CallEvents:
    """The events of one call.

    A call ends with exactly one of `cancel`, `reject` and `disconnect`: an unanswered one of this
    side's own doing, or an invite that was not answered, with `cancel`; an invite that was rejected
    here with `reject`; any other with `disconnect`. `error` comes before it, where it was no normal
    end.
    """

    def __init__(self) -> None:
        self._listeners = Listeners()

    @overload
    def on(
        self, event: Literal["accept", "disconnect"], listener: "Callable[[Call], object]"
    ) -> Unsubscribe: ...
    @overload
    def on(
        self, event: Literal["cancel", "reject", "reconnected"], listener: Callable[[], object]
    ) -> Unsubscribe: ...
    @overload
    def on(
        self, event: Literal["error", "reconnecting"], listener: Callable[[CallError], object]
    ) -> Unsubscribe: ...
    @overload
    def on(
        self,
        event: Literal["messageReceived", "messageSent"],
        listener: Callable[[Message], object],
    ) -> Unsubscribe: ...
    @overload
    def on(
        self, event: Literal["audio"], listener: Callable[[AudioStream], object]
    ) -> Unsubscribe: ...
    @overload
    def on(
        self, event: Literal["mute"], listener: "Callable[[bool, Call], object]"
    ) -> Unsubscribe: ...
    @overload
    def on(self, event: Literal["ringing"], listener: Callable[[bool], object]) -> Unsubscribe: ...
    @overload
    def on(
        self, event: Literal["volume"], listener: Callable[[float, float], object]
    ) -> Unsubscribe: ...
    @overload
    def on(
        self, event: Literal["digit"], listener: Callable[[str | None, str], object]
    ) -> Unsubscribe: ...
    @overload
    def on(self, event: Literal["sample"], listener: Callable[[Sample], object]) -> Unsubscribe: ...
    @overload
    def on(
        self, event: Literal["warning"], listener: Callable[[WarningName, WarningData], object]
    ) -> Unsubscribe: ...
    @overload
    def on(
        self, event: Literal["warning-cleared"], listener: Callable[[WarningName], object]
    ) -> Unsubscribe: ...
    def on(self, event: CallEventName, listener: Callable[..., object]) -> Unsubscribe:
        """Has `listener` called on the event loop at each `event`; what is returned ends that. What
        goes wrong in it is logged and breaks nothing.

        Beyond the seed there is `digit`: somebody has pressed a digit: an identity, or None for one of
        the `parties`, where it came out of a room.
        """
        return self._listeners.add(event, listener)

    def _emit(self, event: CallEventName, *told: Any) -> None:  # noqa: ANN401 - each has its own
        self._listeners.tell(event, *told)


Report = Callable[[Insight], None]
"""Takes an insight into a call."""


@dataclass(frozen=True, slots=True)
class CallContext:
    """What a device lends its calls.

    Args:
        identity: Whose device it is.
        device: The device.
        requests: The way to the relay.
        sound: Its sound; None where it has none.
        spawn: Starts work that the device owns.
        now: Tells the time.
        sleep: Waits.
        timing: How long things may take.
        made: Is told when the relay has made an outgoing call.
        changed: Is told when a call's status has changed.
        report: Takes insights.
    """

    identity: Identity
    device: DeviceId
    requests: CallRequests
    sound: Sound | None
    spawn: Spawn
    now: Callable[[], datetime]
    sleep: Callable[[float], Awaitable[None]]
    timing: MediaTiming
    made: Callable[["Call"], None]
    changed: Callable[["Call"], None]
    report: Report


class CallReports:
    """Tells what happens to one call.

    Args:
        context: What the device lends it.
        direction: Who called whom.
        sid: Its SID; empty until the relay has made it.
    """

    def __init__(
        self, context: CallContext, direction: Direction, sid: Callable[[], CallSid]
    ) -> None:
        self._context = context
        self._direction = direction
        self._sid = sid

    def accepted(self) -> None:
        """It was accepted here."""
        self._context.report(insights.accepted(self._call, self._context.now()))

    def rejected(self) -> None:
        """It was rejected here."""
        for insight in insights.rejected(self._call, self._context.now()):
            self._context.report(insight)

    def ignored(self) -> None:
        """It was ignored here."""
        self._context.report(insights.ignored(self._call, self._context.now()))

    def failed(self, error: CallError) -> None:
        """Something of it has failed."""
        self._context.report(insights.failed(self._call, error, self._context.now()))

    def codec(self, codec: str) -> None:
        """This is spoken."""
        self._context.report(insights.codec_selected(self._call, codec, self._context.now()))

    def quality(self, news: WarningRaised | WarningCleared) -> None:
        """It sounds bad, or well again."""
        self._context.report(insights.quality_changed(self._call, news, self._context.now()))

    def feedback(self, score: int | None, issue: insights.FeedbackIssue | None) -> None:
        """Somebody has said how good it was."""
        self._context.report(insights.feedback(self._call, score, self._context.now(), issue=issue))

    @property
    def _call(self) -> insights.CallReference:
        return insights.CallReference(
            call_sid=self._sid() or None,
            device_id=self._context.device,
            direction=self._direction.value,
        )


log = structlog.get_logger(__name__)

_UNANSWERED = (CallStatus.PENDING, CallStatus.CONNECTING, CallStatus.RINGING)
_MEDIA_LOST, _SIGNALLING_LOST = 53405, 53001


class CallCourse(CallEvents):
    """The course of one call. See `Device.connect` for what it is made of."""

    def __init__(
        self,
        context: CallContext,
        direction: Direction,
        *,
        from_: str | None,
        to: tuple[str, ...],
        expires_at: datetime,
        custom_parameters: dict[str, str],
        sid: CallSid | None = None,
        early_media: bool = False,
        audio_devices: AudioDevices | None = None,
    ) -> None:
        super().__init__()
        self.direction = direction
        self.from_ = from_
        self.to = to
        self.expires_at = expires_at
        self.custom_parameters = custom_parameters
        self.caller_info: CallerInfo | None = None
        self.early_media = early_media
        self.spoken_for: set[Identity] = set()
        """Parties in whose name somebody else, or nobody the relay vouches for, has said how they are
        to be heard: their voice and their digits may be anybody's."""
        self._context = context
        incoming = direction is Direction.INCOMING
        self._status = CallStatus.PENDING if incoming else CallStatus.CONNECTING
        self._ended_because = ""
        self._lost: set[int] = set()
        self._caller: Identity | None = None
        self._has_audio = False
        self._tasks = CallTasks(context.spawn)
        self._reports = CallReports(context, direction, lambda: self.sid)
        self.signalling = CallSignalling(
            context.requests,
            self,
            self._tasks,
            me=context.identity,
            device=context.device,
            direction=direction,
            sid=sid or CallSid(""),
            expires_at=expires_at,
            now=context.now,
            sleep=context.sleep,
        )
        self._media = self._make_media()
        self._media.options = MediaOptions(audio_devices=audio_devices or AudioDevices())

    @property
    def sid(self) -> CallSid:
        """Its SID; empty while the relay has not yet made an outgoing call."""
        return self.signalling.sid

    def status(self) -> CallStatus:
        """Where it stands."""
        return self._status

    @property
    def parties(self) -> frozenset[Identity]:
        """Everybody else who is or was in it, as far as is known here."""
        return frozenset(self.signalling.parties)

    @property
    def record(self) -> CallRecord:
        """How it stands now."""
        return CallRecord(
            sid=self.sid,
            direction=self.direction,
            from_=self.from_,
            to=self.to,
            expires_at=self.expires_at,
            status=self._status,
            custom_parameters=self.custom_parameters,
            ended_because=self._ended_because,
            acceptances=tuple(self.signalling.acceptances.values()),
        )

    # What the relay tells (`agent.calls.signalling.CallNews`)

    @property
    def is_over(self) -> bool:
        """Whether it is closed."""
        return self._status is CallStatus.CLOSED

    def begin(self) -> None:
        """It is one of the device's calls."""
        self._move(self._status)

    def was_made(self) -> None:
        """The relay has made this call."""
        log.info("call made", call_sid=self.sid, to=self.to)
        self._context.made(self._as_call)

    def rings_there(self) -> None:
        """It has reached somebody."""
        if self._status is CallStatus.CONNECTING and not self.signalling.answered:
            self._move(CallStatus.RINGING)
            self._emit("ringing", self.early_media)

    def was_answered(self, caller: Identity | None, others: Sequence[Identity]) -> None:
        """It is on."""
        self._caller = caller
        if self.direction is Direction.INCOMING:
            self._emit("accept", self._as_call)
        elif self._context.sound is not None:
            self._move(CallStatus.CONNECTING)
        if not self.is_over:
            self._media.begin(others, caller)

    def has_joined(self, who: Identity) -> None:
        """Somebody else is in it."""
        self._media.add(who, self._caller)

    def has_left(self, who: Identity) -> None:
        """Somebody else is not in it any more."""
        self._media.remove(who)

    def was_said(self, message: CallMessage) -> None:
        """Somebody says something."""
        if message.message_type != MEDIA_MESSAGE_TYPE:
            self._emit("messageReceived", as_received(message))
            return
        document = media_in(message)
        who = sender_of(message)
        if document is not None and who is not None:
            if message.attestation is not Attestation.FULL:
                self.spoken_for.add(who)
            self._media.take(who, document)

    def ended(self, reason: str, error: CallError | None = None) -> None:
        """It is over."""
        if self.is_over:
            return
        was_pending = self._status is CallStatus.PENDING
        self._close(reason)
        if error is not None:
            self._tell_error(error)
        if was_pending:
            self._emit("cancel")
        else:
            self._emit("disconnect", self._as_call)

    def relay_lost(self) -> None:
        """The way to the relay is lost; the sound goes on without it."""
        if self._status in (CallStatus.OPEN, CallStatus.RECONNECTING):
            self._lose(_SIGNALLING_LOST)
            self._tasks.start(self._give_up_signalling())

    def relay_back(self) -> None:
        """The way to the relay is back: it may tell what became of the call."""
        self._regain(_SIGNALLING_LOST)
        if self.sid:
            self._tasks.start(self.signalling.catch_up())

    # What the sound does

    def _sound_connected(self) -> None:
        if self._status in _UNANSWERED:
            self._move(CallStatus.OPEN)
            self._tasks.start(self._meter())
            if self.direction is Direction.OUTGOING:
                self._emit("accept", self._as_call)
        if self._media.is_heard and not self._has_audio:
            self._has_audio = True
            self._reports.codec(self._media.codec or "")
            self._emit("audio", self._media.remote_stream)
        self._regain(_MEDIA_LOST)

    def _sound_failed(self, who: Identity | None, error: CallError, nobody_left: bool) -> None:
        if not nobody_left:
            log.warning("the call goes on without some of its sound", other=who or "its room")
            self._tell_error(error)
            return
        self.signalling.leave()
        self.ended(str(error), error)

    def _make_media(self) -> CallMedia | NoMedia:
        context = self._context
        news = MediaNews(
            connected=self._sound_connected,
            lost=lambda: self._lose(_MEDIA_LOST),
            failed=self._sound_failed,
            digit=lambda who, digit: self._emit("digit", who, digit),
        )
        if context.sound is None:
            return NoMedia(
                me=context.identity,
                device=context.device,
                say=self._say_media,
                tasks=self._tasks,
                news=news,
            )
        media = CallMedia(
            context.sound,
            me=context.identity,
            device=context.device,
            say=self._say_media,
            enter_room=self._enter_room,
            tasks=self._tasks,
            news=news,
            timing=context.timing,
            sleep=context.sleep,
        )
        media.early_media.allowed = self.early_media and self.direction is Direction.OUTGOING
        return media

    async def _say_media(self, who: Identity, document: MediaDocument) -> None:
        await say_media(self._context.requests, self.sid, who, document)

    async def _enter_room(self, offer: str) -> str:
        return await self._context.requests.enter_room(self.sid, offer)

    async def _meter(self) -> None:
        await CallMeter(
            self._media.stats,
            self._media.input_meter,
            self._media.output_meter,
            on_volume=lambda spoken, heard: self._emit("volume", spoken, heard),
            on_sample=lambda sample: self._emit("sample", sample),
            on_warning=self._tell_warning,
            is_muted=lambda: self._media.muted,
            sleep=self._context.sleep,
        ).run()

    # Where it stands

    def _lose(self, what: int) -> None:
        first = not self._lost
        self._lost.add(what)
        if first:
            self._move(CallStatus.RECONNECTING)
            self._emit("reconnecting", CallError(what))

    def _regain(self, what: int) -> None:
        if what not in self._lost:
            return
        self._lost.discard(what)
        if not self._lost:
            self._move(CallStatus.OPEN)
            self._emit("reconnected")

    async def _give_up_signalling(self) -> None:
        await self._context.sleep(self._context.timing.signalling_give_up_s)
        if _SIGNALLING_LOST in self._lost:
            self.signalling.leave()
            error = CallError(_SIGNALLING_LOST)
            self.ended(str(error), error)

    def _close(self, reason: str) -> None:
        self._tasks.cancel()
        self._ended_because = reason
        self._move(CallStatus.CLOSED)

    def _move(self, status: CallStatus) -> None:
        self._status = status
        log.info(
            "call status",
            call_sid=self.sid,
            status=status,
            direction=self.direction,
            from_=self.from_,
            reason=self._ended_because or None,
        )
        self._context.changed(self._as_call)

    def _tell_error(self, error: CallError) -> None:
        self._reports.failed(error)
        self._emit("error", error)

    def _tell_warning(self, news: WarningRaised | WarningCleared) -> None:
        self._reports.quality(news)
        if isinstance(news, WarningRaised):
            self._emit("warning", news.name, news.data)
        else:
            self._emit("warning-cleared", news.name)

    @property
    def _as_call(self) -> "Call":
        return cast("Call", self)


__all__ = [
    "AcceptOptions",
    "Call",
    "CallRecord",
    "CallStatus",
    "CallerInfo",
    "Direction",
    "Message",
]


@dataclass(frozen=True, slots=True)
class AcceptOptions:
    """How an invite is accepted (seed 000, TVOAcceptOptions).

    Args:
        uuid: The application's own name for the call.
        audio_devices: Sound devices in place of the configured ones, for as long as the call lasts. The
            call ends with 53400 where one is not there or does not work, or another call uses others.
        ice_servers: STUN and TURN servers in place of the relay's.
        extended_data: What the others are told with the acceptance.
    """

    uuid: str | None = None
    audio_devices: AudioDevices = field(default_factory=AudioDevices)
    ice_servers: Sequence[IceServer] | None = None
    extended_data: str = ""


class Call(CallCourse):
    """One call. Devices make them: `Device.connect`, `CallInvite.accept`."""

    uuid: str | None = None
    """The application's own name for it, from `AcceptOptions`."""
    only_invited: bool = False
    """Whether nobody but whom this device invited can be in it with this device."""

    # What it is

    @property
    def parameters(self) -> dict[str, str]:
        """What the relay says of it, under Twilio's names: `CallSid` once there is one, and of an
        incoming call `From` and `To`."""
        known: dict[str, str] = {"CallSid": self.sid} if self.sid else {}
        if self.direction is Direction.INCOMING:
            known |= {"From": self.from_ or "", "To": self.to[0]}
        return known

    @property
    def codec(self) -> str | None:
        """What is spoken: `opus` or `pcmu`; None before the ends have agreed on it."""
        return self._media.codec

    @property
    def connect_token(self) -> str | None:
        """With it this identity's devices come back into the call (`Device.reconnect`); None before
        an outgoing call has its SID. It is no secret: the relay knows each device by itself."""
        if not self.sid:
            return None
        return write_token(self.sid, self.custom_parameters)

    @property
    def is_muted(self) -> bool:
        """Whether the microphone is not heard by the others."""
        return self._media.muted

    @property
    def local_stream(self) -> AudioStream:
        """The voice of this device, as it is sent."""
        return self._media.local_stream

    @property
    def remote_stream(self) -> AudioStream | None:
        """The voices of the others; None before there was any."""
        return self._media.remote_stream if self._media.is_heard else None

    # What people do

    def accept(self, options: AcceptOptions | None = None) -> None:
        """Accepts a pending call; any other it leaves as it is."""
        if self._status is not CallStatus.PENDING:
            return
        options = options or AcceptOptions()
        self.uuid = options.uuid
        self._media.options = MediaOptions(options.ice_servers, options.audio_devices)
        self._move(CallStatus.CONNECTING)
        self._reports.accepted()
        self.signalling.accept(options.extended_data)

    def hear_early_media(self) -> bool:
        """Has the caller of a pending call heard before it is accepted, where the caller allows it;
        returns whether it does. Nobody is heard in return."""
        if self._status is not CallStatus.PENDING or not self.early_media or self.from_ is None:
            return False
        self._media.hear_early(parse_identity(self.from_))
        return True

    def reject(self, status: str = RejectStatus.REJECTED) -> None:
        """Rejects a pending call on behalf of all devices of the identity, as `rejected` or `busy`."""
        if self._status is not CallStatus.PENDING:
            return
        self.signalling.reject(RejectStatus(status))
        self._reports.rejected()
        self._close("rejected here")
        self._emit("reject")

    def ignore(self) -> None:
        """Silences a pending call on this device alone; the caller hears it ring on."""
        if self._status is not CallStatus.PENDING:
            return
        self.signalling.ignore()
        self._reports.ignored()
        self._close("ignored here")
        self._emit("cancel")

    def disconnect(self) -> None:
        """Hangs up, or gives up a call that nobody has answered; a pending one is rejected."""
        if self._status is CallStatus.PENDING:
            self.reject()
        elif self._status is CallStatus.CLOSED:
            return
        elif self.direction is Direction.OUTGOING and not self.signalling.answered:
            self.signalling.withdraw()
            self._close("cancelled here")
            self._emit("cancel")
        else:
            self.signalling.leave()
            self._close("hung up here")
            self._emit("disconnect", self)

    def mute(self, should_mute: bool = True) -> None:
        """Has the others hear silence, or the microphone again."""
        if should_mute == self._media.muted:
            return
        self._media.muted = should_mute
        self._emit("mute", should_mute, self)

    def send_digits(self, digits: str) -> None:
        """Sends `0-9`, `*` and `#` as tones; a `w` waits half a second. `error` tells if they could not
        be sent.

        Raises:
            InvalidInput: they hold anything else, are none, or too many.
        """
        check_digits(digits)
        self._tasks.start(self._send_digits(digits))

    def send_message(
        self,
        content: JsonValue,
        *,
        message_type: str = "user-defined-message",
        to: list[Identity] | None = None,
    ) -> str:
        """Says something to the others, or to those of them in `to`; returns the message's
        voiceEventSid. `messageSent` tells when the relay has it, `error` if it does not take it.

        Raises:
            InvalidInput: it is no JSON, over 4096 bytes, or of the type that is kept for the sound.
            CallError: 31481, the call has no SID yet, or is over.
        """
        if not self.sid or self._status is CallStatus.CLOSED:
            raise CallError(31481, "a message needs a call under way")
        if message_type == MEDIA_MESSAGE_TYPE:
            raise CallError(31403, f"messages of type {MEDIA_MESSAGE_TYPE!r} are the agent's own")
        message = new_message(self.sid, content, message_type, to)
        self._tasks.start(self._send_message(message))
        return message.voice_event_sid or ""

    async def post_feedback(self, score: int | None = None, issue: str | None = None) -> None:
        """Says how good the call was, from 1 to 5, or None from who declines to say.

        Raises:
            InvalidInput: the score or the issue is none of those there are.
            CallError: the relay did not take it.
        """
        given = await rate(self._context.requests, self.sid, score, issue)
        self._reports.feedback(score, None if given is None else given.value)

    async def _send_digits(self, digits: str) -> None:
        try:
            await self._media.send_digits(digits)
        except CallError as error:
            self._tell_error(error)

    async def _send_message(self, message: DeviceMessage) -> None:
        try:
            await deliver(self._context.requests, message)
        except CallError as error:
            self._tell_error(error)
        else:
            self._emit("messageSent", as_sent(message))
