"""The door lock: a relay that unlocks the door for a moment and always locks it again.

The rule: the pin is active only while a thread with a deadline is there to end it, and
:meth:`DoorLock.run` runs. It is locked when constructed, when its time is over, when ``run`` or
the thread ends for whatever reason, and when closed. Where a killed process would leave it open
(:func:`why_no_door`) it is not used at all.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

from gpiozero import Factory

from bellwire.config.agent.panel import DOOR_OPEN_MAX_S, DOOR_OPEN_MIN_S, DoorSettings
from bellwire.hardware.panel.pins import claim_output

Wait = Callable[[threading.Condition, float | None], object]
"""Waits, holding a condition, until it is notified or so many seconds are over (None: for ever)."""


class DoorUnattendedError(RuntimeError):
    """The door was to be released while nothing runs that would lock it again."""


class DoorLock:
    """Represents the relay of an electric strike or lock.

    Wire it fail-secure: the strike is locked without current, and its supply goes through the
    relay's common and normally-open contacts, so that an idle relay means a locked door. Connect
    the relay board's input to the GPIO pin, with a resistor (10 kilohms) from the pin to the
    inactive level: it keeps the relay idle while the pin is an input, at boot and after closing.
    Prefer a board that switches on at a high level: gpiozero on lgpio drives an active-low pin
    low for some microseconds when it claims it.

    A thread of its own locks, so a full event loop delays nothing. What it cannot do is lock
    while the whole process stands still (stopped, or in a library that holds Python's interpreter
    lock) or after it was killed. The installation does: with ``dtparam=strict_gpiod`` (see
    :func:`why_no_door`) a dead process's pin is an input again, systemd's watchdog ends a
    process that hangs, and the next one locks when it constructs this. docs/agent.md says for how
    long each leaves a door open. People who must be able to leave use the inside handle, never
    this relay.

    The following example releases the door for five seconds::

        import asyncio

        from bellwire.config.agent.panel import DoorSettings
        from bellwire.hardware.panel.door_lock import DoorLock

        async def let_in():
            door = DoorLock(DoorSettings(pin=27))
            async with asyncio.TaskGroup() as group:
                running = group.create_task(door.run())
                await asyncio.sleep(0)  # run() has to be there before the door opens
                door.release()
                await asyncio.sleep(6)
                running.cancel()
            door.close()

    Its methods belong on the event loop, but for ``lock`` and ``is_open``, which any thread may use.

    :param settings: pin, polarity and opening time
    :param pin_factory: gpiozero's way to the pins (default None: gpiozero's own default)
    :param wait: waits for so many seconds (default :meth:`threading.Condition.wait`)
    :param clock: the seconds that `wait` counts (default :func:`time.monotonic`, which does not
        count a suspended machine; a Pi cannot be suspended)
    :raises PanelError: the pin could not be claimed
    """

    def __init__(
        self,
        settings: DoorSettings,
        *,
        pin_factory: Factory | None = None,
        wait: Wait = threading.Condition.wait,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._output = claim_output("door", settings, pin_factory)
        self._open_s = settings.open_s
        self._wait = wait
        self._clock = clock
        self._changed = threading.Condition()
        self._open_until: float | None = None
        self._is_running = False
        self._closing = False
        self._failure: Exception | None = None
        self._on_failure: Callable[[], object] = lambda: None
        self._thread = threading.Thread(target=self._keep_locked, name="door lock", daemon=True)
        self._thread.start()

    @property
    def is_open(self) -> bool:
        """True while the door is released."""
        return not self._output.closed and bool(self._output.is_active)

    def release(self, duration_s: float | None = None) -> None:
        """Unlock: the pin is active when this returns, and inactive when the time is over.

        While the door is open, this extends the time and never shortens it.

        :param duration_s: 0.1 to 60 seconds from now (default None: the settings' ``open_s``)
        :raises ValueError: `duration_s` is out of range
        :raises DoorUnattendedError: :meth:`run` is not running, or the thread that locks has ended
        """
        open_s = self._open_s if duration_s is None else duration_s
        if not DOOR_OPEN_MIN_S <= open_s <= DOOR_OPEN_MAX_S:
            raise ValueError(
                f"a door opens for {DOOR_OPEN_MIN_S} to {DOOR_OPEN_MAX_S:g} s, not {open_s} s"
            )
        with self._changed:
            if not (self._is_running and self._failure is None and self._thread.is_alive()):
                raise DoorUnattendedError(
                    "the door stays locked because run() is not running, which would lock it again:"
                    " start the panel's run() first"
                )
            until = self._clock() + open_s
            self._open_until = max(until, self._open_until or until)
            self._changed.notify_all()
            self._output.on()  # last: should it fail, the thread switches it off all the same

    def lock(self) -> None:
        """Lock now. Without effect while locked."""
        with self._changed:
            self._open_until = None
            if not self._output.closed:
                self._output.off()

    async def run(self) -> None:
        """Let the door be released, until cancelled; then lock it for good.

        :raises RuntimeError: it is running already
        :raises ExceptionGroup: the thread that locks has failed. The process should end, so that
            the kernel takes the pin back
        """
        if self._is_running:
            raise RuntimeError("run() of this part is running already: start it once")
        loop = asyncio.get_running_loop()
        failed = asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: run() has ended
                loop.call_soon_threadsafe(failed.set)

        self._on_failure = tell
        self._is_running = True
        try:
            if self._failure is None:
                await failed.wait()
        finally:
            self._is_running = False
            self.lock()
        if self._failure is not None:
            raise ExceptionGroup("the door's lock failed", [self._failure])

    def close(self) -> None:
        """Lock, end the thread and give the pin back. Closing twice is the same as once."""
        self.lock()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._output.close()

    # The thread

    def _keep_locked(self) -> None:
        try:
            try:
                self._lock_in_time()
            finally:
                self.lock()
        except Exception as error:  # noqa: BLE001 - a pin driver's own type; run() raises it
            self._failure = error
            self._on_failure()

    def _lock_in_time(self) -> None:
        with self._changed:
            while not self._closing:
                if self._open_until is None:
                    self._wait(self._changed, None)
                    continue
                left_s = self._open_until - self._clock()
                if left_s > 0:
                    self._wait(self._changed, min(left_s, DOOR_OPEN_MAX_S))
                else:
                    self.lock()


_PARAMETER = "sys/module/{driver}/parameters/persist_gpio_outputs"
_MODEL = "proc/device-tree/compatible"

WHAT_TO_DO = (
    "set `dtparam=strict_gpiod` in /boot/firmware/config.txt (deploy/install-pi does) "
    "and restart the Pi"
)


def why_no_door(root: Path = Path("/")) -> str | None:
    """Why a door must not be used on this machine, and what to do; None where it may be.

    Kernels of Raspberry Pi OS leave a GPIO line as it was when the process that drove it dies, unless
    ``dtparam=strict_gpiod`` is set: a door that is open at that moment would stay open.

    It goes by the driver of the header's pins alone: the kernel holds the other boards' drivers
    too, with a parameter that says nothing here (that of a Pi 5 is ``pinctrl_rp1``; what
    ``strict_gpiod`` sets there is no other one's).

    :param root: the folder that holds ``sys`` and ``proc``; a test has its own
    """
    file = root / _PARAMETER.format(driver=_driver_of_the_header(root))
    try:
        keeps = file.read_text().strip() == "Y"
    except OSError:  # another kernel, which has no such thing
        return None
    if not keeps:
        return None
    return (
        f"the kernel keeps a pin's level when its process dies ({file} reads Y), so the door could "
        f"stay open and is not used: {WHAT_TO_DO}"
    )


def _driver_of_the_header(root: Path) -> str:
    try:
        is_pi_5 = b"bcm2712" in (root / _MODEL).read_bytes()
    except OSError:  # no Raspberry Pi
        is_pi_5 = False
    return "pinctrl_rp1" if is_pi_5 else "pinctrl_bcm2835"
