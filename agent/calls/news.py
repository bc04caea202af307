"""What a call is told by its signalling."""

from collections.abc import Sequence
from typing import Protocol

from bellwire.signaling.calls.events import CallMessage
from bellwire.signaling.errors import CallError
from bellwire.signaling.identifiers import Identity


class CallNews(Protocol):
    """Who is told what became of the call."""

    @property
    def is_over(self) -> bool:
        """Whether the call is closed here."""
        ...

    def was_made(self) -> None:
        """An outgoing call has its SID."""
        ...

    def rings_there(self) -> None:
        """An outgoing call has reached somebody."""
        ...

    def was_answered(self, caller: Identity | None, others: Sequence[Identity]) -> None:
        """The call is on, with these others in it who have a device there: this device's accept was
        taken, or somebody has accepted this device's call."""
        ...

    def has_joined(self, who: Identity) -> None:
        """Somebody else is in the call now."""
        ...

    def has_left(self, who: Identity) -> None:
        """Somebody else is not in the call any more."""
        ...

    def was_said(self, message: CallMessage) -> None:
        """Somebody says something."""
        ...

    def ended(self, reason: str, error: CallError | None = None) -> None:
        """The call is over, for `reason`; an error, where it was no normal end."""
        ...
