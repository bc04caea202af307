"""Sound that fails, at each stage: the right code at both ends, the call over, and the next one works."""

import asyncio
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from bellwire.agent.calls.call import CallStatus
from bellwire.agent.media.engine.interface import IceServer
from tests.agent.talking import (
    DESK,
    FRONT,
    QUICK,
    Talker,
    address_of,
    connected,
    heard,
    talker,
)
from tests.broker.running import Wire
from tests.conftest import register_station
from tests.push.coturn import coturn, needs_coturn

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def fails_with(code: int, caller: Talker, callee: Talker) -> None:
    """A call that is answered and comes to nothing, at both ends for this reason."""
    number = len(callee.invites.noted)
    call = caller.device.connect(callee.device.identity)
    answered = (await callee.invited(number)).accept()
    for end, its in ((caller, call), (callee, answered)):
        (error,) = await end.until(its, "error")
        assert error.code == code
        await end.until(its, "disconnect")
        assert end.names(its).count("disconnect") == 1
    assert not caller.device.calls
    assert not callee.device.calls


async def works(caller: Talker, callee: Talker) -> None:
    call, answered = await connected(caller, callee)
    call.disconnect()
    await callee.until(answered, "disconnect")


async def test_two_ends_that_do_not_say_how_to_reach_them_give_up_and_the_next_call_works(
    talk_http: httpx.AsyncClient,
) -> None:
    soon = replace(QUICK, connect_within_s=2)
    async with (
        talker(talk_http, "quiet", FRONT, timing=soon) as caller,
        talker(talk_http, "calm", DESK, timing=replace(soon, connect_within_s=10)) as callee,
    ):
        for end in (caller, callee):
            end.board.silent = True
        await fails_with(53405, caller, callee)
        for end in (caller, callee):
            end.board.silent = False
        await works(caller, callee)


async def test_an_offer_without_a_codec_in_common_fails_so_at_both_ends(
    front: Talker, inside: Talker
) -> None:
    front.board.spoil = lambda sdp: "".join(
        line.replace("PCMU/8000", "G729/8000")
        .replace("opus/48000", "speex/48000")
        .replace("UDP/TLS/RTP/SAVPF 111 0 ", "UDP/TLS/RTP/SAVPF 111 ")
        for line in sdp.splitlines(keepends=True)
    )
    await fails_with(53404, front, inside)
    front.board.spoil = lambda sdp: sdp
    await works(front, inside)


async def test_a_description_that_is_none_fails_at_who_reads_it_and_at_who_sent_it(
    front: Talker, inside: Talker
) -> None:
    inside.board.spoil = lambda _: "v=0\r\nnonsense\r\n"
    await fails_with(53402, front, inside)
    inside.board.spoil = lambda sdp: sdp
    await works(front, inside)


async def test_a_microphone_that_cannot_be_opened_ends_the_call_at_both_ends(
    front: Talker, inside: Talker
) -> None:
    inside.voice.broken = True
    await fails_with(53400, front, inside)
    inside.voice.broken = False
    front.voice.broken = True
    await fails_with(53400, front, inside)
    front.voice.broken = False
    await works(front, inside)


async def test_a_sound_device_pulled_out_in_a_call_may_come_back_or_the_call_ends_at_both_ends(
    talk_http: httpx.AsyncClient, inside: Talker
) -> None:
    async with talker(talk_http, "loose", FRONT, timing=replace(QUICK, give_up_s=0.5)) as loose:
        call, answered = await connected(loose, inside)
        loose.voice.pull_out()
        await asyncio.sleep(0.1)  # less than it has
        loose.voice.plug_in()
        await heard(inside, "loose", FRONT)
        assert call.status() is answered.status() is CallStatus.OPEN
        loose.voice.pull_out()
        for end, its in ((loose, call), (inside, answered)):
            (error,) = await end.until(its, "error")
            assert error.code == 53400
            await end.until(its, "disconnect")
        loose.voice.plug_in()
        await works(loose, inside)


@needs_coturn
async def test_a_turn_server_that_refuses_leaves_two_ends_without_a_way_and_says_so(
    talk_http: httpx.AsyncClient, tmp_path: Path
) -> None:
    """Both may be reached over TURN alone, and it takes the credentials of neither."""
    soon = replace(QUICK, connect_within_s=2)
    async with (
        coturn(tmp_path, "the right secret") as turn,
        talker(talk_http, "walled", FRONT, timing=soon) as caller,
        talker(talk_http, "fenced", DESK, timing=replace(soon, connect_within_s=10)) as callee,
    ):
        for end in (caller, callee):
            end.board.relayed_by = IceServer((turn.url,), "nobody", "wrong")
        await fails_with(53405, caller, callee)
        for end in (caller, callee):
            end.board.relayed_by = None
        await works(caller, callee)


async def test_a_device_without_sound_is_called_all_the_same(
    talk_http: httpx.AsyncClient, front: Talker
) -> None:
    async with talker(talk_http, "bell", None) as bell:
        call = front.device.connect("bell")
        answered = (await bell.invited()).accept()
        await front.until(call, "accept")
        assert (call.status(), answered.status()) == (CallStatus.OPEN, CallStatus.OPEN)
        assert call.remote_stream is None
        back = bell.device.connect("front")
        assert (await bell.until(back, "error"))[0].code == 31600  # it is in a call
        call.disconnect()
        await bell.until(answered, "disconnect")
        back = bell.device.connect("front")
        taken = (await front.invited()).accept()
        await front.until_status(taken, CallStatus.OPEN)
        assert back.status() is CallStatus.OPEN
        taken.disconnect()
        await bell.until(back, "disconnect")


async def test_sound_that_is_cut_off_comes_back_by_an_ice_restart_or_the_call_is_given_up(
    talk_http: httpx.AsyncClient,
) -> None:
    async with (
        talker(talk_http, "near", FRONT, wired=True, timing=replace(QUICK, give_up_s=30)) as near,
        talker(talk_http, "far", DESK, wired=True, timing=replace(QUICK, give_up_s=30)) as far,
    ):
        call, answered = await connected(near, far)
        cut(near, far)
        for end, its in ((near, call), (far, answered)):
            assert (await end.until(its, "reconnecting"))[0].code == 53405
            assert its.status() is CallStatus.RECONNECTING
        mend(near, far)
        await near.until(call, "reconnected")
        await far.until(answered, "reconnected")
        assert call.status() is CallStatus.OPEN
        for end in (near, far):
            end.voice.heard.clear()
        await heard(near, "far", DESK)
        await heard(far, "near", FRONT)
        call.disconnect()
        await far.until(answered, "disconnect")


async def test_a_peer_that_vanishes_is_given_up_at_both_ends(talk_http: httpx.AsyncClient) -> None:
    quick = replace(QUICK, give_up_s=1)
    async with (
        talker(talk_http, "here", FRONT, wired=True, timing=quick) as here,
        talker(talk_http, "gone", DESK, wired=True, timing=quick) as gone,
    ):
        call, answered = await connected(here, gone)
        cut(here, gone)
        codes = set()
        for end, its in ((here, call), (gone, answered)):
            await end.until(its, "disconnect")
            codes |= {told[1].code for told in end.told[id(its)].noted if told[0] == "error"}
        assert codes == {53405}
        mend(here, gone)
        await works(here, gone)


def cut(*ends: Talker) -> None:
    for end in ends:
        assert end.board.wire is not None
        end.board.wire.is_cut = True


def mend(*ends: Talker) -> None:
    for end in ends:
        assert end.board.wire is not None
        end.board.wire.is_cut = False


async def test_the_voices_go_on_while_the_relay_is_away(
    talk_http: httpx.AsyncClient, inside: Talker
) -> None:
    settings = await register_station(talk_http, "remote")
    async with (
        Wire(address_of(settings)) as wire,
        talker(talk_http, "remote", FRONT, settings=settings, address=wire.address) as remote,
    ):
        call, answered = await connected(remote, inside)
        wire.cut()
        assert (await remote.until(call, "reconnecting"))[0].code == 53001
        inside.voice.heard.clear()
        await heard(inside, "remote", FRONT)
        assert answered.status() is CallStatus.OPEN
        await wire.mend()
        await remote.until(call, "reconnected")
        assert call.status() is CallStatus.OPEN
        answered.disconnect()
        await remote.until(call, "disconnect")


async def test_a_call_whose_relay_stays_away_is_given_up_in_the_end(
    talk_http: httpx.AsyncClient, inside: Talker
) -> None:
    settings = await register_station(talk_http, "island")
    soon = replace(QUICK, signalling_give_up_s=0.5)
    async with (
        Wire(address_of(settings)) as wire,
        talker(
            talk_http, "island", FRONT, settings=settings, address=wire.address, timing=soon
        ) as island,
    ):
        call, answered = await connected(island, inside)
        wire.cut()
        assert (await island.until(call, "error"))[0].code == 53001
        await island.until(call, "disconnect")
        await wire.mend()
        await inside.until(answered, "disconnect")
