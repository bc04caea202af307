"""The events of a call, and who is told of them: listeners by the name of an event."""

from asyncio import iscoroutine
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import structlog

from bellwire.agent.tasks import Spawn, Work
from bellwire.signaling.errors import InvalidInput

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
    """Listeners of one thing's events. What goes wrong in one is logged and touches nobody else.

    Args:
        events: What it tells of.
        spawn: Starts what an `async` listener does.
    """

    def __init__(self, events: Collection[str], spawn: Spawn) -> None:
        self._by_event: dict[str, list[Callable[..., object]]] = {event: [] for event in events}
        self._spawn = spawn

    def add(self, event: str, listener: Callable[..., object]) -> Unsubscribe:
        """Has `listener` called at each `event`; what is returned ends that, and may be called twice.

        Raises:
            InvalidInput: there is no such event; names those there are.
        """
        listening = self._by_event.get(event)
        if listening is None:
            known = ", ".join(sorted(self._by_event))
            raise InvalidInput(f"there is no event {event!r} here: listen to one of {known}")
        listening.append(listener)

        def unsubscribe() -> None:
            if listener in listening:
                listening.remove(listener)

        return unsubscribe

    def tell(self, event: str, *told: Any) -> None:  # noqa: ANN401 - each event has its own
        """Calls all listeners of an event, in the order they came."""
        for listener in tuple(self._by_event.get(event, ())):
            with _mistakes_logged(event):
                work = listener(*told)
                if iscoroutine(work) and self._spawn(_finished(work, event)) is None:
                    work.close()


@contextmanager
def _mistakes_logged(event: str) -> Iterator[None]:
    """A listener is an application's: its mistakes must not end a call."""
    try:
        yield
    except Exception:
        log.exception("a listener failed", event_name=event)


async def _finished(work: Work, event: str) -> None:
    with _mistakes_logged(event):
        await work
