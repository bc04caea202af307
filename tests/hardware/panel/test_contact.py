"""What edges mean, decided from their stamps alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellwire.hardware.panel.button import Gesture, GestureReader

ACTIVATED, TAPPED = Gesture.ACTIVATED, Gesture.TAPPED
HELD, DEACTIVATED = Gesture.HELD, Gesture.DEACTIVATED


@pytest.fixture
def reader() -> GestureReader:
    return GestureReader(debounce_s=0.03, long_press_s=1.0, active=False)


def read(reader: GestureReader, *edges: tuple[float, bool], until: float) -> list[Gesture]:
    """The gestures of (time, level) edges, with the time passing to `until` after them."""
    gestures = [gesture for at, active in edges for gesture in reader.edge(at, active)]
    return gestures + reader.wait_until(until)


def test_a_short_press_is_a_tap_when_it_is_let_go(reader: GestureReader) -> None:
    assert read(reader, (1.0, True), until=1.5) == [ACTIVATED]
    assert read(reader, (1.6, False), until=1.7) == [TAPPED, DEACTIVATED]


def test_a_long_press_is_held_once_when_its_time_is_reached(reader: GestureReader) -> None:
    assert read(reader, (1.0, True), until=1.99) == [ACTIVATED]
    assert reader.due == 2.0
    assert read(reader, until=2.0) == [HELD]
    assert read(reader, until=9.0) == []
    assert reader.due is None
    assert read(reader, (9.0, False), until=9.1) == [DEACTIVATED]


def test_a_press_that_bounces_counts_once(reader: GestureReader) -> None:
    bounces = [(1.0 + i * 0.004, i % 2 == 0) for i in range(7)]
    assert read(reader, *bounces, until=1.1) == [ACTIVATED]


def test_a_spike_shorter_than_the_debounce_time_is_nothing(reader: GestureReader) -> None:
    assert read(reader, (1.0, True), (1.029, False), until=5.0) == []


def test_a_gap_shorter_than_the_debounce_time_does_not_end_a_long_press(
    reader: GestureReader,
) -> None:
    assert read(reader, (1.0, True), (1.5, False), (1.52, True), until=2.0) == [ACTIVATED, HELD]


def test_a_press_let_go_just_before_the_long_press_time_is_a_tap(reader: GestureReader) -> None:
    assert read(reader, (1.0, True), (1.99, False), until=5.0) == [ACTIVATED, TAPPED, DEACTIVATED]


def test_an_event_loop_that_comes_late_changes_no_verdict(reader: GestureReader) -> None:
    """All edges are taken in at once, long after they happened."""
    edges = (1.0, True), (1.2, False), (2.0, True), (3.5, False)
    assert read(reader, *edges, until=60.0) == [
        ACTIVATED,
        TAPPED,
        DEACTIVATED,
        ACTIVATED,
        HELD,
        DEACTIVATED,
    ]


def test_a_button_that_is_jammed_at_the_start_is_no_press() -> None:
    reader = GestureReader(debounce_s=0.03, long_press_s=1.0, active=True)
    assert reader.due is None
    assert read(reader, until=60.0) == []
    assert read(reader, (60.0, False), until=61.0) == [DEACTIVATED]
    assert read(reader, (62.0, True), (62.2, False), until=63.0) == [ACTIVATED, TAPPED, DEACTIVATED]


def test_without_a_debounce_time_every_edge_counts() -> None:
    reader = GestureReader(debounce_s=0, long_press_s=1.0, active=False)
    assert reader.edge(1.0, True) == [ACTIVATED]
    assert reader.edge(1.0, False) == [TAPPED, DEACTIVATED]


@given(
    gaps=st.lists(st.floats(0, 2.5, allow_subnormal=False), max_size=30),
    starts_active=st.booleans(),
)
def test_each_press_is_one_tap_or_one_hold_between_its_two_edges(
    gaps: list[float], starts_active: bool
) -> None:
    reader = GestureReader(debounce_s=0.03, long_press_s=1.0, active=starts_active)
    at, active, gestures = 10.0, starts_active, []
    for gap in gaps:
        at, active = at + gap, not active
        gestures += reader.edge(at, active)
    gestures += reader.wait_until(at + 5)
    if starts_active and gestures:
        assert gestures.pop(0) is DEACTIVATED
    if active and gestures:
        assert gestures[-2:] == [ACTIVATED, HELD] or (starts_active and gestures == [])
        gestures = gestures[:-2]
    presses = [tuple(gestures[i : i + 3]) for i in range(0, len(gestures), 3)]
    assert set(presses) <= {(ACTIVATED, TAPPED, DEACTIVATED), (ACTIVATED, HELD, DEACTIVATED)}
    assert reader.due is None
    assert reader.is_active is active


@given(gaps=st.lists(st.floats(0, 2.5, allow_subnormal=False), max_size=20), data=st.data())
def test_looking_in_between_changes_nothing(gaps: list[float], data: st.DataObject) -> None:
    """Asking at any moments gives the same gestures as asking at the end."""
    asked = GestureReader(debounce_s=0.03, long_press_s=1.0, active=False)
    unasked = GestureReader(debounce_s=0.03, long_press_s=1.0, active=False)
    at, active, first, second = 10.0, False, [], []
    for gap in gaps:
        for share in sorted(data.draw(st.lists(st.floats(0, 1), max_size=3))):
            first += asked.wait_until(at + share * gap)
        at, active = at + gap, not active
        first += asked.edge(at, active)
        second += unasked.edge(at, active)
    assert first + asked.wait_until(at + 5) == second + unasked.wait_until(at + 5)
