"""Measures a call while it is on: its volume every 50 ms, its quality every second."""

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import reduce

import numpy as np

from agent.media.engine import Block, MediaStats
from agent.quality import Sample, SampleMaker
from agent.quality_warnings import QualityWatch, WarningCleared, WarningRaised
from agent.volume import volume_of

_VOLUME_EVERY_S = 0.05
_BLOCKS_OF_A_VOLUME = 5
_VOLUMES_OF_A_SAMPLE = 20


class VolumeMeter:
    """How loud the last 50 ms of a sound were. Its blocks may come on a thread of their own."""

    def __init__(self) -> None:
        self._blocks: deque[Block] = deque(maxlen=_BLOCKS_OF_A_VOLUME)

    def take(self, block: Block) -> None:
        """Takes the next block."""
        self._blocks.append(block)

    def read(self) -> float:
        """The volume of what came since the last reading, 0.0 to 1.0."""
        blocks = []
        while self._blocks:
            blocks.append(self._blocks.popleft())
        return volume_of(np.concatenate(blocks)) if blocks else 0.0


class CallMeter:
    """Measures one call.

    Args:
        stats: What the connections with its other parties count now.
        input_meter: Hears the microphone, as it is sent.
        output_meter: Hears the others.
        on_volume: Is told both volumes.
        on_sample: Is told each sample.
        on_warning: Is told of each warning, and that it is over.
        is_muted: Whether the microphone is muted, so that its silence means nothing.
        sleep: Waits.
    """

    def __init__(
        self,
        stats: Callable[[], Awaitable[Sequence[MediaStats]]],
        input_meter: VolumeMeter,
        output_meter: VolumeMeter,
        *,
        on_volume: Callable[[float, float], None],
        on_sample: Callable[[Sample], None],
        on_warning: Callable[[WarningRaised | WarningCleared], None],
        is_muted: Callable[[], bool],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._stats = stats
        self._input = input_meter
        self._output = output_meter
        self._on_volume = on_volume
        self._on_sample = on_sample
        self._on_warning = on_warning
        self._is_muted = is_muted
        self._sleep = sleep
        self._samples = SampleMaker()
        self._watch = QualityWatch()

    async def run(self) -> None:
        """Measures until cancelled."""
        while True:
            inputs, outputs = [], []
            for _ in range(_VOLUMES_OF_A_SAMPLE):
                await self._sleep(_VOLUME_EVERY_S)
                inputs.append(self._input.read())
                outputs.append(self._output.read())
                self._on_volume(inputs[-1], outputs[-1])
            stats = await self._stats()
            if not stats:
                continue
            sample = self._samples.make(reduce(_together, stats), inputs, outputs)
            self._on_sample(sample)
            for news in self._watch.watch(sample, inputs, muted=self._is_muted()):
                self._on_warning(news)


def _together(one: MediaStats, other: MediaStats) -> MediaStats:
    """What two connections of a call count: sums, and the worse of what is no count."""
    return replace(
        one,
        codec=one.codec or other.codec,
        bytes_sent=one.bytes_sent + other.bytes_sent,
        bytes_received=one.bytes_received + other.bytes_received,
        packets_sent=one.packets_sent + other.packets_sent,
        packets_received=one.packets_received + other.packets_received,
        packets_lost=one.packets_lost + other.packets_lost,
        jitter_s=_worse(one.jitter_s, other.jitter_s),
        round_trip_s=_worse(one.round_trip_s, other.round_trip_s),
    )


def _worse(one: float | None, other: float | None) -> float | None:
    known = [value for value in (one, other) if value is not None]
    return max(known, default=None)
