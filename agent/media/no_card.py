"""The sound card of a device that has none (`agent.media.sound.Voice`): its microphone hears silence, and
nobody its speaker. An application without one says what it plays into a call, and hears its streams."""

import asyncio
import threading
import time

from bellwire.agent.media.engine.interface import Block
from bellwire.agent.media.sound import AudioDevices, OnBlock, Tone
from bellwire.hardware.audio.block import BLOCK_S, SILENCE
from bellwire.signaling.errors import CallError

_LATE_S = 0.2
"""What comes later than this is not made up for: a machine that stood still has nothing to say of it."""


class NoCard:
    """Silence, in a card's time."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    async def open(self, on_captured: OnBlock, devices: AudioDevices) -> None:
        """Starts the silence. CallError 53400 where the call names a sound device."""
        if devices.named:
            raise CallError(53400, "this device was opened without a sound card: name no devices")
        self._stop.clear()
        self._thread = threading.Thread(target=self._hear, args=(on_captured,), daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Ends it; there may be none."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stop.set()
            await asyncio.to_thread(thread.join)

    def play(self, source: str, block: Block) -> None:
        """Nobody hears it here."""

    def take_back(self, source: str, blocks: int) -> None:
        """Nobody has heard it."""

    def forget(self, source: str) -> None:
        """Nothing is kept of it."""

    async def failed(self) -> str:
        """It never does."""
        never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        return await never

    async def works(self) -> None:
        """It always does."""

    def start_tone(self, tone: Tone, volume: float = 1.0) -> None:
        """Nobody hears it."""

    def stop_tone(self) -> None:
        """There is none."""

    def _hear(self, on_captured: OnBlock) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            on_captured(SILENCE)
            due = max(due + BLOCK_S, time.monotonic() - _LATE_S)
