"""Layers that are made to keep a device busy: it refuses them, and meanwhile its event loop, on which calls
and doors wait, goes on."""

import asyncio
import gc
import resource
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from bellwire.agent.fleet.follower import FleetFollower, _that_fits
from bellwire.agent.fleet.live_settings import LiveSettings
from bellwire.config.agent.settings import AgentSettings, BrokerSettings
from bellwire.config.fleet.layer import LAYER_LIMIT_BYTES, Layer, LayerProblem, Reported
from bellwire.config.fleet.merge import judge, parse_layer
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import CONFIG_DEFAULT, CONFIG_GROUPS, config_topic
from bench.lab.simulated_agent import SimulatedAgent
from tests.agent.rough_broker import RoughBroker, RoughSession
from tests.broker.running import raw_client
from tests.cli.fleet_stage import fleet_stage
from tests.config.fleet_parts import document, layer, of_file
from tests.conftest import PATIENCE_S

GATE = DeviceId("gate")
GROUPS = [f"g{number}" for number in range(16)]
TOPICS = {
    "default": CONFIG_DEFAULT,
    **{f"group/{group}": CONFIG_GROUPS.replace("+", group) for group in GROUPS},
    "device": config_topic(GATE),
}
THREE = ("default", "group/g1", "device")
BUTTON = {"up": {"pin": 17, "to": ["ann"]}}


def unknown(name: str, count: int) -> dict[str, Any]:
    return {f"{name[-3:]}{number:x}": 1 for number in range(count)}


def parameters(name: str, count: int, value: object) -> dict[str, Any]:
    said = {f"{name[-3:]}%{number:x}": value for number in range(count)}
    return {"panel": {"call_buttons": {"up": {"custom_parameters": said}}}}


HOSTILE: dict[str, dict[str, dict[str, Any]]] = {
    "three of more keys than a layer has": {name: unknown(name, 5000) for name in THREE},
    "three of unknown keys": {name: unknown(name, 4000) for name in THREE},
    "eighteen of unknown keys": {name: unknown(name, 450) for name in TOPICS},
    "eighteen of bad parameters": {name: parameters(name, 450, 1) for name in TOPICS},
    "eighteen of empty hours": {
        name: {"behaviour": {"quiet_hours": [{}] * 4000}} for name in TOPICS
    },
    "eighteen of skipped keys": {name: {"panel": unknown(name, 4000)} for name in TOPICS},
    "long keys": {name: {f"{number}{'k' * 250}": 1 for number in range(200)} for name in TOPICS},
    "one that all others take back": {
        name: {f"k{number:x}": 1 if name == "default" else None for number in range(450)}
        | ({"last": 1} if name == "device" else {})
        for name in TOPICS
    },
}


class Stall:
    """The longest that the event loop was kept from its next turn, in seconds of this process's own
    work: what else the machine does is nobody's fault here."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    async def watch(self) -> None:
        before = time.process_time()
        while True:
            await asyncio.sleep(0.002)
            now = time.process_time()
            self.longest_s = max(self.longest_s, now - before)
            before = now


@asynccontextmanager
async def stall_watched() -> AsyncIterator[Stall]:
    stall = Stall()
    gc.collect()
    gc.freeze()  # as the agent does; pytest's own objects are many
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(stall.watch())
        yield stall
        watching.cancel()
    gc.unfreeze()


async def until(agent: SimulatedAgent, holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(2 * PATIENCE_S):
        while not (holds() and agent.fleet.at_rest):  # noqa: ASYNC110 - nobody tells of its rest
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("settings", HOSTILE.values(), ids=list(HOSTILE))
async def test_hostile_layers_do_not_hold_the_event_loop(
    tmp_path: Path, settings: dict[str, dict[str, Any]]
) -> None:
    async with fleet_stage(tmp_path) as stage:
        gate = await stage.add(GATE, groups=GROUPS, panel={"call_buttons": BUTTON})
        async with raw_client(stage.broker.address) as client:
            documents = {name: document(said) for name, said in settings.items()}
            async with stall_watched() as stall:
                for name, payload in documents.items():
                    await client.publish(TOPICS[name], payload, qos=1, retain=True)
                heard = set(documents) - {"group/g1"}
                await until(gate, lambda: heard <= refused_or_run(gate))
            assert stall.longest_s < 0.15, "it was 31 s"
            await client.publish(
                TOPICS["device"], document({"call_timeout_s": 9}, 9), qos=1, retain=True
            )
            await until(gate, lambda: gate.live.now.call_timeout_s == 9)


def refused_or_run(agent: SimulatedAgent) -> set[str]:
    verdict = agent.fleet.verdict
    return {error.layer for error in verdict.errors} | verdict.layers.keys()


@pytest.mark.parametrize("settings", HOSTILE.values(), ids=list(HOSTILE))
def test_judging_hostile_layers_takes_seconds_at_most_and_says_little(
    settings: dict[str, dict[str, Any]],
) -> None:
    local = of_file({"groups": GROUPS, "panel": {"call_buttons": BUTTON}})
    layers = {name: parse_layer(name, document(said)) for name, said in settings.items()}
    good = {name: one for name, one in layers.items() if isinstance(one, Layer)}
    began = time.process_time()
    verdict = judge(local, layers, good)
    assert time.process_time() - began < 5, "it was 31 s for three"
    assert len(verdict.errors) <= 32
    assert len(verdict.skipped) <= 64
    said = verdict.errors + verdict.skipped
    assert sum(len(one.path) + len(one.reason) for one in said) < 100_000


def test_layers_that_are_too_much_are_refused_with_the_reason() -> None:
    deep: dict[str, Any] = {}
    for _ in range(20):
        deep = {"a": deep}
    for settings, words in (
        (deep, "at most 16 objects and lists deep"),
        (unknown("x", 4097), "at most 4096 values"),
        ({"k" * 257: 1}, "at most 256 characters"),
    ):
        for patch in (layer(settings), layer({}, percent=0, before=settings)):
            [error] = judge(of_file(), {"default": patch}).errors
            assert (error.layer, error.path) == ("default", "")
            assert words in error.reason


def test_layer_with_many_errors_does_not_hide_that_another_one_is_refused() -> None:
    good = {"group/a": layer({"call_timeout_s": 9})}
    now = {"default": layer(unknown("x", 40)), "group/a": layer({"call_timeout_s": 5000}, 2)}
    verdict = judge(of_file({"groups": ["a"]}), now, good)
    assert {error.layer for error in verdict.errors} == {"default", "group/a"}
    assert verdict.settings.call_timeout_s == 9, "its last good one stays"


async def test_layers_of_groups_that_a_device_is_not_in_cost_it_no_memory(tmp_path: Path) -> None:
    async with fleet_stage(tmp_path, relay=False) as stage:
        gate = await stage.add(GATE, groups=["g1"])
        payloads = [document(unknown(f"{number}", 4000)) for number in range(8)]
        async with raw_client(stage.broker.address) as client:
            before = rss_mb()
            for number in range(400):
                topic = CONFIG_GROUPS.replace("+", f"other-{number}")
                await client.publish(topic, payloads[number % 8], qos=1, retain=True)
            await client.publish(
                TOPICS["group/g1"], document({"call_timeout_s": 9}), qos=1, retain=True
            )
            await until(gate, lambda: gate.live.now.call_timeout_s == 9)
            assert rss_mb() - before < 40, "parsed, they are 200 MB"


def test_report_with_as_much_wrong_as_can_be_is_one_that_the_broker_passes() -> None:
    wrong = LayerProblem(layer="group/" + "g" * 64, revision=1, path="p" * 256, reason="r" * 512)
    settings = {f"key-{number}": "x" * 200 for number in range(200)}
    report = Reported(
        device_id=GATE,
        software="bellwire",
        at=datetime.now(UTC),
        hash="0" * 64,
        effective=settings,
        sources=dict.fromkeys(settings, "default"),
        revisions={"default": 1},
        local=settings,
        locked=tuple(f"{number}" + "l" * 250 for number in range(64)),
        errors=(wrong,) * 48,
        skipped=(wrong,) * 64,
        state="refused",
    )
    sent = Reported.model_validate_json(_that_fits(report))
    assert len(_that_fits(report)) < 80 * 1024 - 256
    assert sent.errors
    assert sent.hash == report.hash


def rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


class Rough:
    """A device on a wire that the test plays."""

    def __init__(self) -> None:
        self.broker = RoughBroker(GATE)
        self.session = RoughSession(self.broker)
        settings = AgentSettings(
            device_id=GATE,
            identity=GATE,
            groups=("a",),
            broker=BrokerSettings(url="mqtt://x", username=GATE, password=SecretStr("x")),
        )
        self.live = LiveSettings(settings)
        self.changes: list[float] = []
        self.live.watch(lambda _, now: self.changes.append(now.call_timeout_s))
        self.fleet = FleetFollower(
            settings, self.session, self.live, now=lambda: datetime.now(UTC), sleep=_no_wait
        )

    def say(self, topic: str, payload: bytes) -> None:
        self.broker.publish(topic, payload)
        self.broker.deliver(-1)

    async def rest(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not self.fleet.at_rest:  # noqa: ASYNC110 - it takes turns of the loop, not time
                await asyncio.sleep(0)


async def _no_wait(_: float) -> None:
    await asyncio.sleep(0)


@asynccontextmanager
async def rough_device() -> AsyncIterator[Rough]:
    device = Rough()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(device.fleet.run())
        await device.session.connect()
        await device.rest()
        yield device
        running.cancel()


async def test_of_layers_in_quick_succession_the_newest_alone_is_judged() -> None:
    async with rough_device() as device:
        for revision in range(1, 1001):
            device.say(CONFIG_DEFAULT, document({"call_timeout_s": 1 + revision % 500}, revision))
        await device.rest()
        assert device.fleet.verdict.revisions == {"default": 1000}
        assert device.changes == [1.0]


async def test_loss_in_a_storm_of_layers_is_heard_and_takes_nothing_away() -> None:
    async with rough_device() as device:
        device.say(TOPICS["device"], document({"call_timeout_s": 7}, 1))
        await device.rest()
        device.say(TOPICS["device"], b"")
        for revision in range(1, 600):
            device.say(CONFIG_DEFAULT, document({"log_level": "error"}, revision))
        await device.rest()
        assert device.fleet.verdict.revisions == {"default": 599, "device": 1}
        assert set(device.fleet.vanished) == {"device"}
        (error,) = Reported.model_validate_json(device.broker.reports[-1]).errors
        assert "the broker has lost this layer" in error.reason


def garbage() -> Iterator[bytes]:
    head = b'{"revision":1,"author":"a","at":"2026-11-21T00:00:00Z","settings":'
    yield head + b'{"a":' * 10_000 + b"1" + b"}" * 10_001
    yield head + b"[" * 60_000
    yield head + b'{"a":' + b"9" * 60_000 + b"}}"
    yield b"x" * (LAYER_LIMIT_BYTES + 1)
    yield b'{"revision":' + b"9" * 60_000


@pytest.mark.parametrize("payload", [*garbage()], ids=lambda payload: str(payload[60:80]))
def test_garbage_is_refused_in_milliseconds(payload: bytes) -> None:
    began = time.process_time()
    problem = parse_layer("default", payload)
    assert time.process_time() - began < 0.1
    assert isinstance(problem, LayerProblem)
    assert len(problem.reason) <= 512


async def test_device_that_moves_runs_what_it_ran_until_it_knows_its_new_groups_layer() -> None:
    async with rough_device() as device:
        device.broker.publish(CONFIG_GROUPS.replace("+", "b"), document({"call_timeout_s": 8}))
        device.broker.deliver(0)
        device.say(CONFIG_GROUPS.replace("+", "a"), document({"call_timeout_s": 7}))
        await device.rest()
        device.say(config_topic(GATE), document({"groups": ["b"]}))
        await device.rest()
        assert device.changes == [7.0, 8.0], "and never its file's 60"
        assert device.fleet.verdict.revisions == {"group/b": 1, "device": 1}
