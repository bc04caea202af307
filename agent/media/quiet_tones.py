"""What is heard of one party is played without the digits that it types: a door's code is not for the
ears of whoever stands before the station's loudspeaker.

`agent.media.dtmf.DtmfDetector` is sure of a press after 30 ms, most of which would have been heard. Here one
block that looks like a tone is enough, and what waits to be played is taken back: nothing is delayed for
it, as the 20 ms that bridge two clocks hold the beginning of the tone still.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bellwire.agent.media.dtmf import COLUMNS_HZ, ROWS_HZ
from bellwire.agent.media.engine.engine import BLOCK_FRAMES, SAMPLE_RATE_HZ, Block

_TAKEN_BACK = 2
"""Blocks before the first that looks like a tone: its beginning is in the last of them, or in none."""
_HELD = 2
"""Blocks after the last one, whose end may be in the next."""
_BEGINS_AT, _GOES_ON_AT = 0.65, 0.4
"""Share of a block's power that is in a pair of tones. A tone has 0.67 and more, 2.5 % off its
frequencies, and 0.65 where 7 ms of it are in the block; speech had as much in 4 of 8,710 blocks."""
_EACH_AT_LEAST = 0.03
"""Share of the weaker tone of the pair: -8 dB leave it 0.04, and one tone alone is none."""
_QUIETEST_POWER = 1.0
"""-90 dB of full scale: nobody hears what is under it."""

_SILENCE: Block = np.zeros(BLOCK_FRAMES, np.int16)
_SILENCE.setflags(write=False)
_FADE_IN = np.linspace(0, 1, BLOCK_FRAMES, dtype=np.float32)


class Plays(Protocol):
    """The speaker, as `agent.media.voice.Voice`."""

    def play(self, source: str, block: Block) -> None:
        """Plays the next block of a source."""
        ...

    def take_back(self, source: str, blocks: int) -> None:
        """Silences the last so many blocks of a source, as far as they have not been heard."""
        ...


class QuietTones:
    """Plays one source, silent while a tone of a keypad lasts. For one thread.

    Args:
        voice: The speaker.
        source: The party's name there.
    """

    def __init__(self, voice: Plays, source: str) -> None:
        self._voice = voice
        self._source = source
        self._silent_for = 0

    def play(self, block: Block) -> None:
        """Plays the next block, or silence in its place."""
        was_silent = self._silent_for > 0
        if looks_like_a_tone(block, goes_on=was_silent):
            if not was_silent:
                self._voice.take_back(self._source, _TAKEN_BACK)
            self._silent_for = 1 + _HELD
        if self._silent_for == 0:
            self._voice.play(self._source, block)
            return
        self._silent_for -= 1
        if self._silent_for == 0:
            self._voice.play(self._source, (block * _FADE_IN).astype(np.int16))
        else:
            self._voice.play(self._source, _SILENCE)


def looks_like_a_tone(block: Block, *, goes_on: bool = False) -> bool:
    """Whether two tones of a keypad, one of each group, are most of what a block holds. Where one
    `goes_on`, less of it is enough.

    How: the share of the block's power in the plane of each pair's four waves (sine and cosine of
    both), which is exact where Fourier's windows of 10 ms would not tell the rows apart.
    """
    samples = block.astype(np.float32)
    power = float(samples @ samples)
    if power < _QUIETEST_POWER * BLOCK_FRAMES:
        return False
    in_waves = _WAVES @ samples
    in_pairs = (in_waves * in_waves).reshape(-1, 4).sum(axis=1) / power
    best = int(in_pairs.argmax())
    if in_pairs[best] < (_GOES_ON_AT if goes_on else _BEGINS_AT):
        return False
    alone = _ALONE[best] @ samples
    in_each = (alone * alone).reshape(2, 2).sum(axis=1) / power
    return goes_on or float(in_each.min()) >= _EACH_AT_LEAST


def _orthonormal(*frequencies_hz: float) -> NDArray[np.float32]:
    """Rows that span the sines and cosines of these over a block."""
    turns = 2 * np.pi * np.outer(frequencies_hz, np.arange(BLOCK_FRAMES) / SAMPLE_RATE_HZ)
    rows, _ = np.linalg.qr(np.concatenate((np.cos(turns), np.sin(turns))).T)
    return np.ascontiguousarray(rows.T, dtype=np.float32)


_PAIRS = [(row, column) for row in ROWS_HZ for column in COLUMNS_HZ]
_WAVES = np.concatenate([_orthonormal(*pair) for pair in _PAIRS])
_ALONE = np.stack([np.concatenate([_orthonormal(hz) for hz in pair]) for pair in _PAIRS])
