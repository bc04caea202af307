"""A call's samples, its opinion score, its warnings and its volume."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellwire.agent.media.engine.interface import BLOCK_FRAMES, MediaStats
from bellwire.agent.quality.meter import volume_of
from bellwire.agent.quality.mos import MOS_MAX, mean_opinion_score
from bellwire.agent.quality.sample import Sample, SampleMaker
from bellwire.agent.quality.warnings import QualityWatch, WarningCleared, WarningName, WarningRaised
from bellwire.hardware.audio.block import volume as volume_of_level

seconds = st.floats(0, 100)
shares = st.floats(0, 1)
codecs = st.sampled_from(["opus", "pcmu", None, "speex"])


@given(seconds, seconds, shares, codecs)
def test_an_opinion_score_is_between_bad_and_as_good_as_a_telephone(
    round_trip_s: float, jitter_s: float, loss: float, codec: str | None
) -> None:
    assert 1 <= mean_opinion_score(round_trip_s, jitter_s, loss, codec) <= MOS_MAX


@given(seconds, seconds, shares, seconds, seconds, shares, codecs)
def test_more_loss_delay_or_jitter_never_sounds_better(
    round_trip_s: float,
    jitter_s: float,
    loss: float,
    longer_s: float,
    more_jitter_s: float,
    more_loss: float,
    codec: str | None,
) -> None:
    score = mean_opinion_score(round_trip_s, jitter_s, loss, codec)
    assert mean_opinion_score(round_trip_s + longer_s, jitter_s, loss, codec) <= score + 1e-9
    assert mean_opinion_score(round_trip_s, jitter_s + more_jitter_s, loss, codec) <= score + 1e-9
    worse = min(1.0, loss + more_loss)
    assert mean_opinion_score(round_trip_s, jitter_s, worse, codec) <= score + 1e-9


def test_each_impairment_is_heard() -> None:
    good = mean_opinion_score(0.05, 0.005, 0, "opus")
    assert good > 4.3
    assert mean_opinion_score(0.6, 0.005, 0, "opus") < good - 0.3
    assert mean_opinion_score(0.05, 0.2, 0, "opus") < good - 0.3
    assert mean_opinion_score(0.05, 0.005, 0.05, "opus") < good - 0.5
    assert mean_opinion_score(0.05, 0.005, 0.05, "pcmu") > mean_opinion_score(0.05, 0.005, 0.05)


def test_a_call_like_twilios_example_scores_like_twilios_example() -> None:
    assert mean_opinion_score(0.077, 0, 0, "opus") == pytest.approx(4.397229249317001, abs=0.05)


def test_a_call_that_hears_nothing_scores_one() -> None:
    assert mean_opinion_score(0.05, 0, 1, "opus") < 1.1
    assert mean_opinion_score(10, 0, 1, "opus") == 1


@pytest.mark.parametrize(
    ("round_trip_s", "jitter_s", "loss"),
    [(-1, 0, 0), (0, -1, 0), (0, 0, -0.1), (0, 0, 1.1), (float("nan"), 0, 0), (float("inf"), 0, 0)],
)
def test_what_cannot_be_measured_is_refused(
    round_trip_s: float, jitter_s: float, loss: float
) -> None:
    with pytest.raises(ValueError, match="0 to 1"):
        mean_opinion_score(round_trip_s, jitter_s, loss)


def stats(second: int, **counted: float | str | None) -> MediaStats:
    """A call of 50 packets of 86 bytes a second each way, a second later each time."""
    usual = MediaStats(
        timestamp_s=1_700_000_000 + second,
        codec="opus",
        bytes_sent=4300 * second,
        bytes_received=4300 * second,
        packets_sent=50 * second,
        packets_received=50 * second,
        jitter_s=0.004,
        round_trip_s=0.077,
    )
    return replace(usual, **counted)


def test_a_sample_has_the_members_of_twilios() -> None:
    document = SampleMaker().make(stats(1), [0.25, 0.75], [0.5]).document()
    assert list(document) == [
        "audioInputLevel", "audioOutputLevel", "bytesReceived", "bytesSent", "codecName", "jitter",
        "mos", "packetsLost", "packetsLostFraction", "packetsReceived", "packetsSent", "rtt",
        "timestamp", "totals",
    ]  # fmt: skip
    assert document["audioInputLevel"] == document["audioOutputLevel"] == 16384
    assert (document["rtt"], document["jitter"]) == (77, 4)
    assert document["timestamp"] == 1_700_000_001_000
    assert document["totals"] == {
        "bytesReceived": 4300, "bytesSent": 4300, "packetsLost": 0, "packetsLostFraction": 0,
        "packetsReceived": 50, "packetsSent": 50,
    }  # fmt: skip
    assert json.loads(json.dumps(document)) == document


def test_a_sample_counts_its_own_second_and_the_totals_the_call() -> None:
    maker = SampleMaker()
    maker.make(stats(1), [], [])
    sample = maker.make(stats(2, packets_received=90, packets_lost=10), [], [])
    assert (sample.packets_received, sample.packets_lost, sample.packets_sent) == (40, 10, 50)
    assert sample.packets_lost_fraction == pytest.approx(20)
    assert sample.totals.packets_lost_fraction == pytest.approx(10)
    assert sample.bytes_sent == 4300
    assert sample.mos is not None
    assert sample.mos < 3.5


def test_the_score_is_unknown_until_a_round_trip_is_known_which_then_stays() -> None:
    maker = SampleMaker()
    assert maker.make(stats(1, round_trip_s=None), [], []).mos is None
    assert maker.make(stats(2), [], []).rtt == 77
    late = maker.make(stats(3, round_trip_s=None), [], [])
    assert late.rtt == 77
    assert late.mos is not None


def test_counters_that_begin_anew_are_added_to_what_was_counted() -> None:
    maker = SampleMaker()
    maker.make(stats(10, packets_lost=5), [], [])
    sample = maker.make(stats(1, packets_lost=1), [], [])
    assert (sample.packets_received, sample.packets_lost) == (50, 1)
    assert (sample.totals.packets_received, sample.totals.packets_lost) == (550, 6)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(-3, 20)), max_size=12))
def test_totals_are_the_sum_of_the_samples_whatever_is_counted(
    changes: list[tuple[int, int]],
) -> None:
    maker = SampleMaker()
    received = lost = 0
    samples = []
    for second, (arrived, missed) in enumerate(changes):
        received, lost = received + arrived, lost + missed
        samples.append(
            maker.make(stats(second, packets_received=received, packets_lost=lost), [], [])
        )
    for name in ("packets_received", "packets_lost", "bytes_sent", "packets_sent"):
        total = sum(getattr(sample, name) for sample in samples)
        assert total == (getattr(samples[-1].totals, name) if samples else 0)


METRICS: list[tuple[WarningName, str, str, float, float, float]] = [
    (WarningName.HIGH_RTT, "rtt", "max", 400, 401, 400),
    (WarningName.HIGH_JITTER, "jitter", "max", 30, 31, 30),
    (WarningName.HIGH_PACKET_LOSS, "packetsLostFraction", "max", 1, 1.1, 1),
    (WarningName.LOW_MOS, "mos", "min", 3, 2.9, 3),
]
LIVELY = [0.2, 0.6]


class Watched:
    """A call a second at a time; each `second` gives the news of it."""

    def __init__(self, quiet_seconds: int = 5) -> None:
        self.watch = QualityWatch()
        self.now_ms = 0.0
        for _ in range(quiet_seconds):
            assert self.second() == []

    def second(
        self, volumes: list[float] = LIVELY, *, muted: bool = False, **members: float | None
    ) -> list[WarningRaised | WarningCleared]:
        self.now_ms += 1000
        well = {"rtt": 50.0, "jitter": 3.0, "mos": 4.3, "timestamp": self.now_ms}
        return self.watch.watch(Sample.model_validate({**well, **members}), volumes, muted=muted)


@pytest.mark.parametrize(("warning", "member", "limit", "value", "bad", "good"), METRICS)
def test_three_of_five_samples_over_the_threshold_raise_a_warning_with_what_it_rests_on(
    warning: WarningName, member: str, limit: str, value: float, bad: float, good: float
) -> None:
    call = Watched()
    assert call.second(**{member: bad}) == []
    assert call.second(**{member: good}) == []
    assert call.second(**{member: bad}) == []
    (raised,) = call.second(**{member: bad})
    assert isinstance(raised, WarningRaised)
    assert raised.name is warning
    document = raised.data.document()
    assert document["name"] == member
    assert document["threshold"] == {"name": limit, "value": value}
    assert document["values"] == [sample[member] for sample in document["samples"]]
    assert document["values"][1:] == [bad, good, bad, bad]
    assert call.second(**{member: bad}) == [], "it is raised once"


@pytest.mark.parametrize(("warning", "member", "limit", "value", "bad", "good"), METRICS)
def test_a_warning_is_cleared_when_five_samples_in_a_row_are_well(
    warning: WarningName, member: str, limit: str, value: float, bad: float, good: float
) -> None:
    del limit, value
    call = Watched()
    for _ in range(3):
        news = call.second(**{member: bad})
    assert len(news) == 1
    for _ in range(4):
        assert call.second(**{member: good}) == []
    assert call.watch.raised == {warning}
    (cleared,) = call.second(**{member: good})
    assert isinstance(cleared, WarningCleared)
    assert cleared.name is warning
    assert call.watch.raised == frozenset()


def test_a_value_that_swings_about_its_threshold_does_not_flap() -> None:
    call = Watched()
    news = [item for n in range(60) for item in call.second(rtt=500 if n % 3 else 100)]
    assert [type(item) for item in news] == [WarningRaised]


def test_the_first_seconds_of_a_call_raise_nothing() -> None:
    call = Watched(quiet_seconds=0)
    for _ in range(5):
        assert call.second(rtt=2000) == []
    assert [item.name for item in call.second(rtt=2000)] == [WarningName.HIGH_RTT]


def test_what_is_not_known_raises_and_clears_nothing() -> None:
    call = Watched()
    for _ in range(10):
        assert call.second(rtt=None, mos=None) == []


def test_a_microphone_that_gives_one_level_for_ten_seconds_is_reported() -> None:
    call = Watched(quiet_seconds=0)
    news = [item for _ in range(10) for item in call.second([0.3, 0.301])]
    (raised,) = news
    assert raised.name is WarningName.CONSTANT_AUDIO_INPUT_LEVEL
    assert raised.data.threshold.name == "minStandardDeviation"
    assert len(raised.data.values) == len(raised.data.samples) == 10
    news = [item for _ in range(6) for item in call.second(LIVELY)]
    assert [(type(item), item.name) for item in news] == [
        (WarningCleared, WarningName.CONSTANT_AUDIO_INPUT_LEVEL)
    ]


def test_a_muted_microphone_is_not_reported() -> None:
    call = Watched(quiet_seconds=0)
    for _ in range(20):
        assert call.second([0.0], muted=True) == []


@pytest.mark.parametrize(
    ("db", "volume"), [(-200, 0), (-100, 0), (-65, 0.5), (-30, 1), (0, 1), (float("-inf"), 0)]
)
def test_volume_is_0_to_1_over_minus_100_to_minus_30_db(db: float, volume: float) -> None:
    assert volume_of_level(db) == pytest.approx(volume)


def test_silence_has_volume_0_and_the_loudest_noise_1() -> None:
    assert volume_of(np.zeros(5 * BLOCK_FRAMES, np.int16)) == 0
    noise = np.random.default_rng(5).choice([-32768, 32767], 5 * BLOCK_FRAMES).astype(np.int16)
    assert volume_of(noise) == 1


@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
def test_what_is_louder_has_no_lower_volume(seed: int, gain: float, more: float) -> None:
    noise = np.random.default_rng(seed).normal(0, 8000, 5 * BLOCK_FRAMES).clip(-32768, 32767)
    quiet, loud = sorted((gain, more))
    softer, louder = (volume_of((noise * g).astype(np.int16)) for g in (quiet, loud))
    assert 0 <= softer <= louder + 0.02 <= 1.02


def test_a_volume_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="32"):
        volume_of(np.zeros(31, np.int16))
