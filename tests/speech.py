"""Speech to send into a call, and how much of it comes out at the other end."""

import subprocess
from functools import cache

import numpy as np
import soxr
from numpy.typing import NDArray

RATE_HZ = 48_000
_SEGMENT = RATE_HZ // 5

Sound = NDArray[np.int16]


@cache
def say(text: str, voice: str = "en") -> Sound:
    """What espeak-ng says: 48 kHz, mono."""
    wav = subprocess.run(  # noqa: S603 - our own arguments
        ["/usr/bin/espeak-ng", "-v", voice, "--stdout", text], check=True, capture_output=True
    ).stdout
    # espeak-ng writes 44 bytes of header for a stream of unknown length, 22,050 Hz.
    spoken = soxr.resample(np.frombuffer(wav[44:], np.int16), 22_050, RATE_HZ)
    return np.asarray(spoken, np.int16)


def fraction_heard(said: Sound, heard: Sound, *, likeness: float = 0.6) -> float:
    """How much of the voiced parts of `said` is found again in `heard`, 0 to 1.

    Each stretch of 200 ms is looked for by itself, by normalised cross-correlation: a jitter buffer
    may stretch the pauses, a lost packet spoils its own part only.
    """
    loud = np.abs(said.astype(float)).max() * 0.05
    parts = [said[at : at + _SEGMENT].astype(float) for at in range(0, said.size, _SEGMENT // 2)]
    voiced = [part for part in parts if part.size == _SEGMENT and part.std() > loud]
    found = sum(best_likeness(part, heard) >= likeness for part in voiced)
    return found / len(voiced)


def best_likeness(part: NDArray[np.float64], heard: Sound) -> float:
    """The highest normalised cross-correlation of `part` with any stretch of `heard`."""
    if heard.size < part.size:
        return 0.0
    sound = heard.astype(float)
    size = 1 << int(sound.size + part.size).bit_length()
    product = np.fft.rfft(sound, size) * np.conj(np.fft.rfft(part, size))
    matches = np.fft.irfft(product, size)[: sound.size - part.size + 1]
    energy = np.concatenate(([0.0], np.cumsum(sound**2)))
    norms = np.sqrt((energy[part.size :] - energy[: -part.size]) * (part**2).sum())
    return float((np.abs(matches) / np.maximum(norms, 1e3)).max())
