"""The code of a door, guessed from a phone: a real relay, a real agent process that is killed between
the guesses, real WebRTC, and the backend that is told."""

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from bellwire.agent.calls.call import Call
from bellwire.config.agent.behaviour import BehaviourSettings
from bellwire.config.agent.panel import PanelSettings
from bellwire.config.agent.settings import AgentSettings, agent_file
from bellwire.config.private_file import write_private
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import presence_topic, telemetry_topic
from tests.agent.talking import Talker, talker
from tests.conftest import PATIENCE_S, register_station
from tests.forking import ForkedRelay
from tests.push.webhook_receiver import backend, target
from tests.speech import RATE_HZ
from tests.system.mqtt_ear import address_of_own_broker, ear
from tests.system.test_agent_process import agent_process, is_online

DOORS: dict[str, Any] = {
    "front": {"callers": ["eve"], "code": "4711"},
    "yard": {"callers": ["eve"], "code": "902468"},
}
BEHAVIOUR = {
    "auto_answer": {"callers": ["eve"]},
    "doors": DOORS,
    "wrong_codes": 3,
    "lockout_s": 600,
    "digit_timeout_s": 60,
}


async def station_file(http: httpx.AsyncClient, folder: Path) -> Path:
    """The file of a station `gate` with two doors that eve may open, and that answers her by itself."""
    settings: AgentSettings = await register_station(http, "gate")
    wired = {
        "panel": PanelSettings.model_validate({"door": {"pin": 25}}),
        "behaviour": BehaviourSettings.model_validate(BEHAVIOUR),
    }
    file = folder / "gate.toml"
    write_private(file, agent_file(settings.model_copy(update=wired)))
    return file


async def in_a_call(eve: Talker) -> Call:
    call = eve.device.connect("gate")
    await eve.until(call, "audio")
    return call


async def guess(call: Call, code: str, file: Path, wrong: int) -> None:
    """Types a code until so many of eve's wrong ones are on the station's disk: on a busy machine a digit
    may get lost, and whoever types begins anew then. Fewer digits than a code are not counted."""
    kept = file.with_name("door-gate.json")

    def count() -> int:
        document = json.loads(kept.read_text()) if kept.exists() else {"wrong_codes": {}}
        found: int = document["wrong_codes"].get("eve", 0)
        return found

    async with asyncio.timeout(PATIENCE_S):
        while True:
            call.send_digits("*w" + "w".join(code))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(8):
                    while await asyncio.to_thread(count) < wrong:  # noqa: ASYNC110 - no news of a disk
                        await asyncio.sleep(0.05)
                    return


async def test_guesses_of_a_short_code_count_over_calls_and_kills_and_the_backend_is_told(
    tmp_path: Path,
) -> None:
    async with backend() as receiver:
        wants = target(tmp_path, receiver.url, events=["door.locked_out"]).model_dump_json()
        hooks = {"BELLWIRE_WEBHOOKS": json.dumps({"guard": json.loads(wants)})}
        async with (
            ForkedRelay(tmp_path / "relay", environment=hooks) as relay,
            httpx.AsyncClient(
                base_url=relay.access.url,
                headers={"Authorization": f"Bearer {relay.access.api_key}"},
                timeout=PATIENCE_S,
            ) as http,
            talker(http, "eve", np.zeros(RATE_HZ, np.int16)) as eve,
        ):
            file = await station_file(http, tmp_path)
            broker = address_of_own_broker(relay.data)
            for number, code in enumerate(("1234", "5678"), start=1):
                async with (
                    ear(broker, presence_topic(DeviceId("gate"))) as presence,
                    agent_process(file) as gate,
                ):
                    await presence.until(is_online, "online")
                    call = await in_a_call(eve)
                    await guess(call, code, file, number)
                    gate.process.kill()  # before she has even hung up
                    await gate.process.wait()
                    call.disconnect()
            async with (
                ear(broker, presence_topic(DeviceId("gate"))) as presence,
                ear(broker, telemetry_topic(DeviceId("gate"))) as health,
                agent_process(file) as gate,
            ):
                await presence.until(is_online, "online")
                call = await in_a_call(eve)
                await guess(call, "1357", file, 3)
                call.disconnect()
                event = (await receiver.next()).verified()["data"]
                assert (event["caller"], event["call_sid"]) == ("eve", call.sid)
                assert (event["device_id"], event["doors"]) == ("gate", ["front", "yard"])
                assert event["wrong_codes"] == 3
                await health.until(
                    lambda heard: (
                        heard.document.get("door") == {"wrong_codes": 3, "locked_out": ["eve"]}
                    ),
                    "the lockout",
                )
                gate.process.kill()
                await gate.process.wait()
            async with (
                ear(broker, presence_topic(DeviceId("gate"))) as presence,
                agent_process(file) as gate,
            ):
                await presence.until(is_online, "online")
                call = await in_a_call(eve)
                call.send_digits("4711")  # found at last, and too late
                told = await eve.told[id(call)].until(lambda it: it[0] == "messageReceived")
                assert told[1].content == {"door": None, "result": "locked out"}
                decided = [line for line in gate.log.noted if line["event"] == "door decision"]
                assert {line["outcome"] for line in decided} == {"locked out"}
                call.disconnect()
