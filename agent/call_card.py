"""One call at the device's sound card: attached when the call first needs it, given back at its end."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from agent.call_tasks import CallTasks
from agent.sound import Sound
from agent.voice import AudioDevices, OnBlock

log = structlog.get_logger(__name__)


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
        sound: Sound,
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
