"""A station's conduct with real sound and a real relay: digits that open a door, early media, and a call
that rings out."""

import asyncio
import contextlib

import pytest
from structlog.testing import capture_logs

from bellwire.agent.calls.call import CallStatus
from bellwire.agent.door.doors import Doors
from bellwire.agent.fleet.live_settings import LiveSettings
from bellwire.agent.station.incoming import IncomingCalls
from bellwire.hardware.panel.panel import Panel
from bellwire.hardware.panel.simulated_pins import SimulatedPins
from tests.agent.post import began, settings_of
from tests.agent.talking import FRONT, Talker, heard

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_the_code_opens_the_door_when_who_was_called_types_it_and_shows_in_no_log(
    front: Talker, inside: Talker
) -> None:
    door = {"callers": ["front"], "code": "47#1"}
    settings = settings_of(
        behaviour={"doors": {"main": door}, "digit_timeout_s": 2, "wrong_codes": 10}
    )
    assert settings.panel.door is not None
    with SimulatedPins(settings.panel) as pins, capture_logs() as logs:
        panel = Panel(settings.panel, pin_factory=pins)
        running = asyncio.create_task(panel.run())
        await panel.ready()
        Doors(LiveSettings(settings), inside.device, panel)
        call = inside.device.connect("front")
        theirs = (await front.invited()).accept()
        await inside.until(call, "audio")
        await front.until(theirs, "audio")
        while not pins.is_active(settings.panel.door):
            # On a busy machine a digit may get lost; whoever types then types again, a little later.
            theirs.send_digits("47#1")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(4):
                    await pins.wait_for(settings.panel.door, active=True)
        told = await front.told[id(theirs)].until(
            lambda it: it[0] == "messageReceived" and it[1].content["result"] == "released"
        )
        assert told[1].content == {"door": "main", "result": "released"}
        call.disconnect()
        await front.until(theirs, "disconnect")
        running.cancel()
        panel.close()
    assert any(line["event"] == "door decision" for line in logs)
    assert not any("47#1" in str(line) for line in logs)


async def test_a_caller_is_heard_before_the_answer_where_both_sides_allow_it(
    front: Talker, inside: Talker
) -> None:
    live = LiveSettings(settings_of())
    IncomingCalls(live, inside.device, now=lambda: began)
    unheard = front.device.connect("desk", early_media=True)
    await inside.until_status((await inside.invited()).call, CallStatus.PENDING)
    live.take(settings_of(behaviour={"hear_early_media": True}))
    unheard.disconnect()
    await inside.until((await inside.invited()).call, "cancel")
    assert not inside.voice.opened
    call = front.device.connect("desk", early_media=True)
    await inside.invited(1)
    await heard(inside, "front", FRONT)
    assert call.status() is CallStatus.RINGING
    call.disconnect()
    await inside.until((await inside.invited(1)).call, "cancel")
    live.take(
        settings_of(behaviour={"hear_early_media": True, "do_not_disturb": {"enabled": True}})
    )
    opened = len(inside.voice.opened)
    quiet = front.device.connect("desk", early_media=True)
    await front.until(quiet, "ringing")
    quiet.disconnect()
    await inside.until((await inside.invited(2)).call, "cancel")
    assert len(inside.voice.opened) == opened


async def test_a_call_that_rings_out_is_told_from_one_that_is_rejected(
    front: Talker, inside: Talker
) -> None:
    in_vain = front.device.connect("desk", timeout_s=1)
    await front.until(in_vain, "disconnect")
    rejected = front.device.connect("desk")
    (await inside.invited(1)).reject()
    await front.until(rejected, "disconnect")
    assert (in_vain.signalling.unanswered, rejected.signalling.unanswered) == (True, False)
