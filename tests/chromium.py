"""A browser as a peer: headless Chromium, driven by playwright. Nothing leaves the machine."""

import base64
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from playwright.async_api import Browser, Page, Route, async_playwright

from bellwire.agent.media.engine.interface import IceCandidate
from tests.docs.documents import ROOT, blocks

_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
    "--disable-background-networking",
    "--disable-features=WebRtcHideLocalIpsWithMdns",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
)

# A browser gives a page sound only where its address is https; this one is answered by us.
_ADDRESS = "https://peer.test/"

_PAGE = """<!doctype html><meta charset="utf-8"><script>
const context = new AudioContext({sampleRate: 48000});
const voice = context.createMediaStreamDestination();
const peer = new RTCPeerConnection();
const candidates = [];
const heard = [];
peer.addTrack(voice.stream.getAudioTracks()[0]);
peer.onicecandidate = ({candidate}) => candidates.push(candidate?.toJSON() ?? {candidate: ""});
peer.ontrack = async ({track}) => {
  // Chromium decodes a remote track only while something plays it.
  const player = new Audio();
  player.srcObject = new MediaStream([track]);
  player.muted = true;
  player.play();
  const reader = new MediaStreamTrackProcessor({track}).readable.getReader();
  for (let read = await reader.read(); !read.done; read = await reader.read()) {
    const mono = new Float32Array(read.value.numberOfFrames);
    read.value.copyTo(mono, {planeIndex: 0, format: "f32-planar"});
    heard.push(mono);
    read.value.close();
  }
};
async function offer() {
  await peer.setLocalDescription();
  return peer.localDescription.sdp;
}
async function answer(sdp) {
  await peer.setRemoteDescription({type: "offer", sdp});
  return offer();
}
function play(encoded) {
  const samples = Float32Array.from(new Int16Array(bytes(encoded).buffer), sample => sample / 32768);
  const buffer = context.createBuffer(1, samples.length, 48000);
  buffer.copyToChannel(samples, 0);
  const source = new AudioBufferSourceNode(context, {buffer});
  source.connect(voice);
  source.start();
}
function bytes(encoded) {
  return Uint8Array.from(atob(encoded), letter => letter.charCodeAt(0));
}
function hearing() {
  const samples = new Int16Array(heard.reduce((size, block) => size + block.length, 0));
  let filled = 0;
  for (const block of heard) for (const sample of block) samples[filled++] = sample * 32767;
  const buffer = new Uint8Array(samples.buffer);
  let text = "";
  for (let at = 0; at < buffer.length; at += 32768)
    text += String.fromCharCode(...buffer.subarray(at, at + 32768));
  return btoa(text);
}
</script>"""


class ChromiumPeer:
    """One page with one RTCPeerConnection. It hears from the start, and says what `play` is given."""

    def __init__(self, page: Page) -> None:
        self._page = page

    async def create_offer(self) -> str:
        return cast("str", await self._page.evaluate("offer()"))

    async def accept_offer(self, sdp: str) -> str:
        return cast("str", await self._page.evaluate("sdp => answer(sdp)", sdp))

    async def accept_answer(self, sdp: str) -> None:
        await self._page.evaluate("sdp => peer.setRemoteDescription({type: 'answer', sdp})", sdp)

    async def add_candidate(self, candidate: IceCandidate) -> None:
        init = {
            "candidate": candidate.candidate,
            "sdpMid": candidate.sdp_mid,
            "sdpMLineIndex": 0
            if candidate.sdp_m_line_index is None
            else candidate.sdp_m_line_index,
        }
        await self._page.evaluate("candidate => peer.addIceCandidate(candidate)", init)

    async def candidates(self) -> list[IceCandidate]:
        """All of them, once they are gathered."""
        await self._page.wait_for_function("peer.iceGatheringState === 'complete'")
        told: list[dict[str, Any]] = await self._page.evaluate("candidates")
        return [IceCandidate(c["candidate"], c.get("sdpMid"), c.get("sdpMLineIndex")) for c in told]

    async def connected(self) -> None:
        """Waits until it is."""
        await self._page.wait_for_function("peer.connectionState === 'connected'")

    async def play(self, sound: NDArray[np.int16]) -> None:
        """Begins to say this: 48 kHz, mono."""
        encoded = base64.b64encode(sound.tobytes()).decode()
        await self._page.evaluate("encoded => play(encoded)", encoded)

    async def heard(self) -> NDArray[np.int16]:
        """All it has heard so far: 48 kHz, mono."""
        return await heard_in(self._page)

    async def evaluate(self, script: str) -> Any:  # noqa: ANN401 - whatever JavaScript gives
        """What an expression gives in the page; `peer` is the RTCPeerConnection."""
        return await self._page.evaluate(script)


@asynccontextmanager
async def chromium(*more_flags: str) -> AsyncIterator[Browser]:
    """A headless browser. `--use-file-for-fake-audio-capture=FILE.wav` gives it a microphone."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=[*_FLAGS, *more_flags]
        )
        try:
            yield browser
        finally:
            await browser.close()


async def chromium_peer(browser: Browser) -> ChromiumPeer:
    """A new peer, in a page of its own."""
    page = await browser.new_page()

    async def answer(route: Route) -> None:
        await route.fulfill(content_type="text/html", body=_PAGE)

    await page.route("**/*", answer)
    await page.goto(_ADDRESS)
    return ChromiumPeer(page)


_HEARING = """
const heard = [];
function play(stream) {
  const player = new Audio(); // Chromium decodes a remote track only while something plays it.
  player.srcObject = stream;
  player.muted = true;
  player.play();
  const [track] = stream.getAudioTracks();
  const reader = new MediaStreamTrackProcessor({track}).readable.getReader();
  (async () => {
    for (let read = await reader.read(); !read.done; read = await reader.read()) {
      const mono = new Float32Array(read.value.numberOfFrames);
      read.value.copyTo(mono, {planeIndex: 0, format: "f32-planar"});
      heard.push(mono);
      read.value.close();
    }
  })();
}
function hearing() {
  const all = new Int16Array(heard.reduce((size, block) => size + block.length, 0));
  let filled = 0;
  for (const block of heard) for (const sample of block) all[filled++] = sample * 32767;
  const bytes = new Uint8Array(all.buffer);
  let text = "";
  for (let at = 0; at < bytes.length; at += 32768)
    text += String.fromCharCode(...bytes.subarray(at, at + 32768));
  return btoa(text);
}
"""


async def open_page(page: Page, relay: str, *scripts: str) -> None:
    """A page of the relay's own origin, with the examples of the documents in it, a `play` that keeps
    what it is given for `heard_in`, and these scripts."""
    await page.goto(f"{relay}/.well-known/jwks.json")
    documents = (ROOT / "docs" / name for name in ("websocket.md", "media.md"))
    examples = (block.text for path in documents for block in blocks(path) if block.kind == "js")
    for script in (*examples, _HEARING, *scripts):
        await page.add_script_tag(content=script)


async def heard_in(page: Page) -> NDArray[np.int16]:
    """All that a page of `open_page` has heard so far: 48 kHz, mono."""
    encoded = cast("str", await page.evaluate("hearing()"))
    return np.frombuffer(base64.b64decode(encoded), np.int16)


def write_wav(path: Path, sound: NDArray[np.int16]) -> None:
    """For `--use-file-for-fake-audio-capture`: 48 kHz, mono."""
    with wave.open(str(path), "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(48_000)
        wav.writeframes(sound.tobytes())
