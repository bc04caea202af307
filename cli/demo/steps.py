"""What the demo's calls are told by: the steps of each and their times, none waited for too long."""

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import TypeVar

from rich.table import Table

from bellwire.signaling.errors import Unavailable

T = TypeVar("T")

STEP_TIMEOUT_S = 10.0


@dataclass(slots=True)
class Timeline:
    """What happened when, in milliseconds since the beginning."""

    title: str
    started: float
    steps: list[tuple[float, str, str]] = field(default_factory=list)

    def note(self, who: str, what: str, at: float | None = None) -> float:
        """Notes a step at a `time.perf_counter`, now by default; returns its milliseconds."""
        ms = ((time.perf_counter() if at is None else at) - self.started) * 1000
        self.steps.append((ms, who, what))
        return ms

    def table(self) -> Table:
        """The steps in their order."""
        table = Table("ms", "who", "what", title=self.title)
        table.columns[0].justify = "right"
        for ms, who, what in sorted(self.steps):
            table.add_row(f"{ms:.1f}", who, what)
        return table


async def within(what: str, happening: Awaitable[T]) -> T:
    """Waits for something that has to happen.

    Raises:
        Unavailable: it did not within 10 s; says what.
    """
    try:
        async with asyncio.timeout(STEP_TIMEOUT_S):
            return await happening
    except TimeoutError as error:
        raise Unavailable(f"waited {STEP_TIMEOUT_S:g} s in vain: {what}") from error
