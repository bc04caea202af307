"""From `POST /v1/calls` to the ringer's pin, beside what it cannot do without: one MQTT publish
through the same mosquitto, and one durable commit on the same disk.

The three are measured alternately in one run. The relay and its mosquitto are processes of their
own; the device is a real agent on simulated pins in this one.
"""

import argparse
import asyncio
import json
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiomqtt

from bellwire.agent.calls.call import CallStatus
from bellwire.agent.main import Agent
from bellwire.cli.demo.stage import register_station
from bellwire.cli.demo.station import SimulatedStation
from bellwire.cli.process.logs import configure_logs
from bellwire.cli.process.relay import RelayProcess
from bellwire.cli.relay_client import RelayClient
from bellwire.signaling.calls.events import CallReceived, event_document
from bellwire.signaling.identifiers import DeviceId, mqtt_client_id
from bellwire.signaling.topics import call_topic
from bench.lab.command_line import at_least_one, stoppable
from bench.lab.http_connection import HttpConnection
from bench.lab.measures import percentile, print_result

_WARM_UP = 20
_UNLIMITED = {
    "BELLWIRE_DEVICE_INVITES_PER_S": "1000000",
    "BELLWIRE_DEVICE_REQUESTS_PER_S": "1000000",
}


class DurableCommit:
    """One row, on the disk when `once` returns, as the relay's own settings have it."""

    def __init__(self, folder: Path) -> None:
        self._connection = sqlite3.connect(folder / "commit.db", isolation_level=None)
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.execute("CREATE TABLE entries (entry TEXT)")

    def once(self, entry: str) -> float:
        """Milliseconds for one commit."""
        started = time.perf_counter()
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute("INSERT INTO entries VALUES (?)", (entry,))
        self._connection.execute("COMMIT")
        return (time.perf_counter() - started) * 1000


class BarePublish:
    """A publish of an invite's size at QoS 1, until its subscriber has it, with nothing around it."""

    def __init__(self, publisher: aiomqtt.Client, subscriber: aiomqtt.Client, topic: str) -> None:
        self._publisher = publisher
        self._subscriber = subscriber
        self._topic = topic

    async def once(self, payload: str) -> float:
        """Milliseconds from publish to receive."""
        started = time.perf_counter()
        publishing = asyncio.create_task(self._publisher.publish(self._topic, payload, qos=1))
        await anext(aiter(self._subscriber.messages))
        took = (time.perf_counter() - started) * 1000
        await publishing
        return took


@asynccontextmanager
async def bare_publish(relay: RelayProcess, client: RelayClient) -> AsyncIterator[BarePublish]:
    """Bare clients on the relay's own mosquitto."""
    device = await register_station(client, "bare")
    password = device.broker.password.get_secret_value()
    login = json.loads((relay.data / "broker/login.json").read_text())
    version = aiomqtt.ProtocolVersion.V5
    topic = call_topic(DeviceId(device.device_id))
    async with (
        aiomqtt.Client(
            "127.0.0.1",
            login["port"],
            username=login["username"],
            password=login["password"],
            protocol=version,
        ) as publisher,
        aiomqtt.Client(
            "127.0.0.1",
            login["port"],
            username=device.broker.username,
            password=password,
            identifier=mqtt_client_id(DeviceId(device.device_id), password),
            protocol=version,
        ) as subscriber,
    ):
        await subscriber.subscribe(topic, qos=1)
        yield BarePublish(publisher, subscriber, topic)


async def measure(rounds: int) -> None:
    """Measures and prints."""
    with tempfile.TemporaryDirectory(prefix="bellwire-bench-") as folder:
        async with RelayProcess(Path(folder) / "relay", environment=_UNLIMITED) as relay:
            with RelayClient(relay.access) as client:
                settings = await register_station(client, "desk")
                fingers = SimulatedStation(settings)
                agent = Agent(settings, pin_factory=fingers.pins)
                async with asyncio.TaskGroup() as tasks, bare_publish(relay, client) as bare:
                    working = tasks.create_task(agent.run())
                    await agent.link.wait_connected()
                    await _measure_rounds(
                        rounds,
                        HttpConnection(relay.access.url, relay.access.api_key),
                        fingers,
                        agent,
                        bare,
                        Path(folder),
                    )
                    working.cancel()


async def _measure_rounds(
    rounds: int,
    http: HttpConnection,
    fingers: SimulatedStation,
    agent: Agent,
    bare: BarePublish,
    folder: Path,
) -> None:
    commit = DurableCommit(folder)
    statuses: asyncio.Queue[CallStatus] = asyncio.Queue()
    agent.phone.watch(lambda call: statuses.put_nowait(call.status))
    ring_ms: list[float] = []
    publish_ms: list[float] = []
    commit_ms: list[float] = []
    invite: list[str] = []
    agent.link.listen(
        lambda event, _: (
            invite.append(event_document(event)) if isinstance(event, CallReceived) else None
        )
    )
    for number in range(rounds + _WARM_UP):
        rang = await _ring_once(http, fingers, statuses)
        published = await bare.once(invite[-1])
        committed = commit.once(invite[-1])
        if number >= _WARM_UP:
            ring_ms.append(rang)
            publish_ms.append(published)
            commit_ms.append(committed)
    floor = percentile(publish_ms, 0.5) + percentile(commit_ms, 0.5)
    p50 = percentile(ring_ms, 0.5)
    print_result(
        "POST /v1/calls to ringer pin, and what it cannot do without",
        {"ring": ring_ms, "bare MQTT publish": publish_ms, "bare commit": commit_ms},
        {
            "p50_ms": p50,
            "p99_ms": percentile(ring_ms, 0.99),
            "bare_p50_ms": floor,
            "ratio_p50": p50 / floor,
            "publish_p50_ms": percentile(publish_ms, 0.5),
            "commit_p50_ms": percentile(commit_ms, 0.5),
        },
    )


async def _ring_once(
    http: HttpConnection, fingers: SimulatedStation, statuses: "asyncio.Queue[CallStatus]"
) -> float:
    """Milliseconds from the POST to the ringer's pin; then the call is cancelled, and over."""
    ringer = fingers.settings.panel.ringer
    if ringer is None:
        raise SystemExit("the station has no ringer")
    edge = asyncio.create_task(fingers.pins.wait_for(ringer, active=True))
    await asyncio.sleep(0)
    started = time.perf_counter()
    status, answer = await http.post("/v1/calls", b'{"from":"lobby","to":["desk"]}')
    if status != 201:
        raise SystemExit(f"the relay answered {status}: {answer.decode()}")
    rang = (await edge - started) * 1000
    await http.post(f"/v1/calls/{json.loads(answer)['call_sid']}/cancel", b"{}")
    while await statuses.get() is not CallStatus.CLOSED:
        pass
    return rang


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="bench/ring", description=__doc__)
    parser.add_argument("--rounds", type=at_least_one, default=400, help="calls to measure (400)")
    rounds = parser.parse_args().rounds
    configure_logs("error")
    with stoppable():
        asyncio.run(measure(rounds))


if __name__ == "__main__":
    main()
