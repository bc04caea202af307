"""The events of a call, and who is told of them: listeners by the name of an event."""

from collections.abc import Callable
from typing import Any, Literal

import structlog

log = structlog.get_logger(__name__)

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
"""What `agent.calls.call.Call.on` takes (seed 003, "Events"), each with the listener that it says."""

Unsubscribe = Callable[[], None]
"""Ends what a listener was added for."""


class Listeners:
    """Listeners of one thing's events. What goes wrong in one is logged and touches nobody else."""

    def __init__(self) -> None:
        self._by_event: dict[str, list[Callable[..., object]]] = {}

    def add(self, event: str, listener: Callable[..., object]) -> Unsubscribe:
        """Has `listener` called at each `event`; what is returned ends that, and may be called twice."""
        listening = self._by_event.setdefault(event, [])
        listening.append(listener)

        def unsubscribe() -> None:
            if listener in listening:
                listening.remove(listener)

        return unsubscribe

    def wants(self, event: str) -> bool:
        """Whether anybody listens to this."""
        return bool(self._by_event.get(event))

    def tell(self, event: str, *told: Any) -> None:  # noqa: ANN401 - each event has its own
        """Calls all listeners of an event, in the order they came."""
        for listener in tuple(self._by_event.get(event, ())):
            try:
                listener(*told)
            except Exception:  # a listener is an application's: its mistakes must not end a call
                log.exception("a listener failed", event_name=event)
