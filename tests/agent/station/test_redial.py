"""What a call button does when nobody answers: it calls again, and then somebody else, but not for ever."""

from typing import Any

import pytest
import pytest_asyncio

from bellwire.agent.calls.call import CallStatus
from bellwire.agent.fleet.live_settings import wiring_of
from bellwire.signaling.calls.calls import UserState
from bellwire.signaling.calls.events import CallEnded, CallUserStateChanged
from bellwire.signaling.wire.answers import DeviceResponse
from tests.agent.desk import Exchange
from tests.agent.post import WIRED, Post, post_at, settings_of
from tests.agent.scripted_relay import Request, about, call_answer, fresh_sid, invite

pytestmark = pytest.mark.asyncio(loop_scope="module")

TWICE = {"times": 2, "pause_s": 7}


@pytest_asyncio.fixture(loop_scope="module")
async def post(exchange: Exchange) -> Any:  # noqa: ANN401
    async with post_at(exchange, redial=TWICE) as at_work:
        yield at_work


class Town:
    """Makes the calls that a station asks for, and lets each end as it is told to."""

    def __init__(self, post: Post) -> None:
        self.post = post
        self.asked: list[Request] = []
        self.sids: list[str] = []
        post.relay.answers["invite"] = self._make

    def _make(self, request: Request) -> DeviceResponse:
        self.asked.append(request)
        self.sids.append(fresh_sid())
        return DeviceResponse(status=201, call=call_answer(self.sids[-1]))

    async def has_been_called(self, times: int) -> str:
        """Waits until it has been called so often; the SID of the last call."""
        relay = self.post.relay
        await relay.requests.until(
            lambda _: relay.operations().count("invite") >= times, f"{times} calls"
        )
        await self.post.statuses.until(lambda noted: noted[1] is CallStatus.CONNECTING)
        await self.post.has_taken_all()
        return self.sids[-1]

    async def end(self, sid: str, *states: UserState | dict[str, object]) -> None:
        for number, state in enumerate(states):
            told = state if isinstance(state, dict) else {"state": state}
            await self.post.relay.say(
                CallUserStateChanged.model_validate(
                    {**about(sid), "identity": f"flat-{number}", **told}
                )
            )
        await self.post.relay.say(CallEnded(**about(sid)))
        await self.post.until(sid, CallStatus.CLOSED)

    async def called_by(self, seconds: float) -> int:
        """How often it has been called when so much time has passed."""
        await self.post.time.advance(seconds)
        await self.post.has_taken_all()
        return len(self.asked)


async def test_a_call_that_nobody_answers_is_made_again_as_often_as_set(post: Post) -> None:
    town = Town(post)
    await post.press("call_buttons.lobby")
    for times in (1, 2, 3):
        sid = await town.has_been_called(times)
        await town.end(sid, UserState.TIMEOUT)
        assert await town.called_by(6.9) == times
        await town.called_by(0.2)
    assert await town.called_by(100) == 3
    assert len({request["idempotency_key"] for request in town.asked}) == 3
    assert {tuple(request["to"]) for request in town.asked} == {("lobby",)}


BY_ITSELF = {"state": "Rejected", "reject_status": "rejected", "automatic": True}
BUSY = {"state": "Rejected", "reject_status": "busy"}
A_PERSON = {"state": "Rejected", "reject_status": "rejected"}


@pytest.mark.parametrize(
    "told",
    [(BY_ITSELF,), (BUSY,), (BY_ITSELF, BUSY), (BUSY, {"state": "Timeout"})],
    ids=["quiet", "busy", "both", "busy and rung out"],
)
async def test_what_stations_reject_by_themselves_is_called_again_and_forwarded(
    post: Post, told: tuple[dict[str, object], ...]
) -> None:
    forward = {**WIRED["call_buttons"]["lobby"], "forward_to": ["porter"]}
    wired = {**WIRED, "call_buttons": {"lobby": forward}}
    post.live.take(settings_of(panel=wired, behaviour={"redial": {"times": 1, "pause_s": 7}}))
    town = Town(post)
    await post.press("call_buttons.lobby")
    await town.end(await town.has_been_called(1), *told)
    await town.called_by(7.1)
    await town.end(await town.has_been_called(2), *told)
    await post.time.advance(0)
    await town.has_been_called(3)
    assert [request["to"] for request in town.asked] == [["lobby"], ["lobby"], ["porter"]]


@pytest.mark.parametrize(
    "states",
    [
        (UserState.REJECTED,),
        (A_PERSON, BY_ITSELF),
        (BUSY, A_PERSON),
        (UserState.TIMEOUT, UserState.REJECTED),
        (UserState.ACCEPTED, UserState.TIMEOUT),
        (UserState.CANCELED,),
        (),
    ],
    ids=[
        *("rejected", "a person among quiet ones", "a person among busy ones"),
        *("rejected by one", "answered", "cancelled", "ended"),
    ],
)
async def test_a_call_that_ends_otherwise_is_not_made_again(
    post: Post, states: tuple[UserState | dict[str, object], ...]
) -> None:
    town = Town(post)
    await post.press("call_buttons.lobby")
    await town.end(await town.has_been_called(1), *states)
    assert await town.called_by(100) == 1


async def test_who_hangs_up_or_presses_a_button_in_the_pause_is_not_called_again(
    post: Post,
) -> None:
    town = Town(post)
    await post.press("call_buttons.lobby")
    sid = await town.has_been_called(1)
    late = CallUserStateChanged(**about(sid), identity="flat-1", state=UserState.TIMEOUT)
    await post.relay.say(late)
    await post.has_taken_all()
    await post.press("hang_up")
    await post.until(sid, CallStatus.CLOSED)
    assert await town.called_by(100) == 1
    await post.press("call_buttons.lobby")
    await town.end(await town.has_been_called(2), UserState.TIMEOUT)
    await post.press("hang_up")
    await post.given_up.until(lambda seconds: seconds == TWICE["pause_s"])
    assert await town.called_by(100) == 2


async def test_a_call_that_comes_in_the_pause_ends_the_redialling(post: Post) -> None:
    town = Town(post)
    await post.press("call_buttons.lobby")
    await town.end(await town.has_been_called(1), UserState.TIMEOUT)
    incoming = fresh_sid()
    await post.relay.say(invite(incoming))
    await post.until(incoming, CallStatus.PENDING)
    post.call(incoming).reject()
    assert await town.called_by(100) == 1


async def test_a_button_calls_those_it_forwards_to_when_its_own_people_have_not_answered(
    post: Post,
) -> None:
    button = {"pin": 17, "to": "alice", "forward_to": ["porter", "guard"], "early_media": True}
    panel = {**WIRED, "call_buttons": {"lobby": button}}
    post.live.take(settings_of(panel=panel, behaviour={"redial": {"times": 1, "pause_s": 7}}))
    town = Town(post)
    await post.press("call_buttons.lobby")
    await town.end(await town.has_been_called(1), UserState.TIMEOUT)
    await post.time.advance(7)
    await town.end(await town.has_been_called(2), UserState.TIMEOUT)
    await post.time.advance(0)
    await town.end(await town.has_been_called(3), UserState.TIMEOUT)
    assert await town.called_by(100) == 3
    assert [request["to"] for request in town.asked] == [["alice"], ["alice"], ["porter", "guard"]]
    assert all("early_media" in request["extended_data"] for request in town.asked)


async def test_it_does_not_forward_what_was_rejected(post: Post) -> None:
    button = {"pin": 17, "to": "alice", "forward_group": "porters"}
    post.live.take(settings_of(panel={**WIRED, "call_buttons": {"lobby": button}}))
    town = Town(post)
    await post.press("call_buttons.lobby")
    await town.end(await town.has_been_called(1), UserState.REJECTED)
    assert await town.called_by(100) == 1
    await post.press("call_buttons.lobby")
    await town.end(await town.has_been_called(2), UserState.TIMEOUT)
    await post.time.advance(0)
    await town.has_been_called(3)
    assert town.asked[2]["to"] == {"group": "porters"}


async def test_whom_a_button_calls_can_change_under_a_call() -> None:
    one, other = (
        settings_of(panel={**WIRED, "call_buttons": {"lobby": {"pin": 17, **target}}}).panel
        for target in ({"to": "a"}, {"group": "b", "forward_to": "c", "early_media": True})
    )
    assert wiring_of(one) == wiring_of(other)
    moved = settings_of(panel={**WIRED, "call_buttons": {"lobby": {"pin": 4, "to": "a"}}}).panel
    assert wiring_of(one) != wiring_of(moved)
