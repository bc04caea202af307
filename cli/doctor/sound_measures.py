"""Measures a sound card with its speaker and microphone: how long, and how loud, what is played
comes back, before and after processing."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bellwire.config.agent.audio import AudioSettings, ProcessingSettings
from bellwire.hardware.audio.block import (
    BLOCK_FRAMES,
    SAMPLE_RATE_HZ,
    SILENCE,
    SILENT_DB,
    Block,
    Samples,
    level_db,
    saturated,
)
from bellwire.hardware.audio.sound import Sound

_START_S = 5.0
_QUIET_S = 0.5
_PLAYED_S = 3.0
_SWEEP_S = 0.5
_HEARD_AT_LEAST = 6.0
"""How far the correlation's peak stands above its RMS where the sweep was heard at all."""


@dataclass(frozen=True, slots=True)
class SoundMeasures:
    """What was measured. Levels in dB of full scale; `left_db` is the echo after processing."""

    captured_blocks: int = 0
    noise_db: float = SILENT_DB
    round_trip_s: float | None = None
    echo_db: float = SILENT_DB
    left_db: float = SILENT_DB
    fault: str | None = None


OnLevels = Callable[[float, float], None]


async def measure(settings: AudioSettings, on_levels: OnLevels = lambda *_: None) -> SoundMeasures:
    """Plays sweeps twice, without and with processing, and listens. Takes some 8 s.

    Args:
        settings: The devices, how loud, and the processing to be measured.
        on_levels: Told the levels of microphone and speaker ten times a second.
    """
    off = ProcessingSettings(**dict.fromkeys(ProcessingSettings.model_fields, False))
    plain = await _listen(settings.model_copy(update={"processing": off}), on_levels)
    if isinstance(plain, str):
        return SoundMeasures(fault=plain)
    round_trip_s = _round_trip(plain)
    processed = await _listen(settings, on_levels)
    if isinstance(processed, str):
        return SoundMeasures(fault=processed)
    last = round((_PLAYED_S - 1) * SAMPLE_RATE_HZ)
    return SoundMeasures(
        captured_blocks=len(plain.captured) // BLOCK_FRAMES,
        noise_db=level_db(plain.captured[: plain.began]),
        round_trip_s=round_trip_s,
        echo_db=level_db(plain.captured[plain.began :][-last:]),
        left_db=level_db(processed.captured[processed.began :][-last:]),
    )


@dataclass(frozen=True, slots=True)
class _Heard:
    captured: Samples
    began: int
    """How many samples were captured when the first of the sweep was given to the speaker."""


class _Sweeps:
    """A source: 300 Hz to 6 kHz in half a second, again and again, once it is `started`."""

    def __init__(self) -> None:
        self.volume = 1.0
        self.is_started = False
        self.on_first: Callable[[], None] = lambda: None
        self._blocks = sweep().reshape(-1, BLOCK_FRAMES)
        self._next = 0

    def pull(self) -> Block:
        if not self.is_started:
            return SILENCE
        if not self._next:
            self.on_first()
        block: Block = self._blocks[self._next % len(self._blocks)]
        self._next += 1
        return block


def sweep() -> Samples:
    """The test sound."""
    times = np.arange(round(_SWEEP_S * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    phase = 2 * np.pi * (300 * times + (6000 - 300) / (2 * _SWEEP_S) * times**2)
    return saturated(8000 * np.sin(phase) * np.hanning(len(times)))


async def _listen(settings: AudioSettings, on_levels: OnLevels) -> _Heard | str:
    """What is captured while sweeps are played, or what is wrong."""
    captured: list[Block] = []
    began: list[int] = []
    sweeps = _Sweeps()
    sweeps.on_first = lambda: began.append(len(captured) * BLOCK_FRAMES)
    sound = Sound(settings.model_copy(update={"enabled": True}))
    sound.mixer.add(sweeps)
    sound.open_voice(captured.append)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(sound.run())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_S):
                await sound.flowing()
        await _show(sound, _QUIET_S, on_levels)
        sweeps.is_started = True
        await _show(sound, _PLAYED_S, on_levels)
        fault = sound.fault
        running.cancel()
    if fault is not None:
        return fault
    heard = np.concatenate([SILENCE[:0], *captured])
    return _Heard(heard, began[0] if began else len(heard))


async def _show(sound: Sound, seconds: float, on_levels: OnLevels) -> None:
    for _ in range(round(seconds * 10)):
        await asyncio.sleep(0.1)
        on_levels(sound.input_db, sound.output_db)


def _round_trip(heard: _Heard) -> float | None:
    """How long the first sweep took to come back, or None if it did not."""
    after = heard.captured[heard.began :][: round(2 * _SWEEP_S * SAMPLE_RATE_HZ)]
    played = sweep()
    if len(after) < len(played):
        return None
    found = np.abs(_correlation(after, played))
    peak = int(found.argmax())
    if found[peak] < _HEARD_AT_LEAST * np.sqrt(np.mean(found**2)) or not found[peak]:
        return None
    return peak / SAMPLE_RATE_HZ


def _correlation(heard: Samples, played: Samples) -> NDArray[np.float64]:
    size = 1 << (len(heard) + len(played)).bit_length()
    spectrum = np.fft.rfft(heard, size) * np.conj(np.fft.rfft(played, size))
    return np.asarray(np.fft.irfft(spectrum, size)[: len(heard) - len(played) + 1])
