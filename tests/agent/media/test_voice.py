"""Speech goes both ways at once: between two of us, to an independent stack and to a browser."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest
from playwright.async_api import Browser

from bellwire.agent.media.engine.interface import PeerState
from tests.agent.media.party import Party, call, talk
from tests.chromium import ChromiumPeer, chromium, chromium_peer
from tests.conftest import PATIENCE_S
from tests.speech import Sound, fraction_heard, say

CALLER_SAYS = "A parcel for the second floor"
CALLEE_SAYS = "Please leave it downstairs"
ENOUGH = 0.5
"""What is never said is found in no part: more than half is no accident, even on a busy machine."""


async def talk_until_understood(*both: tuple[Party, Sound], more_s: float = 0.5) -> None:
    """Both say what they have to say until enough of it was heard at the other end: a busy machine tears
    some of it up."""
    (caller, caller_says), (callee, callee_says) = both
    async with asyncio.timeout(PATIENCE_S):
        while True:
            await talk(dict(both), more_s=more_s)
            of_caller = fraction_heard(caller_says, callee.heard)
            of_callee = fraction_heard(callee_says, caller.heard)
            if min(of_caller, of_callee) > ENOUGH:
                return


@pytest.mark.parametrize("pair", ["us and us", "us and aiortc", "aiortc and us"])
async def test_each_side_hears_what_the_other_says(
    ours: Callable[[], Party], theirs: Callable[[], Party], pair: str
) -> None:
    caller, callee = ((ours if who == "us" else theirs)() for who in pair.split(" and "))
    async with call(caller, callee):
        await talk_until_understood((caller, say(CALLER_SAYS)), (callee, say(CALLEE_SAYS)))
        assert caller.peer.codec == callee.peer.codec == "opus"
    assert fraction_heard(say(CALLER_SAYS), caller.heard) < 0.2


async def test_a_side_that_speaks_pcmu_only_is_heard_and_hears(
    ours: Callable[[], Party], theirs: Callable[..., Party]
) -> None:
    caller, callee = ours(), theirs("audio/PCMU")
    async with call(caller, callee):
        await talk_until_understood((caller, say(CALLER_SAYS)), (callee, say(CALLEE_SAYS)))
        assert caller.peer.codec == callee.peer.codec == "pcmu"


@pytest.mark.parametrize("we_call", [True, False])
async def test_a_side_that_prefers_pcmu_is_understood(
    ours: Callable[[], Party], theirs: Callable[..., Party], we_call: bool
) -> None:
    us, them = ours(), theirs("audio/PCMU", "audio/opus")
    async with call(us, them) if we_call else call(them, us):
        await talk_until_understood((us, say(CALLER_SAYS)), (them, say(CALLEE_SAYS)))
        assert (await us.peer.stats()).codec == us.peer.codec


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


async def test_a_browser_and_we_hear_each_other_whoever_calls(
    ours: Callable[[], Party], browser: Browser
) -> None:
    calling, called = (ours(), await chromium_peer(browser)), (ours(), await chromium_peer(browser))
    us, them = calling
    await us.peer.accept_answer(await them.accept_offer(await us.peer.create_offer()))
    us, them = called
    await them.accept_answer(await us.peer.accept_offer(await them.create_offer()))
    for us, them in (calling, called):
        await exchange_candidates(us, them)
        await asyncio.gather(us.reaches(PeerState.CONNECTED), them.connected())
    heard = [0.0]
    async with asyncio.timeout(PATIENCE_S):
        while min(heard) <= ENOUGH:  # a busy machine tears some of it up
            for _, them in (calling, called):
                await them.play(say(CALLEE_SAYS))
            await talk({us: say(CALLER_SAYS) for us, _ in (calling, called)}, more_s=1.0)
            heard = [
                fraction
                for us, them in (calling, called)
                for fraction in (
                    fraction_heard(say(CALLER_SAYS), await them.heard()),
                    fraction_heard(say(CALLEE_SAYS), us.heard),
                )
            ]


async def exchange_candidates(us: Party, them: ChromiumPeer) -> None:
    while (candidate := await us.candidates.get()).candidate:
        await them.add_candidate(candidate)
    for candidate in await them.candidates():
        await us.peer.add_candidate(candidate)


async def test_an_ice_restart_changes_the_path_and_keeps_the_voice(
    ours: Callable[[], Party],
) -> None:
    caller, callee = ours(), ours()
    async with call(caller, callee):
        talking = asyncio.create_task(talk({caller: say(CALLER_SAYS)}))
        again = await caller.peer.create_offer()
        await caller.peer.accept_answer(await callee.peer.accept_offer(again))
        restart = await caller.peer.create_offer(ice_restart=True)
        await caller.peer.accept_answer(await callee.peer.accept_offer(restart))
        await talking
        assert ice_ufrag(restart) != ice_ufrag(again)
        async with asyncio.timeout(PATIENCE_S):
            while fraction_heard(say(CALLER_SAYS), callee.heard) <= ENOUGH:
                await talk({caller: say(CALLER_SAYS)})
    assert PeerState.FAILED not in caller.states + callee.states


async def test_sound_is_handed_over_while_the_event_loop_stands_still(
    ours: Callable[[], Party],
) -> None:
    caller, callee = ours(), ours()
    stop = threading.Event()

    def speak() -> None:
        while not stop.is_set():
            caller.peer.send(np.full(480, 1000, np.int16))
            stop.wait(0.01)

    async with call(caller, callee):
        await talk({caller: np.zeros(480, np.int16)})
        speaking = threading.Thread(target=speak)
        speaking.start()
        before = len(callee.blocks)
        time.sleep(0.5)  # noqa: ASYNC251 - a loop that stands still is what is tested
        during = len(callee.blocks) - before
        stop.set()
        speaking.join()
    assert during > 25


def ice_ufrag(sdp: str) -> str:
    return sdp.partition("a=ice-ufrag:")[2].split()[0]
