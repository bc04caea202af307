"""The stage of the tests that break things: a relay that can be killed, stations that keep a diary,
and the ledger of what the relay has acknowledged, which must hold whatever was killed."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bellwire.agent.calls.call import CallRecord, CallStatus
from bellwire.broker.session.messages import Incoming
from bellwire.signaling.calls.events import CallEnded, CallEvent
from bellwire.signaling.errors import Unavailable
from tests.conftest import PATIENCE_S, Station, register_station, running_station
from tests.forking import ForkedRelay
from tests.system.mosquitto import Mosquitto

RINGS_S = 120
"""How long a call rings that somebody is to answer: a relay may take long to start on a busy machine,
and a device that finds no broker waits up to half a minute before it looks again."""

SILENT_WITHIN_S = 1.0
"""How long after its deadline a pin may still be high, on a busy machine."""


class Record:
    """Things that were noted, and a way to wait for one without polling."""

    def __init__(self) -> None:
        self.noted: list[Any] = []
        self._changed = asyncio.Event()

    def note(self, thing: object) -> None:
        self.noted.append(thing)
        self._changed.set()

    async def until(self, wanted: Callable[[Any], bool], what: str = "it") -> Any:  # noqa: ANN401
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    for thing in tuple(self.noted):
                        if wanted(thing):
                            return thing
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as error:
            raise AssertionError(f"waited in vain for {what}; noted: {self.noted}") from error


@dataclass
class Diary:
    """What one station went through: its calls, what its link heard, and its ringer's edges."""

    station: Station
    calls: Record = field(default_factory=Record)
    heard: Record = field(default_factory=Record)
    edges: list[tuple[bool, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        while not self.station.calls.empty():  # what it went through before anybody kept a diary
            self.calls.note((self.station.calls.get_nowait(), time.time()))
        self.station.agent.phone.watch(lambda call: self.calls.note((call, time.time())))
        self.station.agent.link.listen(self._hear)
        ringer = self.station.fingers.settings.panel.ringer
        assert ringer is not None
        self.station.fingers.pins.watch(
            ringer.pin, lambda high, _: self.edges.append((high, time.time()))
        )

    def _hear(self, event: CallEvent, _: Incoming) -> None:
        self.heard.note(event)

    async def until(self, sid: str, status: CallStatus) -> tuple[CallRecord, float]:
        """Waits until this call has reached a status here; the call as it was, and when."""
        found: tuple[CallRecord, float] = await self.calls.until(
            lambda noted: noted[0].sid == sid and noted[0].status is status, f"{sid} {status}"
        )
        return found

    async def until_dialled(self) -> CallRecord:
        """Waits until a call of this station's own has its SID."""
        found: tuple[CallRecord, float] = await self.calls.until(
            lambda noted: noted[0].direction == "OUTGOING" and noted[0].sid, "a call of its own"
        )
        return found[0]

    async def until_told_ended(self, sid: str) -> None:
        await self.heard.until(
            lambda event: isinstance(event, CallEnded) and event.call_sid == sid, f"{sid} ended"
        )

    def rings(self, sid: str) -> int:
        """How often this call began to ring here."""
        return sum(
            call.sid == sid and call.status is CallStatus.PENDING for call, _ in self.calls.noted
        )

    def is_silent(self) -> bool:
        ringer = self.station.agent.panel.ringer
        assert ringer is not None
        return not ringer.is_ringing and not self.station.fingers.is_ringing

    def statuses(self, sid: str) -> list[CallStatus]:
        return [call.status for call, _ in self.calls.noted if call.sid == sid]


class Scene:
    """A relay and stations, and what the relay acknowledged."""

    def __init__(self, relay: ForkedRelay, http: httpx.AsyncClient) -> None:
        self.relay = relay
        self.kills = 0
        self.stations: dict[str, Diary] = {}
        self.acknowledged: list[str] = []
        self.http = http
        self._up = asyncio.Event()
        self._up.set()

    @property
    def desk(self) -> Diary:
        return self.stations["desk"]

    @property
    def lobby(self) -> Diary:
        return self.stations["lobby"]

    async def all_connected(self) -> None:
        """Waits until every station is back from the last outage."""
        async with asyncio.timeout(2 * PATIENCE_S):  # a client may wait long before it tries again
            for diary in self.stations.values():
                await diary.station.agent.link.wait_connected()

    async def kill(self) -> None:
        """kill -9, as a power cut does."""
        self._up.clear()
        self.kills += 1
        await self.relay.kill()

    async def start(self) -> None:
        """Starts the relay again on what the killed one left."""
        await self.relay.start()
        self._up.set()

    async def kill_and_restart(self, after_s: float = 0.0) -> None:
        await asyncio.sleep(after_s)
        await self.kill()
        await self.start()

    async def kill_while_starting(self, after_s: float) -> None:
        """kill -9 while it starts."""
        self._up.clear()
        starting = asyncio.create_task(self.relay.start())
        await asyncio.sleep(after_s)
        self.kills += 1
        if self.relay.pid:
            os.kill(self.relay.pid, signal.SIGKILL)
        else:
            starting.cancel()
        with contextlib.suppress(Unavailable, asyncio.CancelledError):
            await starting
        await self.relay.kill()

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:  # noqa: ANN401
        """One request; fails if the relay dies meanwhile."""
        return await self.http.request(method, self.relay.access.url + path, **more)

    async def post(self, body: dict[str, Any], key: str | None = None) -> str:
        """Makes a call. With a key, again and again until it is answered, as a careful backend does."""
        headers = {} if key is None else {"Idempotency-Key": key}
        while True:
            if key is not None:
                await self._up.wait()
            try:
                answer = await self.ask("POST", "/v1/calls", json=body, headers=headers)
            except httpx.TransportError:
                if key is None:
                    raise
                continue
            assert answer.status_code == 201, answer.text
            sid: str = answer.json()["call_sid"]
            if sid not in self.acknowledged:
                self.acknowledged.append(sid)
            return sid

    async def invite(self, timeout_s: float = RINGS_S, to: str = "desk") -> str:
        return await self.post({"from": "lobby", "to": [to], "timeout": timeout_s})

    async def operate(self, sid: str, operation: str, **body: Any) -> dict[str, Any]:  # noqa: ANN401
        answer = await self.ask("POST", f"/v1/calls/{sid}/{operation}", json=body)
        assert answer.status_code == 200, answer.text
        call: dict[str, Any] = answer.json()
        return call

    async def show(self, sid: str) -> dict[str, Any]:
        answer = await self.ask("GET", f"/v1/calls/{sid}")
        assert answer.status_code == 200, answer.text
        call: dict[str, Any] = answer.json()
        return call

    async def state_of(self, sid: str, identity: str = "desk") -> str:
        users = (await self.show(sid))["users"]
        state: str = next(user["state"] for user in users if user["identity"] == identity)
        return state

    async def answer_and_hang_up(self, sid: str) -> None:
        """The rest of a call that rings, or will, at the desk."""
        await self.desk.until(sid, CallStatus.PENDING)
        await self.desk.station.fingers.press("a")
        await self.hang_up_once_open(sid)

    async def hang_up_once_open(self, sid: str) -> None:
        await self.desk.until(sid, CallStatus.OPEN)
        assert (await self.show(sid))["state"] == "open"
        assert await self.state_of(sid) == "Accepted"
        await self.desk.station.fingers.press("h")
        await self.desk.until(sid, CallStatus.CLOSED)
        await self.lobby.until_told_ended(sid)
        assert await self.state_of(sid) == "Quit"

    async def must_have_kept_everything(self) -> None:
        """What holds at the end, whatever was killed when."""
        for sid in self.acknowledged:
            call = await self.show(sid)
            assert call["state"] == "ended", call
            pending = {"Inviting", "NotYetReceived", "Received"}
            assert not [user for user in call["users"] if user["state"] in pending], call
            for name, diary in self.stations.items():
                assert diary.rings(sid) <= 1, f"{sid} rang twice at {name}"
        for name, diary in self.stations.items():
            assert diary.station.agent.phone.call is None, name
            assert diary.is_silent(), f"{name} still rings"


@asynccontextmanager
async def scene(
    folder: Path, others: tuple[str, ...] = (), broker: Mosquitto | None = None
) -> AsyncIterator[Scene]:
    """A relay, a lobby whose first button calls the desk, a desk, and other stations. The relay has
    a broker of its own unless one is given."""
    process = ForkedRelay(
        folder / "relay",
        arguments=() if broker is None else broker.arguments,
        environment=None if broker is None else broker.environment,
    )
    async with AsyncExitStack() as opened:
        relay = await opened.enter_async_context(process)
        access = relay.access
        headers = {"Authorization": f"Bearer {access.api_key}"}
        http = await opened.enter_async_context(
            httpx.AsyncClient(base_url=access.url, headers=headers, timeout=PATIENCE_S)
        )
        stage = Scene(relay, http)
        for name in ("lobby", "desk", *others):
            calls = ("desk",) if name == "lobby" else ()
            settings = await register_station(http, name, calls=calls)
            station = await opened.enter_async_context(running_station(settings))
            stage.stations[name] = Diary(station)
        yield stage


def mosquitto_pid(data: Path) -> int | None:
    """The process id of the broker of a relay's data directory, None while there is none."""
    return _pid_with(str(data.resolve() / "broker" / "mosquitto.conf"))


def _pid_with(argument: str) -> int | None:
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                command = (process / "cmdline").read_bytes().split(b"\0")
                if b"mosquitto" in command[0] and argument.encode() in command:
                    return int(process.name)
    return None
