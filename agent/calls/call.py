"""A call to or from this device, with the meaning and the names of Twilio's (seed 003, spec §4).

What is done here holds at once; the relay is told beside it, as often as it takes. Its methods belong
on the event loop. What happens to a call by itself is in `agent.calls.course`.
"""

import asyncio
import base64
import binascii
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, overload

from pydantic import JsonValue

from bellwire.agent.calls.course import CallCourse, CallResources, CallTerms
from bellwire.agent.calls.events import CallEventName, Listeners, Unsubscribe
from bellwire.agent.calls.record import CallerInfo, CallRecord, CallStatus, Direction, Message
from bellwire.agent.calls.requests import as_sent, new_message
from bellwire.agent.media.call_media import NoMedia
from bellwire.agent.media.dtmf import check_digits
from bellwire.agent.media.engine.interface import SAMPLE_RATE_HZ, IceServer
from bellwire.agent.media.playback import PlayedSound, samples_of
from bellwire.agent.media.sound import AudioDevices, AudioStream, MediaOptions
from bellwire.agent.quality.sample import Sample
from bellwire.agent.quality.warnings import WarningData, WarningName
from bellwire.signaling.calls.calls import RejectStatus
from bellwire.signaling.errors import CallError, InvalidInput
from bellwire.signaling.identifiers import CallSid, Identity, parse_call_sid, parse_identity
from bellwire.signaling.wire.media import MEDIA_MESSAGE_TYPE
from bellwire.signaling.wire.operations import DeviceMessage

_DOTS_OF_A_JWT = 2

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


class Call:
    """One call. Devices make them: `Device.connect`, `CallInvite.accept`.

    It ends with exactly one of `cancel`, `reject` and `disconnect`: an unanswered one of this side's
    own doing, or an invite that was not answered, with `cancel`; an invite that was rejected here with
    `reject`; any other with `disconnect`. `error` comes before it, where it was no normal end.

    Args:
        lent: What the device lends it.
        terms: What is settled of it.
        sid: Its SID; None while the relay has not yet made an outgoing call.
        made: Told when the relay has made an outgoing call.
        changed: Told when a call's status has changed.
    """

    def __init__(
        self,
        lent: CallResources,
        terms: CallTerms,
        sid: CallSid | None = None,
        *,
        made: "Callable[[Call], None]",
        changed: "Callable[[Call], None]",
    ) -> None:
        self.direction = terms.direction
        self.from_ = terms.from_
        self.to = terms.to
        self.expires_at = terms.expires_at
        self.custom_parameters = terms.custom_parameters
        self.early_media = terms.early_media
        self.only_invited = terms.only_invited
        self.caller_info: CallerInfo | None = None
        self._account_sid = terms.account_sid
        self._connect_token = terms.connect_token
        self.uuid: str | None = None
        """The application's own name for it, from `AcceptOptions`."""
        self._requests = lent.requests
        self._listeners = Listeners(get_args(CallEventName), lent.spawn)
        self.course = CallCourse(
            lent,
            terms,
            sid,
            emit=self._emit,
            made=lambda: made(self),
            changed=lambda: changed(self),
        )
        """What happens to it; for the device, which tells it of the relay."""
        self.signalling = self.course.signalling
        self._media = self.course.media
        self._tasks = self.course.tasks

    # What it is

    @property
    def sid(self) -> CallSid:
        """Its SID; empty while the relay has not yet made an outgoing call."""
        return self.signalling.sid

    def status(self) -> CallStatus:
        """Where the call stands for this device, from `pending` to `closed`."""
        return self.course.status

    @property
    def is_over(self) -> bool:
        """Whether it has ended, or was never answered."""
        return self.course.is_over

    @property
    def record(self) -> CallRecord:
        """The call as it stands at this moment, as a plain value."""
        return self.course.record

    @property
    def parameters(self) -> dict[str, str]:
        """What the relay says of it, under Twilio's names: `CallSid` once there is one, and of an
        incoming call `From`, `To` and `AccountSid` (where its relay is of a version that says it)."""
        known: dict[str, str] = {"CallSid": self.sid} if self.sid else {}
        if self.direction is Direction.INCOMING:
            known |= {"From": self.from_ or "", "To": self.to[0]}
        if self._account_sid is not None:
            known["AccountSid"] = self._account_sid
        return known

    @property
    def parties(self) -> frozenset[Identity]:
        """Everybody else who is or was in it, as far as is known here."""
        return frozenset(self.signalling.parties)

    @property
    def spoken_for(self) -> frozenset[Identity]:
        """Parties in whose name somebody else, or nobody the relay vouches for, has said how they are
        to be heard: their voice and their digits may be anybody's."""
        return frozenset(self.course.spoken_for)

    @property
    def codec(self) -> str | None:
        """What is spoken: `opus` or `pcmu`; None before the ends have agreed on it."""
        return self._media.codec

    @property
    def connect_token(self) -> str | None:
        """With it this identity's devices come back into the call (`Device.reconnect`); None before
        an outgoing call has its SID. That of an incoming call is the relay's own, made for this device,
        and a secret: who shows it over HTTP or WebSocket acts as this device in this call."""
        if not self.sid:
            return None
        return self._connect_token or write_token(self.sid, self.custom_parameters)

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
        if self.status() is not CallStatus.PENDING:
            return
        options = options or AcceptOptions()
        self.uuid = options.uuid
        self._media.options = MediaOptions(options.ice_servers, options.audio_devices)
        self.course.move(CallStatus.CONNECTING)
        self.course.insights.accepted()
        self.signalling.accept(options.extended_data)

    def hear_early_media(self) -> bool:
        """Has the caller of a pending call heard before it is accepted, where the caller allows it;
        returns whether it does. Nobody is heard in return."""
        if self.status() is not CallStatus.PENDING or not self.early_media or self.from_ is None:
            return False
        self._media.hear_early(parse_identity(self.from_))
        return True

    def reject(self, status: str = RejectStatus.REJECTED, *, extended_data: str = "") -> None:
        """Rejects a pending call on behalf of all devices of the identity, as `rejected` or `busy`. The
        caller gives up a call that nobody has answered with `cancelled`."""
        if status == "cancelled" and self._is_unanswered:
            self.disconnect(extended_data=extended_data)
        if self.status() is not CallStatus.PENDING:
            return
        self.signalling.reject(RejectStatus(status), extended_data)
        self.course.insights.rejected()
        self.course.close("rejected here")
        self._emit("reject")

    def ignore(self) -> None:
        """Silences a pending call on this device alone; the caller hears it ring on."""
        if self.status() is not CallStatus.PENDING:
            return
        self.signalling.ignore()
        self.course.insights.ignored()
        self.course.close("ignored here")
        self._emit("cancel")

    async def cancel(
        self, to: Sequence[str] | None = None, *, extended_data: str = ""
    ) -> dict[Identity, str]:
        """Withdraws the invitations of those in `to` who have not answered, or of all. Where that leaves
        nobody but the caller, the call ends.

        Args:
            to: Identities: of the caller's call anybody, else whom this identity has invited.
            extended_data: What those hear with it who hear of it.

        Returns:
            Who of `to` could not be cancelled, and why: `answered`, `not_invited` or `not_yours`.

        Raises:
            CallError: 31481, the call has no SID yet, or is over; else as the relay refused it, such as
                31403 where nobody is left to be cancelled.
        """
        if not self.sid or self.is_over:
            raise CallError(31481, "a cancel needs a call under way")
        named = None if to is None else [Identity(identity) for identity in to]
        errors = await self._requests.cancel(self.sid, named, extended_data)
        return {Identity(error.identity): error.reason for error in errors}

    def disconnect(self, *, extended_data: str = "") -> None:
        """Hangs up, or gives up a call that nobody has answered; a pending one is rejected. Those who
        hear of it hear `extended_data` with it."""
        if self.status() is CallStatus.PENDING:
            self.reject(extended_data=extended_data)
        elif self.is_over:
            return
        elif self._is_unanswered:
            self.signalling.withdraw(extended_data)
            self.course.close("cancelled here")
            self._emit("cancel")
        else:
            self.signalling.leave(extended_data)
            self.course.close("hung up here")
            self._emit("disconnect")

    @property
    def _is_unanswered(self) -> bool:
        """Whether it is this side's own, and nobody has answered it."""
        mine = self.direction is Direction.OUTGOING
        return mine and not self.signalling.answered and not self.is_over

    def mute(self, should_mute: bool = True) -> None:
        """Has the others hear silence, or the microphone again."""
        if should_mute == self._media.muted:
            return
        self._media.muted = should_mute
        self._emit("mute", should_mute)

    async def play(self, sound: PlayedSound, *, rate_hz: int = SAMPLE_RATE_HZ) -> None:
        """Plays a sound to the others, over the microphone or in place of a muted one, and returns once
        they have heard it. While nobody can hear it yet, or another is played, it waits. Cancelled, it
        falls silent.

        Args:
            sound: A WAV file (16 bits, mono or stereo, 8 to 192 kHz, up to 5 minutes), or samples
                (int16, mono).
            rate_hz: The samples' rate; a file says its own.

        Raises:
            InvalidInput: it cannot be played; says what was expected.
            CallError: 31487, the call ended before that; 53400, this device has no sound.
        """
        samples = await samples_of(sound, rate_hz)
        if isinstance(self._media, NoMedia):
            raise CallError(53400, "this device has no sound")
        playing = None if self.is_over else self._tasks.start(self._media.play(samples))
        if playing is not None:
            try:
                await asyncio.wait([playing])
            finally:
                playing.cancel()
        if playing is None or playing.cancelled():
            raise CallError(31487, "the call ended before the sound had been heard to its end")

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
        if not self.sid or self.is_over:
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
        given = await self._requests.rate(self.sid, score, issue)
        self.course.insights.feedback(score, given)

    async def _send_digits(self, digits: str) -> None:
        try:
            await self._media.send_digits(digits)
        except CallError as error:
            self.course.tell_error(error)

    async def _send_message(self, message: DeviceMessage) -> None:
        try:
            await self._requests.deliver(message)
        except CallError as error:
            self.course.tell_error(error)
        else:
            self._emit("messageSent", as_sent(message))

    # What it tells of

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
        """Has `listener` called on the event loop at each `event`; what is returned ends that. It may be
        `async`: it then goes on beside the call, and after its end. What goes wrong in it is logged and
        breaks nothing.

        Beyond the seed there is `digit`: somebody has pressed a digit: an identity, or None for one of
        the `parties`, where it came out of a room.

        Raises:
            InvalidInput: there is no such event; names those there are.
        """
        return self._listeners.add(event, listener)

    def _emit(self, event: CallEventName, *told: Any) -> None:  # noqa: ANN401 - each has its own
        """Some events hand over the call itself, after what else they tell."""
        if event in ("accept", "disconnect", "mute"):
            told = (*told, self)
        self._listeners.tell(event, *told)


def write_token(sid: CallSid, custom_parameters: dict[str, str]) -> str:
    """The connect token of a call (seed 003, connectToken)."""
    named = {"call_sid": sid, "custom_parameters": custom_parameters}
    return base64.urlsafe_b64encode(json.dumps(named).encode()).decode()


def read_token(connect_token: str) -> tuple[CallSid, dict[str, str]]:
    """The call that a connect token is of, and its custom parameters; the relay's own token (a JWT, which
    the relay alone checks) has none.

    Raises:
        InvalidInput: it is no such token.
    """
    is_jwt = connect_token.count(".") == _DOTS_OF_A_JWT
    told = connect_token.split(".")[1] + "===" if is_jwt else connect_token
    try:
        named = json.loads(base64.urlsafe_b64decode(told))
        sid = parse_call_sid(named["call_sid"])
        given = {} if is_jwt else named["custom_parameters"]
        parameters = {str(name): str(value) for name, value in given.items()}
    except (binascii.Error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput("this is no connect token of a call") from error
    return sid, parameters
