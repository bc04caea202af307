"""`bellwire demo`: a call told step by step (`once`), or live under the keyboard (`live`). What they need is
imported when it is called, so that a machine without it is told what to install."""

import asyncio
import contextlib
import sys
from typing import Annotated

import typer
from rich.console import Console

from bellwire.cli.failures import fail, reported
from bellwire.cli.process.logs import configure_logs


@reported
def demo(
    once: Annotated[
        bool, typer.Option("--once", help="Play one whole call by itself, and print its times.")
    ] = False,
    log_level: Annotated[str, typer.Option(hidden=True)] = "error",
) -> None:
    """Shows Bellwire at work in this terminal: a relay, a broker, and two simulated stations.

    Keys press the stations' buttons. With --once one call is played without a keyboard; its last
    line is a JSON object, and the exit code is 0 only if all of it happened. Nothing is left on
    the machine.
    """
    configure_logs("debug" if log_level == "debug" else "error")
    try:
        from bellwire.cli.demo.live import demo_live
        from bellwire.cli.demo.once import demo_once
    except ImportError as error:
        fail(f"the demo needs relay and agent ({error}): pip install 'bellwire[relay,agent]'")
    if once:
        asyncio.run(demo_once(Console(width=100)))
        return
    if not sys.stdin.isatty():
        fail("the live demo needs a keyboard: run it in a terminal, or use --once")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(demo_live(Console()))
