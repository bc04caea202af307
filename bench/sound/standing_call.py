"""What the calls that are compared have in common while they stand."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Concealment:
    """Totals of the called side (W3C webrtc-stats, concealedSamples and totalSamplesReceived)."""

    concealed_samples: int
    total_samples: int

    def since(self, before: "Concealment") -> float:
        """The share of what was played in between that was made up."""
        total = self.total_samples - before.total_samples
        return (self.concealed_samples - before.concealed_samples) / total if total > 0 else 0.0


@dataclass(frozen=True, slots=True)
class StandingCall:
    """A call in which party a and party b hear one another.

    `pid` is the process of the called side, None where there are many; `concealment` is None where
    the stack does not count it.
    """

    pid: int | None = None
    concealment: Callable[[], Awaitable[Concealment]] | None = None
