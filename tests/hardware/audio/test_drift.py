"""Two clocks that differ, in virtual time: what one produces the other plays without a gap."""

import numpy as np
import pytest

from bellwire.hardware.audio.block import BLOCK_FRAMES, BLOCK_S
from bellwire.hardware.audio.drift import TARGET_FRAMES, DriftingSource

FREQUENCY_HZ = 500.0
SINE = np.rint(10_000 * np.sin(2 * np.pi * FREQUENCY_HZ / 48_000 * np.arange(BLOCK_FRAMES))).astype(
    np.int16
)
"""A block of a tone that goes on in the next: 5 periods."""


class Simulation:
    """A network that produces a sine by its clock, and a sound card that plays it by its own."""

    def __init__(self, ppm: float, jitter_s: float = 0.0) -> None:
        self.source = DriftingSource()
        self.ppms: list[float] = []
        self.period_s = BLOCK_S / (1 + ppm * 1e-6)
        self.jitter = np.random.default_rng(1)
        self.jitter_s = jitter_s

    def play(self, seconds: float) -> tuple[np.ndarray, np.ndarray]:
        """What was played, shape (blocks, BLOCK_FRAMES), and the fill of the ring at each."""
        played, fills = [], []
        pushed, due = 0, 0.0
        for number in range(round(seconds / BLOCK_S)):
            now = number * BLOCK_S
            while due <= now:
                self.source.play(SINE)
                pushed += 1
                due = max(due, pushed * self.period_s + self.jitter_s * self.jitter.random())
            played.append(self.source.pull())
            self.ppms.append(self.source.ppm)
            fills.append(self.source.fill)
        return np.array(played), np.array(fills)


@pytest.mark.parametrize(
    ("ppm", "seconds"),
    [
        (-200.0, 120),
        (200.0, 120),
        pytest.param(-200.0, 600, marks=pytest.mark.full),
        pytest.param(200.0, 600, marks=pytest.mark.full),
    ],
)
def test_200_ppm_for_10_minutes_pass_without_a_gap(ppm: float, seconds: int) -> None:
    simulation = Simulation(ppm)
    played, fills = simulation.play(seconds)
    assert (simulation.source.gaps, simulation.source.jumps) == (0, 0)
    settled = played[3_000:].reshape(-1)
    # The sine goes on: no sample is further from the last than its slope allows.
    steepest = 10_000 * 2 * np.pi * FREQUENCY_HZ / 48_000
    assert np.max(np.abs(np.diff(settled.astype(np.int32)))) <= 1.01 * steepest + 2
    assert np.mean(simulation.ppms[-5_000:]) == pytest.approx(ppm, abs=60)  # of a whole slip
    assert fills[3_000:].mean() == pytest.approx(TARGET_FRAMES, abs=BLOCK_FRAMES)
    assert fills[3_000:].max() < 2 * TARGET_FRAMES


def test_jitter_of_a_thread_makes_no_gap() -> None:
    simulation = Simulation(100.0, jitter_s=0.012)
    simulation.play(30)
    assert (simulation.source.gaps, simulation.source.jumps) == (0, 0)


def test_without_a_compensation_200_ppm_would_make_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DriftingSource, "_adapt", lambda *_: None)
    simulation = Simulation(-200.0)
    simulation.play(130)
    assert simulation.source.gaps > 0


def test_what_is_too_much_for_a_while_is_skipped_without_a_step() -> None:
    simulation = Simulation(0.0)
    simulation.play(1)
    for _ in range(4):
        simulation.source.play(SINE)
    played, fills = simulation.play(6)
    assert simulation.source.skips > 0
    assert (simulation.source.gaps, simulation.source.jumps) == (0, 0)
    assert fills[-1] < TARGET_FRAMES + BLOCK_FRAMES
    steepest = 10_000 * 2 * np.pi * FREQUENCY_HZ / 48_000
    assert np.max(np.abs(np.diff(played.reshape(-1).astype(np.int32)))) <= 1.01 * steepest + 2


def test_what_is_too_much_is_kept_for_longer_after_each_gap() -> None:
    source = DriftingSource()

    def run_dry() -> None:
        gaps = source.gaps
        for _ in range(3):
            source.play(SINE)
        for _ in range(12):
            source.pull()
        assert source.gaps == gaps + 1

    def pulls_until_skipped() -> int:
        for _ in range(7):
            source.play(SINE)
        skips = source.skips
        for number in range(3_000):
            source.play(SINE)
            source.pull()
            if source.skips > skips:
                return number
        pytest.fail("nothing was skipped")

    waited = []
    for _ in range(3):
        run_dry()
        waited.append(pulls_until_skipped())
    assert waited[1] > 1.5 * waited[0]
    assert waited[2] > 1.5 * waited[1]


def test_a_tone_is_as_clean_as_it_came() -> None:
    simulation = Simulation(200.0)
    played, _ = simulation.play(20)
    tone = played[-400:].reshape(-1).astype(np.float64)
    power = np.abs(np.fft.rfft(tone * np.blackman(len(tone)))) ** 2
    peak = int(power.argmax())
    around = power[max(0, peak - 60) : peak + 60].sum()
    assert 10 * np.log10(around / (power.sum() - around)) > 60


def test_sound_begins_again_after_a_gap_and_what_piled_up_is_dropped() -> None:
    source = DriftingSource()
    block = np.full(BLOCK_FRAMES, 1000, np.int16)
    for _ in range(4):
        source.play(block)
    assert [int(source.pull()[-1]) for _ in range(4)] == [1000, 1000, 0, 0]  # 25 ms were left
    assert source.gaps == 1
    for _ in range(30):
        source.play(block)
    assert source.pull()[-1] == 1000
    assert source.fill <= TARGET_FRAMES + BLOCK_FRAMES
    assert source.jumps > 0
