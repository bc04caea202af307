"""How long an invite may still ring, by a clock that may be wrong."""

from datetime import UTC, datetime, timedelta

import pytest

from bellwire.agent.calls.invite import ringing_time_left

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("by_clock_s", "by_broker_s", "left_s"),
    [
        (30.0, None, 30.0),
        (-1.0, None, -1.0),
        (29.5, 30, 29.5),
        (28.0, 30, 28.0),
        (27.9, 30, 30.0),
        (32.0, 30, 32.0),
        (32.1, 30, 30.0),
        (-3600.0, 30, 30.0),
        (3600.0, 30, 30.0),
        (-0.5, 1, -0.5),
        (0.0, 0, 0.0),
    ],
    ids=[
        "the clock, where the broker says nothing",
        "over by the clock, where the broker says nothing",
        "the clock, which is finer",
        "the clock, two seconds behind the broker",
        "the broker, where the clock is ahead",
        "the clock, two seconds beyond the broker",
        "the broker, where the clock is behind",
        "the broker, where the clock is an hour ahead",
        "the broker, where the clock is an hour behind",
        "over by the clock, within the broker's rounding",
        "over by both",
    ],
)
def test_an_invite_rings_by(by_clock_s: float, by_broker_s: int | None, left_s: float) -> None:
    left = ringing_time_left(NOW, NOW + timedelta(seconds=by_clock_s), by_broker_s)
    assert left == timedelta(seconds=left_s)
