"""Several relays on one PostgreSQL and one broker, any of which may be killed; and phones that are
content with whichever of them is there, as the documentation tells clients to be."""

import asyncio
import itertools
import json
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Self

import aiomqtt
import httpx
import websockets
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from websockets.asyncio.client import ClientConnection, connect

from bellwire.cli.process.relay import Process, RelayProcess
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import call_topic, request_topic, response_topic
from tests.conftest import PATIENCE_S
from tests.forking import ForkedRelay
from tests.system.mosquitto import Mosquitto, running_mosquitto

_ASK_AGAIN_S = 2.0
_PAUSE_S = 0.05
_CHECKOUT = Path(__file__).parents[2]

UNLIMITED = {
    "BELLWIRE_DEVICE_INVITES_PER_S": "1000000",
    "BELLWIRE_DEVICE_REQUESTS_PER_S": "1000000",
}
"""One device is called here more often than any person is."""


class Version:
    """An older version of the project, out of the history of this checkout."""

    def __init__(self, commit: str, folder: Path) -> None:
        """Raises LookupError where the checkout has no such history."""
        self.folder = folder / commit
        archive = folder / f"{commit}.tar"
        wanted = ["git", "archive", "--output", str(archive), commit]
        done = subprocess.run(wanted, cwd=_CHECKOUT, capture_output=True, check=False)  # noqa: S603
        if done.returncode != 0:
            raise LookupError(f"git has no {commit}: {done.stderr.decode()}")
        self.folder.mkdir()
        unpack = ["tar", "-xf", str(archive), "-C", str(self.folder)]
        subprocess.run(unpack, check=True)  # noqa: S603

    @property
    def import_path(self) -> str:
        """Where its modules are, as PYTHONPATH; the first versions had no `src`."""
        return f"{self.folder / 'src'}:{self.folder}"


class SharingRelay(ForkedRelay):
    """A relay of this version, or of an older one, which is run as people run it."""

    def __init__(
        self,
        data: Path,
        *,
        arguments: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        version: Version | None = None,
    ) -> None:
        super().__init__(data, arguments=arguments, environment=environment)
        self._given = arguments, environment
        self._version = version

    def of_this_version(self) -> "SharingRelay":
        """The same relay after an upgrade."""
        arguments, environment = self._given
        return SharingRelay(self.data, arguments=arguments, environment=environment)

    async def start(self) -> None:
        """As `ForkedRelay.start`; an older version makes its own tables."""
        await (super().start() if self._version is None else RelayProcess.start(self))

    async def spawn(
        self, arguments: Sequence[str], environment: Mapping[str, str], log: BinaryIO
    ) -> Process:
        if self._version is None:
            return await super().spawn(arguments, environment, log)
        # Else the folder that the tests are run in comes first.
        path = {"PYTHONPATH": self._version.import_path, "PYTHONSAFEPATH": "1"}
        old = {**environment, **path}
        return await RelayProcess.spawn(self, arguments, old, log)


class Relays:
    """Relays that share what they know. A request goes to one that is there, and is asked again of
    another where that one dies before it answers."""

    def __init__(self, processes: list[SharingRelay], http: httpx.AsyncClient) -> None:
        self.processes = processes
        self.kills = 0
        self._http = http
        self._there = set(range(len(processes)))
        self._turns = itertools.count()

    def url(self, number: int | None = None) -> str:
        """The address of one relay, or of any that is there."""
        if number is None:
            there = sorted(self._there)
            number = there[next(self._turns) % len(there)]
        return self.processes[number].access.url

    async def kill_and_restart(self, number: int) -> None:
        """kill -9, as a power cut does, and a start on what it left."""
        self._there.discard(number)
        self.kills += 1
        await self.processes[number].kill()
        await self.processes[number].start()
        self._there.add(number)

    async def upgrade(self, number: int, *, killed: bool) -> None:
        """Ends one relay, as an update of its package does, or by kill -9, and starts this version in its
        place, on its data."""
        self._there.discard(number)
        before = self.processes[number]
        if killed:
            await before.kill()
            self.kills += 1
        else:
            await before.stop()
        self.processes[number] = before.of_this_version()
        await self.processes[number].start()
        self._there.add(number)

    async def ask(
        self,
        method: str,
        path: str,
        *,
        at: int | None = None,
        **more: Any,  # noqa: ANN401 - JSON
    ) -> httpx.Response:
        """One request, to one relay, or until any answers it."""
        if at is not None:
            return await self._http.request(method, self.url(at) + path, **more)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with suppress(httpx.TransportError):
                    answer = await self._http.request(method, self.url() + path, **more)
                    if answer.status_code != 503:
                        return answer
                await asyncio.sleep(_PAUSE_S)

    async def call(self, key: str, **body: Any) -> str:  # noqa: ANN401 - JSON
        """Makes a call, once, however often it is asked for."""
        answer = await self.ask("POST", "/v1/calls", json=body, headers={"Idempotency-Key": key})
        assert answer.status_code == 201, answer.text
        sid: str = answer.json()["call_sid"]
        return sid

    async def show(self, sid: str, at: int | None = None) -> dict[str, Any]:
        """A call as it stands."""
        answer = await self.ask("GET", f"/v1/calls/{sid}", at=at)
        assert answer.status_code == 200, answer.text
        call: dict[str, Any] = answer.json()
        return call

    async def sids_of(self, identity: str) -> list[str]:
        """The SIDs of all calls of an identity."""
        found: list[str] = []
        cursor = 0
        while True:
            parameters: dict[str, str | int] = {"identity": identity, "count": 100, "next": cursor}
            page = (await self.ask("GET", "/v1/calls", params=parameters)).json()
            found += [call["call_sid"] for call in page["calls"]]
            cursor = page["next"]
            if not cursor:
                return found

    async def token(self, identity: str, device: str) -> str:
        """An access token of one device."""
        body = {"identity": identity, "device_id": device}
        answer = await self.ask("POST", "/v1/tokens", json=body)
        token: str = answer.json()["token"]
        return token

    async def register(self, device: str, identity: str, kind: str) -> dict[str, Any]:
        """Registers a device."""
        body = {"identity": identity, "channels": [{"kind": kind}], "rotate_credentials": True}
        answer = await self.ask("PUT", f"/v1/devices/{device}", json=body)
        assert answer.is_success, answer.text
        registered: dict[str, Any] = answer.json()
        return registered


@asynccontextmanager
async def many_relays(
    folder: Path, database: str, count: int, version: Version | None = None
) -> AsyncIterator[Relays]:
    """Relays that have been started all at once, on an empty database; of an older version, where one is
    given."""
    async with AsyncExitStack() as opened:
        broker: Mosquitto = await opened.enter_async_context(running_mosquitto(folder / "broker"))
        processes = [
            SharingRelay(
                folder / f"relay-{number}",
                arguments=(*broker.arguments, "--database", database),
                environment={**broker.environment, **UNLIMITED},
                version=version,
            )
            for number in range(count)
        ]
        opened.push_async_callback(_stop_all, processes)
        await asyncio.gather(*(process.start() for process in processes))
        headers = {"Authorization": f"Bearer {processes[0].access.api_key}"}
        http = httpx.AsyncClient(headers=headers, timeout=PATIENCE_S)
        yield Relays(processes, await opened.enter_async_context(http))


async def _stop_all(processes: list[SharingRelay]) -> None:
    for process in processes:
        await process.stop()


class Phone:
    """A device: the events it has heard, each once, and when; and how often each came."""

    def __init__(
        self, relays: Relays, name: str, identity: str, of_relay: int | None = None
    ) -> None:
        self.relays = relays
        self.of_relay = of_relay
        self.name = name
        self.identity = identity
        self.came: Counter[str] = Counter()
        self.heard: dict[str, list[tuple[dict[str, Any], float]]] = {}
        self._changed = asyncio.Condition()
        self._answers: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._requests = itertools.count(1)

    async def hear(self, event: dict[str, Any]) -> None:
        self.came[event["id"]] += 1
        if self.came[event["id"]] == 1:
            self.heard.setdefault(event["call_sid"], []).append((event, time.time()))
            async with self._changed:
                self._changed.notify_all()

    async def until(self, sid: str, event: str, **fields: str) -> tuple[dict[str, Any], float]:
        """Waits for an event of a call that has these fields; the event, and when it came."""

        def found() -> tuple[dict[str, Any], float] | None:
            for heard, at in self.heard.get(sid, []):
                if heard["event"] == event and fields.items() <= heard.items():
                    return heard, at
            return None

        try:
            async with asyncio.timeout(PATIENCE_S), self._changed:
                await self._changed.wait_for(lambda: found() is not None)
        except TimeoutError:
            raise AssertionError(
                f"{self.name} waits in vain for {event} {fields} of {sid}: it heard"
                f" {[heard for heard, _ in self.heard.get(sid, [])]}"
            ) from None
        result = found()
        assert result is not None
        return result

    def events_of(self, sid: str) -> list[str]:
        """The names of the events of a call that it has heard, in their order."""
        return [event["event"] for event, _ in self.heard.get(sid, [])]

    async def ask(self, operation: str, sid: str) -> dict[str, Any]:
        """Does an operation, again and again until it is answered."""
        request_id = str(next(self._requests))
        self._answers[request_id] = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(PATIENCE_S):
            while True:
                await self.send(request_id, {"operation": operation, "call_sid": sid})
                done, _ = await asyncio.wait({self._answers[request_id]}, timeout=_ASK_AGAIN_S)
                if done:
                    return self._answers.pop(request_id).result()

    def answered(self, request_id: str, answer: dict[str, Any]) -> None:
        waiting = self._answers.get(request_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    async def send(self, request_id: str, document: dict[str, Any]) -> None:
        raise NotImplementedError

    @classmethod
    @asynccontextmanager
    async def there(
        cls, relays: Relays, name: str, identity: str, of_relay: int | None = None
    ) -> AsyncIterator[Self]:
        """A phone that is registered and listens."""
        phone = cls(relays, name, identity, of_relay)
        ready = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(phone.run(ready.set))
            async with asyncio.timeout(PATIENCE_S):
                await ready.wait()
            yield phone
            running.cancel()

    async def run(self, ready: Callable[[], None]) -> None:
        raise NotImplementedError


class MqttPhone(Phone):
    """A device on raw MQTT."""

    _client: aiomqtt.Client

    async def run(self, ready: Callable[[], None]) -> None:
        access = (await self.relays.register(self.name, self.identity, "mqtt"))["mqtt"]
        host, _, port = access["url"].removeprefix("mqtt://").partition(":")
        self._client = aiomqtt.Client(
            host,
            int(port),
            username=access["username"],
            password=access["password"],
            identifier=access.get("client_id", self.name),  # the first versions had none
            protocol=aiomqtt.ProtocolVersion.V5,
        )
        async with self._client as client:
            await client.subscribe(call_topic(DeviceId(self.name)), qos=1)
            await client.subscribe(response_topic(DeviceId(self.name)), qos=1)
            ready()
            async for message in client.messages:
                assert isinstance(message.payload, bytes)
                document = json.loads(message.payload)
                if message.topic.matches(call_topic(DeviceId(self.name))):
                    await self.hear(document)
                elif message.properties is not None:
                    self.answered(message.properties.CorrelationData.decode(), document)

    async def send(self, request_id: str, document: dict[str, Any]) -> None:
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ResponseTopic = response_topic(DeviceId(self.name))
        properties.CorrelationData = request_id.encode()
        await self._client.publish(
            request_topic(DeviceId(self.name)), json.dumps(document), qos=1, properties=properties
        )


class StreamPhone(Phone):
    """A device on WebSocket, which goes to another relay when its own is lost, and reads on there;
    `of_relay` keeps it to one."""

    _socket: ClientConnection
    _cursor: int | None = None

    async def run(self, ready: Callable[[], None]) -> None:
        await self.relays.register(self.name, self.identity, "websocket")
        token = await self.relays.token(self.identity, self.name)
        while True:
            url = self.relays.url(self.of_relay).replace("http:", "ws:") + "/v1/events"
            query = "" if self._cursor is None else f"?cursor={self._cursor}"
            with suppress(OSError, websockets.WebSocketException):
                async with connect(
                    url + query, additional_headers={"Authorization": f"Bearer {token}"}
                ) as socket:
                    await self._read(socket, ready)
            await asyncio.sleep(_PAUSE_S)

    async def _read(self, socket: ClientConnection, ready: Callable[[], None]) -> None:
        async for text in socket:
            document = json.loads(text)
            match document["event"]:
                case "stream.opened":
                    assert self._cursor in (None, document["cursor"]), "the stream begins anew"
                    self._cursor = document["cursor"]
                    self._socket = socket
                    ready()
                case "stream.response":
                    self.answered(document["request_id"], document)
                case "stream.heartbeat":
                    pass
                case _:
                    assert self._cursor is not None
                    assert document["cursor"] > self._cursor, "an event out of its order"
                    self._cursor = document["cursor"]
                    await self.hear(document)
                    if document["cursor"] % 10 == 0:
                        await socket.send(json.dumps({"ack": self._cursor}))

    async def send(self, request_id: str, document: dict[str, Any]) -> None:
        with suppress(websockets.WebSocketException):  # it is on its way to another relay
            await self._socket.send(json.dumps({"request_id": request_id, **document}))
