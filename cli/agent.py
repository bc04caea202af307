"""`bellwire agent`: one device's agent, its pins and its sound card real or simulated. What it needs of
`bellwire[agent]` is imported when it is called, so that a machine without it is told what to install."""

import asyncio
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import structlog
import typer
from rich.console import Console

from bellwire.agent.memory import share_arenas
from bellwire.cli.failures import fail, reported
from bellwire.cli.process.logs import configure_logs, set_log_level
from bellwire.cli.process.service import keep_watchdog, run_until_stopped
from bellwire.config.agent.audio import AudioSettings
from bellwire.config.agent.settings import AgentSettings, load_agent_settings
from bellwire.config.fleet.last_good import state_folder
from bellwire.config.relay import LogFormat, LogLevel

if TYPE_CHECKING:
    from bellwire.agent.media.sound_card import SoundCard
    from bellwire.cli.demo.station import SimulatedStation
    from bellwire.hardware.audio.recorder import Recorder

log = structlog.get_logger(__name__)


@reported
def agent(
    config: Annotated[
        Path, typer.Option(metavar="FILE", help="The file that `bellwire devices add` wrote.")
    ],
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Simulated pins; keys press the buttons.")
    ] = False,
    log_level: Annotated[LogLevel | None, typer.Option(help="How much to log. [FILE's]")] = None,
    log_format: Annotated[LogFormat, typer.Option(help="console or json.")] = "auto",
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where it keeps the fleet's configuration. [systemd's StateDirectory, or FILE's folder]",
        ),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Record every call to this WAV file, for support; both sides hear a beep.",
        ),
    ] = None,
) -> None:
    """Runs the agent of one device: rings it, answers and hangs up by its buttons, and carries the voice.

    With --simulate it needs no Raspberry Pi: a line typed (or piped) presses a button. `a` answers,
    `h` rejects or hangs up, `1` to `9` press the call buttons in their order, `q` stops. Sound is the
    machine's own, or a simulated card's where there is none.
    """
    settings = load_agent_settings(config)
    configure_logs(log_level or settings.log_level, log_format)
    try:
        from bellwire.hardware.panel.panel import PanelError
    except ImportError as error:
        fail(f"the agent is not installed here ({error}): pip install 'bellwire[agent]'")
    recorder = None if record is None else _recorder(record)
    wrong = ""
    try:
        run_until_stopped(
            lambda stop: _run(
                settings,
                stop,
                simulate=simulate,
                state=state_folder(config, state),
                follow_level=log_level is None,
                recorder=recorder,
            )
        )
    except* PanelError as errors:
        wrong = str(errors.exceptions[0])
    finally:
        if recorder is not None:
            recorder.close()
    if wrong:
        fail(wrong)


def _recorder(file: Path) -> "Recorder":
    from bellwire.hardware.audio.recorder import Recorder

    try:
        recorder = Recorder(file)
    except OSError as error:
        fail(f"cannot record to {file} ({error.strerror}): name a file that does not exist yet")
    notice = f"Recording every call to {file}; both sides hear a beep. For support only."
    Console(stderr=True).print(notice, style="bold red")
    return recorder


async def _run(
    settings: AgentSettings,
    stop: asyncio.Event,
    *,
    simulate: bool,
    state: Path,
    follow_level: bool,
    recorder: "Recorder | None",
) -> None:
    from bellwire.agent.main import run_agent

    share_arenas()
    up = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        beside = [tasks.create_task(_watch(up))]
        pins = None
        if simulate:
            from bellwire.cli.demo.station import SimulatedStation

            station = SimulatedStation(settings)
            pins = station.pins
            Console(stderr=True).print(station.legend)
            beside.append(tasks.create_task(_press_by_lines(station, stop)))
        await run_agent(
            settings,
            stop,
            pin_factory=pins,
            card=sound_card(settings.audio, simulate=simulate, recorder=recorder),
            allow_loopback=simulate,
            ready=up.set,
            state=state,
            set_log_level=set_log_level if follow_level else lambda _: None,
        )
        for task in beside:
            task.cancel()


async def _watch(up: asyncio.Event) -> None:
    await up.wait()
    await keep_watchdog()


async def _press_by_lines(station: "SimulatedStation", stop: asyncio.Event) -> None:
    """Presses a button for each line of standard input. Its end is no reason to stop."""
    kind = os.fstat(sys.stdin.fileno()).st_mode
    if not (sys.stdin.isatty() or stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)):
        return  # A file or nothing at all: nobody types.
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async for line in reader:
        key = line.decode(errors="replace").strip()
        if key == "q":
            stop.set()
        elif key:
            await station.press(key)


def sound_card(
    settings: AudioSettings, *, simulate: bool = False, recorder: "Recorder | None" = None
) -> "SoundCard":
    """The sound card. In a simulation on a machine without any, a simulated one takes its place."""
    from bellwire.agent.media.sound_card import SoundCard

    if simulate:
        return SoundCard(settings, recorder=recorder, initialise=_real_or_simulated)
    return SoundCard(settings, recorder=recorder)


def _real_or_simulated() -> Any:  # noqa: ANN401 - PyAudio has no types
    from bellwire.hardware.audio.devices import initialise_pyaudio
    from bellwire.hardware.audio.simulated_card import SimulatedSoundCard

    real = initialise_pyaudio()
    if real.get_device_count():
        return real
    real.terminate()
    log.info("no sound device here: a simulated one takes its place")
    return SimulatedSoundCard()
