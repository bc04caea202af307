"""A call that is heard, from end to end: agents as processes, PyAudio on PulseAudio, real WebRTC, a real
relay. What espeak-ng says into one end's microphone has to come out of the other end's speaker."""

import asyncio
import json
import stat
import tempfile
import wave
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from bench.lab.pulse_server import PulseServer
from bench.lab.pulse_server import Samples as WireSamples
from bench.sound.agent_call import AgentStage, agent_stage
from tests.chromium import chromium, heard_in, open_page, write_wav
from tests.conftest import PATIENCE_S
from tests.speech import RATE_HZ, Sound, fraction_heard, say
from tests.system.web_phone import web_phone, web_token

pytestmark = pytest.mark.asyncio(loop_scope="module")

FRONT = say("A parcel for you", "en")
DESK = say("Put it by the door", "en+f3")
UNDERSTOOD = 0.8
RECORDING = "b-calls.wav"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def folder() -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bw-sound-") as path:  # a socket's path has to be short
        yield Path(path)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pulse(folder: Path) -> AsyncIterator[PulseServer]:
    async with PulseServer(folder / "pulse") as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(folder: Path, pulse: PulseServer) -> AsyncIterator[AgentStage]:
    """The agents a and b; b records. Button 1 of each calls the other, button 2 calls the browser."""
    async with agent_stage(
        pulse,
        folder,
        more_calls=("browser",),
        arguments={"b": ("--record", str(folder / RECORDING))},
    ) as opened:
        yield opened


def on_wire(sound: Sound) -> WireSamples:
    return np.asarray(sound / np.float32(32768), np.float32)


def from_wire(samples: WireSamples) -> Sound:
    return np.asarray(samples * 32767, np.int16)


def understood(said: Sound, heard: Sound) -> bool:
    return fraction_heard(said, heard) >= UNDERSTOOD


async def until_understood(
    hearings: Callable[[], Awaitable[tuple[tuple[Sound, Sound], ...]]],
) -> None:
    """Has it said again until of each of these, of what is said and heard, every part was heard once: a
    busy machine tears some of it up."""
    found = await hearings()
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not all(understood(said, heard) for said, heard in found):
                more = await hearings()
                found = tuple(
                    (said, np.concatenate([heard, again]))
                    for (said, heard), (_, again) in zip(found, more, strict=True)
                )
    except TimeoutError:
        shares = [fraction_heard(said, heard) for said, heard in found]
        raise AssertionError(f"not understood at all ends: {shares}") from None


async def test_two_agent_processes_hear_each_other_both_at_once(
    stage: AgentStage, pulse: PulseServer
) -> None:
    async def both_speak() -> tuple[tuple[Sound, Sound], ...]:
        wire = await pulse.play_and_record({"a": on_wire(FRONT), "b": on_wire(DESK)})
        return (
            (FRONT, from_wire(wire["b_speaker"])),
            (DESK, from_wire(wire["a_speaker"])),
        )

    async with stage.call():
        # As calls begin: first the one, then the other. So each learns that there is no echo here.
        for party, said in (("a", FRONT), ("b", DESK)):
            await pulse.play({party: on_wire(said)})
        await until_understood(both_speak)
    wire = await pulse.play_and_record({"a": on_wire(FRONT)})
    assert not understood(FRONT, from_wire(wire["b_speaker"]))


PHONE = """
let state = "idle", talking;
async function beReady(token, deviceId) {
  const microphone = await navigator.mediaDevices.getUserMedia({audio: {
    echoCancellation: false, noiseSuppression: false, autoGainControl: false}});
  const early = [];
  const stream = openStream(location.origin.replace("http", "ws"), async () => token, async (event) => {
    if (event.event === "call.received") {
      const {status} = await stream.ask({operation: "accept", call_sid: event.call_sid});
      if (status !== 200) throw new Error(`not accepted: ${status}`);
      talking = talk({stream, deviceId, callSid: event.call_sid, microphone, play,
                      other: event.from.replace("client:", ""), offers: false});
      for (const message of early.splice(0)) talking.take(message);
      state = "accepted";
    } else if (event.event === "call.message") {
      talking ? talking.take(event) : early.push(event);
    } else if (event.event === "call.ended") {
      await talking?.close();
      state = "ended";
    }
  });
  const answer = await fetch("/v1/ice-servers", {headers: {Authorization: `Bearer ${token}`}});
  return answer.status;
}
"""


async def test_an_agent_process_and_a_browser_hear_each_other(
    stage: AgentStage, pulse: PulseServer, folder: Path
) -> None:
    microphone = folder / "microphone.wav"
    write_wav(microphone, DESK)
    token = await web_token(stage.client, "browser-1", "browser")
    async with chromium(f"--use-file-for-fake-audio-capture={microphone}") as browser:
        page = await browser.new_page()
        await open_page(page, stage.client.url, PHONE)
        assert (
            await page.evaluate("([token, id]) => beReady(token, id)", [token, "browser-1"]) == 200
        )
        stage.press("a", "2")
        await page.wait_for_function("talking?.state === 'connected'", timeout=1000 * PATIENCE_S)

        async def agent_speaks() -> tuple[tuple[Sound, Sound], ...]:
            wire = await pulse.play_and_record({"a": on_wire(np.tile(FRONT, 2))})
            in_page = await heard_in(page)
            return (FRONT, in_page[-10 * RATE_HZ :]), (DESK, from_wire(wire["a_speaker"]))

        await until_understood(agent_speaks)
        stage.press("a", "h")
        await page.wait_for_function("state === 'ended'", timeout=1000 * PATIENCE_S)


async def test_an_agent_process_and_a_device_with_another_webrtc_stack_hear_each_other(
    stage: AgentStage, pulse: PulseServer
) -> None:
    async with web_phone(stage.client, "mobile", DESK) as mobile:
        await mobile.call("a")
        async with asyncio.timeout(PATIENCE_S):
            while not mobile.accepted.is_set():  # the button does nothing before it rings
                stage.press("a", "a")
                await asyncio.sleep(0.2)
            await mobile.offer()
            await mobile.connected.wait()

        async def both_speak() -> tuple[tuple[Sound, Sound], ...]:
            mobile.speak()
            wire = await pulse.play_and_record({"a": on_wire(np.tile(FRONT, 2))})
            return (FRONT, mobile.heard[-10 * RATE_HZ :]), (DESK, from_wire(wire["a_speaker"]))

        await until_understood(both_speak)
        assert mobile.peer is not None
        assert mobile.peer.codec == "opus"
        stage.press("a", "h")
        async with asyncio.timeout(PATIENCE_S):
            await mobile.ended.wait()
        assert not mobile.failures


async def test_a_recorded_call_is_announced_to_both_sides_and_holds_what_both_say(
    stage: AgentStage, pulse: PulseServer, folder: Path
) -> None:
    async def both_speak() -> tuple[tuple[Sound, Sound], ...]:
        said = await pulse.play_and_record({"a": on_wire(FRONT), "b": on_wire(DESK)})
        return (FRONT, from_wire(said["b_speaker"])), (DESK, from_wire(said["a_speaker"]))

    beeps = {"a_speaker": 0.0, "b_speaker": 0.0}
    async with asyncio.timeout(2 * PATIENCE_S):
        while min(beeps.values()) <= 0.6:  # a busy machine may tear up the one that a call has
            async with pulse.recording() as wire, stage.call():
                await until_understood(both_speak)
            for speaker, before in beeps.items():
                beeps[speaker] = max(before, loudest_share_of(1400, wire[speaker]))
    assert loudest_share_of(1400, on_wire(np.concatenate([FRONT, DESK]))) < 0.3
    stage.press("b", "q")
    await stage.ended("b")
    file = folder / RECORDING
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with wave.open(str(file), "rb") as wav:
        assert (wav.getnchannels(), wav.getsampwidth(), wav.getframerate()) == (2, 2, RATE_HZ)
        sides = np.frombuffer(wav.readframes(wav.getnframes()), np.int16).reshape(-1, 2)
    # A busy machine tears up some of what each call says, and the file holds what was played then.
    assert fraction_heard(DESK, sides[:, 0]) >= 0.5
    assert fraction_heard(FRONT, sides[:, 1]) >= 0.5
    said = (folder / "agent-b.log").read_text()
    assert "Recording every call" in said
    entries = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    told = [e for e in entries if e["event"].startswith("this call is recorded")]
    assert told
    assert all(entry["level"] == "warning" for entry in told)


def loudest_share_of(hertz: int, samples: WireSamples) -> float:
    """Of all stretches of 0.1 s: how much of its power is at most in this tone."""
    size = RATE_HZ // 10
    tone = np.exp(-2j * np.pi * hertz * np.arange(size) / RATE_HZ)
    shares = [0.0]
    for at in range(0, len(samples) - size, size // 4):
        part = samples[at : at + size]
        power = float(part @ part)
        if power > 1e-4 * size:
            shares.append(float(2 * abs(part @ tone) ** 2 / (size * power)))
    return max(shares)
