"""The whole panel: gpiozero's real device classes on simulated pins, and the event stream."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Iterator

import gpiozero.threads
import pytest
from gpiozero import Device
from gpiozero.exc import BadPinFactory

from bellwire.config.agent.panel import PanelSettings
from bellwire.hardware.panel import panel as panel_module
from bellwire.hardware.panel.panel import (
    AnswerPressed,
    CallPressed,
    HangUpPressed,
    HookLifted,
    HookReplaced,
    KeyPressed,
    MutePressed,
    Panel,
    PanelError,
)
from bellwire.hardware.panel.simulated_pins import SimulatedPins

SETTINGS = PanelSettings.model_validate(
    {
        "call_buttons": {
            "front-door": {"pin": 4, "to": "alice", "debounce_s": 0.001},
            "office": {"pin": 18, "pull": "down", "group": "office", "debounce_s": 0.001},
        },
        "answer": {"pin": 23, "debounce_s": 0.001, "long_press_s": 0.02},
        "hang_up": {"pin": 24, "debounce_s": 0.001},
        "hook": {"pin": 25, "debounce_s": 0.001},
        "mute": {"pin": 8, "pull": "floating", "active_low": True, "debounce_s": 0.001},
        "keypad": {"rows": [5, 6, 13, 19], "columns": [12, 16, 20], "debounce_s": 0.001},
        "ringer": {"pin": 17},
        "status_light": {"pin": 22},
        "door": {"pin": 27},
    }
)
FRONT_DOOR = SETTINGS.call_buttons["front-door"]


@contextlib.asynccontextmanager
async def running_panel(settings: PanelSettings, pins: SimulatedPins) -> AsyncIterator[Panel]:
    panel = Panel(settings, pin_factory=pins)
    running = asyncio.create_task(panel.run())
    await panel.ready()
    try:
        yield panel
    finally:
        running.cancel()
        await asyncio.wait([running])
        panel.close()


@pytest.fixture
def pins() -> Iterator[SimulatedPins]:
    with SimulatedPins(SETTINGS) as pins:
        yield pins


@pytest.fixture
async def panel(pins: SimulatedPins) -> AsyncIterator[Panel]:
    async with running_panel(SETTINGS, pins) as panel:
        yield panel


async def test_each_button_says_what_was_pressed(panel: Panel, pins: SimulatedPins) -> None:
    events = panel.events()
    for button, expected in (
        (FRONT_DOOR, CallPressed("front-door", held=False)),
        (SETTINGS.call_buttons["office"], CallPressed("office", held=False)),
        (SETTINGS.hang_up, HangUpPressed(held=False)),
        (SETTINGS.mute, MutePressed(held=False)),
    ):
        await pins.tap(button)
        assert await anext(events) == expected


async def test_a_long_press_is_reported_while_the_button_is_still_down(
    panel: Panel, pins: SimulatedPins
) -> None:
    pins.press(SETTINGS.answer)
    assert await anext(panel.events()) == AnswerPressed(held=True)
    pins.release(SETTINGS.answer)
    await pins.tap(FRONT_DOOR)
    assert await anext(panel.events()) == CallPressed("front-door", held=False)


async def test_the_handset_is_followed(panel: Panel, pins: SimulatedPins) -> None:
    events = panel.events()
    assert not panel.is_hook_lifted
    pins.press(SETTINGS.hook)
    assert await anext(events) == HookLifted()
    assert panel.is_hook_lifted
    pins.release(SETTINGS.hook)
    assert await anext(events) == HookReplaced()
    assert not panel.is_hook_lifted


async def test_the_keypad_is_part_of_the_stream(panel: Panel, pins: SimulatedPins) -> None:
    pins.press_key(SETTINGS.keypad, "#")
    assert await anext(panel.events()) == KeyPressed("#")


async def test_a_bouncing_button_is_pressed_once(pins: SimulatedPins) -> None:
    settings = PanelSettings.model_validate(
        {"answer": {"pin": 23, "debounce_s": 0.03}, "mute": {"pin": 24, "debounce_s": 0}}
    )
    async with running_panel(settings, pins) as panel:
        for _ in range(10):
            pins.press(settings.answer)
            pins.release(settings.answer)
        await pins.tap(settings.answer)
        assert await anext(panel.events()) == AnswerPressed(held=False)
        await pins.tap(settings.mute)
        assert await anext(panel.events()) == MutePressed(held=False)


async def test_a_normally_closed_contact_is_pressed_when_it_opens() -> None:
    settings = PanelSettings.model_validate({"hook": {"pin": 25, "active_low": False}})
    with SimulatedPins(settings) as pins:
        async with running_panel(settings, pins) as panel:
            assert not pins.pin(25).state
            assert not panel.is_hook_lifted
            pins.press(settings.hook)
            assert pins.pin(25).state
            assert await anext(panel.events()) == HookLifted()


async def test_presses_from_other_threads_arrive_in_order(
    panel: Panel, pins: SimulatedPins
) -> None:
    """gpiozero's own callbacks come from the pin driver's thread."""
    button = SETTINGS.call_buttons["office"]
    thread = threading.Thread(target=lambda: asyncio.run(pins.tap(button)))
    thread.start()
    assert await anext(panel.events()) == CallPressed("office", held=False)
    await asyncio.to_thread(thread.join)


async def test_an_edge_after_the_event_loop_has_gone_disturbs_nobody(pins: SimulatedPins) -> None:
    def run_and_abandon() -> None:
        async def start() -> None:
            panel = Panel(SETTINGS, pin_factory=pins)
            button = panel._parts[0]
            await asyncio.wait([asyncio.create_task(button.run())], timeout=0)
            return panel, button._device.when_activated

        loop = asyncio.new_event_loop()
        panel, report_edge = loop.run_until_complete(start())
        for task in asyncio.all_tasks(loop):
            task.cancel()
            loop.run_until_complete(asyncio.wait([task]))
        loop.close()
        return panel, report_edge

    panel, report_edge = await asyncio.to_thread(run_and_abandon)
    report_edge()
    pins.press(FRONT_DOOR)
    panel.close()


async def test_unread_events_are_bounded_and_the_oldest_go_first(
    pins: SimulatedPins, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(panel_module, "EVENTS_KEPT", 2)
    async with running_panel(SETTINGS, pins) as panel:
        with caplog.at_level(logging.WARNING):
            for key in "123":
                panel._publish(KeyPressed(key))
        assert panel.events_dropped == 1
        assert "KeyPressed(key='1')" in caplog.text
        assert await anext(panel.events()) == KeyPressed("2")


async def test_cancelling_run_makes_every_output_inactive_and_locks_the_door(
    pins: SimulatedPins,
) -> None:
    async with running_panel(SETTINGS, pins) as panel:
        panel.ringer.start()
        panel.door.release()
        assert pins.is_active(SETTINGS.ringer)
        assert pins.is_active(SETTINGS.door)
    for output in (SETTINGS.ringer, SETTINGS.door, SETTINGS.status_light):
        assert not pins.pin(output.pin).state


async def test_closing_locks_the_door_first_and_closing_twice_is_the_same_as_once(
    panel: Panel, pins: SimulatedPins
) -> None:
    order = []
    for part in (SETTINGS.door, SETTINGS.ringer):
        pins.watch(part.pin, lambda high, _at, pin=part.pin: order.append((pin, high)))
    panel.ringer.start()
    panel.door.release()
    panel.close()
    panel.close()
    assert order == [(17, True), (27, True), (27, False), (17, False)]


async def test_a_panel_leaves_no_thread_and_no_task_behind(pins: SimulatedPins) -> None:
    threads = set(threading.enumerate())
    async with running_panel(SETTINGS, pins) as panel:
        panel.ringer.start()
        await pins.hold(SETTINGS.answer)
        beside = set(threading.enumerate()) - threads
        assert [thread.name for thread in beside] == ["door lock"]
    assert set(threading.enumerate()) == threads
    assert not gpiozero.threads._THREADS
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_panels_in_one_process_do_not_disturb_each_other() -> None:
    with SimulatedPins(SETTINGS) as mine, SimulatedPins(SETTINGS) as yours:
        async with (
            running_panel(SETTINGS, mine) as my_panel,
            running_panel(SETTINGS, yours) as your_panel,
        ):
            my_panel.ringer.start()
            assert not yours.is_active(SETTINGS.ringer)
            await mine.tap(FRONT_DOOR)
            await yours.tap(SETTINGS.hang_up)
            assert await anext(my_panel.events()) == CallPressed("front-door", held=False)
            assert await anext(your_panel.events()) == HangUpPressed(held=False)
    assert Device.pin_factory is None


def test_what_is_not_wired_is_none(pins: SimulatedPins) -> None:
    panel = Panel(PanelSettings(), pin_factory=pins)
    assert (panel.ringer, panel.status_light, panel.door) == (None, None, None)
    assert not panel.is_hook_lifted
    panel.close()


def test_a_pin_that_is_taken_names_the_part_and_gives_back_all_others(pins: SimulatedPins) -> None:
    pins.reserve_pins(pins, 27)
    with pytest.raises(PanelError, match="door cannot have GPIO27") as refused:
        Panel(SETTINGS, pin_factory=pins)
    assert "another pin" in refused.value.advice
    pins.release_pins(pins, 27)
    Panel(SETTINGS, pin_factory=pins).close()


def test_a_pull_that_the_board_does_not_have_says_what_to_do(pins: SimulatedPins) -> None:
    settings = PanelSettings.model_validate({"answer": {"pin": 2, "pull": "down"}})
    with pytest.raises(PanelError, match=r'answer cannot have GPIO2.*set pull = "up"'):
        Panel(settings, pin_factory=pins)


def test_a_machine_without_pins_is_told_to_simulate(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_no_driver() -> None:
        raise BadPinFactory("Unable to load any default pin factory!")

    monkeypatch.setattr(Device, "_default_pin_factory", staticmethod(find_no_driver))
    with pytest.raises(PanelError, match="--simulate"):
        Panel(SETTINGS)


def test_a_pin_that_a_driver_refuses_in_its_own_words_says_how_to_find_who_has_it(
    pins: SimulatedPins,
) -> None:
    class LgpioError(Exception):
        """lgpio's own error type, which is none of gpiozero's."""

    def refuse(_name: object) -> None:
        raise LgpioError("'GPIO busy'")

    pins.pin = refuse
    with pytest.raises(PanelError, match=r"GPIO busy.*gpioinfo"):
        Panel(SETTINGS, pin_factory=pins)


async def test_waiting_for_an_output_gives_the_time_of_its_edge(
    panel: Panel, pins: SimulatedPins
) -> None:
    waiting = asyncio.create_task(pins.wait_for(SETTINGS.ringer, active=True))
    await asyncio.sleep(0)
    stamps = []
    unwatch = pins.watch(17, lambda _high, at: stamps.append(at))
    panel.ringer.start()
    assert await waiting == pytest.approx(stamps[0], abs=0.05)
    unwatch()
    panel.ringer.stop()
    assert len(stamps) == 1
    assert await pins.wait_for(SETTINGS.ringer, active=False) > stamps[0]
