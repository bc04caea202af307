"""A running relay is asked over HTTP by random people about random calls while its clock is moved,
and is all the time what an independent model of the specification says."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import Engine

from tests.model.client import open_view
from tests.model.clocked_relay import ClockedRelay
from tests.model.random_town import RandomTown

_STEPS_OF_AN_EXAMPLE = 50
_OPERATIONS = ("received", "accept", "reject", "cancel", "quit")
_COMMON_STEPS = {
    *(f"{operation} advanced moved" for operation in (*_OPERATIONS, "end", "invite", "join")),
    *(f"{operation} advanced forbidden" for operation in _OPERATIONS),
    *(f"{operation} common moved" for operation in ("received", "accept", "quit")),
    *("cancel common moved", "invite common refused", "offline moved", "time moved"),
    *("call 201", "call 404", "call 422", "call again 201", "call again 409"),
}
"""What 10,000 random steps do many times over."""


@pytest.fixture(autouse=True)
def quiet_logs() -> Iterator[None]:
    """The relay runs in this process, and would tell of each step."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("error"))
    yield
    structlog.reset_defaults()


@pytest.fixture(params=["sqlite", "postgres"])
def relay(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ClockedRelay]:
    # Whoever loses a device waits until the relay believes it.
    monkeypatch.setattr("bellwire.push.devices.requests._GRACE_S", 0.1)
    database = None
    if request.param == "postgres":
        database = request.getfixturevalue("new_postgres_database")()
    with ClockedRelay(tmp_path / "relay", database) as running:
        yield running


@pytest.fixture
def view(relay: ClockedRelay) -> Iterator[Engine]:
    opened = open_view(relay)
    yield opened
    opened.dispose()


@pytest.mark.timeout(3600)
def test_relay_is_what_the_model_says_whatever_anybody_does_in_any_order(
    relay: ClockedRelay, view: Engine, full: bool
) -> None:
    # The store is what the model knows least of: in the short run PostgreSQL is shown to be no other.
    wanted = 10_000 if full else 50 if relay.database.startswith("postgresql") else 200
    played: Counter[str] = Counter()

    class Town(RandomTown):
        def __init__(self) -> None:
            super().__init__(relay, view, lambda step: played.update([step]))

    # Some steps of an example find nothing to do, and are not counted.
    run_state_machine_as_test(
        Town,
        settings=settings(
            max_examples=2 + round(wanted / _STEPS_OF_AN_EXAMPLE * 1.3),
            stateful_step_count=_STEPS_OF_AN_EXAMPLE,
            phases=[Phase.generate],  # what fails on a running relay shrinks too slowly
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert played.total() >= wanted
    moved = sum(times for step, times in played.items() if step.endswith("moved"))
    # An example does a few kinds of steps only (Hypothesis calls it swarm testing): of a few examples
    # together, most may do what moves little. A tenth of all steps is usual.
    assert moved > wanted / 100, f"nearly everything was refused: {played}"
    if full:
        assert not _COMMON_STEPS - played.keys(), f"never seen among {played}"
