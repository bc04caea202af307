"""The door release: a relay that unlocks the door for a moment and always locks it again.

The rule: the pin is active only while :meth:`DoorRelease.run` is there to end it. It is locked
when constructed, when its time is over, when ``run`` ends for whatever reason, and when closed.
"""

import asyncio
import time
from collections.abc import Callable

from gpiozero import Factory

from config.panel import DOOR_OPEN_MAX_S, DOOR_OPEN_MIN_S, DoorSettings
from hardware.cadence import Cadence, CadencePlayer, Sleep
from hardware.pins import claim_output


class DoorUnattendedError(RuntimeError):
    """The door was to be released while nothing runs that would lock it again."""


class DoorRelease:
    """Represents the relay of an electric strike or lock.

    Wire it fail-secure: the strike is locked without current, and its supply goes through the
    relay's common and normally-open contacts, so that an idle relay means a locked door. Connect
    the relay board's input to the GPIO pin, with a resistor (10 kilohms) from the pin to the
    inactive level: it keeps the relay idle while the pin is an input, at boot and after closing.
    Prefer a board that switches on at a high level: gpiozero on lgpio drives an active-low pin
    low for some microseconds when it claims it.

    What this class cannot do is lock after its process was killed or while its event loop hangs.
    The installation does: with ``dtparam=strict_gpiod`` (which ``deploy/install-pi`` sets; without
    it the kernel of Raspberry Pi OS leaves an output as it was) a dead process's pin is an input
    again, systemd's watchdog ends a process that hangs, and the next one locks when it constructs
    this. People who must be able to leave use the inside handle, never this relay.

    The following example releases the door for five seconds::

        import asyncio

        from config.panel import DoorSettings
        from hardware.door import DoorRelease

        async def let_in():
            door = DoorRelease(DoorSettings(pin=27))
            async with asyncio.TaskGroup() as group:
                running = group.create_task(door.run())
                await asyncio.sleep(0)  # run() has to be there before the door opens
                door.release()
                await asyncio.sleep(6)
                running.cancel()
            door.close()

    :param settings: pin, polarity and opening time
    :param pin_factory: gpiozero's way to the pins (default None: gpiozero's own default)
    :param sleep: waits for so many seconds (default :func:`asyncio.sleep`)
    :param clock: the seconds that `sleep` counts (default :func:`time.monotonic`)
    :raises PanelError: the pin could not be claimed
    """

    def __init__(
        self,
        settings: DoorSettings,
        *,
        pin_factory: Factory | None = None,
        sleep: Sleep = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        output = claim_output("door", settings, pin_factory)
        self._player = CadencePlayer(output, sleep=sleep)
        self._open_s = settings.open_s
        self._clock = clock
        self._open_until = clock()

    @property
    def is_open(self) -> bool:
        """True while the door is released."""
        return self._player.is_active

    def release(self, duration_s: float | None = None) -> None:
        """Unlock: the pin is active when this returns, and inactive when the time is over.

        While the door is open, this extends the time and never shortens it.

        :param duration_s: 0.1 to 60 seconds from now (default None: the settings' ``open_s``)
        :raises ValueError: `duration_s` is out of range
        :raises DoorUnattendedError: :meth:`run` is not running
        """
        open_s = self._open_s if duration_s is None else duration_s
        if not DOOR_OPEN_MIN_S <= open_s <= DOOR_OPEN_MAX_S:
            raise ValueError(
                f"a door opens for {DOOR_OPEN_MIN_S} to {DOOR_OPEN_MAX_S:g} s, not {open_s} s"
            )
        if not self._player.is_running:
            raise DoorUnattendedError(
                "the door stays locked because run() is not running, which would lock it again: "
                "start the panel's run() first"
            )
        now = self._clock()
        self._open_until = max(now + open_s, self._open_until)
        self._player.play(Cadence((self._open_until - now,), repeats=False))

    def lock(self) -> None:
        """Lock now. Without effect while locked."""
        self._open_until = self._clock()
        self._player.rest()

    async def run(self) -> None:
        """Lock the door whenever its time is over, until cancelled; then lock it for good."""
        try:
            await self._player.run()
        finally:
            self.lock()

    def close(self) -> None:
        """Lock, and give the pin back. Closing twice is the same as once."""
        self._player.close()
