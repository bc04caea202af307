"""`bellwire relay`."""

import asyncio
import gc
from pathlib import Path
from typing import Annotated

import typer

from bellwire.cli.failures import fail, reported
from bellwire.cli.process.logs import configure_logs
from bellwire.cli.process.one_core import keep_to_one_core
from bellwire.cli.process.service import keep_watchdog, run_until_stopped
from bellwire.config.relay import LogFormat, LogLevel, load_relay_settings

_YOUNG_OBJECTS = 10_000
"""So many more there are between two looks for cycles among the youngest."""


@reported
def relay(
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where to serve HTTP. [127.0.0.1:8080]")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the relay keeps everything.")
    ] = None,
    broker: Annotated[
        str | None,
        typer.Option(metavar="URL", help="An MQTT 5 broker, mqtt(s)://HOST:PORT. [own mosquitto]"),
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(metavar="URL", help="postgresql://USER@HOST/NAME. [SQLite in DIR]"),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A TOML file with any of the settings.")
    ] = None,
    log_level: Annotated[LogLevel | None, typer.Option(help="How much to log. [info]")] = None,
    log_format: Annotated[
        LogFormat | None, typer.Option(help="console or json. [console on a terminal]")
    ] = None,
) -> None:
    """Runs the relay: HTTP in, calls to devices out.

    Without --broker it starts a mosquitto of its own on loopback. At its first start it writes the
    operator's API key to DIR/api-key, readable by you alone.

    Every setting may also stand in a TOML file or in the environment as BELLWIRE_NAME; flags win
    over the environment, the environment over the file. A broker's password goes into
    BELLWIRE_BROKER_PASSWORD; a database URL with a password into BELLWIRE_DATABASE, since flags can
    be seen in the process list.

    Relays that are given the same --database and --broker share the work; each has a DIR of its own.
    """
    try:
        import uvloop

        from bellwire.push.relay import serve
    except ImportError as error:
        fail(f"the relay is not installed here ({error}): pip install 'bellwire[relay]'")
    settings = load_relay_settings(
        config,
        listen=listen,
        data=data,
        broker=broker,
        database=database,
        log_level=log_level,
        log_format=log_format,
    )
    configure_logs(settings.log_level, settings.log_format)

    async def run(stop: asyncio.Event) -> None:
        up = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            beside = tasks.create_task(_once_up(up))
            await serve(settings, stop, ready=lambda _: up.set())
            beside.cancel()

    run_until_stopped(run, uvloop.new_event_loop)


async def _once_up(up: asyncio.Event) -> None:
    await up.wait()
    _leave_alone_what_stays()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(keep_watchdog())
        tasks.create_task(keep_to_one_core())


def _leave_alone_what_stays() -> None:
    """Spares the collector of cycles what has stood since the start, and most of what goes by itself:
    looking at those made the slowest answers half as slow again."""
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 20)
