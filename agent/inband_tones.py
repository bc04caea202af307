"""Digits said as sound, in place of the voice: where telephone events (RFC 4733) do not get through.

Janus' AudioBridge takes no telephone events: its answer leaves them out, and it mixes what it decodes.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

from agent.dtmf import TONE_GAP_MS, TONE_MS, tone_frequencies
from agent.media.engine import BLOCK_FRAMES, Block
from hardware.audio.tones import Cadence, rendered


class InbandTones:
    """What one way of a call says in place of its voice."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Block, Callable[[], object] | None]] = deque()

    async def say(self, tones: str) -> None:
        """Has tones (`0-9*#`, one or more) replace the next blocks; returns when they were taken."""
        loop, said = asyncio.get_running_loop(), asyncio.Event()
        blocks = [block for tone in tones for block in tone_blocks(tone)]
        last = len(blocks) - 1
        self._waiting.extend(
            (block, (lambda: loop.call_soon_threadsafe(said.set)) if number == last else None)
            for number, block in enumerate(blocks)
        )
        try:
            await said.wait()
        finally:
            self._waiting.clear()

    def replace(self, block: Block) -> Block:
        """What is sent in place of the next block of the voice: often itself. Any one thread."""
        try:
            tone, told = self._waiting.popleft()
        except IndexError:
            return block
        if told is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                told()
        return tone


def tone_blocks(tone: str) -> list[Block]:
    """One digit as sound, and the silence after it."""
    cadence = Cadence(tone_frequencies(tone), (TONE_MS / 1000, TONE_GAP_MS / 1000))
    return list(rendered(cadence).reshape(-1, BLOCK_FRAMES))
