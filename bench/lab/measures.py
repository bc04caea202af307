"""What the benchmarks measure by: percentiles, the CPU time and memory of a process as Linux counts them, the
table for people, the JSON line for programs."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of the values do not exceed (nearest rank).

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("nothing was measured")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass
class Measured:
    """One thing under load: how many per second in each round, milliseconds of each, and, where it is
    counted, milliseconds of CPU for one in each round."""

    per_s: list[float] = field(default_factory=list)
    took_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """The median of the rounds."""
        return percentile(self.per_s, 0.5)

    @property
    def p99_ms(self) -> float:
        """Of all rounds."""
        return percentile(self.took_ms, 0.99)


def print_result(
    title: str, rows: Mapping[str, Sequence[float]], result: Mapping[str, float]
) -> None:
    """Prints each row's p50, p90, p99 and maximum in milliseconds, then the result as one JSON line."""
    table = Table("", "n", "p50 ms", "p90 ms", "p99 ms", "max ms", title=title)
    for name, values in rows.items():
        figures = [percentile(values, share) for share in (0.5, 0.9, 0.99)] + [max(values)]
        table.add_row(name, str(len(values)), *(f"{figure:.2f}" for figure in figures))
    console = Console(width=100)
    console.print(table)
    console.out(
        json.dumps({name: round(value, 3) for name, value in result.items()}), highlight=False
    )


def cpu_seconds(pid: int) -> float:
    """User and system time of all its threads since it began (proc(5), /proc/PID/stat)."""
    # The name in parentheses may hold blanks; utime and stime are fields 14 and 15.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int) -> tuple[float, float]:
    """Resident memory, and the share of it that is its own (Rss and Pss of smaps_rollup), in MB of
    10^6 bytes."""
    found = {"Rss:": 0.0, "Pss:": 0.0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, *rest = line.split()
        if name in found:
            found[name] = int(rest[0]) * 1024 / 1e6
    return found["Rss:"], found["Pss:"]
