"""How one call goes: what the relay, its sound and time do to it, and where that leaves it.

What people do with it is in `agent.calls.call`; what is said between here and the relay, in
`agent.calls.signalling`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Concatenate

import structlog

from bellwire.agent.calls.events import CallEventName
from bellwire.agent.calls.insights import CallInsights, Report
from bellwire.agent.calls.record import CallRecord, CallStatus, Direction
from bellwire.agent.calls.requests import RelayRequests, as_received, media_in, sender_of
from bellwire.agent.calls.signalling import CallSignalling
from bellwire.agent.media.call_media import CallMedia, MediaNews, NoMedia
from bellwire.agent.media.peer import MediaTiming
from bellwire.agent.media.sound import AudioDevices, DeviceSound, MediaOptions
from bellwire.agent.quality.meter import CallMeter
from bellwire.agent.quality.warnings import WarningCleared, WarningRaised
from bellwire.agent.tasks import CallTasks, Spawn
from bellwire.config.waiting import Sleep
from bellwire.signaling.calls.calls import Attestation
from bellwire.signaling.calls.events import CallMessage
from bellwire.signaling.errors import CallError
from bellwire.signaling.identifiers import CallSid, DeviceId, Identity
from bellwire.signaling.wire.media import MEDIA_MESSAGE_TYPE, MediaDocument

log = structlog.get_logger(__name__)

_UNANSWERED = (CallStatus.PENDING, CallStatus.CONNECTING, CallStatus.RINGING)
_MEDIA_LOST, _SIGNALLING_LOST = 53405, 53001

Emit = Callable[Concatenate[CallEventName, ...], None]
"""Tells those who listen to a call of an event, with what belongs to it."""


@dataclass(frozen=True, slots=True)
class CallResources:
    """What a device lends each of its calls.

    Args:
        identity: Whose device it is.
        device: The device.
        requests: The way to the relay.
        sound: Its sound; None where it has none.
        spawn: Starts work that the device owns.
        now: Tells the time.
        sleep: Waits.
        timing: How long things may take.
        report: Takes insights.
    """

    identity: Identity
    device: DeviceId
    requests: RelayRequests
    sound: DeviceSound | None
    spawn: Spawn
    now: Callable[[], datetime]
    sleep: Sleep
    timing: MediaTiming
    report: Report


@dataclass(frozen=True, slots=True)
class CallTerms:
    """What is settled of a call when it begins.

    Args:
        direction: Who called whom.
        from_: Who calls, as on the wire; None where nobody in particular does.
        to: Who is called.
        expires_at: When it stops ringing, by this device's clock.
        custom_parameters: What the called side is told with the invite.
        early_media: Whether the called side may hear the caller before it answers.
        only_invited: Whether nobody but whom this device invited can be in it with this device.
        audio_devices: Sound devices in place of the configured ones.
        account_sid: The relay's account, where its invite says it.
        connect_token: The relay's own token for this call and device, where its invite has one.
    """

    direction: Direction
    from_: str | None
    to: tuple[str, ...]
    expires_at: datetime
    custom_parameters: dict[str, str]
    early_media: bool = False
    only_invited: bool = False
    audio_devices: AudioDevices = field(default_factory=AudioDevices)
    account_sid: str | None = None
    connect_token: str | None = None


class CallCourse:
    """The course of one call. It is told of by its signalling (`agent.calls.signalling.CallNews`), its
    sound and its device, and tells those who listen.

    Args:
        lent: What the device lends it.
        terms: What is settled of it.
        sid: Its SID; None while the relay has not yet made an outgoing call.
        emit: Tells those who listen to the call.
        made: Called when the relay has made an outgoing call.
        changed: Called when the status has changed.
    """

    def __init__(
        self,
        lent: CallResources,
        terms: CallTerms,
        sid: CallSid | None,
        *,
        emit: Emit,
        made: Callable[[], None],
        changed: Callable[[], None],
    ) -> None:
        incoming = terms.direction is Direction.INCOMING
        self.status = CallStatus.PENDING if incoming else CallStatus.CONNECTING
        self.spoken_for: set[Identity] = set()
        self._lent = lent
        self._terms = terms
        self._emit = emit
        self._made = made
        self._changed = changed
        self._ended_because = ""
        self._lost: set[int] = set()
        self._caller: Identity | None = None
        self._has_audio = False
        self.tasks = CallTasks(lent.spawn)
        self.insights = CallInsights(
            lent.report,
            device=lent.device,
            direction=terms.direction,
            sid=lambda: self.signalling.sid,
            now=lent.now,
        )
        self.signalling = CallSignalling(
            lent.requests,
            self,
            self.tasks,
            me=lent.identity,
            device=lent.device,
            direction=terms.direction,
            sid=sid or CallSid(""),
            expires_at=terms.expires_at,
            now=lent.now,
            sleep=lent.sleep,
        )
        self.media = self._make_media()
        self.media.options = MediaOptions(audio_devices=terms.audio_devices)

    @property
    def is_over(self) -> bool:
        """Whether the call is closed here."""
        return self.status is CallStatus.CLOSED

    @property
    def record(self) -> CallRecord:
        """The call as it stands at this moment."""
        return CallRecord(
            sid=self.signalling.sid,
            direction=self._terms.direction,
            from_=self._terms.from_,
            to=self._terms.to,
            expires_at=self._terms.expires_at,
            status=self.status,
            custom_parameters=self._terms.custom_parameters,
            ended_because=self._ended_because,
            acceptances=tuple(self.signalling.acceptances.values()),
        )

    def move(self, status: CallStatus) -> None:
        """It stands so from now on."""
        self.status = status
        log.info(
            "call status",
            call_sid=self.signalling.sid,
            status=status,
            direction=self._terms.direction,
            from_=self._terms.from_,
            reason=self._ended_because or None,
        )
        self._changed()

    def close(self, reason: str) -> None:
        """It is over, and so is what ends with it; who closes it tells why."""
        self.tasks.cancel()
        self._ended_because = reason
        self.move(CallStatus.CLOSED)

    def tell_error(self, error: CallError) -> None:
        """Tells of an error of the call, which may go on."""
        self.insights.failed(error)
        self._emit("error", error)

    # What its device tells

    def begin(self) -> None:
        """Tells of the status that it begins with; its device has it among its calls."""
        self.move(self.status)

    def relay_lost(self) -> None:
        """The way to the relay is lost; the sound goes on without it."""
        if self.status in (CallStatus.OPEN, CallStatus.RECONNECTING):
            self._lose(_SIGNALLING_LOST)
            self.tasks.start(self._give_up_signalling())

    def relay_back(self) -> None:
        """The way to the relay is back: it may tell what became of the call."""
        self._regain(_SIGNALLING_LOST)
        if self.signalling.sid:
            self.tasks.start(self.signalling.catch_up())

    # What its signalling tells

    def was_made(self) -> None:
        """The relay has taken an outgoing call: it has its SID."""
        log.info("call made", call_sid=self.signalling.sid, to=self._terms.to)
        self._made()

    def rings_there(self) -> None:
        """An outgoing call has reached somebody, who is rung."""
        if self.status is CallStatus.CONNECTING and not self.signalling.answered:
            self.move(CallStatus.RINGING)
            self._emit("ringing", self._terms.early_media)

    def was_answered(self, caller: Identity | None, others: Sequence[Identity]) -> None:
        """It is answered, here or there: with the others in it, its sound begins."""
        self._caller = caller
        if self._terms.direction is Direction.INCOMING:
            self._emit("accept")
        elif self._lent.sound is not None:
            self.move(CallStatus.CONNECTING)
        if not self.is_over:
            self.media.begin(others, caller)

    def learnt(self, custom_parameters: Mapping[str, str]) -> None:
        """What the call carries, for who came into it by a token that does not tell."""
        if self._terms.direction is Direction.OUTGOING and not self._terms.custom_parameters:
            self._terms.custom_parameters.update(custom_parameters)

    def has_joined(self, who: Identity) -> None:
        """Somebody else has come into the call: their sound begins."""
        self.media.add(who, self._caller)

    def has_left(self, who: Identity) -> None:
        """Somebody else has left the call: their sound ends."""
        self.media.remove(who)

    def was_said(self, message: CallMessage) -> None:
        """Somebody says something: to the application, or of the sound."""
        if message.message_type != MEDIA_MESSAGE_TYPE:
            self._emit("messageReceived", as_received(message))
            return
        document = media_in(message)
        who = sender_of(message)
        if document is not None and who is not None:
            if message.attestation is not Attestation.FULL:
                self.spoken_for.add(who)
            self.media.take(who, document)

    def ended(self, reason: str, error: CallError | None = None) -> None:
        """It is over, by no doing of this side's people."""
        if self.is_over:
            return
        was_pending = self.status is CallStatus.PENDING
        self.close(reason)
        if error is not None:
            self.tell_error(error)
        self._emit("cancel" if was_pending else "disconnect")

    # What its sound does

    def _sound_connected(self) -> None:
        if self.status in _UNANSWERED:
            self.move(CallStatus.OPEN)
            self.tasks.start(self._meter())
            if self._terms.direction is Direction.OUTGOING:
                self._emit("accept")
        if self.media.is_heard and not self._has_audio:
            self._has_audio = True
            self.insights.codec(self.media.codec or "")
            self._emit("audio", self.media.remote_stream)
        self._regain(_MEDIA_LOST)

    def _sound_failed(self, who: Identity | None, error: CallError, nobody_left: bool) -> None:
        if not nobody_left:
            log.warning("the call goes on without some of its sound", other=who or "its room")
            self.tell_error(error)
            return
        self.signalling.leave()
        self.ended(str(error), error)

    def _make_media(self) -> CallMedia | NoMedia:
        lent, terms = self._lent, self._terms
        news = MediaNews(
            connected=self._sound_connected,
            lost=lambda: self._lose(_MEDIA_LOST),
            failed=self._sound_failed,
            digit=lambda who, digit: self._emit("digit", who, digit),
        )
        if lent.sound is None:
            return NoMedia(
                me=lent.identity,
                device=lent.device,
                say=self._say_media,
                tasks=self.tasks,
                news=news,
            )
        media = CallMedia(
            lent.sound,
            me=lent.identity,
            device=lent.device,
            say=self._say_media,
            enter_room=self._enter_room,
            tasks=self.tasks,
            news=news,
            timing=lent.timing,
            sleep=lent.sleep,
        )
        media.early_media.allowed = terms.early_media and terms.direction is Direction.OUTGOING
        return media

    async def _say_media(self, who: Identity, document: MediaDocument) -> None:
        await self._lent.requests.say_media(self.signalling.sid, who, document)

    async def _enter_room(self, offer: str) -> str:
        return await self._lent.requests.enter_room(self.signalling.sid, offer)

    async def _meter(self) -> None:
        await CallMeter(
            self.media.stats,
            self.media.input_meter,
            self.media.output_meter,
            on_volume=lambda spoken, heard: self._emit("volume", spoken, heard),
            on_sample=lambda sample: self._emit("sample", sample),
            on_warning=self._tell_warning,
            is_muted=lambda: self.media.muted,
            sleep=self._lent.sleep,
        ).run()

    def _tell_warning(self, news: WarningRaised | WarningCleared) -> None:
        self.insights.quality(news)
        if isinstance(news, WarningRaised):
            self._emit("warning", news.name, news.data)
        else:
            self._emit("warning-cleared", news.name)

    # What is lost, and comes back

    def _lose(self, what: int) -> None:
        first = not self._lost
        self._lost.add(what)
        if first:
            self.move(CallStatus.RECONNECTING)
            self._emit("reconnecting", CallError(what))

    def _regain(self, what: int) -> None:
        if what not in self._lost:
            return
        self._lost.discard(what)
        if not self._lost:
            self.move(CallStatus.OPEN)
            self._emit("reconnected")

    async def _give_up_signalling(self) -> None:
        await self._lent.sleep(self._lent.timing.signalling_give_up_s)
        if _SIGNALLING_LOST in self._lost:
            self.signalling.leave()
            error = CallError(_SIGNALLING_LOST)
            self.ended(str(error), error)
