"""A call to or from this device, with the meaning and the names of Twilio's (seed 003, spec §4).

What is done here holds at once; the relay is told beside it, as often as it takes. Its methods belong
on the event loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from agent.call_course import CallCourse
from agent.call_messages import as_sent, deliver, new_message, rate
from agent.call_record import CallerInfo, CallRecord, CallStatus, Direction, Message
from agent.connect_token import write_token
from agent.dtmf import check_digits
from agent.media.engine import IceServer
from agent.media_news import MediaOptions
from agent.voice import AudioDevices, AudioStream
from signaling.calls import RejectStatus
from signaling.device_operations import DeviceMessage
from signaling.errors import CallError
from signaling.identifiers import Identity, parse_identity
from signaling.media import MEDIA_MESSAGE_TYPE

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
