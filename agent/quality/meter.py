"""Measures a call while it is on: its volume every 50 ms, its quality every second.

A volume is 0.0 to 1.0 over -100 to -30 dB (spec §4, seed 003 "volume"), measured as Twilio's client does
(W3C Web Audio, AnalyserNode with fftSize 32): the mean over 16 bands of each band's level, so that speech
stays clear of the upper end, which its power alone would pass.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from bellwire.agent.media.engine.interface import Block, MediaStats
from bellwire.agent.quality.sample import Sample, SampleMaker
from bellwire.agent.quality.warnings import QualityWatch, WarningCleared, WarningRaised
from bellwire.config.waiting import Sleep
from bellwire.hardware.audio.block import volume

_FRAME = 32
_BANDS = _FRAME // 2
_TURNS = 2 * np.pi * np.arange(_FRAME) / _FRAME
_BLACKMAN = 0.42 - 0.5 * np.cos(_TURNS) + 0.08 * np.cos(2 * _TURNS)
_CYCLES = np.outer(np.arange(_FRAME), np.arange(_BANDS)) / _FRAME
_TRANSFORM = (
    np.concatenate((np.cos(2 * np.pi * _CYCLES), np.sin(2 * np.pi * _CYCLES)), axis=1)
    * (_BLACKMAN / (_FRAME * 32768))[:, None]
).astype(np.float32)
"""The window and the Fourier transform at once, shape (32, 2 * 16): real parts, then imaginary ones.
For frames this short a product of matrices takes a fifth of the time of an FFT."""
_POWER_OF_SILENCE = 1e-12


def volume_of(samples: NDArray[np.int16]) -> float:
    """The volume of a stretch of sound, 0.0 to 1.0.

    Args:
        samples: int16, one dimension, at least 32 long; five blocks make Twilio's 50 ms. What is left
            over of a multiple of 32 is not measured.

    Raises:
        ValueError: it is shorter, or has another shape.
    """
    if samples.ndim != 1 or len(samples) < _FRAME:
        raise ValueError(f"a volume needs {_FRAME} samples or more, not shape {samples.shape}")
    frames = samples[: len(samples) // _FRAME * _FRAME].reshape(-1, _FRAME).astype(np.float32)
    parts = frames @ _TRANSFORM
    squares = np.einsum("fb,fb->b", parts, parts) / len(frames)
    power = squares[:_BANDS] + squares[_BANDS:]
    levels_db: list[float] = (10 * np.log10(power + _POWER_OF_SILENCE)).tolist()
    return sum(map(volume, levels_db)) / _BANDS


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
        sleep: Sleep,
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
