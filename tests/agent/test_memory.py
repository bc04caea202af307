"""No voice waits for the garbage collector."""

import gc
from collections.abc import Iterator

import pytest

from bellwire.agent.memory import Collector


class FullLooks:
    """Counts how often the collector has looked at everything."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        self.count += phase == "stop" and info["generation"] == 2


@pytest.fixture
def full_looks() -> Iterator[FullLooks]:
    looks, before = FullLooks(), gc.get_threshold()
    gc.set_threshold(
        700, 10, 10
    )  # Python's own: another test may have run an agent in this process
    gc.callbacks.append(looks)
    yield looks
    gc.callbacks.remove(looks)
    gc.set_threshold(*before)
    gc.unfreeze()


def talk() -> list[list[int]]:
    """What a long call makes: more objects that stay than the collector lets pass unseen."""
    return [[number] for number in range(300_000 + len(gc.get_objects()))]


def test_nothing_is_looked_at_as_a_whole_while_a_call_lasts(full_looks: FullLooks) -> None:
    gc.collect()
    before = full_looks.count
    talk()
    assert full_looks.count > before, "by default it would be"
    Collector().start()
    before = full_looks.count
    talk()
    assert full_looks.count == before


def test_cycles_that_a_call_left_are_found_after_it(full_looks: FullLooks) -> None:
    class Left:
        alive = 0

        def __init__(self) -> None:
            Left.alive += 1
            self.me = self

        def __del__(self) -> None:
            Left.alive -= 1

    collector = Collector()
    collector.start()
    for _ in range(3):
        Left()
        collector.look()
        assert Left.alive == 0
    assert full_looks.count >= 4
    assert gc.get_freeze_count() > 10_000, "what stands since the start"
