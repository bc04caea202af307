"""This device's one sound card and media engine, lent to its calls."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import timedelta

import structlog

from bellwire.agent.link import Link, RequestRefused
from bellwire.agent.media.engine.engine import Block, IceServer, MediaEngine
from bellwire.agent.media.voice import AudioDevices, OnBlock, Voice
from bellwire.config.ice_servers import IceServerSettings
from bellwire.signaling.errors import CallError

log = structlog.get_logger(__name__)

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
    from bellwire.agent.media.engine import wrtc_connection

    return wrtc_connection.WrtcEngine(allow_loopback=allow_loopback)


class Sound:
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
        """The engine."""
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
        """Ends that."""
        async with self._turn:
            self._users = tuple(user for user in self._users if user != on_captured)
            if not self._users and self._devices is not None:
                self._devices = None
                await self.voice.close()

    async def close(self) -> None:
        """Frees the engine."""
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
