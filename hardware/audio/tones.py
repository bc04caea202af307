"""Ring tones and the tones that say how a call goes: made by arithmetic, or read from a WAV file."""

import wave
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bellwire.config.agent.audio import RING_TONES
from bellwire.hardware.audio.block import BLOCK_FRAMES, SAMPLE_RATE_HZ, Block, Samples, saturated

MAX_FILE_S = 60.0
RATES_HZ = range(8_000, 192_001)
"""Of sound that can be read."""
_MAX_FILE_BYTES = 32_000_000
_PEAK = 0.35 * 32767
_FADE_S = 0.005


class BadTone(ValueError):
    """No tone of that name, or a file that cannot be played; says what was expected."""


@dataclass(frozen=True, slots=True)
class ToneCadence:
    """Frequencies that sound together, and seconds on, off, on, off, from the start again."""

    frequencies_hz: tuple[float, ...]
    steps_s: tuple[float, ...]


# ITU-T E.180/Q.35: 425 Hz, the cadences most European administrations use.
RINGBACK = ToneCadence((425,), (1.0, 4.0))
BUSY = ToneCadence((425,), (0.5, 0.5))
CONGESTION = ToneCadence((425,), (0.25, 0.25))
# 47 CFR 64.501 and ITU-T E.180 Supplement 2 (North America, recording tone).
RECORDING_NOTICE = ToneCadence((1400,), (0.2, 14.8))


class LoopedTone:
    """A source (`hardware.audio.mixer`) that plays the same again and again.

    Args:
        tone: What, as a cadence or as samples.
        volume: 0 to 1.
    """

    def __init__(self, tone: ToneCadence | Samples, volume: float = 1.0) -> None:
        self.volume = volume
        self._samples = rendered(tone) if isinstance(tone, ToneCadence) else tone
        self._at = 0

    def restart(self) -> None:
        """Plays it from its beginning."""
        self._at = 0

    def pull(self) -> Block:
        """The next 10 ms."""
        index = (self._at + np.arange(BLOCK_FRAMES)) % len(self._samples)
        self._at = (self._at + BLOCK_FRAMES) % len(self._samples)
        return self._samples[index]


@lru_cache(maxsize=8)
def rendered(cadence: ToneCadence) -> Samples:
    """One round of a cadence."""
    return saturated(
        np.concatenate(
            [
                _tone(cadence.frequencies_hz, step_s) if number % 2 == 0 else _pause(step_s)
                for number, step_s in enumerate(cadence.steps_s)
            ]
        )
        * _PEAK
    )


def _classic() -> NDArray[np.float64]:
    """Two bells, struck in turn 20 times a second, as a telephone's of the 1950s."""
    strokes = [_bell((1000 + 200 * (number % 2),), 0.05, 0.08) for number in range(40)]
    return np.concatenate([*strokes, _pause(4)])


def _digital() -> NDArray[np.float64]:
    warble = [_tone((1400 if number % 2 else 1100,), 0.06) for number in range(14)]
    return np.concatenate([*warble, _pause(0.4), *warble, _pause(2.4)])


def _chime() -> NDArray[np.float64]:
    """A door's two tones, E5 and C5."""
    return np.concatenate(
        [_bell((659.3, 1318.5), 0.7, 0.5), _bell((523.3, 1046.5), 1.6, 0.6), _pause(2)]
    )


def _european() -> NDArray[np.float64]:
    """1 s of 425 Hz modulated at 25 Hz, then 4 s of nothing: the ringing cadence of E.180."""
    sound = _tone((425,), 1.0)
    times = np.arange(len(sound)) / SAMPLE_RATE_HZ
    return np.concatenate([sound * (0.6 + 0.4 * np.sin(2 * np.pi * 25 * times)), _pause(4)])


@lru_cache(maxsize=2)
def ring_tone(name: str) -> Samples:
    """One round of a ring tone, of a built-in name or a WAV file's path. Blocks: it may read a file.

    Raises:
        BadTone: it is neither.
    """
    if name in _BUILT_IN:
        return saturated(_BUILT_IN[name]() * _PEAK * 1.6)
    path = Path(name)
    if path.suffix.lower() != ".wav":
        raise BadTone(
            f"there is no ring tone {name!r}: name one of {', '.join(RING_TONES)}, or a .wav file"
        )
    return read_wav(path, longest_s=MAX_FILE_S, cut=True)


def read_wav(path: Path, *, longest_s: float, cut: bool = False) -> Samples:
    """The sound of a WAV file, mixed to mono. Blocks.

    Args:
        path: The file: 16 bits, 1 or 2 channels, of any of `RATES_HZ`.
        longest_s: No more of it is read.
        cut: Whether one that is longer is cut off there, and not refused.

    Raises:
        BadTone: it is no such file, or longer.
    """
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise BadTone(f"{path} is larger than {_MAX_FILE_BYTES // 1_000_000} MB: shorten it")
        with wave.open(str(path), "rb") as wav:
            rate_hz, channels, width = wav.getframerate(), wav.getnchannels(), wav.getsampwidth()
            if width != 2 or channels > 2 or rate_hz not in RATES_HZ:
                raise BadTone(
                    f"{path} has {8 * width} bits, {channels} channels, {rate_hz} Hz: make it "
                    "16 bits, 1 or 2 channels, 8 to 192 kHz"
                )
            longest = round(longest_s * rate_hz)
            frames = wav.readframes(longest if cut else longest + 1)  # its head may lie
            if len(frames) > longest * 2 * channels:
                raise BadTone(f"{path} is longer than {longest_s:g} s: shorten it")
    # wave raises a bare RuntimeError where a chunk reaches beyond the one that it stands in.
    except (OSError, EOFError, wave.Error, RuntimeError) as error:
        why = str(error) or "it is no whole WAV file"
        raise BadTone(f"{path} cannot be played: {why}") from error
    whole = len(frames) // (2 * channels) * 2 * channels  # a file that was cut off ends anywhere
    samples = np.frombuffer(frames[:whole], "<i2")
    mono = samples.reshape(-1, channels).mean(axis=1).astype(np.float32)
    if rate_hz != SAMPLE_RATE_HZ:
        import soxr

        mono = soxr.resample(mono, rate_hz, SAMPLE_RATE_HZ)
    if not len(mono):
        raise BadTone(f"{path} holds no sound")
    return saturated(mono)


def _tone(frequencies_hz: tuple[float, ...], seconds: float) -> NDArray[np.float64]:
    times = np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    sound = sum(np.sin(2 * np.pi * hz * times) for hz in frequencies_hz) / len(frequencies_hz)
    edge = np.minimum(times, times[::-1]) / _FADE_S
    return np.asarray(sound * np.minimum(1, edge))  # no clicks


def _bell(frequencies_hz: tuple[float, ...], seconds: float, decay_s: float) -> NDArray[np.float64]:
    sound = _tone(frequencies_hz, seconds)
    return sound * np.exp(-np.arange(len(sound)) / (decay_s * SAMPLE_RATE_HZ))


def _pause(seconds: float) -> NDArray[np.float64]:
    return np.zeros(round(seconds * SAMPLE_RATE_HZ))


_BUILT_IN: dict[str, Callable[[], NDArray[np.float64]]] = {
    "classic": _classic,
    "digital": _digital,
    "chime": _chime,
    "european": _european,
    "silent": partial(_pause, 1.0),
}
