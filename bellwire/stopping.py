"""Running a long-lived command until SIGINT or SIGTERM asks it to stop."""

import asyncio
import signal
from collections.abc import Awaitable, Callable


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
