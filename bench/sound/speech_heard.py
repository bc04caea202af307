"""Which share of what was said could be understood at the other end.

By the short-time objective intelligibility measure (Taal, Hendriks, Heusdens, Jensen, IEEE TASLP 19(7),
2011): the loudness of 15 third-octave bands over 384 ms is correlated between the two ends, which asks
for the same speech and not for the same waveform (a jitter buffer stretches, a codec shifts phases).
"""

from dataclasses import dataclass

import numpy as np
import soxr
from numpy.typing import NDArray

from bench.lab.pulse_server import RATE_HZ, Samples

HEARD_CORRELATION = 0.75
"""From here a window counts as heard. Windows of other speech stay below: `chance_heard` says how
many do not."""

_RATE_HZ = 10_000
_FRAME, _HOP, _FFT = 256, 128, 512
_WINDOW = 30
_CLIP = 1 + 10 ** (15 / 20)
_LOUD_DB = -30.0
"""How far below the loudest windows one may be to count as spoken."""

_LONGEST_DELAY = 78
_SWAY = 4
"""In hops of 12.8 ms, a second and 50 ms: the longest delay that is looked for, and how far a jitter
buffer may be from its usual delay."""

_STRETCH = 10 * _WINDOW
"""In hops, 3.8 s: the speech for which a usual delay is found."""

Bands = NDArray[np.float64]
"""Loudness in each band and frame, shape (15, frames)."""


@dataclass(frozen=True, slots=True)
class SpeechHeard:
    """Of the windows in which somebody spoke: the share that was heard, and the mean correlation."""

    fraction: float
    correlation: float
    windows: int


def speech_heard(told: Samples, heard: Samples) -> SpeechHeard:
    """Of two channels of one recording: what one was told and the other played."""
    said, played = _bands(told), _bands(heard)
    energy = 10 * np.log10(np.sum(np.square(said), axis=0) + 1e-9)
    found: list[float] = []
    for first in range(0, said.shape[1] - _WINDOW, _STRETCH):
        stretch = said[:, first : first + _STRETCH]
        delay = _usual_delay(stretch, played[:, first : first + _STRETCH + _LONGEST_DELAY])
        for start in range(first, min(first + _STRETCH, said.shape[1] - _WINDOW), _WINDOW // 2):
            if np.mean(energy[start : start + _WINDOW]) >= np.max(energy) + _LOUD_DB:
                window = said[:, start : start + _WINDOW]
                found.append(_best_likeness(window, played, start + delay))
    if not found:
        raise ValueError("nothing was said")
    return SpeechHeard(
        float(np.mean(np.array(found) >= HEARD_CORRELATION)), float(np.mean(found)), len(found)
    )


def chance_heard(told: Samples, other: Samples) -> float:
    """The share of windows that would count as heard although something else was said."""
    return speech_heard(told, other).fraction


def _best_likeness(window: Bands, played: Bands, expected: int) -> float:
    last = played.shape[1] - _WINDOW
    shifts = range(max(0, expected - _SWAY), min(expected + _SWAY, last) + 1)
    return max((_likeness(window, played[:, at : at + _WINDOW]) for at in shifts), default=0.0)


def _usual_delay(said: Bands, played: Bands) -> int:
    """In hops: the delay at which a stretch is most like what was played."""
    size = said.shape[1] + played.shape[1]
    ours = np.log10(said + 1e-3)
    theirs = np.log10(played + 1e-3)
    ours -= ours.mean(axis=1, keepdims=True)
    theirs -= theirs.mean(axis=1, keepdims=True)
    spectra = np.fft.rfft(theirs, size) * np.conj(np.fft.rfft(ours, size))
    return int(np.argmax(np.fft.irfft(spectra.sum(axis=0), size)[:_LONGEST_DELAY]))


def _likeness(said: Bands, heard: Bands) -> float:
    """The measure of one window: as loud as what was said, clipped at -15 dB, correlated by band."""
    loudness = np.linalg.norm(heard, axis=1, keepdims=True)
    scaled = heard * np.linalg.norm(said, axis=1, keepdims=True) / (loudness + 1e-9)
    clipped = np.minimum(scaled, said * _CLIP)
    ours = said - said.mean(axis=1, keepdims=True)
    theirs = clipped - clipped.mean(axis=1, keepdims=True)
    scale = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1) + 1e-9
    return float(np.mean(np.sum(ours * theirs, axis=1) / scale))


def _bands(samples: Samples) -> Bands:
    slow = soxr.resample(samples, RATE_HZ, _RATE_HZ)
    frames = np.lib.stride_tricks.sliding_window_view(slow, _FRAME)[::_HOP]
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(_FRAME), _FFT)))
    frequencies = np.fft.rfftfreq(_FFT, 1 / _RATE_HZ)
    middles = 150 * 2 ** (np.arange(15) / 3)
    of_band = np.array(
        [
            (frequencies >= middle * 2 ** (-1 / 6)) & (frequencies < middle * 2 ** (1 / 6))
            for middle in middles
        ]
    )
    loudness: Bands = np.sqrt(of_band.astype(float) @ power.T)
    return loudness
