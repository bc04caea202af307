"""kill -9 of the relay at every step of a call, and a restart on what it left: whatever was
acknowledged holds, nobody rings past the deadline, and no device rings twice."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path

import pytest

from bellwire.agent.calls.call import CallStatus
from bellwire.signaling.calls.calls import UserState
from bellwire.signaling.calls.events import CallReceived, CallUserStateChanged
from tests.conftest import PATIENCE_S
from tests.system.mosquitto import running_mosquitto
from tests.system.scene import SILENT_WITHIN_S, Scene, scene

pytestmark = pytest.mark.timeout(1800)

LANES_OF_OWN_BROKER = 2  # relays side by side: while one starts, another waits
LANES = 4  # the others have an external one
ROUNDS_FULL = 4
SOON_S = 0.03  # a kill comes up to so much after its event

Step = Callable[[Scene, float], Awaitable[None]]


async def killed_once_the_invite_is_answered_201(stage: Scene, after_s: float) -> None:
    sid = await stage.invite()
    await stage.kill_and_restart(after_s)
    await stage.answer_and_hang_up(sid)


async def killed_while_the_bell_rings(stage: Scene, after_s: float) -> None:
    sid = await stage.invite()
    await stage.desk.until(sid, CallStatus.PENDING)
    await stage.kill_and_restart(after_s)
    assert not stage.desk.is_silent()
    await stage.answer_and_hang_up(sid)


async def killed_once_the_device_has_confirmed(stage: Scene, after_s: float) -> None:
    sid = await stage.invite()
    await stage.lobby.heard.until(_told(sid, UserState.RECEIVED), "Received")
    await stage.kill_and_restart(after_s)
    assert await stage.state_of(sid) == "Received"
    await stage.answer_and_hang_up(sid)


async def killed_right_after_the_answer_button(stage: Scene, after_s: float) -> None:
    sid = await stage.invite()
    await stage.desk.until(sid, CallStatus.PENDING)
    await stage.desk.station.fingers.press("a")
    await stage.desk.until(sid, CallStatus.CONNECTING)
    assert stage.desk.is_silent()
    await stage.kill_and_restart(after_s)
    await stage.hang_up_once_open(sid)


async def killed_once_the_call_is_open(stage: Scene, after_s: float) -> None:
    sid = await stage.invite()
    await stage.desk.until(sid, CallStatus.PENDING)
    await stage.desk.station.fingers.press("a")
    await stage.desk.until(sid, CallStatus.OPEN)
    await stage.kill_and_restart(after_s)
    assert await stage.state_of(sid) == "Accepted"
    await stage.hang_up_once_open(sid)


async def killed_right_after_the_hang_up_button(stage: Scene, after_s: float) -> None:
    sid = await stage.invite()
    await stage.desk.until(sid, CallStatus.PENDING)
    await stage.desk.station.fingers.press("a")
    await stage.desk.until(sid, CallStatus.OPEN)
    await stage.desk.station.fingers.press("h")
    await stage.desk.until(sid, CallStatus.CLOSED)
    await stage.kill_and_restart(after_s)
    await stage.lobby.until_told_ended(sid)
    assert await stage.state_of(sid) == "Quit"


async def killed_right_after_the_reject_button(stage: Scene, after_s: float) -> None:
    sid = await stage.invite()
    await stage.desk.until(sid, CallStatus.PENDING)
    await stage.desk.station.fingers.press("h")
    await stage.desk.until(sid, CallStatus.CLOSED)
    await stage.kill_and_restart(after_s)
    await stage.lobby.until_told_ended(sid)
    assert await stage.state_of(sid) == "Rejected"


async def killed_once_cancel_is_answered_200(stage: Scene, after_s: float) -> None:
    sid = await stage.invite()
    await stage.desk.until(sid, CallStatus.PENDING)
    await stage.operate(sid, "cancel")
    await stage.kill_and_restart(after_s)
    await stage.desk.until(sid, CallStatus.CLOSED)
    assert await stage.state_of(sid) == "Canceled"


async def killed_once_cancel_follows_the_invite_at_once(stage: Scene, after_s: float) -> None:
    sid = await stage.invite()
    await stage.operate(sid, "cancel")
    await stage.kill_and_restart(after_s)
    assert await stage.state_of(sid) == "Canceled"
    await stage.lobby.until_told_ended(sid)
    if stage.desk.rings(sid):
        await stage.desk.until(sid, CallStatus.CLOSED)


async def killed_once_a_server_has_accepted_for_the_desk(stage: Scene, after_s: float) -> None:
    sid = await stage.invite()
    await stage.desk.until(sid, CallStatus.PENDING)
    await stage.operate(sid, "accept", identity="desk", device_id="another")
    await stage.kill_and_restart(after_s)
    assert await stage.state_of(sid) == "Accepted"
    closed, _ = await stage.desk.until(sid, CallStatus.CLOSED)
    assert closed.ended_because == "answered_elsewhere"
    await stage.operate(sid, "quit", identity="desk", device_id="another")


async def killed_toward_the_deadline_and_dead_beyond_it(stage: Scene, after_s: float) -> None:
    sid = await stage.invite(timeout_s=2)
    await stage.desk.until(sid, CallStatus.PENDING)
    deadline = datetime.fromisoformat((await stage.show(sid))["expires_at"]).timestamp()
    await asyncio.sleep(after_s)
    await stage.kill()
    _, closed_at = await stage.desk.until(sid, CallStatus.CLOSED)
    assert stage.desk.is_silent()
    assert abs(closed_at - deadline) < SILENT_WITHIN_S
    assert not [at for high, at in stage.desk.edges if high and at > closed_at]
    await stage.start()
    assert time.time() > deadline
    await stage.lobby.until_told_ended(sid)
    assert await stage.state_of(sid) == "Timeout"


async def killed_and_back_before_the_deadline(stage: Scene, after_s: float) -> None:
    sid = await stage.invite(timeout_s=6)
    await stage.desk.until(sid, CallStatus.PENDING)
    deadline = datetime.fromisoformat((await stage.show(sid))["expires_at"]).timestamp()
    await stage.kill_and_restart(after_s)
    _, closed_at = await stage.desk.until(sid, CallStatus.CLOSED)
    assert stage.desk.is_silent()
    assert abs(closed_at - deadline) < SILENT_WITHIN_S
    await stage.lobby.until_told_ended(sid)
    assert await stage.state_of(sid) == "Timeout"


async def killed_right_after_a_call_button(stage: Scene, after_s: float) -> None:
    await stage.lobby.station.fingers.press("1")
    await stage.lobby.calls.until(lambda noted: noted[0].direction == "OUTGOING", "dialling")
    await stage.kill_and_restart(after_s)
    invite = await stage.desk.heard.until(
        lambda event: isinstance(event, CallReceived) and event.call_sid not in stage.acknowledged,
        "the lobby's invite",
    )
    sid = invite.call_sid
    stage.acknowledged.append(sid)
    await stage.desk.until(sid, CallStatus.PENDING)
    await stage.desk.station.fingers.press("a")
    await stage.desk.until(sid, CallStatus.OPEN)
    await stage.lobby.until(sid, CallStatus.OPEN)
    await stage.desk.station.fingers.press("h")
    await stage.lobby.until(sid, CallStatus.CLOSED)
    stage.lobby.calls.noted.clear()


async def killed_while_it_starts(stage: Scene, after_s: float) -> None:
    sid = await stage.invite()
    await stage.desk.until(sid, CallStatus.PENDING)
    await stage.kill()
    await stage.kill_while_starting(0.05 + 12 * after_s)
    await stage.start()
    await stage.answer_and_hang_up(sid)


STEPS: list[Step] = [
    killed_once_the_invite_is_answered_201,
    killed_while_the_bell_rings,
    killed_once_the_device_has_confirmed,
    killed_right_after_the_answer_button,
    killed_once_the_call_is_open,
    killed_right_after_the_hang_up_button,
    killed_right_after_the_reject_button,
    killed_once_cancel_is_answered_200,
    killed_once_cancel_follows_the_invite_at_once,
    killed_once_a_server_has_accepted_for_the_desk,
    killed_toward_the_deadline_and_dead_beyond_it,
    killed_and_back_before_the_deadline,
    killed_right_after_a_call_button,
    killed_while_it_starts,
]


async def test_a_call_survives_kills_of_its_relay_at_every_step(tmp_path: Path, full: bool) -> None:
    kills = 0

    async def play(lane: int) -> None:
        nonlocal kills
        chance = random.Random(lane)  # noqa: S311 - repeatable, no secret
        async with AsyncExitStack() as opened:
            folder = tmp_path / str(lane)
            folder.mkdir()
            broker = None
            if lane >= LANES_OF_OWN_BROKER:
                broker = await opened.enter_async_context(running_mosquitto(folder / "broker"))
            stage = await opened.enter_async_context(scene(folder, broker=broker))
            for number in range(ROUNDS_FULL if full else 1):
                for step in chance.sample(STEPS, len(STEPS)):
                    # In the short run each step is played on a broker of either kind.
                    if not full and STEPS.index(step) % 2 != lane % 2:
                        continue
                    await stage.all_connected()
                    after_s = chance.choice((0.0, chance.uniform(0, SOON_S)))
                    try:
                        await step(stage, after_s)
                        await stage.must_have_kept_everything()
                    except BaseException as error:
                        error.add_note(f"lane {lane}, round {number}: {step.__name__}, {after_s=}")
                        raise
            kills += stage.kills

    async with asyncio.TaskGroup() as lanes:
        for lane in range(LANES):
            lanes.create_task(play(lane))
    assert kills >= (200 if full else 28)


async def test_a_burst_of_twenty_invites_survives_a_kill_in_its_middle(
    tmp_path: Path, full: bool
) -> None:
    chance = random.Random("burst")  # noqa: S311 - repeatable, no secret
    names = ("desk", "one", "two", "three", "four")
    async with scene(tmp_path, others=names[1:]) as stage:
        for number in range(5 if full else 1):
            answered: dict[str, str] = {}
            kill_after = chance.randrange(0, 20)
            reached = asyncio.Event()

            async def post(
                key: str,
                to: str,
                answered: dict[str, str] = answered,
                kill_after: int = kill_after,
                reached: asyncio.Event = reached,
            ) -> None:
                body = {"from": "lobby", "to": [to], "timeout": 5}
                answered[key] = await stage.post(body, key=key)
                if len(answered) >= kill_after:
                    reached.set()

            keys = {f"burst-{number}-{i}": names[i % len(names)] for i in range(20)}
            async with asyncio.TaskGroup() as posting:
                for key, to in keys.items():
                    posting.create_task(post(key, to))
                if kill_after:
                    await reached.wait()
                await stage.kill_and_restart(chance.uniform(0, 0.01))
            # The same key gives the same call, answered before the kill or after it.
            for key, to in keys.items():
                assert (
                    await stage.post({"from": "lobby", "to": [to], "timeout": 5}, key=key)
                    == answered[key]
                )
            assert len(set(answered.values())) == len(keys)
            async with asyncio.timeout(2 * PATIENCE_S):
                for key, to in keys.items():
                    await stage.lobby.until_told_ended(answered[key])
                    assert await stage.state_of(answered[key], to) in ("Timeout", "Rejected")
            for name, diary in stage.stations.items():
                if name in names:
                    assert any(diary.rings(sid) for sid in answered.values()), name
            await stage.must_have_kept_everything()
        assert len((await stage.ask("GET", "/v1/calls?count=100")).json()["calls"]) == min(
            100, len(stage.acknowledged)
        )


MOMENTS = ("posted", "ringing", "answering", "open", "hung up")


@pytest.mark.full
async def test_calls_survive_kills_at_random_moments(tmp_path: Path) -> None:
    chance = random.Random("moments")  # noqa: S311 - repeatable, no secret
    async with scene(tmp_path) as stage:
        for number in range(20):
            moment, after_s = MOMENTS[number % len(MOMENTS)], chance.uniform(0, 0.15)
            async with asyncio.TaskGroup() as tasks:

                def at(
                    reached: str,
                    tasks: asyncio.TaskGroup = tasks,
                    moment: str = moment,
                    after_s: float = after_s,
                ) -> None:
                    if reached == moment:
                        tasks.create_task(stage.kill_and_restart(after_s))

                at("posted")
                sid = await stage.post(
                    {"from": "lobby", "to": ["desk"], "timeout": 30}, key=f"moment-{number}"
                )
                await stage.desk.until(sid, CallStatus.PENDING)
                at("ringing")
                await stage.desk.station.fingers.press("a")
                at("answering")
                await stage.desk.until(sid, CallStatus.OPEN)
                at("open")
                await stage.desk.station.fingers.press("h")
                at("hung up")
                await stage.lobby.until_told_ended(sid)
            assert await stage.state_of(sid) == "Quit"
            await stage.must_have_kept_everything()
        assert stage.kills == 20


def _told(sid: str, state: UserState) -> Callable[[object], bool]:
    return lambda event: (
        isinstance(event, CallUserStateChanged) and event.call_sid == sid and event.state is state
    )
