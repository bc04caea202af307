"""Speech to send into a call, and how much of it comes out at the other end."""

import subprocess
from functools import cache

import numpy as np
import soxr
from numpy.typing import NDArray

RATE_HZ = 48_000
_COMPARED_HZ = 16_000
"""Speech is told from speech at a third of the rate as well, at a quarter of the cost."""
_SEGMENT = _COMPARED_HZ // 5

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
    said, heard = (np.asarray(soxr.resample(each, RATE_HZ, _COMPARED_HZ)) for each in (said, heard))
    loud = np.abs(said.astype(float)).max() * 0.05
    parts = [said[at : at + _SEGMENT].astype(float) for at in range(0, said.size, _SEGMENT // 2)]
    voiced = [part for part in parts if part.size == _SEGMENT and part.std() > loud]
    return float(np.mean(_best_likenesses(voiced, heard.astype(float)) >= likeness))


def _best_likenesses(
    parts: list[NDArray[np.float64]], sound: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Each part's highest normalised cross-correlation with any stretch of the sound."""
    if sound.size < _SEGMENT:
        return np.zeros(len(parts))
    size = 1 << int(sound.size + _SEGMENT).bit_length()
    spectrum = np.fft.rfft(sound, size)
    energy = np.concatenate(([0.0], np.cumsum(sound**2)))
    loudness = np.sqrt(energy[_SEGMENT:] - energy[:-_SEGMENT])
    found = np.empty(len(parts))
    for number, part in enumerate(parts):
        product = spectrum * np.conj(np.fft.rfft(part, size))
        matches = np.fft.irfft(product, size)[: loudness.size]
        norms = np.maximum(loudness * np.sqrt((part**2).sum()), 1e3)
        found[number] = (np.abs(matches) / norms).max()
    return found
