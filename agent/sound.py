"""This device's one sound card and media engine, lent to its calls."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from agent.media.engine import Block, IceServer, MediaEngine
from agent.voice import AudioDevices, OnBlock, Voice

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
        self._is_open = False
        self._turn = asyncio.Lock()

    @property
    def engine(self) -> MediaEngine:
        """The engine."""
        if self._engine is None:
            self._engine = self._make_engine()
        return self._engine

    async def attach(self, on_captured: OnBlock, devices: AudioDevices) -> None:
        """Has `on_captured` called with each block of the microphone: of these devices, unless another
        call has opened others already.

        Raises:
            CallError: 53400, there is no sound card that works.
        """
        async with self._turn:
            if not self._is_open:
                await self.voice.open(self._captured, devices)
                self._is_open = True
            self._users = (*self._users, on_captured)

    async def detach(self, on_captured: OnBlock) -> None:
        """Ends that."""
        async with self._turn:
            self._users = tuple(user for user in self._users if user != on_captured)
            if not self._users and self._is_open:
                self._is_open = False
                await self.voice.close()

    async def close(self) -> None:
        """Frees the engine."""
        if self._engine is not None:
            await self._engine.close()
            self._engine = None

    def _captured(self, block: Block) -> None:
        for user in self._users:
            user(block)
