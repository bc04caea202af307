"""What was heard of what was said: the latency of chirps, the share of speech that arrived, and how
much of an echo is gone. Pure arithmetic on recordings (float32, 48 kHz)."""

import subprocess
import tempfile
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from bench.lab.pulse_server import RATE_HZ, Samples

CHIRP_PERIOD_S = 0.5
_CHIRP_S = 0.08
_SWEEPS_HZ = ((400, 2_000), (3_600, 2_000), (2_000, 400), (2_000, 3_600))
"""From and to; each chirp is unlike the three before it and the three after."""

_LONGEST_LATENCY_S = 1.4
"""Shorter than from one chirp to the next that is like it."""

_CLEAR_CHIRP = 0.5
"""Normalised correlation from which a chirp is recognised."""

_ITSELF = 0.98
"""Normalised correlation that only the chirp itself has, where it was told."""

_SENTENCES = (
    "The birch canoe slid on the smooth planks. Glue the sheet to the dark blue background.",
    "It is easy to tell the depth of a well. These days a chicken leg is a rare dish.",
    "Rice is often served in round bowls. The juice of lemons makes fine punch.",
    "The box was thrown beside the parked truck. The hogs were fed chopped corn and garbage.",
    "Four hours of steady work faced us. A large size in stockings is hard to sell.",
    "The boy was there when the sun rose. A rod is used to catch pink salmon.",
)
"""Of the Harvard sentences (IEEE Recommended Practice for Speech Quality Measurements, 1969)."""


def speech(seconds: float, voice: str = "en-us+m3", first: int = 0) -> Samples:
    """espeak-ng reading sentences for so long, at about -20 dBFS while it speaks."""
    sentences = [_SENTENCES[(first + at) % len(_SENTENCES)] for at in range(len(_SENTENCES))]
    with tempfile.TemporaryDirectory(prefix="bellwire-voice-") as folder:
        path = Path(folder) / "voice.wav"
        command = ["espeak-ng", "-v", voice, "-s", "160", "-w", str(path), " ".join(sentences)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)  # noqa: S603
        with wave.open(str(path)) as file:
            rate = file.getframerate()
            spoken = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    samples = soxr.resample(spoken.astype(np.float32) / 32768, rate, RATE_HZ)
    samples *= 0.1 / np.sqrt(np.mean(np.square(samples[np.abs(samples) > 0.01])))
    length = int(seconds * RATE_HZ)
    long_enough = np.tile(samples, length // len(samples) + 1)[:length]
    return np.asarray(np.clip(long_enough, -1, 1), np.float32)


def chirps(count: int) -> Samples:
    """So many chirps, one in the middle of each period."""
    periods = np.zeros((count, int(CHIRP_PERIOD_S * RATE_HZ)), np.float32)
    start = (periods.shape[1] - int(_CHIRP_S * RATE_HZ)) // 2
    for number, period in enumerate(periods):
        chirp = _chirp(*_SWEEPS_HZ[number % len(_SWEEPS_HZ)])
        period[start : start + len(chirp)] = chirp
    return periods.ravel()


def _chirp(from_hz: float, to_hz: float) -> Samples:
    at = np.arange(int(_CHIRP_S * RATE_HZ)) / RATE_HZ
    sweep = np.sin(2 * np.pi * (from_hz * at + (to_hz - from_hz) / (2 * _CHIRP_S) * at**2))
    chirp: Samples = (0.3 * sweep * np.hanning(len(at))).astype(np.float32)
    return chirp


@dataclass(frozen=True, slots=True)
class Latencies:
    """Milliseconds of each chirp that was recognised, and how many were told."""

    took_ms: list[float]
    told: int


def chirp_latencies(told: Samples, heard: Samples) -> Latencies:
    """From the microphone to the other's speaker, chirp by chirp, of two channels of one recording."""
    took: list[float] = []
    told_count = 0
    for sweep in _SWEEPS_HZ:
        chirp = _chirp(*sweep)
        for start in _chirp_starts(told, chirp):
            told_count += 1
            window = heard[start : start + int(_LONGEST_LATENCY_S * RATE_HZ)]
            if len(window) <= len(chirp):
                continue
            likeness = np.abs(_normalised(chirp, window))
            best = int(np.argmax(likeness))
            if likeness[best] >= _CLEAR_CHIRP:
                took.append(best * 1000 / RATE_HZ)
    return Latencies(took, told_count)


def _chirp_starts(told: Samples, chirp: Samples) -> list[int]:
    likeness = _normalised(chirp, told)
    starts: list[int] = []
    at = 0
    while at < len(likeness):
        above = np.flatnonzero(likeness[at : at + RATE_HZ] > _ITSELF)
        if len(above) == 0:
            at += RATE_HZ
            continue
        first = at + int(above[0])
        starts.append(first + int(np.argmax(likeness[first : first + RATE_HZ // 1000])))
        at = first + len(chirp)
    return starts


def likeness(told: Samples, heard: Samples) -> float:
    """Normalised correlation of two sounds of one length at the best delay of up to 30 ms."""
    length = min(len(told), len(heard))
    late = int(0.03 * RATE_HZ)
    return float(np.max(_normalised(told[: length - late], heard[:length])))


def level_db(samples: Samples) -> float:
    """Mean power over full scale, in dB."""
    return float(10 * np.log10(np.mean(np.square(samples, dtype=np.float64)) + 1e-12))


def _normalised(pattern: Samples, sound: Samples) -> NDArray[np.float64]:
    """Correlation of a pattern with each stretch of a sound, -1 to 1; 0 where the sound is silent."""
    size = 1 << (len(pattern) + len(sound) - 1).bit_length()
    spectrum = np.fft.rfft(sound, size) * np.conj(np.fft.rfft(pattern, size))
    products = np.fft.irfft(spectrum, size)[: len(sound) - len(pattern) + 1]
    squares = np.concatenate([[0.0], np.cumsum(np.square(sound, dtype=np.float64))])
    power = squares[len(pattern) :] - squares[: -len(pattern)]
    floor = len(pattern) * 1e-8
    scale = np.sqrt(np.maximum(power, floor) * np.sum(np.square(pattern, dtype=np.float64)))
    return np.where(power > floor, products / scale, 0.0)
