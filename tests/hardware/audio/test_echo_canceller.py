"""Which block was played when one was captured, however late the threads are."""

import numpy as np

from bellwire.hardware.audio.block import BLOCK_FRAMES, SILENCE, Block
from bellwire.hardware.audio.echo_canceller import Alongside

SECOND = 100


def numbered(number: int) -> Block:
    return np.full(BLOCK_FRAMES, number, np.int16)


def lags(alongside: Alongside, bursts: list[int]) -> list[int]:
    """Plays and captures in bursts of so many blocks; by how many blocks each pair is apart."""
    found, played, captured = [], 0, 0
    for burst in bursts:
        for _ in range(burst):
            played += 1
            alongside.played(numbered(played))
        for _ in range(burst):
            captured += 1
            found.append(captured - int(alongside.pull()[0]))
    return found


def test_blocks_are_paired_in_order_however_they_come() -> None:
    assert set(lags(Alongside(), [1, 3, 2, 1, 5, 1])) == {0}


def test_what_was_played_before_anybody_talked_is_not_taken_for_what_is_played_now() -> None:
    alongside = Alongside()
    for _ in range(3 * SECOND):  # a ring tone, with the microphone closed
        alongside.played(numbered(-1))
    assert lags(alongside, [1] * 2 * SECOND)[-1] == 0


def test_a_playback_that_falls_behind_shifts_the_pairs_once_and_not_at_each_burst() -> None:
    alongside = Alongside()
    alongside.pull()
    bursts = ([1] * 20 + [4]) * 40
    found = []
    played = captured = 0
    for burst in bursts:  # captured first: the playback's thread is the later one
        for _ in range(burst):
            captured += 1
            found.append(captured - int(alongside.pull()[0]))
        for _ in range(burst):
            played += 1
            alongside.played(numbered(played))
    shifts = np.count_nonzero(np.diff(found[SECOND:]))
    assert shifts <= 20
    assert max(found[SECOND:][-SECOND:]) <= 4


def test_where_nothing_is_played_there_is_silence() -> None:
    assert Alongside().pull() is SILENCE
