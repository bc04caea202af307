"""Calls of agents, of Chromium, of baresip and of aiortc, one after the other in each round, on the
same microphones and speakers: how long a sound takes, and what a second of call costs."""

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import numpy as np
from rich.table import Table

from bench.lab.measures import cpu_seconds, memory_mb, percentile
from bench.lab.pulse_server import RATE_HZ, PulseServer, Samples
from bench.sound.audio_quality import chirp_latencies, chirps
from bench.sound.standing_call import StandingCall

_TRIES = 15
MakeCall = Callable[[], AbstractAsyncContextManager[StandingCall]]


@dataclass
class Spoken:
    """What the calls of one stack came to, over all rounds: `took_ms` of each chirp that was heard,
    of so many told; CPU seconds per second of one process; memory in a call (RSS, PSS; MB)."""

    took_ms: list[float] = field(default_factory=list)
    told: int = 0
    cpu: list[float] = field(default_factory=list)
    memory_mb: tuple[float, float] | None = None

    @property
    def p50_ms(self) -> float:
        """The median."""
        return percentile(self.took_ms, 0.5)

    @property
    def cpu_per_s(self) -> float:
        """The median of the rounds."""
        return percentile(self.cpu, 0.5)


async def measure_call(pulse: PulseServer, make_call: MakeCall, count: int, spoken: Spoken) -> None:
    """One call: `count` chirps there, then as many back, and meanwhile what the called side's process
    uses. Never both ways at once: echo cancellation takes a chirp for the echo of the other's."""
    caller, callee = pulse.parties[:2]
    told = _in_turn(pulse, count)
    async with make_call() as call:
        await until_heard(pulse)
        used, started = _cpu(call), time.monotonic()
        recording = await pulse.play_and_record(told)
        if call.pid is not None:
            spoken.cpu.append((_cpu(call) - used) / (time.monotonic() - started))
            spoken.memory_mb = memory_mb(call.pid)
    for mouth, ear in ((caller, callee), (callee, caller)):
        latencies = chirp_latencies(recording[f"{mouth}_mic"], recording[f"{ear}_speaker"])
        spoken.took_ms += latencies.took_ms
        spoken.told += latencies.told


async def until_heard(pulse: PulseServer) -> None:
    """Waits until a sound comes through both ways.

    Raises:
        SystemExit: none does.
    """
    caller, callee = pulse.parties[:2]
    told = _in_turn(pulse, 1)
    for _ in range(_TRIES):
        heard = await pulse.play_and_record(told)
        there = chirp_latencies(heard[f"{caller}_mic"], heard[f"{callee}_speaker"])
        back = chirp_latencies(heard[f"{callee}_mic"], heard[f"{caller}_speaker"])
        if there.took_ms and back.took_ms:
            return
    levels = {name: float(np.max(np.abs(samples))) for name, samples in heard.items()}
    raise SystemExit(f"the call stands, but chirps do not come through both ways; peaks: {levels}")


def _in_turn(pulse: PulseServer, count: int) -> dict[str, Samples]:
    there = chirps(count)
    return dict(zip(pulse.parties, (there, np.concatenate([0 * there, there])), strict=False))


async def instrument_error_ms(pulse: PulseServer) -> float:
    """The worst error on a delay that is known: 50 ms between two microphones' channels."""
    known_ms = 50.0
    caller, callee = pulse.parties[:2]
    late: Samples = np.zeros(int(known_ms * RATE_HZ / 1000), np.float32)
    heard = await pulse.play_and_record(
        {caller: chirps(4), callee: np.concatenate([late, chirps(4)])}
    )
    latencies = chirp_latencies(heard[f"{caller}_mic"], heard[f"{callee}_mic"])
    return max(abs(took - known_ms) for took in latencies.took_ms)


def latency_table(stacks: dict[str, Spoken]) -> Table:
    """For people."""
    table = Table(
        "", "heard", "p50 ms", "p99 ms", "max ms", "CPU s/s", "RSS MB", "PSS MB",
        title="Mouth to ear, and the cost of one process in the call",
    )  # fmt: skip
    for name, spoken in stacks.items():
        row = [f"{len(spoken.took_ms)}/{spoken.told}"]
        row += [f"{percentile(spoken.took_ms, share):.1f}" for share in (0.5, 0.99)]
        row += [f"{max(spoken.took_ms):.1f}", f"{spoken.cpu_per_s:.3f}" if spoken.cpu else "-"]
        row += [f"{megabytes:.1f}" for megabytes in spoken.memory_mb or ()]
        table.add_row(name, *row)
    return table


def _cpu(call: StandingCall) -> float:
    return 0.0 if call.pid is None else cpu_seconds(call.pid)
