"""What a call sounds like and what it costs, each figure beside its baseline in the same run.

Parts: `calls` (mouth to ear, CPU and memory: agents, Chromium, baresip and aiortc in turn), `loss`
(speech through a network that loses and delays), `echo` and `drift` (in virtual time). Agents and
Chromium process the voice as they do by default in `calls`; in `loss` neither does, so that what was
heard tells of the network. baresip and aiortc never do.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from playwright.async_api import Error as PlaywrightError
from rich.console import Console
from rich.table import Table

from bellwire.agent.media.engine.interface import Block
from bellwire.cli.process.logs import configure_logs
from bellwire.config.agent.audio import ProcessingSettings
from bellwire.hardware.audio.drift import DriftingSource
from bellwire.hardware.audio.voice_processing import VoiceProcessing
from bellwire.signaling.errors import Refusal
from bench.lab.command_line import stoppable
from bench.lab.lossy_network import Faults, LossyNetwork
from bench.lab.measures import memory_mb, percentile
from bench.lab.pulse_server import PulseServer
from bench.peers.aiortc_call import aiortc_call
from bench.peers.baresip_call import baresip_call
from bench.peers.chromium_call import chromium_call
from bench.sound.agent_call import agent_stage
from bench.sound.audio_quality import speech
from bench.sound.drift import PlainQueue, PlayoutQueue, count_tears
from bench.sound.echo import EchoResult, Stage, bare_library, measure_echo, untouched
from bench.sound.mouth_to_ear import (
    MakeCall,
    Spoken,
    instrument_error_ms,
    latency_table,
    measure_call,
)
from bench.sound.speech_heard import chance_heard
from bench.sound.speech_under_loss import UnderLoss, loss_table, measure_under_loss, probe_all

_IDLE_S = 3.0
"""How long after its start an agent is idle."""

_CHANCE_S = 14.0
_PPM = 200.0
_BUSY = 1.0
"""The load from which the figures say more about the machine than about the product."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured."""

    rounds: int = 2
    chirps: int = 8
    speech_s: float = 6
    drift_s: float = 600


PARTS = ("calls", "loss", "echo", "drift")
QUICK = Extent(rounds=1, chirps=6, speech_s=4, drift_s=600)
Figures = dict[str, float]
NOT_MEASURED = (SystemExit, OSError, TimeoutError, Refusal, PlaywrightError)
"""Why one thing may not be measured while others can."""


class SoundBench:
    """One run: its console and its figures."""

    def __init__(self, extent: Extent) -> None:
        self.extent = extent
        self.figures: Figures = {}
        self.failed: list[str] = []
        self._started = time.monotonic()
        self._progress = Console(stderr=True)
        self._tables = Console(width=110)

    def tell(self, what: str) -> None:
        """Shows how far it is."""
        self._progress.print(f"[dim]{time.monotonic() - self._started:5.0f} s[/] {what}")

    def fail(self, what: str, error: BaseException) -> None:
        """Notes what could not be measured; the others go on."""
        self.failed.append(what)
        self.tell(f"[red]{what} could not be measured[/]: {str(error) or type(error).__name__}")

    def show(self, table: Table) -> None:
        """Shows what came out."""
        self._tables.print(table)

    async def calls(self) -> None:
        """Latency, CPU and memory."""
        async with _stage() as (opened, pulse, folder):
            self.figures["instrument_error_ms"] = await instrument_error_ms(pulse)
            self.tell("calls: relay and agents start")
            stage = await opened.enter_async_context(agent_stage(pulse, folder))
            await asyncio.sleep(_IDLE_S)
            rss, pss = memory_mb(stage.pid(pulse.parties[1]))
            self.figures |= {"idle_rss_mb": rss, "idle_pss_mb": pss}
            stacks: dict[str, MakeCall] = {
                "agent": stage.call,
                "chromium": lambda: chromium_call(pulse, folder, processing=True),
                "baresip": lambda: baresip_call(pulse, folder),
                "aiortc": lambda: aiortc_call(pulse),
            }
            spoken = {name: Spoken() for name in stacks}
            for number in range(self.extent.rounds):
                for name in [*stacks]:
                    self.tell(f"calls, round {number + 1} of {self.extent.rounds}: {name}")
                    try:
                        await measure_call(pulse, stacks[name], self.extent.chirps, spoken[name])
                    except NOT_MEASURED as error:
                        self.fail(f"calls of {name}", error)
                        del stacks[name]
        spoken = {name: calls for name, calls in spoken.items() if calls.took_ms}
        self.show(latency_table(spoken))
        self._keep_calls(spoken)

    def _keep_calls(self, spoken: dict[str, Spoken]) -> None:
        for name, calls in spoken.items():
            title = "mouth_to_ear" if name == "agent" else name
            self.figures[f"{title}_p50_ms"] = calls.p50_ms
            self.figures[f"{title}_p99_ms"] = percentile(calls.took_ms, 0.99)
            if calls.cpu:
                self.figures[f"cpu_per_s_{name}"] = calls.cpu_per_s
        agent = spoken.get("agent")
        if agent is None:
            return
        if agent.memory_mb is not None:
            self.figures["call_rss_mb"], self.figures["call_pss_mb"] = agent.memory_mb
        if "chromium" in spoken:
            self.figures["ratio_chromium"] = agent.p50_ms / spoken["chromium"].p50_ms
        for name in ("baresip", "aiortc"):
            if name in spoken:
                self.figures[f"cpu_ratio_{name}"] = agent.cpu_per_s / spoken[name].cpu_per_s

    async def loss(self) -> None:
        """Speech under loss and jitter."""
        async with _stage() as (opened, pulse, folder):
            network = await opened.enter_async_context(LossyNetwork())
            self.tell(f"loss: the network itself ({network.kind})")
            probed = await probe_all(network, 2)
            self.figures["heard_by_chance"] = await asyncio.to_thread(
                chance_heard, speech(_CHANCE_S), speech(_CHANCE_S, "en-us+f2", first=3)
            )
            self.tell("loss: relay and agents start")
            stage = await opened.enter_async_context(
                agent_stage(pulse, folder, processing=False, namespaces=True, counted=True)
            )
            stacks: dict[str, MakeCall] = {
                "agent": stage.call,
                "chromium": lambda: chromium_call(pulse, folder, processing=False, namespaces=True),
            }
            found: dict[str, dict[Faults, UnderLoss]] = {}
            for name, make_call in stacks.items():
                try:
                    found[name] = await measure_under_loss(
                        pulse,
                        network,
                        make_call,
                        self.extent.speech_s,
                        partial(self._tell_loss, name),
                    )
                except NOT_MEASURED as error:
                    self.fail(f"loss of {name}", error)
        self.show(loss_table(network.kind, probed, found))
        for name, by_faults in found.items():
            prefix = "" if name == "agent" else f"{name}_"
            for faults, one in by_faults.items():
                self.figures[f"{prefix}heard_at_{faults.key}"] = one.heard.fraction
                if one.concealed is not None:
                    self.figures[f"{prefix}concealed_at_{faults.key}"] = one.concealed

    def _tell_loss(self, name: str, faults: str) -> None:
        self.tell(f"loss: {name}, {faults}")

    async def echo(self) -> None:
        """Echo and double talk, in virtual time."""
        stages: dict[str, Callable[[], Stage]] = {
            "agent": _agent_processing,
            "agent, with gain control": lambda: _agent_processing(gain_control=True),
            "bare library": bare_library,
            "no processing": lambda: untouched,
        }
        results: dict[str, EchoResult] = {}
        for name, make_stage in stages.items():
            self.tell(f"echo: {name}")
            results[name] = await asyncio.to_thread(measure_echo, make_stage())
        table = Table(
            "", "ERLE dB", "near kept", "same, as waveform", title="Echo after 60 ms",
            caption="The near voice in double talk, with what is sent: by the loudness of its bands, "
            "and sample by sample, where gain control counts as a fault, and the echo even "
            "without any processing",
        )  # fmt: skip
        for name, result in results.items():
            table.add_row(
                name,
                f"{result.erle_db:.1f}",
                f"{result.near_kept:.2f}",
                f"{result.near_waveform_kept:.2f}",
            )
        self.show(table)
        ours = results["agent"]
        self.figures |= {
            "erle_db": ours.erle_db,
            "erle_db_bare_library": results["bare library"].erle_db,
            "near_kept": ours.near_kept,
            "near_kept_bare_library": results["bare library"].near_kept,
            "near_waveform_kept": ours.near_waveform_kept,
            "near_waveform_kept_bare_library": results["bare library"].near_waveform_kept,
        }

    async def drift(self) -> None:
        """Two clocks, in virtual time."""
        self.tell(f"drift: {self.extent.drift_s / 60:g} min of virtual time each")
        sources: dict[str, Callable[[], PlayoutQueue]] = {
            "agent": DriftingSource,
            "plain queue": PlainQueue,
        }
        loop = asyncio.get_running_loop()
        # Spawned: a forked child would share this loop's signals.
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
            counting = {
                name: [
                    loop.run_in_executor(pool, count_tears, make, ppm, self.extent.drift_s)
                    for ppm in (_PPM, -_PPM)
                ]
                for name, make in sources.items()
            }
            tears = {name: sum(await asyncio.gather(*two)) for name, two in counting.items()}
        table = Table("", "tears", title=f"+-{_PPM:g} ppm for {self.extent.drift_s:g} s each")
        for name, count in tears.items():
            table.add_row(name, str(count))
        self.show(table)
        self.figures |= {
            "drift_tears": tears["agent"],
            "drift_tears_uncompensated": tears["plain queue"],
        }


@asynccontextmanager
async def _stage() -> AsyncIterator[tuple[AsyncExitStack, PulseServer, Path]]:
    """A folder, a sound server, and whatever is opened beside them; all ended when it is left."""
    async with AsyncExitStack() as opened:
        folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="bellwire-bench-"))
        pulse = await opened.enter_async_context(PulseServer(Path(folder) / "pulse"))
        yield opened, pulse, Path(folder)


def _agent_processing(*, gain_control: bool = False) -> Stage:
    processing = VoiceProcessing(ProcessingSettings(gain_control=gain_control))
    # What the sound card's latency adds is known to the agent; the 60 ms of air are not.
    processing.set_delay(0)

    def process(played: Block, heard: Block) -> Block:
        processing.played(played)
        return processing.captured(heard)

    return process


async def run(parts: list[str], extent: Extent) -> bool:
    """Runs the parts; True if all could be measured. The last line printed is the result."""
    bench = SoundBench(extent)
    load = os.getloadavg()[0]
    bench.figures["load_before"] = load
    if load > _BUSY:
        bench.tell(
            f"[yellow]this machine is busy (load {load:.1f}): sound will be late and torn[/]"
        )
    works: dict[str, Callable[[], Awaitable[None]]] = {
        "calls": bench.calls,
        "loss": bench.loss,
        "echo": bench.echo,
        "drift": bench.drift,
    }
    for part in parts or works:
        try:
            await works[part]()
        except NOT_MEASURED as error:
            bench.fail(part, error)
    print(json.dumps({name: round(figure, 3) for name, figure in bench.figures.items()}))
    return not bench.failed


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="bench/audio", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, shorter speech")
    parser.add_argument(
        "--only", metavar="PART", action="append", default=[], choices=PARTS,
        help=f"{', '.join(PARTS)}; may be given more than once",
    )  # fmt: skip
    asked = parser.parse_args()
    configure_logs("error")
    with stoppable():
        sys.exit(not asyncio.run(run(asked.only, QUICK if asked.quick else Extent())))


if __name__ == "__main__":
    main()
