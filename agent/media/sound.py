"""This device's one sound card and media engine, lent to its calls."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from bellwire.agent.media.engine.engine import Block, IceServer, MediaEngine
from bellwire.agent.media.voice import AudioDevices, OnBlock, Voice
from bellwire.signaling.errors import CallError

IceServers = Callable[[], Awaitable[Sequence[IceServer]]]


async def no_ice_servers() -> Sequence[IceServer]:
    """None: enough within one network."""
    return ()


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
