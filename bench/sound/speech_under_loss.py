"""Speech both ways through a network that loses, delays and reorders, while one call stands: the share
that can still be understood, and the share that the jitter buffer made up."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from rich.table import Table

from bench.lab.lossy_network import Faults, LossyNetwork, Probed
from bench.lab.pulse_server import PulseServer
from bench.sound.audio_quality import speech
from bench.sound.mouth_to_ear import MakeCall, until_heard
from bench.sound.speech_heard import SpeechHeard, speech_heard

FAULTS = (Faults(), Faults(1), Faults(5), Faults(10), Faults(0, 50))
_SETTLE_S = 1.0
"""How long a jitter buffer has to notice."""


@dataclass(frozen=True, slots=True)
class UnderLoss:
    """One stack under some faults: both directions together; `concealed` on the called side, None
    where the stack does not count it."""

    heard: SpeechHeard
    concealed: float | None


async def measure_under_loss(
    pulse: PulseServer,
    network: LossyNetwork,
    make_call: MakeCall,
    seconds: float,
    progress: Callable[[str], None],
) -> dict[Faults, UnderLoss]:
    """One call through all faults."""
    caller, callee = pulse.parties[:2]
    told = {caller: speech(seconds), callee: speech(seconds, "en-us+f2", first=3)}
    found: dict[Faults, UnderLoss] = {}
    await network.set(Faults())
    async with make_call() as call:
        await until_heard(pulse)
        for faults in FAULTS:
            progress(str(faults))
            await network.set(faults)
            await asyncio.sleep(_SETTLE_S)
            before = await call.concealment() if call.concealment else None
            recording = await pulse.play_and_record(told)
            after = await call.concealment() if call.concealment else None
            both = [
                speech_heard(recording[f"{mouth}_mic"], recording[f"{ear}_speaker"])
                for mouth, ear in ((caller, callee), (callee, caller))
            ]
            found[faults] = UnderLoss(
                _together(*both), after.since(before) if after and before else None
            )
        await network.set(Faults())
    return found


async def probe_all(network: LossyNetwork, seconds: float) -> dict[Faults, Probed]:
    """What the network really does under each of the faults."""
    found: dict[Faults, Probed] = {}
    for faults in FAULTS:
        await network.set(faults)
        found[faults] = await network.probe(seconds)
    return found


def loss_table(
    kind: str, probed: dict[Faults, Probed], stacks: dict[str, dict[Faults, UnderLoss]]
) -> Table:
    """For people."""
    columns = [column for name in stacks for column in (f"{name}\nheard", "corr.", "made up")]
    table = Table("", "measured", *columns, title=f"Speech through network namespaces ({kind})")
    for faults, real in probed.items():
        row = [f"{real.lost:.1f} % lost, {real.delay_ms:.0f} ms"]
        for found in stacks.values():
            one = found[faults]
            row += [f"{one.heard.fraction:.2f}", f"{one.heard.correlation:.2f}"]
            row.append("-" if one.concealed is None else f"{100 * one.concealed:.1f} %")
        table.add_row(str(faults), *row)
    return table


def _together(one: SpeechHeard, other: SpeechHeard) -> SpeechHeard:
    windows = one.windows + other.windows
    return SpeechHeard(
        (one.fraction * one.windows + other.fraction * other.windows) / windows,
        (one.correlation * one.windows + other.correlation * other.windows) / windows,
        windows,
    )
