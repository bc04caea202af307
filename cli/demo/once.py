"""Two calls, played without a keyboard: one invited by TwiML, rung, answered and hung up by pins, and
one from station to station, with voices.

Every time is taken where it happens: the ringer's at its pin, the answer's at the phone that hears
the relay say so.
"""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console

from bellwire.agent.calls.call import CallRecord, CallStatus
from bellwire.broker.session.messages import Incoming
from bellwire.cli.demo.stage import Stage, Timeline, demo_stage, within
from bellwire.cli.demo.talk import Talk, talk
from bellwire.signaling.calls.calls import CallState, UserState
from bellwire.signaling.calls.events import CallEnded, CallEvent, CallUserStateChanged
from bellwire.signaling.errors import Unavailable
from bellwire.signaling.wire.answers import CallAnswer

T = TypeVar("T")

TWIML = b"""<?xml version="1.0" encoding="UTF-8"?>
<Response>
  <Dial callerId="client:lobby" timeout="30">
    <Client>
      <Identity>desk</Identity>
      <Parameter name="caller_first_name" value="alice" />
      <Parameter name="caller_last_name" value="smith" />
      <Parameter name="reason" value="Paket f\xc3\xbcr B\xc3\xbcro 7 &amp; Lager" />
    </Client>
  </Dial>
</Response>
"""


@dataclass(frozen=True, slots=True)
class Played:
    """How the call went. Times are milliseconds: from POST to the ringer's pin, and from the answer
    button's pin to the call open on the phone that answered."""

    rang_ms: float
    answered_ms: float
    custom_parameters: dict[str, str]
    call: CallAnswer
    timeline: Timeline

    def report(self, talked: Talk) -> str:
        """The one JSON object that `script/demo --once` ends with."""
        return json.dumps(
            {
                "rang_ms": round(self.rang_ms, 1),
                "answered_ms": round(self.answered_ms, 1),
                "custom_parameters": self.custom_parameters,
                "call_state": self.call.state,
                "final_states": {user.identity: user.state for user in self.call.users},
                "voice_codec": talked.codec,
                "voice_ms": round(talked.voice_ms, 1),
                "voice_heard": {who: round(part, 2) for who, part in talked.heard.items()},
            },
            ensure_ascii=False,
        )


async def demo_once(console: Console) -> None:
    """Plays both calls and prints them.

    Raises:
        Unavailable: something of it did not happen in time, or not as it should; says what.
    """
    console.print("Setting the stage: a relay, its broker, and two simulated stations ...")
    async with demo_stage() as stage:
        played = await play(stage)
        talked = await talk(stage)
    console.print(played.timeline.table())
    console.print(talked.timeline.table())
    console.out(played.report(talked), highlight=False)


async def play(stage: Stage) -> Played:
    """One call on a stage, checked at every step.

    Raises:
        Unavailable: as `demo_once`.
    """
    desk_calls: asyncio.Queue[tuple[CallRecord, float]] = asyncio.Queue()
    lobby_events: asyncio.Queue[tuple[CallEvent, float]] = asyncio.Queue()
    stage.desk.agent.phone.watch(lambda call: desk_calls.put_nowait((call, time.perf_counter())))

    def hear(event: CallEvent, _: Incoming) -> None:
        lobby_events.put_nowait((event, time.perf_counter()))

    stage.lobby.agent.link.listen(hear)
    pins, panel = stage.desk.fingers.pins, stage.desk.fingers.settings.panel
    if panel.ringer is None or panel.answer is None or panel.hang_up is None:
        raise Unavailable("the demo's desk has no ringer or buttons")

    ringing = asyncio.create_task(pins.wait_for(panel.ringer, active=True))
    timeline = Timeline("One call, from invite to hang-up", time.perf_counter())
    posted = await asyncio.to_thread(stage.client.create_call_from_twiml, TWIML)
    timeline.note("backend", f"TwiML posted, call {posted.call_sid} is durable")
    rang_ms = timeline.note("desk", "ringer pin high", await within("the desk rings", ringing))
    invited = await _until(desk_calls, CallStatus.PENDING)
    parameters = invited[0].custom_parameters
    timeline.note(
        "desk", f"invite from {invited[0].from_} with {len(parameters)} parameters", invited[1]
    )
    told = await _until_state(lobby_events, UserState.RECEIVED)
    timeline.note("lobby", "told: desk received the invite", told)

    silent = asyncio.create_task(pins.wait_for(panel.ringer, active=False))
    pressed_at = time.perf_counter()
    timeline.note("desk", "answer button pressed", pressed_at)
    await pins.tap(panel.answer)
    released_at = time.perf_counter()
    timeline.note("desk", "ringer pin low", await within("the ringer falls silent", silent))
    opened = await _until(desk_calls, CallStatus.OPEN)
    timeline.note("desk", "call open (a server called, so no device speaks for lobby)", opened[1])
    told = await _until_state(lobby_events, UserState.ACCEPTED)
    timeline.note("lobby", "told: desk accepted", told)

    timeline.note("desk", "hang-up button pressed")
    await pins.tap(panel.hang_up)
    closed = await _until(desk_calls, CallStatus.CLOSED)
    timeline.note("desk", f"call closed: {closed[0].ended_because}", closed[1])
    timeline.note("lobby", "told: the call has ended", await _until_ended(lobby_events))

    call = await asyncio.to_thread(stage.client.call, posted.call_sid)
    _check(call, parameters, posted)
    return Played(rang_ms, (opened[1] - released_at) * 1000, parameters, call, timeline)


def _check(call: CallAnswer, heard: dict[str, str], posted: CallAnswer) -> None:
    states = {user.identity: user.state for user in call.users}
    if heard != posted.custom_parameters or len(heard) != 3:
        raise Unavailable(f"the custom parameters did not arrive as they were sent: {heard}")
    if call.state is not CallState.ENDED or states["desk"] is not UserState.QUIT:
        raise Unavailable(f"the call is {call.state} with {states} after the hang-up")


async def _next(
    queue: "asyncio.Queue[tuple[T, float]]", what: str, wanted: Callable[[T], bool]
) -> tuple[T, float]:
    async def search() -> tuple[T, float]:
        while True:
            found = await queue.get()
            if wanted(found[0]):
                return found

    return await within(what, search())


async def _until(
    calls: "asyncio.Queue[tuple[CallRecord, float]]", status: CallStatus
) -> tuple[CallRecord, float]:
    return await _next(calls, f"the desk's call is {status}", lambda call: call.status is status)


async def _until_state(events: "asyncio.Queue[tuple[CallEvent, float]]", state: UserState) -> float:
    found = await _next(
        events,
        f"the lobby is told that desk is {state}",
        lambda event: isinstance(event, CallUserStateChanged) and event.state is state,
    )
    return found[1]


async def _until_ended(events: "asyncio.Queue[tuple[CallEvent, float]]") -> float:
    what = "the lobby is told that the call has ended"
    return (await _next(events, what, lambda event: isinstance(event, CallEnded)))[1]
