"""What a connection says of itself, refuses, bears and leaves behind."""

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import wrtc

from bellwire.agent.media.engine.interface import (
    Block,
    IceCandidate,
    IceServer,
    PeerConnection,
    PeerListeners,
    PeerState,
)
from bellwire.agent.media.engine.wrtc_engine import WrtcEngine
from bellwire.signaling.errors import CallError
from bellwire.signaling.wire.media import MEDIA_SDP_MAX_LENGTH
from tests.agent.media.aiortc_peer import AiortcPeer
from tests.agent.media.party import Party, call, negotiate, talk, trickling
from tests.conftest import PATIENCE_S
from tests.speech import Sound

NewParty = Callable[[], Party]

KEYPAD_HZ = {
    697: {1209: "1", 1336: "2", 1477: "3"},
    770: {1209: "4", 1336: "5", 1477: "6"},
    852: {1209: "7", 1336: "8", 1477: "9"},
    941: {1209: "*", 1336: "0", 1477: "#"},
}
"""ITU-T Q.23."""


def nothing(_told: object) -> None:
    """A listener of a connection that nobody listens to."""


DEAF = PeerListeners(nothing, nothing, nothing)


async def refused(code: int, doing: Awaitable[object]) -> None:
    with pytest.raises(CallError) as refusal:
        await doing
    assert refusal.value.code == code


# What is offered


async def test_an_offer_holds_opus_first_then_pcmu_and_tones_and_is_small(ours: NewParty) -> None:
    offer = await ours().peer.create_offer()
    codecs = [line.split(" ")[1] for line in offer.splitlines() if line.startswith("a=rtpmap:")]
    assert codecs == ["opus/48000/2", "PCMU/8000", "telephone-event/48000", "telephone-event/8000"]
    assert "useinbandfec=1" in offer
    assert "usedtx=1" not in offer
    assert len(offer) < MEDIA_SDP_MAX_LENGTH / 2


async def test_no_candidate_is_told_before_its_description_is_returned(ours: NewParty) -> None:
    caller = ours()
    await caller.peer.create_offer()
    assert caller.candidates.empty()
    while (await caller.candidates.get()).candidate:
        pass


async def test_candidates_that_come_before_the_description_are_kept(ours: NewParty) -> None:
    caller, callee = ours(), ours()
    offer = await caller.peer.create_offer()
    await pass_all_candidates(caller, callee)
    answer = await callee.peer.accept_offer(offer)
    await pass_all_candidates(callee, caller)
    await caller.peer.accept_answer(answer)
    await connected(caller, callee)


async def test_candidates_that_overtake_the_offer_of_an_ice_restart_are_kept(
    ours: NewParty,
) -> None:
    caller, callee = ours(), ours()
    await negotiate(caller, callee)
    offer = await caller.peer.create_offer(ice_restart=True)
    await pass_all_candidates(caller, callee)
    answer = await callee.peer.accept_offer(offer)
    await pass_all_candidates(callee, caller)
    await caller.peer.accept_answer(answer)
    await connected(caller, callee)


async def pass_all_candidates(source: Party, target: Party) -> None:
    while (candidate := await source.candidates.get()).candidate:
        await target.peer.add_candidate(candidate)


async def connected(*parties: Party) -> None:
    await asyncio.gather(*(party.reaches(PeerState.CONNECTED) for party in parties))


# What is refused


async def test_an_offer_without_a_codec_of_ours_is_refused_as_such(
    ours: NewParty, theirs: Callable[..., Party]
) -> None:
    caller = theirs("audio/PCMA")
    await refused(53404, ours().peer.accept_offer(await caller.peer.create_offer()))
    await caller.peer.close()


async def test_an_answer_that_rejects_our_sound_is_refused_as_no_codec(ours: NewParty) -> None:
    caller, callee = ours(), ours()
    answer = await callee.peer.accept_offer(await caller.peer.create_offer())
    rejecting = answer.replace("m=audio 9", "m=audio 0")
    await refused(53404, caller.peer.accept_answer(rejecting))


@pytest.mark.parametrize(
    "broken",
    [
        lambda _: "",
        lambda _: "v=0",
        lambda sdp: sdp[: len(sdp) // 2],
        lambda sdp: sdp.replace("m=audio", "m=video"),
        lambda sdp: sdp.replace("a=fingerprint", "a=thumbprint"),
        lambda sdp: sdp.replace("a=ice-ufrag", "a=ice-beard"),
        lambda sdp: sdp.replace("\r\n", " "),
    ],
    ids=["empty", "no sound", "cut", "video", "no key", "no ice", "one line"],
)
async def test_a_broken_offer_is_refused_and_the_next_one_taken(
    ours: NewParty, broken: Callable[[str], str]
) -> None:
    caller, callee = ours(), ours()
    offer = await caller.peer.create_offer()
    await refused(53402, callee.peer.accept_offer(broken(offer)))
    async with trickling(caller, callee):
        await caller.peer.accept_answer(await callee.peer.accept_offer(offer))
        await connected(caller, callee)


async def test_a_bad_candidate_that_came_early_does_not_spoil_the_call(ours: NewParty) -> None:
    caller, callee = ours(), ours()
    await callee.peer.add_candidate(IceCandidate("candidate:nonsense", "0", 0))
    async with call(caller, callee):
        assert callee.peer.state is PeerState.CONNECTED


async def test_an_answer_nobody_asked_for_is_refused(ours: NewParty) -> None:
    caller, callee = ours(), ours()
    answer = await callee.peer.accept_offer(await caller.peer.create_offer())
    await refused(53402, ours().peer.accept_answer(answer))


async def test_a_candidate_that_is_none_is_refused(ours: NewParty) -> None:
    caller, callee = ours(), ours()
    await negotiate(caller, callee)
    await refused(53402, callee.peer.add_candidate(IceCandidate("candidate:nonsense", "0", 0)))


async def test_an_ice_server_that_is_none_is_refused(engine: WrtcEngine) -> None:
    with pytest.raises(CallError, match="53400"):
        engine.connect((IceServer(("http://stun.test",)),), DEAF)


# Tones


async def test_every_key_is_heard_in_the_sound_at_the_other_end(ours: NewParty) -> None:
    caller, callee = ours(), ours()
    keys = "1234567890*#"
    async with call(caller, callee), asyncio.timeout(PATIENCE_S):
        heard = ""
        while heard != keys:  # a busy machine tears tones up
            before = callee.heard.size
            talking = asyncio.create_task(talk({caller: np.zeros(48_000 * 3, np.int16)}))
            await caller.peer.insert_dtmf(keys, duration_ms=100, gap_ms=80)
            await talking
            heard = "".join(keys_in(callee.heard[before:]))


async def test_tones_for_nobody_are_refused(ours: NewParty) -> None:
    await refused(53405, ours().peer.insert_dtmf("1"))
    with pytest.raises(ValueError, match="0-9"):
        await ours().peer.insert_dtmf("A")


def keys_in(sound: Sound) -> Iterator[str]:
    """The keys whose two frequencies are by far the strongest, each once until it is let go."""
    held = ""
    for start in range(0, sound.size - 1920, 960):
        window = sound[start : start + 1920] * np.hanning(1920)
        spectrum = np.abs(np.fft.rfft(window, 48_000))
        row = max(KEYPAD_HZ, key=lambda hz: spectrum[hz])
        column = max(KEYPAD_HZ[row], key=lambda hz: spectrum[hz])
        loud = min(spectrum[row], spectrum[column]) > 100_000
        key = KEYPAD_HZ[row][column] if loud else ""
        if key and key != held:
            yield key
        held = key


# Ends


async def test_a_connection_without_a_path_fails_in_time() -> None:
    engine = WrtcEngine(allow_loopback=True, connect_within_s=0.2)
    caller, callee = (Party(lambda told: engine.connect((), told)) for _ in range(2))
    await negotiate(caller, callee)  # and no candidates
    await caller.reaches(PeerState.FAILED)
    await callee.reaches(PeerState.FAILED)
    await engine.close()


async def test_a_peer_that_vanishes_is_seen_as_disconnected(
    ours: NewParty, theirs: Callable[..., Party]
) -> None:
    caller, callee = ours(), theirs()
    async with call(caller, callee):
        assert isinstance(callee.peer, AiortcPeer)
        await callee.peer.vanish()
        await caller.reaches(PeerState.DISCONNECTED)


@pytest.mark.full
async def test_a_peer_that_stays_away_is_seen_as_failed(
    ours: NewParty, theirs: Callable[..., Party]
) -> None:
    caller, callee = ours(), theirs()
    async with call(caller, callee):
        assert isinstance(callee.peer, AiortcPeer)
        await callee.peer.vanish()
        await caller.reaches(PeerState.FAILED, within_s=60)
    assert caller.states[-2:] == [PeerState.DISCONNECTED, PeerState.FAILED]


@pytest.mark.parametrize("when", ["new", "offered", "answered", "connected", "failed"])
async def test_a_connection_may_be_closed_at_any_time_and_says_nothing_more(when: str) -> None:
    engine = WrtcEngine(allow_loopback=True, connect_within_s=0.05 if when == "failed" else 20)
    caller, callee = (Party(lambda told: engine.connect((), told)) for _ in range(2))
    if when == "offered":
        await caller.peer.create_offer()
    elif when != "new":
        await negotiate(caller, callee)
    if when == "failed":
        await caller.reaches(PeerState.FAILED)
    if when == "connected":
        async with trickling(caller, callee):
            await connected(caller, callee)
    told = list(caller.states)
    await caller.peer.close()
    await caller.peer.close()
    caller.peer.send(np.zeros(480, np.int16))
    assert caller.peer.state is PeerState.CLOSED
    await refused(53400, caller.peer.create_offer())
    await caller.peer.stats()
    await refused(53405, caller.peer.insert_dtmf("1"))
    assert caller.states == told
    await engine.close()


async def test_a_close_ends_what_is_under_way_without_cancelling_who_waits(ours: NewParty) -> None:
    offer = await ours().peer.create_offer()
    ended = 0
    for turns in range(
        25
    ):  # of the loop, from before the first step of the answer to after its last
        callee = ours()
        answering = asyncio.create_task(callee.peer.accept_offer(offer))
        for _ in range(turns):
            await asyncio.sleep(0)
        await callee.peer.close()
        try:
            async with asyncio.timeout(PATIENCE_S):
                await answering
        except CallError as error:
            assert error.code in {53400, 53402}
            ended += 1
    assert ended > 0


async def test_of_two_offers_that_cross_the_one_that_is_answered_counts(ours: NewParty) -> None:
    caller, callee = ours(), ours()
    async with trickling(caller, callee):
        offer, _crossing = await asyncio.gather(
            caller.peer.create_offer(), callee.peer.create_offer()
        )
        await caller.peer.accept_answer(await callee.peer.accept_offer(offer))
        await connected(caller, callee)


async def test_a_call_that_ends_during_its_tones_says_so_to_who_sends_them(ours: NewParty) -> None:
    caller, callee = ours(), ours()
    async with call(caller, callee):
        sending = asyncio.create_task(caller.peer.insert_dtmf("123456789"))
        await talk({caller: np.zeros(4800, np.int16)}, more_s=0)
        await caller.peer.close()
        await refused(53405, sending)


async def test_nothing_is_heard_after_the_close(ours: NewParty) -> None:
    caller, callee = ours(), ours()
    async with call(caller, callee):
        await talk({caller: np.full(4800, 1000, np.int16)}, more_s=0)
        await callee.peer.close()
        heard = len(callee.blocks)
        await talk({caller: np.full(4800, 1000, np.int16)}, more_s=0)
        assert len(callee.blocks) == heard > 0


async def test_a_listener_that_fails_once_hears_the_rest(
    engine: WrtcEngine, ours: NewParty
) -> None:
    heard: list[Block] = []

    def stumble(block: Block) -> None:
        heard.append(block)
        if len(heard) == 3:
            raise RuntimeError("a defect of the listener")

    def connect(told: PeerListeners) -> PeerConnection:
        return engine.connect((), replace(told, on_audio=stumble))

    caller, callee = ours(), Party(connect)
    async with call(caller, callee):
        await talk({caller: np.full(9600, 1000, np.int16)})
    assert len(heard) > 20


async def test_a_connection_that_failed_in_time_can_be_tried_again() -> None:
    engine = WrtcEngine(allow_loopback=True, connect_within_s=0.2)
    caller, callee = (Party(lambda told: engine.connect((), told)) for _ in range(2))
    await negotiate(caller, callee)
    await asyncio.gather(caller.reaches(PeerState.FAILED), callee.reaches(PeerState.FAILED))
    async with trickling(caller, callee):
        await negotiate(caller, callee, ice_restart=True)
        await connected(caller, callee)
    assert caller.peer.state is callee.peer.state is PeerState.CONNECTED
    await engine.close()


async def test_what_it_counts_is_told(ours: NewParty) -> None:
    caller, callee = ours(), ours()
    async with call(caller, callee):
        await talk({caller: np.full(24_000, 1000, np.int16)})
        sent, heard = await caller.peer.stats(), await callee.peer.stats()
    assert (sent.codec, heard.codec) == ("opus", "opus")
    assert sent.packets_sent >= heard.packets_received > 30
    assert sent.bytes_sent > 1000
    assert heard.bytes_received > 1000
    assert heard.packets_lost == 0
    assert heard.total_samples_received > 24_000
    assert sent.round_trip_s is not None
    assert 0 <= sent.round_trip_s < 5
    assert heard.jitter_buffer_delay_s is not None
    assert heard.timestamp_s > 1_700_000_000


async def test_calls_leave_no_threads_descriptors_or_objects(full: bool) -> None:
    await make_calls(3)
    before = left_over()
    await make_calls(2000 if full else 15)
    async with asyncio.timeout(PATIENCE_S):
        while left_over() > before:  # wrtc lets go of the last objects a turn of the loop later
            gc.collect()
            await asyncio.sleep(0)
    assert not [thread for thread in threading.enumerate() if thread.name == "listener"]


async def make_calls(number: int) -> None:
    engine = WrtcEngine(allow_loopback=True)
    for _ in range(number):
        caller, callee = (Party(lambda told: engine.connect((), told)) for _ in range(2))
        async with call(caller, callee):
            pass
    await engine.close()


def left_over() -> int:
    """Threads of the process, its descriptors, and wrtc's objects."""
    process = Path("/proc/self")
    counted = sum(1 for kind in ("task", "fd") for _ in (process / kind).iterdir())
    return counted + sum(wrtc._alive().values())
