"""Devices that talk: real links to a real relay, real WebRTC, and a sound card of arrays."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, get_args

import httpx
import numpy as np

from bellwire.agent.calls.call import Call, CallStatus
from bellwire.agent.calls.device import Device
from bellwire.agent.calls.events import CallEventName
from bellwire.agent.calls.invite import CallInvite
from bellwire.agent.link import Link
from bellwire.agent.media.engine.interface import (
    BLOCK_FRAMES,
    Block,
    IceCandidate,
    IceServer,
    MediaEngine,
    MediaStats,
    PeerConnection,
    PeerListeners,
)
from bellwire.agent.media.peer import MediaTiming
from bellwire.agent.media.sound import AudioDevices, DeviceSound, OnBlock, Tone, Voice
from bellwire.broker.session.address import BrokerAddress, parse_broker_url
from bellwire.config.agent.settings import AgentSettings
from bellwire.signaling.errors import CallError
from bellwire.signaling.identifiers import DeviceId, Identity
from tests.agent.udp_wire import UdpWire
from tests.conftest import PATIENCE_S, register_station
from tests.hardware.conftest import VirtualTime
from tests.speech import RATE_HZ, fraction_heard, say
from tests.speech import Sound as Samples
from tests.system.scene import Record

FRONT = say("Good morning, I have a parcel for you", "en")
DESK = say("Please put it in front of the door", "en+f3")
ATTIC = say("What a fine view there is up here", "en+m3")

QUICK = MediaTiming(
    connect_within_s=10,
    unsettled_s=0.3,
    restart_first_s=0.3,
    give_up_s=3,
    last_word_s=2,
)


class ArrayVoice:
    """A sound card whose microphone hears an array over and over, and whose speaker keeps all that it
    plays; paced by a thread of its own, as a real one is."""

    def __init__(self, says: Samples) -> None:
        self.say(says)
        self.heard: dict[str, list[Block]] = {}
        self.tones: list[tuple[Tone, float] | None] = []
        self.broken = False
        self.gone, self.there = asyncio.Event(), asyncio.Event()
        self.there.set()
        self.opened: list[AudioDevices] = []
        self.forgotten = Record()
        self._played = 0
        self._wanted: list[tuple[int, Callable[[], object]]] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def say(self, says: Samples) -> None:
        """Has the microphone hear this from now on."""
        whole = len(says) // BLOCK_FRAMES * BLOCK_FRAMES
        self._blocks = says[:whole].reshape(-1, BLOCK_FRAMES)

    @property
    def is_open(self) -> bool:
        return self._thread is not None

    async def open(self, on_captured: OnBlock, devices: AudioDevices) -> None:
        if self.broken:
            raise CallError(53400, "the microphone is in use by another program")
        assert self._thread is None
        self.opened.append(devices)
        self._stop.clear()
        self._thread = threading.Thread(target=self._pace, args=(on_captured,))
        self._thread.start()

    def play(self, source: str, block: Block) -> None:
        self.heard.setdefault(source, []).append(block.copy())
        self._played += 1
        for wanted in tuple(self._wanted):
            if self._played >= wanted[0]:
                self._wanted.remove(wanted)
                wanted[1]()

    def take_back(self, source: str, blocks: int) -> None:
        for block in self.heard.get(source, [])[-blocks:]:
            block[:] = 0

    def forget(self, source: str) -> None:
        self.forgotten.note(source)

    async def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stop.set()
            await asyncio.to_thread(thread.join)

    def pull_out(self) -> None:
        """It is gone in the middle of a call."""
        self.gone.set()
        self.there.clear()

    def plug_in(self) -> None:
        self.there.set()
        self.gone.clear()

    async def failed(self) -> str:
        await self.gone.wait()
        return "the microphone is gone: plug it in again"

    async def works(self) -> None:
        await self.there.wait()

    async def hears_more(self, blocks: int = 40) -> None:
        """Waits until so many more blocks have been played."""
        loop, heard = asyncio.get_running_loop(), asyncio.Event()
        self._wanted.append((self._played + blocks, lambda: loop.call_soon_threadsafe(heard.set)))
        await heard.wait()

    def start_tone(self, tone: Tone, volume: float = 1.0) -> None:
        self.tones.append((tone, volume))

    def stop_tone(self) -> None:
        self.tones.append(None)

    def sound_of(self, who: str) -> Samples:
        """All that was heard of somebody."""
        blocks = [
            b
            for source, played in self.heard.items()
            if source.startswith(f"{who} ")
            for b in played
        ]
        return np.concatenate(blocks) if blocks else np.zeros(0, np.int16)

    def _pace(self, on_captured: OnBlock) -> None:
        began, number = time.monotonic(), 0
        while not self._stop.wait(max(0.0, began + number / 100 - time.monotonic())):
            blocks = self._blocks
            on_captured(blocks[number % len(blocks)])
            number += 1


class Switchboard:
    """The media engine of one talker, on a wire that can be cut; and it can be told to fail."""

    def __init__(self, engine: MediaEngine) -> None:
        self._engine = engine
        self.wire: UdpWire | None = None
        self.silent = False
        """Whether it tells nobody how to reach it."""
        self.relayed_by: IceServer | None = None
        """The TURN server through which alone it can be reached."""
        self.asked_to_use: Sequence[IceServer] = ()
        """The servers that the newest connection was to use."""
        self.spoil: Callable[[str], str] = lambda sdp: sdp
        """What is done to its offers and answers."""
        self.clock: Callable[[], float] | None = None
        """The time, in seconds, of what its connections count, in place of their own."""

    def connect(self, ice_servers: Sequence[IceServer], listeners: PeerListeners) -> PeerConnection:
        self.asked_to_use = ice_servers
        if self.wire is not None:
            listeners = self.wire.listeners(listeners)
        if self.silent:
            listeners = replace(listeners, on_candidate=lambda _: None)
        if self.relayed_by is not None:
            ice_servers = (self.relayed_by,)
            listeners = replace(listeners, on_candidate=_relayed_only(listeners.on_candidate))
        return _Spoiled(self._engine.connect(ice_servers, listeners), self)

    async def close(self) -> None:
        if self.wire is not None:
            self.wire.close()
        await self._engine.close()


def _relayed_only(tell: Callable[[IceCandidate], None]) -> Callable[[IceCandidate], None]:
    def found(candidate: IceCandidate) -> None:
        if not candidate.candidate or " typ relay" in candidate.candidate:
            tell(candidate)

    return found


class _Spoiled:
    """A connection whose descriptions and figures go through its switchboard's hands."""

    def __init__(self, connection: PeerConnection, board: Switchboard) -> None:
        self._connection = connection
        self._board = board

    async def create_offer(self, *, ice_restart: bool = False) -> str:
        return self._board.spoil(await self._connection.create_offer(ice_restart=ice_restart))

    async def accept_offer(self, sdp: str) -> str:
        return self._board.spoil(await self._connection.accept_offer(sdp))

    async def stats(self) -> MediaStats:
        stats, clock = await self._connection.stats(), self._board.clock
        return stats if clock is None else replace(stats, timestamp_s=clock())

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - all else is the connection's own
        return getattr(self._connection, name)


@dataclass
class Talker:
    """A device with a voice, and all that its calls told."""

    device: Device
    link: Link
    voice: ArrayVoice
    settings: AgentSettings
    switchboard: Switchboard | None
    invites: Record = field(default_factory=Record)
    told: dict[int, Record] = field(default_factory=dict)
    statuses: Record = field(default_factory=Record)

    def __post_init__(self) -> None:
        self.device.on("incoming", self.invites.note)
        self.device.on_change(self._follow)

    def _follow(self, call: Call) -> None:
        if id(call) not in self.told:
            self.told[id(call)] = Record()
            for name in get_args(CallEventName):
                self._note(call, name)
        self.statuses.note(call.record)

    def _note(self, call: Call, name: Any) -> None:  # noqa: ANN401 - one of CallEventName
        record = self.told[id(call)]
        call.on(name, lambda *what: record.note((name, *what)))

    async def invited(self, number: int = 0) -> CallInvite:
        await self.invites.until(lambda _: len(self.invites.noted) > number, "an invite")
        invite: CallInvite = self.invites.noted[number]
        return invite

    async def until(self, call: Call, event: str) -> tuple[Any, ...]:
        """Waits until a call has told this; all that it told with it."""
        found: tuple[Any, ...] = await self.told[id(call)].until(lambda it: it[0] == event, event)
        return found[1:]

    def names(self, call: Call) -> list[str]:
        """What a call told, in its order, without what it measures."""
        measured = ("volume", "sample", "warning", "warning-cleared")
        return [it[0] for it in self.told[id(call)].noted if it[0] not in measured]

    @property
    def board(self) -> Switchboard:
        assert self.switchboard is not None
        return self.switchboard

    async def until_status(self, call: Call, status: CallStatus) -> None:
        await self.statuses.until(
            lambda record: record.sid == call.sid and record.status is status, status
        )


def address_of(settings: AgentSettings) -> BrokerAddress:
    broker = settings.broker
    return parse_broker_url(
        broker.url,
        username=broker.username,
        password=broker.password.get_secret_value(),
        ca_file=None,
    )


@asynccontextmanager
async def talker(
    http: httpx.AsyncClient,
    name: str,
    says: Samples | None,
    *,
    identity: str | None = None,
    timing: MediaTiming = QUICK,
    address: BrokerAddress | None = None,
    settings: AgentSettings | None = None,
    call_waiting: bool = False,
    wired: bool = False,
    card: Voice | None = None,
    time: VirtualTime | None = None,
) -> AsyncIterator[Talker]:
    """A device at work; with nothing to say it has no sound. `card` is one in place of arrays, `time` is
    that of its calls' timers and measurements."""
    settings = settings or await register_station(http, name, identity=identity)
    link = Link(address or address_of(settings), DeviceId(settings.device_id))
    voice = ArrayVoice(np.zeros(BLOCK_FRAMES, np.int16) if says is None else says)
    board: list[Switchboard] = []

    def engine() -> Switchboard:
        from bellwire.agent.media.engine.wrtc_engine import WrtcEngine

        board.append(Switchboard(WrtcEngine(allow_loopback=True)))
        board[0].wire = UdpWire() if wired else None
        board[0].clock = None if time is None else time.clock
        return board[0]

    sound = None if says is None else DeviceSound(engine, card or voice)
    device = Device(
        Identity(settings.identity),
        DeviceId(settings.device_id),
        link,
        now=lambda: datetime.now(UTC),
        sound=sound,
        timing=timing,
        call_waiting=call_waiting,
        sleep=asyncio.sleep if time is None else time.sleep,
    )
    async with asyncio.TaskGroup() as tasks:
        working = [tasks.create_task(device.run()), tasks.create_task(link.run())]
        async with asyncio.timeout(PATIENCE_S):
            await link.wait_connected()
        switchboard = None if sound is None else sound.engine
        assert switchboard is None or isinstance(switchboard, Switchboard)
        yield Talker(device, link, voice, settings, switchboard)
        for task in working:
            task.cancel()


async def heard(listener: Talker, who: str, speech: Samples) -> None:
    """Waits until the beginning of a speech, which is said over and over, is understood."""
    beginning = speech[:RATE_HZ]
    async with asyncio.timeout(PATIENCE_S):
        while fraction_heard(beginning, listener.voice.sound_of(who)[-4 * RATE_HZ :]) < 0.8:
            await listener.voice.hears_more()


async def connected(caller: Talker, callee: Talker) -> tuple[Call, Call]:
    """A call that is open, with sound, at both ends."""
    number = len(callee.invites.noted)
    call = caller.device.connect(callee.device.identity)
    answered = (await callee.invited(number)).accept()
    await caller.until(call, "audio")
    await callee.until(answered, "audio")
    return call, answered
