"""A browser with the examples of docs/media.md in a call of six: a real Chromium, a real Janus, and an
agent that calls."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from playwright.async_api import Page

from bellwire.signaling.wire.requests import ChannelRequest, DeviceRequest
from tests.agent.media.test_rooms import HELLO, SILENT, all_hear_in_room, house, relay_at
from tests.agent.talking import QUICK
from tests.chromium import chromium, heard_in, open_page, write_wav
from tests.conftest import PATIENCE_S, register_station
from tests.janus import SECRET, janus, needs_janus
from tests.speech import RATE_HZ, fraction_heard, say

BROWSER = say("I am coming down to the door", "en+f3")

PHONE = """
let call, sid, state = "idle";
async function beReady(token, deviceId, me) {
  const microphone = await navigator.mediaDevices.getUserMedia({audio: {
    echoCancellation: false, noiseSuppression: false, autoGainControl: false}});
  const stream = openStream(location.origin.replace("http", "ws"), async () => token, async (event) => {
    if (event.event === "call.received") {
      sid = event.call_sid;
      const caller = event.from.replace("client:", "");
      call = confer({stream, deviceId, callSid: sid, me, caller, microphone, play});
      const answer = await stream.ask({operation: "accept", call_sid: sid});
      for (const user of answer.call.users)
        if (user.identity !== me && user.state === "Accepted" && user.main_device) call.add(user.identity);
      state = "accepted";
    } else if (event.event === "call.user_state_changed" && event.identity !== me) {
      if (event.state === "Accepted") call.add(event.identity);
      if (event.state === "Quit") call.remove(event.identity);
    } else if (event.event === "call.message") {
      call.take(event);
    } else if (event.event === "call.ended") {
      call.close();
      state = "ended";
    }
  });
}
"""


@asynccontextmanager
async def page_of(http: httpx.AsyncClient, folder: Path, identity: str) -> AsyncIterator[Page]:
    """A browser that accepts what calls this identity."""
    device = f"{identity}-1"
    request = DeviceRequest(identity=identity, channels=[ChannelRequest(kind="websocket")])
    body = request.model_dump(exclude_none=True)
    (await http.put(f"/v1/devices/{device}", json=body)).raise_for_status()
    issued = await http.post("/v1/tokens", json={"identity": identity, "device_id": device})
    write_wav(folder / "microphone.wav", BROWSER)
    flag = f"--use-file-for-fake-audio-capture={folder / 'microphone.wav'}"
    async with chromium(flag) as browser:
        page = await browser.new_page()
        await open_page(page, str(http.base_url).rstrip("/"), PHONE)
        await page.evaluate(
            "([token, id, me]) => beReady(token, id, me)",
            [issued.json()["token"], device, identity],
        )
        yield page


@needs_janus
async def test_a_browser_goes_to_the_room_of_a_call_of_six_and_talks_with_an_agent_there(
    tmp_path: Path,
) -> None:
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    secret.write_text(SECRET)
    (tmp_path / "janus").mkdir()
    async with (
        janus(tmp_path / "janus") as bridge,
        relay_at(tmp_path / "relay", janus_url=bridge.url, janus_secret_file=str(secret)) as http,
        house(http, 1, QUICK) as here,
        page_of(http, tmp_path, "browser") as page,
    ):
        for who in SILENT:
            await register_station(http, who)
        (agent,) = here.talkers
        await here.ring("browser", *SILENT)
        (call,) = here.calls
        await page.wait_for_function("call?.direct.includes('front')", timeout=1000 * PATIENCE_S)
        await agent.until(call, "audio")
        for who in SILENT:
            answer = await http.post(
                f"/v1/calls/{call.sid}/accept", json={"identity": who, "device_id": who}
            )
            assert answer.is_success, answer.text

        await page.wait_for_function(
            "call.isInRoom && !call.direct.includes('front')", timeout=1000 * PATIENCE_S
        )
        await bridge.until_rooms_are(2)
        await all_hear_in_room([agent], BROWSER)
        await page.evaluate("heard.length = 0")
        async with asyncio.timeout(PATIENCE_S):
            while fraction_heard(HELLO, (await heard_in(page))[-8 * RATE_HZ :]) < 0.6:
                await agent.voice.hears_more()
        call.disconnect()
        await bridge.until_rooms_are(1)
