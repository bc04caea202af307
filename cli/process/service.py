"""A command that runs as a service: until SIGINT or SIGTERM asks it to stop, and telling systemd how it is by
the sd_notify(3) protocol, without its library.

Nothing here needs systemd: outside a unit with `Type=notify` every call does nothing. A message that
cannot be delivered is dropped, because systemd itself acts on the silence; sd_watchdog_enabled(3).
"""

import asyncio
import os
import signal
import socket
from collections.abc import Awaitable, Callable

_USEC_PER_S = 1_000_000


def notify(state: str) -> bool:
    """Send one state, such as `READY=1` or `STATUS=42 calls`, to systemd; False when nobody was told."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # an abstract socket: Linux marks it with a leading NUL
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to_systemd:
            to_systemd.setblocking(False)  # a stalled systemd must not stall the calls
            to_systemd.sendto(state.encode(), address)
    except OSError:
        return False
    return True


async def keep_watchdog(
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    alive: Callable[[], bool] = lambda: True,
) -> None:
    """Say READY=1 now, WATCHDOG=1 twice per watchdog period while `alive()`, STOPPING=1 when cancelled.

    Start it once the service can do its work, as a task beside it. When `alive()` turns false the pings
    stop and systemd restarts the process after `WatchdogSec`; should it recover in time, they go on.
    """
    notify("READY=1")
    try:
        period_s = _watchdog_period_s()
        if period_s is None:
            await (
                asyncio.get_running_loop().create_future()
            )  # no watchdog: only STOPPING=1 is left to say
            return
        while True:
            if alive():
                notify("WATCHDOG=1")
            await sleep(period_s / 2)
    finally:
        notify("STOPPING=1")


def _watchdog_period_s() -> float | None:
    """How long systemd waits for a ping; None when it watches nobody, or another process than this one."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    period_us = int(os.environ.get("WATCHDOG_USEC", "0"))
    return period_us / _USEC_PER_S if period_us > 0 else None


def run_until_stopped(
    command: Callable[[asyncio.Event], Awaitable[None]],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> None:
    """Runs a command on a new event loop; SIGINT and SIGTERM set the event it is given."""

    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        await command(stop)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(run())
