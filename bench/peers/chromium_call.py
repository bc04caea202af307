"""Two headless Chromium in a call, each on its own microphone and speaker: the baseline of latency and
of loss. Echo cancellation, noise suppression and gain control are as `processing` says."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from playwright.async_api import Page, Playwright, async_playwright

from bench.lab.lossy_network import namespace_command
from bench.lab.pulse_server import PulseServer
from bench.sound.standing_call import Concealment, StandingCall

CHROMIUM = Path("/usr/bin/chromium")
_ARGUMENTS = [
    "--no-sandbox",
    "--use-fake-ui-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
]

_PAGE = """async ({party, processing}) => {
  const constraints = {echoCancellation: processing, noiseSuppression: processing,
                       autoGainControl: processing};
  await (await navigator.mediaDevices.getUserMedia({audio: true})).getTracks()[0].stop();
  const devices = await navigator.mediaDevices.enumerateDevices();
  const find = (kind, label) => {
    const found = devices.find(device => device.kind === kind && device.label.includes(label));
    if (!found) throw new Error(`no ${kind} ${label} among ` + devices.map(d => d.label).join(", "));
    return found.deviceId;
  };
  const deviceId = {exact: find("audioinput", `${party}_mic`)};
  const stream = await navigator.mediaDevices.getUserMedia({audio: {...constraints, deviceId}});
  const peer = window.peer = new RTCPeerConnection();
  peer.addTrack(stream.getTracks()[0], stream);
  const speaker = find("audiooutput", `${party}_speaker`);
  window.heard = new Promise(resolve => peer.ontrack = async ({streams}) => {
    const audio = window.audio = new Audio();
    await audio.setSinkId(speaker);
    audio.srcObject = streams[0];
    await audio.play();
    resolve();
  });
}"""

_GATHERED = """async () => {
  if (peer.iceGatheringState !== "complete")
    await new Promise(resolve => peer.addEventListener("icegatheringstatechange",
      () => peer.iceGatheringState === "complete" && resolve()));
  return peer.localDescription.sdp;
}"""

_OFFER = "async () => peer.setLocalDescription(await peer.createOffer())"
_ANSWER = """async sdp => {
  await peer.setRemoteDescription({type: "offer", sdp});
  await peer.setLocalDescription(await peer.createAnswer());
}"""
_TAKE = "async sdp => peer.setRemoteDescription({type: 'answer', sdp})"
_STATS = """async () => {
  for (const report of (await peer.getStats()).values())
    if (report.type === "inbound-rtp")
      return {concealed: report.concealedSamples, total: report.totalSamplesReceived,
              silent: report.silentConcealedSamples};
}"""


@asynccontextmanager
async def chromium_call(
    pulse: PulseServer, folder: Path, *, processing: bool, namespaces: bool = False
) -> AsyncIterator[StandingCall]:
    """The call, from both hearing until it is left. `namespaces`: each party in the network namespace
    of its name (see lossy_network)."""
    async with AsyncExitStack() as opened:
        playwright = await opened.enter_async_context(async_playwright())
        pages = [
            await _browser(opened, playwright, pulse, folder, party, namespaces=namespaces)
            for party in pulse.parties[:2]
        ]
        for page, party in zip(pages, pulse.parties, strict=False):
            await page.evaluate(_PAGE, {"party": party, "processing": processing})
        caller, callee = pages
        await caller.evaluate(_OFFER)
        await callee.evaluate(_ANSWER, await caller.evaluate(_GATHERED))
        await caller.evaluate(_TAKE, await callee.evaluate(_GATHERED))
        for page in pages:
            await page.evaluate("async () => await heard")

        async def concealment() -> Concealment:
            stats: dict[str, Any] = await callee.evaluate(_STATS)
            return Concealment(int(stats["concealed"]), int(stats["total"]))

        yield StandingCall(concealment=concealment)


async def _browser(
    opened: AsyncExitStack,
    playwright: Playwright,
    pulse: PulseServer,
    folder: Path,
    party: str,
    *,
    namespaces: bool,
) -> Page:
    # Only the executable can be chosen, so the namespace is entered by a script of that name.
    script = folder / f"chromium-{party}"
    command = [*namespace_command(party, inside=namespaces), str(CHROMIUM)]
    script.write_text(f'#!/bin/sh\nexec {" ".join(command)} "$@"\n')
    script.chmod(0o755)
    browser = await playwright.chromium.launch(
        executable_path=str(script),
        args=_ARGUMENTS,
        ignore_default_args=["--mute-audio"],
        env=dict(pulse.environment_of(party)),
    )
    opened.push_async_callback(browser.close)
    page = await browser.new_page()
    # getUserMedia needs a secure context, which a page of no origin is not.
    await page.route("https://bench.invalid/", lambda route: route.fulfill(body="<html></html>"))
    await page.goto("https://bench.invalid/")
    await page.evaluate(f"window.party = {json.dumps(party)}")
    return page
