"""A PulseAudio daemon of the benchmark's own, with a microphone and a speaker for each party.

All of them are channels of one null sink, the wire, so that one recording holds what every microphone
was told and what every speaker played on one clock, sample by sample: what is measured between two
channels has no error of its own. A party sees an ordinary source and an ordinary sink.
"""

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from bench.lab.pulse_daemon import PulseDaemon

RATE_HZ = 48_000
Samples = NDArray[np.float32]
"""Mono sound at 48 kHz, -1 to 1."""

_UNHURRIED_MS = 250
"""The latency that mouth and ear ask for: so long that only the parties decide on the wire's own."""

_DAEMON = """realtime-scheduling = yes
rlimit-rttime = -1
"""
"""A sound card does not wait for a busy machine; and where that is busy for 0.2 s the kernel is not to
end the daemon, as its default limit would."""


class PulseServer:
    """The daemon, from `async with` to its end.

    Args:
        folder: Where its socket and settings go; its own.
        parties: Their names, which are in the names of their devices.
    """

    def __init__(self, folder: Path, parties: tuple[str, ...] = ("a", "b")) -> None:
        self.parties = parties
        self._channels = [f"{party}_{end}" for party in parties for end in ("mic", "speaker")]
        self._daemon = PulseDaemon(folder, tuple(self._modules()), settings=_DAEMON)

    @property
    def environment(self) -> dict[str, str]:
        """What any client of this server needs, and nothing of the user's own PulseAudio."""
        return {**os.environ, **self._daemon.environment}

    def environment_of(self, party: str) -> dict[str, str]:
        """For a party's process: its microphone and speaker are the default devices."""
        return {
            **self.environment,
            "PULSE_SOURCE": f"{party}_mic",
            "PULSE_SINK": f"{party}_speaker",
        }

    async def __aenter__(self) -> Self:
        self._daemon.spawn()
        try:
            await asyncio.to_thread(self._daemon.wait_ready)
        except BaseException:
            self._daemon.stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self._daemon.stop)

    async def play_and_record(self, told: Mapping[str, Samples]) -> dict[str, Samples]:
        """Tells each party's microphone something, all from the same sample on, and returns what all
        microphones and speakers carried meanwhile, and a second longer: `a_mic`, `a_speaker`, ...
        """
        async with self.recording() as carried:
            await self.play(told)
        return carried

    async def play(self, told: Mapping[str, Samples]) -> None:
        """Tells each party's microphone something, all from the same sample on."""
        length = max(len(samples) for samples in told.values())
        sound = np.zeros((length, len(self._channels)), np.float32)
        for party, samples in told.items():
            sound[: len(samples), self._channels.index(f"{party}_mic")] = samples
        mouth = await self._client("--playback", "--device=wire", stdin=asyncio.subprocess.PIPE)
        try:
            await mouth.communicate(sound.tobytes())
        finally:
            await end(mouth)

    @asynccontextmanager
    async def recording(self) -> AsyncIterator[dict[str, Samples]]:
        """What is given is filled, at the end, with all that was carried since the beginning."""
        carried: dict[str, Samples] = {}
        ear = await self._client(
            "--record", "--device=wire.monitor", stdout=asyncio.subprocess.PIPE
        )
        recorded = asyncio.create_task(_read(ear))
        try:
            yield carried
            # What was told last is still on its way, and the ear hands over what it has in long blocks.
            await asyncio.sleep(0.5 + 2 * _UNHURRIED_MS / 1000)
        finally:
            await end(ear)
            sound = np.frombuffer(await recorded, np.float32)
        sound = sound[: len(sound) // len(self._channels) * len(self._channels)]
        by_channel = sound.reshape(-1, len(self._channels))
        carried.update({name: by_channel[:, at].copy() for at, name in enumerate(self._channels)})

    async def _client(
        self, *arguments: str, stdin: int = DEVNULL, stdout: int = DEVNULL
    ) -> Process:
        positions = ",".join(f"aux{number}" for number in range(len(self._channels)))
        return await asyncio.create_subprocess_exec(
            "pacat",
            *arguments,
            "--raw",
            "--format=float32le",
            f"--rate={RATE_HZ}",
            f"--channels={len(self._channels)}",
            f"--channel-map={positions}",
            "--no-remix",
            f"--latency-msec={_UNHURRIED_MS}",
            env=self.environment,
            stdin=stdin,
            stdout=stdout,
        )

    def _modules(self) -> Iterator[str]:
        positions = ",".join(f"aux{number}" for number in range(len(self._channels)))
        yield (
            f"module-null-sink sink_name=wire rate={RATE_HZ} format=float32le"
            f" channels={len(self._channels)} channel_map={positions}"
        )
        for number, channel in enumerate(self._channels):
            kind, master = ("source", "wire.monitor") if "_mic" in channel else ("sink", "wire")
            yield (
                f"module-remap-{kind} {kind}_name={channel} master={master} channels=1"
                f" channel_map=mono master_channel_map=aux{number} remix=no"
                f" {kind}_properties=device.description={channel}"
            )


async def end(process: Process, patience_s: float = 5.0) -> None:
    """Ends a child: asks, then kills."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(patience_s):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _read(process: Process) -> bytes:
    if process.stdout is None:
        raise ValueError("its output is no pipe")
    return await process.stdout.read()
