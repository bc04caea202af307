"""What a call tells of (seed 003, "Events"), each event with the listener it takes."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, overload

from agent.call_record import Message
from agent.listeners import Listeners, Unsubscribe
from agent.quality import Sample
from agent.quality_warnings import WarningData, WarningName
from agent.voice import AudioStream
from signaling.errors import CallError

if TYPE_CHECKING:
    from agent.call import Call

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
