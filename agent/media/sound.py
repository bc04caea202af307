"""The sound of this device as its calls use it: one sound card and one media engine, lent to them.

`Voice` is the card (`agent.media.sound_card` is the real one), `AudioStream` what a call lets others hear.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Protocol

import structlog

from bellwire.agent.link import Link, RequestRefused
from bellwire.agent.media.engine.interface import Block, IceServer, MediaEngine
from bellwire.agent.tasks import CallTasks
from bellwire.config.media_servers import IceServerSettings
from bellwire.signaling.errors import CallError, InvalidInput

log = structlog.get_logger(__name__)

OnBlock = Callable[[Block], None]


class Tone(StrEnum):
    """What is played through the speaker beside the voices."""

    RING = "ring"
    """Somebody calls."""
    RINGBACK = "ringback"
    """It rings at the other end."""
    CALL_WAITING = "call_waiting"
    """Somebody else calls during a call."""


@dataclass(frozen=True, slots=True)
class AudioDevices:
    """Which sound devices are used, by index, or by name or a part of it, as `config.agent.audio` names them;
    None: the configured ones.

    Raises:
        InvalidInput: a name is empty, and so a part of every name.
    """

    input_device: str | int | None = None
    output_device: str | int | None = None

    def __post_init__(self) -> None:
        if "" in (self.input_device, self.output_device):
            raise InvalidInput(
                "name a sound device as `bellwire doctor audio` lists it, or give None"
            )

    @property
    def named(self) -> dict[str, str | int]:
        """Those that are named, under the names of their settings."""
        both = {"input_device": self.input_device, "output_device": self.output_device}
        return {which: name for which, name in both.items() if name is not None}

    def serve(self, wanted: "AudioDevices") -> bool:
        """Whether these, in use, are what another call wants: it names the same, or leaves it open."""
        return wanted.named.items() <= self.named.items()


class Voice(Protocol):
    """Microphone and speaker. Its methods belong on the event loop, but for `play` and `take_back`,
    which one thread for each source may call."""

    async def open(self, on_captured: OnBlock, devices: AudioDevices) -> None:
        """Starts both; `on_captured` is called with each block of the microphone, from any one
        thread, and must not block. CallError 53400 where there is no such sound device, or it is in use."""
        ...

    def play(self, source: str, block: Block) -> None:
        """Plays the next block of a source; all sources are mixed. Returns at once."""
        ...

    def take_back(self, source: str, blocks: int) -> None:
        """Silences the last so many blocks of a source, as far as they have not been heard."""
        ...

    def forget(self, source: str) -> None:
        """This source says nothing more."""
        ...

    async def close(self) -> None:
        """Stops both; then the configured devices are in force again. They may be stopped already."""
        ...

    async def failed(self) -> str:
        """Waits until a device of it does not work; returns what is wrong, and what to do."""
        ...

    async def works(self) -> None:
        """Waits until it is well."""
        ...

    def start_tone(self, tone: Tone, volume: float = 1.0) -> None:
        """Plays a tone until `stop_tone`, whether or not a call is on; `volume` is 0.0 to 1.0."""
        ...

    def stop_tone(self) -> None:
        """Ends it; there may be none."""
        ...


class AudioStream:
    """Sound of a call as it goes by, in blocks (seed 003, getLocalStream and getRemoteStream)."""

    def __init__(self) -> None:
        self._listeners: tuple[OnBlock, ...] = ()

    def listen(self, listener: OnBlock) -> Callable[[], None]:
        """Has `listener` called with each block, on a thread of the sound's own, where it must not
        block; what is returned ends that."""
        self._listeners = (*self._listeners, listener)

        def unsubscribe() -> None:
            self._listeners = tuple(one for one in self._listeners if one is not listener)

        return unsubscribe

    def publish(self, block: Block) -> None:
        """Hands a block to all who listen."""
        for listener in self._listeners:
            try:
                listener(block)
            except Exception:  # a listener is an application's: the voice goes on
                log.exception("a listener to sound failed")


IceServers = Callable[[], Awaitable[Sequence[IceServer]]]

_ICE_SERVERS_WITHIN = timedelta(seconds=3)


async def no_ice_servers() -> Sequence[IceServer]:
    """None: enough within one network."""
    return ()


async def told_and_configured(
    link: Link, configured: Iterable[IceServerSettings]
) -> Sequence[IceServer]:
    """Those of the relay, with credentials for this call, then the configured ones."""
    own = tuple(IceServer(server.urls) for server in configured)
    try:
        told = await link.ice_servers(within=_ICE_SERVERS_WITHIN)
    except (RequestRefused, CallError) as error:
        log.warning(
            "the relay names no ICE servers: within one network it works without",
            error=str(error),
        )
        return own
    return (*(IceServer(s.urls, s.username, s.credential) for s in told.ice_servers), *own)


def webrtc_engine(*, allow_loopback: bool) -> MediaEngine:
    """The engine of a device; `allow_loopback` says that the other end may be on this machine."""
    from bellwire.agent.media.engine import wrtc_engine

    return wrtc_engine.WrtcEngine(allow_loopback=allow_loopback)


class DeviceSound:
    """Opens the sound card for the first call that needs it, and closes it after the last.

    Args:
        engine: Makes the engine, once, when the first call needs it: its library is large.
        voice: The sound card.
        ice_servers: The STUN and TURN servers, asked for at each call.
    """

    def __init__(
        self,
        engine: Callable[[], MediaEngine],
        voice: Voice,
        ice_servers: IceServers = no_ice_servers,
    ) -> None:
        self.voice = voice
        self.ice_servers = ice_servers
        self._make_engine = engine
        self._engine: MediaEngine | None = None
        self._users: tuple[OnBlock, ...] = ()
        self._devices: AudioDevices | None = None
        self._turn = asyncio.Lock()

    @property
    def engine(self) -> MediaEngine:
        """The media engine, made when it is first asked for."""
        if self._engine is None:
            self._engine = self._make_engine()
        return self._engine

    async def attach(self, on_captured: OnBlock, devices: AudioDevices) -> None:
        """Has `on_captured` called with each block of the microphone.

        The devices are the card's, not the call's: what the first call names holds until the last call
        has ended, and a call that names none uses it too.

        Raises:
            CallError: 53400, there is no sound card that works, no such device, or other devices are in
                use by another call.
        """
        async with self._turn:
            if self._devices is None:
                await self.voice.open(self._captured, devices)
                self._devices = devices
            elif not self._devices.serve(devices):
                raise CallError(53400, _in_use(devices, self._devices))
            self._users = (*self._users, on_captured)

    async def detach(self, on_captured: OnBlock) -> None:
        """Has it called no more; after the last one the card is closed."""
        async with self._turn:
            self._users = tuple(user for user in self._users if user != on_captured)
            if not self._users and self._devices is not None:
                self._devices = None
                await self.voice.close()

    async def close(self) -> None:
        """Closes the engine, if it was ever made."""
        if self._engine is not None:
            await self._engine.close()
            self._engine = None

    def _captured(self, block: Block) -> None:
        for user in self._users:
            user(block)


def _in_use(wanted: AudioDevices, used: AudioDevices) -> str:
    def told(devices: AudioDevices) -> str:
        names = (f"{which} {name!r}" for which, name in devices.named.items())
        return " and ".join(names) or "the configured devices"

    return (
        f"another call uses {told(used)}, and this one names {told(wanted)}: end the other call first, "
        "or name no devices"
    )


@dataclass(frozen=True, slots=True)
class MediaOptions:
    """What the application asks of a call's sound: servers in place of the relay's, sound devices in place
    of the configured ones."""

    ice_servers: Sequence[IceServer] | None = None
    audio_devices: AudioDevices = field(default_factory=AudioDevices)


class CallCard:
    """The sound card, for one call.

    Args:
        sound: The device's sound.
        captured: Called with each block of the microphone.
        gone: Told why, when a device of the card is gone and not back in time.
        tasks: Who does the call's work.
        give_up_s: How long a device may be gone.
    """

    def __init__(
        self,
        sound: DeviceSound,
        captured: OnBlock,
        gone: Callable[[str], Awaitable[None]],
        tasks: CallTasks,
        give_up_s: float,
    ) -> None:
        self._sound = sound
        self._captured = captured
        self._gone = gone
        self._tasks = tasks
        self._give_up_s = give_up_s
        self._devices: AudioDevices | None = None
        self._is_watched = False
        self._turn = asyncio.Lock()

    async def attach(self, devices: AudioDevices) -> None:
        """Opens it for the call; it may be open already, for early media with other devices.

        Raises:
            CallError: 53400, there is no sound card that works, or another call has it open with others.
        """
        async with self._turn:
            if self._devices == devices:
                return
            if self._devices is not None:
                self._devices = None
                await self._sound.detach(self._captured)
            await self._sound.attach(self._captured, devices)
            self._devices = devices
            if not self._is_watched:
                self._is_watched = True
                self._tasks.start(self._detach_at_the_end())
                self._tasks.start(self._watch())

    async def _watch(self) -> None:
        while True:
            fault = await self._sound.voice.failed()
            log.warning("the call goes on without a sound device", reason=fault)
            try:
                async with asyncio.timeout(self._give_up_s):
                    await self._sound.voice.works()
            except TimeoutError:
                break
        await self._gone(fault)

    async def _detach_at_the_end(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await self._sound.detach(self._captured)
