"""The example of docs/media.md in a real browser: two parties in one page, who agree through a relay of
a few lines that loses no message and keeps no order."""

import re
import shutil

import pytest
from playwright.async_api import async_playwright

from tests.docs.documents import ROOT, blocks

CHROMIUM = shutil.which("chromium")

SCENE = """
async () => {
  const parties = {};
  const relay = (me) => ({
    ask: async (operation) => {
      if (operation.operation === "ice_servers") return { ice_servers: [], ttl: 3600 };
      const [to] = operation.to, { message_type, content } = operation;
      if (!/^KX[0-9a-f]{32}$/.test(operation.voice_event_sid)) throw new Error("no voice_event_sid");
      if (JSON.stringify(content).length > 8192 || content.sdp?.length > 3500) throw new Error("too long");
      const wait = content.kind === "candidate" ? 0 : 20; // candidates overtake descriptions
      setTimeout(() => parties[to].take({ message_type, content: structuredClone(content) }), wait);
    },
  });
  const microphone = () => {
    const audio = new AudioContext(), tone = audio.createOscillator();
    const out = audio.createMediaStreamDestination();
    tone.connect(out);
    tone.start();
    return out.stream;
  };
  const heard = [];
  for (const [me, other, offers] of [["desk", "lobby", false], ["lobby", "desk", true]])
    parties[me] = talk({
      stream: relay(me), deviceId: `${me}-1`, callSid: "CA", other, offers,
      microphone: microphone(), play: (stream) => heard.push(stream.getAudioTracks().length),
    });
  // Not for this device, and not of this session: neither is listened to.
  parties.desk.take({ message_type: "media",
    content: { kind: "offer", session: "x", to_device: "desk-2", sdp: "nonsense" } });
  parties.desk.take({ message_type: "media", content: { kind: "failed", session: "x", code: 53405 } });
  while (!Object.values(parties).every((party) => party.state === "connected"))
    await new Promise((then) => setTimeout(then, 20));
  await parties.desk.close();
  await parties.lobby.close();
  return { heard, state: parties.desk.state };
}
"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here to run it with")
async def test_browser_example_agrees_on_the_sound_whatever_order_messages_come_in() -> None:
    example = "\n".join(b.text for b in blocks(ROOT / "docs/media.md") if b.kind == "js")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"],
        )
        try:
            page = await browser.new_page()
            failures: list[str] = []
            page.on("console", lambda message: failures.append(message.text))
            # A secure context, of no server.
            await page.route("**/*", lambda route: route.fulfill(content_type="text/html"))
            await page.goto("https://page.example/")
            await page.add_script_tag(content=example)
            came = await page.evaluate(SCENE)
        finally:
            await browser.close()
    assert came == {"heard": [1, 1], "state": "closed"}
    assert not [text for text in failures if re.search("no sound|Error", text)]
