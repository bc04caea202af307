"""Whatever happens on the way, a device ends with the sum of the layers that are there in the end."""

import asyncio
import contextlib
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import SecretStr

from bellwire.agent.fleet.follower import FleetFollower
from bellwire.agent.fleet.live_settings import LiveSettings
from bellwire.config.agent.settings import AgentSettings, BrokerSettings
from bellwire.config.fleet.last_good import LastGood
from bellwire.config.fleet.layer import Reported
from bellwire.config.fleet.merge import judge, local_file, parse_layer
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import CONFIG_DEFAULT, CONFIG_GROUPS, config_topic
from tests.agent.rough_broker import RoughBroker, RoughSession
from tests.config.fleet_parts import document
from tests.conftest import PATIENCE_S

GATE = DeviceId("gate")
TOPICS = {
    "default": CONFIG_DEFAULT,
    "group/a": CONFIG_GROUPS.replace("+", "a"),
    "group/b": CONFIG_GROUPS.replace("+", "b"),
    "device": config_topic(GATE),
}
FILE = AgentSettings.model_validate(
    {
        "device_id": "gate",
        "identity": "gate",
        "broker": BrokerSettings(url="mqtt://x", username="gate", password=SecretStr("x")),
        "groups": ["a"],
        "panel": {"door": {"pin": 4}},
        "locked": ["panel.door"],
    }
)
SETTINGS = st.sampled_from(
    [
        {},
        {"call_timeout_s": 5},
        {"call_timeout_s": 5000},
        {"call_timeout_s": None, "log_level": "error"},
        {"groups": ["b", "a"]},
        {"groups": ["b"], "panel": {"mute": {"pin": 5}}},
        {"panel": {"mute": {"pin": 6}, "hook": {"pin": 5}}},
        {"panel": {"door": {"pin": 9}}},
    ]
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.sampled_from(list(TOPICS)), SETTINGS),
        st.tuples(st.just("remove"), st.sampled_from(list(TOPICS))),
        st.tuples(st.just("garbage"), st.sampled_from(list(TOPICS))),
        st.tuples(st.sampled_from(["deliver", "deliver twice"]), st.integers(0, 7), st.booleans()),
        st.tuples(st.sampled_from(["rest", "connect", "lose", "lose session", "restart"])),
    ),
    max_size=25,
)

HEARD = [
    ("connect",),
    ("rest",),
    ("publish", "device", {"call_timeout_s": 5}),
    ("deliver", 0, True),
]

OVERTAKEN = [
    ("connect",),
    ("publish", "default", {}),
    ("publish", "group/a", {}),
    ("garbage", "group/a"),
    ("deliver", 0, True),
]
"""What cannot be read is heard as retained, and the layer from before it comes only then."""


async def _no_wait(_: float) -> None:
    await asyncio.sleep(0)


class Device:
    """A device that is started, cut off and started again."""

    def __init__(self, broker: RoughBroker, folder: Path) -> None:
        self.broker = broker
        self._folder = folder
        self.fleet: FleetFollower
        self.session: RoughSession
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.session = RoughSession(self.broker)
        self.live = LiveSettings(FILE)
        self.fleet = FleetFollower(
            FILE,
            self.session,
            self.live,
            last_good=LastGood(self._folder, GATE),
            now=lambda: datetime.now(UTC),
            sleep=_no_wait,
        )
        self._running = asyncio.create_task(self.fleet.run())

    async def stop(self) -> None:
        self.session.is_up = False
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running

    async def until_at_rest(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not self.fleet.at_rest:  # noqa: ASYNC110 - it takes turns of the loop, not time
                await asyncio.sleep(0)

    async def suffer(self, step: tuple[Any, ...]) -> None:
        """Goes through something that is not of its operator's doing."""
        match step:
            case ("deliver" | "deliver twice" as how, number, and_rest):
                self.broker.deliver(number, twice=how == "deliver twice")
                if and_rest:
                    await self.until_at_rest()
            case ("connect",):
                await self.session.connect()
            case ("restart",):
                await self.stop()
                self.start()
            case ("lose",):
                self.session.lose()
            case ("lose session",):  # with all that the broker kept for it
                self.session.lose()
                self.broker.late.clear()
            case ("rest",):
                await self.until_at_rest()


async def play(steps: Sequence[tuple[Any, ...]], folder: Path) -> None:
    broker = RoughBroker(GATE)
    device = Device(broker, folder)
    device.start()
    for revision, step in enumerate(steps, 1):
        match step:
            case ("publish", name, settings):
                broker.publish(TOPICS[name], document(settings, revision))
            case ("remove", name):
                broker.publish(TOPICS[name], b"")
            case ("garbage", name):
                broker.publish(TOPICS[name], b"{garbage")
            case _:
                await device.suffer(step)
    await device.session.connect()
    while broker.late:
        broker.deliver(len(broker.late) // 2)
    await device.until_at_rest()
    names = {topic: name for name, topic in TOPICS.items()}
    final = {names[t]: parse_layer(names[t], payload) for t, payload in broker.retained.items()}
    lost = device.fleet.vanished
    assert not {TOPICS[name] for name in lost} & set(broker.retained), steps
    missing = {name for name, topic in TOPICS.items() if topic not in broker.retained}
    assert missing & set(device.fleet.verdict.layers) <= set(lost), "what was in force stays"
    expected = judge(local_file(FILE), final | dict(lost))
    reported = Reported.model_validate_json(broker.reports[-1])
    errors = tuple(e for e in reported.errors if "the broker has lost this layer" not in e.reason)
    assert errors == expected.errors
    assert len(reported.errors) - len(errors) == len(set(lost) & set(reported.revisions))
    assert reported.revisions == device.fleet.verdict.revisions
    if not expected.errors:
        assert (reported.hash, reported.effective) == (expected.hash, expected.effective)
        assert (reported.revisions, reported.sources) == (expected.revisions, expected.sources)
        assert device.live.now == expected.settings
    await survive_a_restart(device)


async def survive_a_restart(device: Device) -> None:
    in_force = device.fleet.verdict
    assert judge(local_file(FILE), in_force.layers).errors == (), "what is in force is good"
    await device.stop()
    device.start()
    assert device.fleet.verdict.effective == in_force.effective, (
        "it starts with it, without a broker"
    )
    assert device.live.now == in_force.settings
    await device.stop()


@hypothesis_settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
@example([*HEARD, ("remove", "device")])
@example(
    [*HEARD, ("remove", "device"), ("deliver", 0, True), ("publish", "device", {"groups": ["b"]})]
)
@example([*HEARD, ("lose session",), ("remove", "device"), ("lose session",)])
@example(OVERTAKEN)
def test_any_history_ends_in_the_sum_of_the_final_layers(steps: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(steps, Path(folder)))
