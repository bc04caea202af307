"""Devices of a fleet on a real broker: what an operator retains, they run, keep and report."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from gpiozero import DigitalInputDevice

from bellwire.agent.calls.call import CallStatus
from bellwire.agent.main import run_agent
from bellwire.agent.media.sound import Tone
from bellwire.agent.media.sound_card import SoundCard
from bellwire.broker.session.messages import Incoming
from bellwire.broker.session.session import Session
from bellwire.cli.demo.station import SimulatedStation
from bellwire.config.agent.settings import AgentSettings
from bellwire.config.agent.telemetry import Telemetry
from bellwire.config.fleet.last_good import LastGood
from bellwire.config.fleet.layer import Reported
from bellwire.hardware.audio.simulated_card import SimulatedSoundCard
from bellwire.hardware.panel.panel import Panel
from bellwire.hardware.panel.status_light import Pattern
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import CONFIG_DEFAULT, CONFIG_GROUPS, config_topic
from bellwire.signaling.wire.station import parse_presence
from tests.agent.desk import Desk, Exchange, settings_of
from tests.broker.running import held, soon
from tests.config.fleet_parts import document
from tests.conftest import PATIENCE_S, running_station
from tests.small_disk import small_disk
from tests.system.scene import Record

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Operator:
    """Somebody with an MQTT client: retains layers, and hears what the devices report."""

    def __init__(self, session: Session) -> None:
        self.reports = Record()
        self.health = Record()
        self._session = session
        self._retained: set[str] = set()
        session.subscribe("bellwire/v1/device/+/config/reported", self._take_report)
        session.subscribe("bellwire/v1/device/+/telemetry", self._take_health)

    async def retain(self, topic: str, payload: bytes) -> None:
        self._retained.add(topic)
        await self._session.publish(topic, payload, retain=True)

    async def configure(self, desk: Desk, settings: dict[str, Any], revision: int = 1) -> None:
        await self.retain(config_topic(device_of(desk)), document(settings, revision))

    async def clear(self) -> None:
        for topic in self._retained:
            await self._session.publish(topic, b"", retain=True)

    async def until(self, desk: Desk, wanted: Callable[[Reported], bool], what: str) -> Reported:
        name = device_of(desk)
        found: Reported = await self.reports.until(
            lambda report: report.device_id == name and wanted(report), what
        )
        return found

    def _take_report(self, message: Incoming) -> None:
        if message.payload:
            self.reports.note(Reported.model_validate_json(message.payload))

    def _take_health(self, message: Incoming) -> None:
        if message.payload:
            self.health.note(Telemetry.model_validate_json(message.payload))


def device_of(desk: Desk) -> DeviceId:
    return DeviceId(desk.station.agent.settings.device_id)


@pytest_asyncio.fixture(loop_scope="module")
async def operator(exchange: Exchange) -> AsyncIterator[Operator]:
    session = Session(exchange.broker.address, "operator", sleep=soon)
    at_work = Operator(session)
    async with held(session):
        yield at_work
        await at_work.clear()


async def test_a_layer_takes_effect_is_reported_and_goes_by_a_revision_without_settings(
    desk: Desk, operator: Operator
) -> None:
    first = await operator.until(desk, lambda _: True, "the first report")
    assert (first.state, first.errors, first.revisions) == ("applied", (), {})
    await operator.configure(desk, {"audio": {"ring_volume": 0.25}, "groups": ["upstairs"]}, 4)
    report = await operator.until(desk, lambda r: "device" in r.revisions, "the change")
    assert report.sources["audio.ring_volume"] == "device"
    assert (report.revisions, report.state) == ({"device": 4}, "applied")
    assert desk.station.agent.live.now.audio.ring_volume == 0.25
    await operator.retain(CONFIG_GROUPS.replace("+", "upstairs"), document({"call_timeout_s": 7}))
    await operator.until(desk, lambda r: "group/upstairs" in r.revisions, "its group's layer")
    assert desk.station.agent.live.now.call_timeout_s == 7
    await operator.clear()
    await operator.until(desk, lambda r: len(r.errors) == 2, "that the broker has lost them")
    assert desk.station.agent.live.now.call_timeout_s == 7, "what is lost stays in force"
    await operator.retain(CONFIG_GROUPS.replace("+", "upstairs"), document({}, 2))
    await operator.configure(desk, {}, 5)
    last = await operator.until(desk, lambda r: r.revisions == {"device": 5}, "the removal")
    assert last.hash == first.hash
    assert desk.station.agent.live.now.call_timeout_s == 20, "what its own file says"


async def test_what_a_device_has_obeyed_it_keeps_against_less_and_against_another_content(
    desk: Desk, operator: Operator
) -> None:
    await operator.until(desk, lambda _: True, "the first report")
    await operator.configure(desk, {"call_timeout_s": 8}, 8)
    await operator.until(desk, lambda r: r.revisions == {"device": 8}, "a layer")
    for revision, why in (
        (7, "older than revision 8"),
        (8, "another content than that of revision 8"),
    ):
        operator.reports.noted.clear()
        await operator.configure(desk, {"call_timeout_s": 9}, revision)
        report = await operator.until(desk, lambda r: bool(r.outdated), why)
        (outdated,) = report.outdated
        assert (outdated.layer, outdated.revision) == ("device", revision)
        assert why in outdated.reason
        assert (report.revisions, report.state, report.errors) == ({"device": 8}, "refused", ())
        assert desk.station.agent.live.now.call_timeout_s == 8
    await operator.configure(desk, {"call_timeout_s": 9}, 9)
    report = await operator.until(desk, lambda r: r.revisions == {"device": 9}, "a newer one")
    assert (report.outdated, report.state) == ((), "applied")


async def test_a_layers_ring_tone_that_is_not_on_the_device_is_told_of_and_classic_rings(
    exchange: Exchange, operator: Operator, tmp_path: Path
) -> None:
    """Such a bell was silent, and doctor, status and telemetry said that all was well."""
    settings = settings_of(await exchange.admit())
    device, gone = DeviceId(settings.device_id), str(tmp_path / "gone.wav")
    hardware = SimulatedSoundCard()
    card = SoundCard(settings.audio, initialise=hardware.initialised)
    heard, loop = asyncio.Event(), asyncio.get_running_loop()
    hardware.listen(lambda block: block.any() and loop.call_soon_threadsafe(heard.set))
    async with running_station(settings, card) as station:
        layer = document({"audio": {"ring_tone": gone}})
        await operator.retain(config_topic(device), layer)
        report = await operator.reports.until(
            lambda r: r.device_id == device and bool(r.errors), "the fault"
        )
        (error,) = report.errors
        assert (error.layer, error.revision, error.path) == ("device", 1, "audio.ring_tone")
        assert error.reason.startswith(f"classic rings instead: {gone} cannot be played")
        health = await operator.health.until(
            lambda h: h.device_id == device and bool(h.faults), "the fault in its health"
        )
        assert [fault.part for fault in health.faults] == ["audio"]
        card.start_tone(Tone.RING)
        async with asyncio.timeout(PATIENCE_S):
            await heard.wait()
        card.stop_tone()
        name = document({"audio": {"ring_tone": "dingdong"}, "call_timeout_s": 5}, 2)
        await operator.retain(config_topic(device), name)
        report = await operator.reports.until(
            lambda r: r.device_id == device and bool(r.skipped), "that a name is none"
        )
        (skipped,) = report.skipped
        assert skipped.path == "audio.ring_tone"
        assert "no ring tone 'dingdong'" in skipped.reason
        assert station.agent.live.now.call_timeout_s == 5, "the rest of the layer"
        assert station.agent.live.now.audio.ring_tone == "classic"
        await operator.retain(config_topic(device), document({}, 3))
        await operator.reports.until(
            lambda r: r.device_id == device and r.revisions == {"device": 3} and not r.errors,
            "that all is well",
        )


async def test_a_bad_layer_is_refused_by_every_device_with_the_same_error_and_the_last_good_one_holds(
    desk: Desk, far_desk: Desk, operator: Operator
) -> None:
    both = (desk, far_desk)
    await operator.retain(CONFIG_DEFAULT, document({"audio": {"ring_volume": 0.3}}))
    for each in both:
        await operator.until(each, lambda r: r.revisions == {"default": 1}, "the good one")
    redial = {"redial": {"times": 99}}
    bad = {"audio": {"ring_volume": 3}, "behaviour": redial, "call_timeout_s": 5}
    await operator.retain(CONFIG_DEFAULT, document(bad, 2))
    errors = [(await operator.until(d, lambda r: bool(r.errors), "errors")).errors for d in both]
    assert errors[0] == errors[1]
    assert [(e.layer, e.revision, e.path) for e in errors[0]] == [
        ("default", 2, "audio.ring_volume"),
        ("default", 2, "behaviour.redial.times"),
    ]
    assert "less than or equal to 20" in errors[0][1].reason
    assert errors[0][0].reason == "Input should be less than or equal to 1; this is 3"
    for each in both:
        report = await operator.until(each, lambda r: bool(r.errors), "errors")
        assert (report.state, report.revisions) == ("refused", {"default": 1})
        now = each.station.agent.live.now
        assert (now.audio.ring_volume, now.call_timeout_s) == (0.3, 20)
    await operator.retain(CONFIG_DEFAULT, document({}, 3))
    for each in both:
        mended = await operator.until(each, lambda r: r.revisions == {"default": 3}, "mended")
        assert mended.errors == ()


@pytest.mark.parametrize("payload", [b"no json", b'{"revision": 1}', b"x" * 70_000])
async def test_garbage_is_refused_and_says_what_a_layer_is(
    desk: Desk, operator: Operator, payload: bytes
) -> None:
    await operator.retain(config_topic(device_of(desk)), payload)
    report = await operator.until(desk, lambda r: bool(r.errors), "errors")
    assert {e.layer for e in report.errors} == {"device"}
    assert report.errors[0].revision is None
    assert report.revisions == {}


async def test_a_call_goes_on_while_its_bell_changes_and_it_changes_when_it_is_over(
    desk: Desk, operator: Operator
) -> None:
    agent = desk.station.agent
    sid = await desk.ring_and_answer()
    statuses = Record()
    agent.phone.watch(lambda call: statuses.note(call.status))
    built = agent.panel.ringer
    change = {
        "panel": {"ringer": {"cadence_s": [1, 1]}, "call_buttons": {"lobby": {"to": "porter"}}},
        "audio": {"ring_volume": 0.1, "output_device": "USB"},
    }
    await operator.configure(desk, change)
    report = await operator.until(desk, lambda r: bool(r.waiting), "that it waits")
    assert (report.state, report.waiting) == ("waiting", ("panel", "audio.output_device"))
    live = agent.live
    assert live.now.audio.ring_volume == 0.1, "a volume does not wait"
    assert live.now.panel.call_buttons["lobby"].to == ("porter",), "nor does whom a button calls"
    assert live.now.audio.output_device is None
    assert agent.panel.ringer is built
    assert statuses.noted == [], "the call was not touched"
    assert desk.call is not None and desk.call.status is CallStatus.OPEN
    await desk.press("h")
    await desk.until(sid, CallStatus.CLOSED)
    done = await operator.until(
        desk, lambda r: r.state == "applied" and bool(r.revisions), "applied"
    )
    assert (done.waiting, done.hash) == ((), report.hash)
    assert live.now.audio.output_device == "USB"
    assert agent.panel.ringer is not built, "and now the bell is made anew"
    assert live.now.panel.ringer is not None and live.now.panel.ringer.cadence_s == (1, 1)


async def test_a_pin_that_cannot_be_had_is_reported_and_the_panel_stays_as_it_was(
    desk: Desk, operator: Operator
) -> None:
    agent = desk.station.agent
    # Its first gathering ends in a verdict of its own, which would take the panel back.
    await operator.until(desk, lambda _: True, "the first report")
    settings = agent.live.now
    ringer = settings.panel.ringer
    assert ringer is not None
    wired = settings.panel.model_copy(update={"ringer": ringer.model_copy(update={"pin": 12})})
    with contextlib.closing(DigitalInputDevice(12, pin_factory=desk.station.fingers.pins)):
        agent.live.take(settings.model_copy(update={"panel": wired}))
        report = await operator.until(desk, lambda r: bool(r.errors), "the fault")
        [error] = report.errors
        assert (error.layer, error.revision, error.path) == ("file", None, "panel")
        assert "ringer cannot have GPIO12" in error.reason
        sid = await desk.ring()
        await desk.press("h")
        await desk.until(sid, CallStatus.CLOSED)
        assert [f.part for f in (await agent.health.telemetry()).faults] == ["panel"]
    agent.live.take(settings)
    operator.reports.noted.clear()
    mended = await operator.until(desk, lambda r: not r.errors, "mended")
    assert (mended.errors, mended.state) == ((), "applied")


async def test_health_is_reported_at_the_pace_that_is_configured(
    desk: Desk, operator: Operator
) -> None:
    name = device_of(desk)
    sid = await desk.ring()
    await operator.configure(desk, {"telemetry": {"interval_s": 1}})
    ringing = await operator.health.until(
        lambda h: h.device_id == name and h.call == "pending", "that it rings"
    )
    assert ringing.clock_skew_s is not None
    assert abs(ringing.clock_skew_s) < PATIENCE_S
    assert ringing.memory_percent is not None and 0 < ringing.memory_percent < 100
    assert ringing.agent_rss_mb is not None and ringing.agent_rss_mb > 5
    assert ringing.config_hash == desk.station.agent.fleet.verdict.hash
    await operator.configure(desk, {"telemetry": {"interval_s": 3600}}, 2)
    await operator.until(desk, lambda r: r.revisions == {"device": 2}, "the slow pace")
    await desk.press("h")
    ended = await operator.health.until(
        lambda h: h.device_id == name and h.last_call is not None, "its last call, at once"
    )
    assert (ended.call, ended.last_call.call_sid) == ("idle", sid)
    assert (ended.last_call.direction, ended.last_call.ended_because) == (
        "INCOMING",
        "rejected here",
    )


async def test_a_short_gap_does_not_show_a_device_offline_and_it_hears_what_changed_meanwhile(
    far_desk: Desk, operator: Operator
) -> None:
    presence = far_desk.relay.presence
    await presence.until(lambda p: parse_presence(p).online, "online")
    presence.noted.clear()
    await operator.configure(far_desk, {"call_timeout_s": 5})
    await operator.until(far_desk, lambda r: r.revisions == {"device": 1}, "a layer")
    far_desk.wire.cut()
    await far_desk.lost()
    await operator.configure(far_desk, {"call_timeout_s": 6}, 2)
    await far_desk.wire.mend()
    await operator.until(far_desk, lambda r: r.revisions == {"device": 2}, "the change it missed")
    assert presence.noted, "it came back"
    assert all(parse_presence(p).online for p in presence.noted), "and was never said to be away"
    far_desk.wire.cut()
    await presence.until(lambda p: not parse_presence(p).online, "that a long gap is told")


async def test_a_removal_that_a_device_missed_counts_once_it_is_back(
    far_desk: Desk, operator: Operator
) -> None:
    await operator.configure(far_desk, {"call_timeout_s": 5})
    await operator.until(far_desk, lambda r: r.revisions == {"device": 1}, "a layer")
    far_desk.wire.cut()
    await far_desk.lost()
    await operator.configure(far_desk, {}, 2)
    operator.reports.noted.clear()
    await far_desk.wire.mend()
    await operator.until(far_desk, lambda r: r.revisions == {"device": 2}, "the removal")
    assert far_desk.station.agent.live.now.call_timeout_s == 20


async def test_an_agent_starts_with_what_it_ran_before_it_has_reached_a_broker(
    exchange: Exchange, operator: Operator, tmp_path: Path
) -> None:
    settings = settings_of(await exchange.admit())
    device = DeviceId(settings.device_id)
    change = {"log_level": "debug", "panel": {"ringer": {"cadence_s": [1, 1]}}}
    await operator.retain(config_topic(device), document(change))
    levels = Record()
    # What it reports it has on disk.
    there = operator.reports.until(
        lambda r: r.device_id == device and bool(r.revisions), "a report"
    )
    await run_until(there, levels, settings, tmp_path)
    assert levels.noted == ["info", "debug"]
    assert LastGood(tmp_path, device).layers["device"].settings == change
    gone = settings.broker.model_copy(update={"url": "mqtt://127.0.0.1:1"})
    levels = Record()
    started = levels.until(lambda _: True, "its start")
    await run_until(started, levels, settings.model_copy(update={"broker": gone}), tmp_path)
    assert levels.noted == ["debug"]


async def run_until(
    done: Awaitable[Any], levels: Record, settings: AgentSettings, state: Path
) -> None:
    stop = asyncio.Event()
    pins = SimulatedStation(settings).pins
    async with asyncio.TaskGroup() as tasks:
        work = run_agent(settings, stop, pin_factory=pins, state=state, set_log_level=levels.note)
        tasks.create_task(work)
        await done
        stop.set()


async def test_a_full_disk_costs_the_device_no_layer_and_is_reported(
    exchange: Exchange, operator: Operator, tmp_path: Path
) -> None:
    settings = settings_of(await exchange.admit())
    device = DeviceId(settings.device_id)
    pins, stop = SimulatedStation(settings).pins, asyncio.Event()
    with small_disk(tmp_path / "card", 1) as card:
        card.fill()
        async with asyncio.TaskGroup() as tasks:
            work = run_agent(settings, stop, pin_factory=pins, state=card.folder / "state")
            tasks.create_task(work)
            change = {"call_timeout_s": 7, "telemetry": {"interval_s": 1}}
            await operator.retain(config_topic(device), document(change))
            await operator.reports.until(
                lambda r: r.device_id == device and r.revisions == {"device": 1}, "the layer"
            )
            health = await operator.health.until(
                lambda h: h.device_id == device and bool(h.faults), "the fault"
            )
            (fault,) = health.faults
            assert (fault.part, "No space left" in fault.reason) == ("disk", True)
            card.free()
            change["call_timeout_s"] = 8
            await operator.retain(config_topic(device), document(change, 2))
            operator.health.noted.clear()
            await operator.health.until(
                lambda h: h.device_id == device and not h.faults, "that it is kept again"
            )
            stop.set()
        assert LastGood(card.folder / "state", device).layers["device"].revision == 2


async def test_a_panel_that_is_rewired_shows_on_what_it_showed(desk: Desk) -> None:
    panel: Panel = desk.station.agent.panel
    assert panel.status_light is not None
    before = panel.status_light
    before.show(Pattern.FAULT)
    panel.rewire(desk.station.agent.settings.panel)
    assert panel.status_light is not before
    assert panel.status_light.pattern is Pattern.FAULT
    await desk.ring_and_answer()
