"""A voice for the demo, made by arithmetic, and how much of it comes out at the other end."""

import numpy as np
from numpy.typing import NDArray

from hardware.audio.block import SAMPLE_RATE_HZ, Samples, saturated

VOICE_S = 1.25
_SEGMENT = SAMPLE_RATE_HZ // 5
_LIKENESS = 0.5
"""Codec, noise suppression and gain control change the waveform; another's voice stays below."""
_SYLLABLES_PER_S = 4
_FORMANTS_HZ = ((700, 1200), (400, 2000), (500, 900), (300, 2300), (600, 1700), (450, 1000))
"""The two lowest of some vowels, near those of Peterson and Barney (JASA 24, 1952)."""
_WIDTH_HZ = 150
_PEAK = 9000


def voice(pitch_hz: float) -> Samples:
    """Somebody who says a few syllables: 48 kHz, mono, `VOICE_S` long."""
    times = np.arange(round(VOICE_S * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    pitch = pitch_hz * (1 + 0.15 * np.sin(2 * np.pi * 0.9 * times))
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE_HZ
    syllable = (times * _SYLLABLES_PER_S).astype(int) % len(_FORMANTS_HZ)
    formants = np.asarray(_FORMANTS_HZ)[syllable]
    sound = np.zeros(len(times))
    for number in range(1, int(3500 / pitch_hz)):
        distance = (number * pitch[:, None] - formants) / _WIDTH_HZ
        sound += np.exp(-(distance**2) / 2).sum(axis=1) * np.sin(number * phase)
    sound *= np.abs(np.sin(np.pi * _SYLLABLES_PER_S * times)) ** 0.5
    return saturated(_PEAK * sound / np.abs(sound).max())


def fraction_heard(said: Samples, heard: Samples) -> float:
    """How much of what was said is found again in what was heard, 0 to 1.

    Each loud stretch of 200 ms is looked for by itself, by normalised cross-correlation: a jitter
    buffer may stretch the pauses between them.
    """
    parts = [said[at : at + _SEGMENT].astype(np.float64) for at in range(0, len(said), _SEGMENT)]
    loud = [part for part in parts if len(part) == _SEGMENT and part.std() > said.std() / 4]
    sound = heard.astype(np.float64)
    return sum(_best_likeness(part, sound) >= _LIKENESS for part in loud) / len(loud)


def _best_likeness(part: NDArray[np.float64], sound: NDArray[np.float64]) -> float:
    if len(sound) < len(part):
        return 0.0
    size = 1 << (len(sound) + len(part)).bit_length()
    products = np.fft.irfft(np.fft.rfft(sound, size) * np.conj(np.fft.rfft(part, size)), size)
    squares = np.concatenate(([0.0], np.cumsum(sound * sound)))
    powers = (squares[len(part) :] - squares[: -len(part)]) * (part @ part)
    likeness = np.abs(products[: len(powers)]) / np.sqrt(np.maximum(powers, 1.0))
    return float(likeness.max())
