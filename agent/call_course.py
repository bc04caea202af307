"""How a call goes: what relay, sound and time do to it. What people do with it is in `agent.call`."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, cast

import structlog

from agent.call_context import CallContext
from agent.call_events import CallEvents
from agent.call_media import CallMedia
from agent.call_messages import as_received, media_in, say_media, sender_of
from agent.call_meter import CallMeter
from agent.call_record import CallerInfo, CallRecord, CallStatus, Direction
from agent.call_reports import CallReports
from agent.call_signalling import CallSignalling
from agent.call_tasks import CallTasks
from agent.media_news import MediaNews, MediaOptions
from agent.no_media import NoMedia
from agent.quality_warnings import WarningCleared, WarningRaised
from agent.voice import AudioDevices
from signaling.calls import Attestation
from signaling.errors import CallError
from signaling.events import CallMessage
from signaling.identifiers import CallSid, Identity
from signaling.media import MEDIA_MESSAGE_TYPE, MediaDocument

if TYPE_CHECKING:
    from agent.call import Call

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

    # What the relay tells (`agent.call_signalling.CallNews`)

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
