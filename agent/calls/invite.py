"""An invite to a call, with the meaning and the names of Twilio's (seed 000, TVOCallInvite)."""

from datetime import datetime, timedelta

from bellwire.agent.calls.call import AcceptOptions, Call, CallerInfo, CallStatus
from bellwire.signaling.calls.calls import RejectStatus
from bellwire.signaling.identifiers import CallSid

_CLOCKS_AGREE_S = 2.0


class CallInvite:
    """An incoming call before it is answered. Devices make them (`Device.on("incoming")`).

    Args:
        call: The pending call.
    """

    def __init__(self, call: Call) -> None:
        self._call = call

    @property
    def from_(self) -> str | None:
        """Who calls, as on the wire (`client:alice`); None where nobody in particular does."""
        return self._call.from_

    @property
    def to(self) -> str:
        """Which identity of this device's is called."""
        return self._call.to[0]

    @property
    def call_sid(self) -> CallSid:
        """The call's SID, which the accepted call keeps."""
        return self._call.sid

    @property
    def custom_parameters(self) -> dict[str, str]:
        """What the caller says with it."""
        return self._call.custom_parameters

    @property
    def caller_info(self) -> CallerInfo | None:
        """Whether the relay has signed who calls; None where it says nothing, or not yet."""
        return self._call.caller_info

    @property
    def expires_at(self) -> datetime:
        """When it stops ringing, by this device's clock."""
        return self._call.expires_at

    @property
    def is_pending(self) -> bool:
        """Whether it can still be answered."""
        return self._call.status() is CallStatus.PENDING

    @property
    def call(self) -> Call:
        """The call that it invites to, pending until it is accepted."""
        return self._call

    def accept(self, options: AcceptOptions | None = None) -> Call:
        """Accepts it. The call that is returned may later fail, and says so; one of an invite that is
        over is closed already."""
        self._call.accept(options)
        return self._call

    def hear_early_media(self) -> bool:
        """Has the caller heard before it is accepted, where the caller allows it; returns whether it
        does. Nobody is heard in return."""
        return self._call.hear_early_media()

    def reject(self, status: str = RejectStatus.REJECTED, *, extended_data: str = "") -> None:
        """Rejects it on behalf of all devices of the identity, as `rejected` or `busy`. Those who hear of
        it hear `extended_data` with it."""
        self._call.reject(status, extended_data=extended_data)

    def ignore(self) -> None:
        """Silences it on this device alone; the caller hears it ring on."""
        self._call.ignore()


def ringing_time_left(now: datetime, expires_at: datetime, expires_in_s: int | None) -> timedelta:
    """How long an invite may still ring here.

    The invite says until when; the broker says, in whole seconds rounded up, for how long. Where the
    two disagree this device's clock is wrong (a Pi has none of its own), and the broker is believed.
    """
    by_clock = expires_at - now
    if expires_in_s is None:
        return by_clock
    by_broker = timedelta(seconds=expires_in_s)
    if abs((by_clock - by_broker).total_seconds()) <= _CLOCKS_AGREE_S:
        return by_clock
    return by_broker
