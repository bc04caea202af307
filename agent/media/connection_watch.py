"""Watches one connection: whether it comes about, whether it is lost, and has it brought back."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from bellwire.agent.media.engine.engine import PeerState
from bellwire.agent.media.media_news import MediaTiming, PeerNews
from bellwire.signaling.errors import CallError
from bellwire.signaling.identifiers import Identity

log = structlog.get_logger(__name__)


class ConnectionWatch:
    """Watches the connection with one party.

    Args:
        who: The party.
        state: Where the connection stands.
        has_sound: Whether the other side has sound at all.
        restart: Restarts ICE, if that is this side's to do.
        news: Who is told how it stands.
        timing: How long things may take.
    """

    def __init__(
        self,
        who: Identity,
        state: Callable[[], PeerState],
        has_sound: Callable[[], bool],
        restart: Callable[[], Awaitable[None]],
        news: PeerNews,
        timing: MediaTiming,
    ) -> None:
        self.is_up = False
        self.is_connected = False
        self._who = who
        self._state = state
        self._has_sound = has_sound
        self._restart = restart
        self._news = news
        self._timing = timing
        self._changed = asyncio.Event()

    def look(self) -> None:
        """Something has changed."""
        self._changed.set()

    async def run(self) -> None:
        """Watches until cancelled.

        Raises:
            CallError: 53405, there is no sound, or it did not come back.
        """
        try:
            while True:
                await self._connected()
                while self.is_up:
                    await self._lost()
                    await self._bring_back()
        finally:
            self.is_up = self.is_connected = False

    async def _connected(self) -> None:
        """Waits until the sound goes both ways, or the other side is known to have none."""
        within_s = self._timing.connect_within_s
        try:
            async with asyncio.timeout(within_s):
                while self._has_sound() and self._state() is not PeerState.CONNECTED:
                    if self._state() is PeerState.FAILED:
                        raise CallError(53405, f"no network path to {self._who} was found")
                    await self._change()
        except TimeoutError:
            raise CallError(53405, f"no sound from {self._who} within {within_s:g} s") from None
        if self._has_sound():
            self._say_connected()
            return
        self._news.without_sound()
        while not self._has_sound():
            await self._change()

    async def _lost(self) -> None:
        """Waits until the connection is lost, and does not come back by itself."""
        while True:
            while self._state() is PeerState.CONNECTED:
                await self._change()
            try:
                async with asyncio.timeout(self._timing.unsettled_s):
                    while self._state() not in (PeerState.CONNECTED, PeerState.FAILED):
                        await self._change()
            except TimeoutError:
                return
            if self._state() is PeerState.FAILED:
                return

    async def _bring_back(self) -> None:
        """Restarts ICE until it works again."""
        self.is_connected = False
        self._news.lost()
        log.warning("sound lost, reconnecting", other=self._who)
        wait_s = self._timing.restart_first_s
        try:
            async with asyncio.timeout(self._timing.give_up_s):
                while self._state() is not PeerState.CONNECTED:
                    await self._restart()
                    await self._connected_within(wait_s)
                    wait_s = min(2 * wait_s, self._timing.restart_longest_s)
        except TimeoutError:
            raise CallError(
                53405, f"the sound was lost, and not back within {self._timing.give_up_s:g} s"
            ) from None
        log.info("sound is back", other=self._who)
        self._say_connected()

    def _say_connected(self) -> None:
        self.is_up = self.is_connected = True
        self._news.connected()

    async def _connected_within(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._state() is not PeerState.CONNECTED:
                    await self._change()

    async def _change(self) -> None:
        await self._changed.wait()
        self._changed.clear()
