"""How an output follows a rhythm: the one engine under the ringer and the status light.

:meth:`CadencePlayer.play` drives the first edge before it returns; :meth:`CadencePlayer.run`
drives the later ones. Whatever ends ``run`` (cancelling, an error) leaves the output inactive.
"""

import asyncio
from dataclasses import dataclass

from gpiozero import OutputDevice

from bellwire.config.waiting import Sleep


@dataclass(frozen=True)
class Cadence:
    """Seconds on, off, on, off and so on, from the start again if it ``repeats``.

    Without steps it is on and stays on; one that does not repeat ends off.
    """

    steps_s: tuple[float, ...] = ()
    repeats: bool = True


class CadencePlayer:
    """Plays one cadence at a time on one output. All but the constructor belong to the event loop.

    :param output: the gpiozero device; the player owns it and closes it
    :param sleep: waits for so many seconds (default :func:`asyncio.sleep`)
    """

    def __init__(self, output: OutputDevice, *, sleep: Sleep = asyncio.sleep) -> None:
        self._output = output
        self._sleep = sleep
        self._cadence: Cadence | None = None
        self._following: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._is_running = False

    @property
    def is_playing(self) -> bool:
        """True from :meth:`play` to :meth:`rest`, or to the end of a cadence that has one."""
        return self._cadence is not None

    @property
    def is_active(self) -> bool:
        """True while the output is driven active."""
        return not self._output.closed and bool(self._output.is_active)

    def play(self, cadence: Cadence) -> None:
        """Switch the output on now, and follow `cadence` from there in place of any other."""
        self._output.on()
        self._turn_to(cadence)

    def rest(self) -> None:
        """Switch the output off now and leave it so."""
        self._turn_to(None)
        if not self._output.closed:
            self._output.off()

    async def run(self) -> None:
        """Follow what is played until cancelled.

        :raises RuntimeError: it is running already
        """
        if self._is_running:
            raise RuntimeError("run() of this part is running already: start it once")
        self._is_running = True
        try:
            await self._follow_each()
        finally:
            self._is_running = False
            self.rest()

    def close(self) -> None:
        """Switch the output off and give the pin back. Closing twice is the same as once."""
        self.rest()
        self._output.close()

    def _turn_to(self, cadence: Cadence | None) -> None:
        # Cancelled here rather than by run(), so that the old cadence never drives another edge.
        if self._following is not None:
            self._following.cancel()
            self._following = None
        self._cadence = cadence
        self._changed.set()

    async def _follow_each(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                self._changed.clear()
                if self._cadence is not None:
                    self._following = group.create_task(self._follow(self._cadence))
                await self._changed.wait()

    async def _follow(self, cadence: Cadence) -> None:
        while cadence.steps_s:
            for index, step_s in enumerate(cadence.steps_s):
                self._output.value = index % 2 == 0
                await self._sleep(step_s)
            if not cadence.repeats:
                self._output.off()
                self._cadence = None
                return
