"""`bellwire doctor audio`: which sound devices there are, and how well they hear and are heard."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from bellwire.cli.doctor.agent import examine_ring_tone
from bellwire.cli.doctor.diagnosis import Condition, Finding, bad, good, unknown, warning
from bellwire.cli.failures import fail, reported
from bellwire.cli.process.logs import configure_logs
from bellwire.config.agent.audio import AudioSettings
from bellwire.config.agent.settings import load_agent_settings

if TYPE_CHECKING:
    from bellwire.cli.doctor.sound_measures import SoundMeasures
    from bellwire.hardware.audio.devices import SoundDevice

_LOUDEST_ECHO_DB = -45.0
_LONGEST_ROUND_TRIP_S = 0.15
_BAR_WIDTH = 40


@reported
def audio(
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Use the devices and processing of this agent."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    list_only: Annotated[
        bool, typer.Option("--list", help="List the devices; play and record nothing.")
    ] = False,
) -> None:
    """Lists the sound devices, plays a test sound and records it, and measures what comes back.

    Turn the speaker up as for a call, and be quiet for some seconds. The exit code is 1 if anything
    is wrong.
    """
    configure_logs("error")
    settings = load_agent_settings(config).audio if config is not None else AudioSettings()
    try:
        from bellwire.hardware.audio.devices import PortAudio
    except ImportError as error:
        fail(f"sound needs what is not installed ({error}): pip install 'bellwire[agent]'")
    try:
        port_audio = PortAudio()
    except (ImportError, OSError) as error:
        fail(f"PyAudio cannot be used ({error}): apt-get install libportaudio2")
    devices = port_audio.devices()
    port_audio.close()
    console = Console(soft_wrap=True)
    if not as_json:
        console.print(_table(devices, settings))
    findings = [*_examine_devices(devices, settings), *examine_ring_tone(settings)]
    measures = None
    if not list_only and not any(finding.condition is Condition.BAD for finding in findings):
        measures = asyncio.run(_measure(settings, None if as_json else console))
        findings += _judge(measures, settings)
    if as_json:
        _print_json(devices, settings, findings, measures)
    else:
        _print_findings(console, findings)
    if any(finding.condition is Condition.BAD for finding in findings):
        raise typer.Exit(1)


def _examine_devices(devices: "list[SoundDevice]", settings: AudioSettings) -> Iterator[Finding]:
    from bellwire.hardware.audio.devices import NoDevice, SoundDirection, find_device
    from bellwire.hardware.audio.echo_canceller import NoSpeex, find_speex

    for direction in SoundDirection:
        wanted = getattr(settings, direction.value)
        try:
            device = find_device(devices, wanted, direction)
        except NoDevice as error:
            what, _, mend = str(error).partition(": ")
            yield bad(what, mend)
        else:
            yield good(f"the {direction.part} is {device.index} {device.name!r}")
    if settings.processing.echo_cancellation:
        try:
            find_speex()
        except NoSpeex as error:
            what, _, mend = str(error).rpartition(": ")
            yield warning(f"both sides cannot speak at once: {what}", mend)
    if not settings.enabled:
        yield warning("this agent's sound is switched off", "set audio.enabled = true in its file")


async def _measure(settings: AudioSettings, console: Console | None) -> "SoundMeasures":
    from bellwire.cli.doctor.sound_measures import measure

    if console is None:
        return await measure(settings)
    with Live(console=console, refresh_per_second=10, transient=True) as live:
        return await measure(
            settings, lambda heard_db, played_db: live.update(_meters(heard_db, played_db))
        )


def _judge(measures: "SoundMeasures", settings: AudioSettings) -> Iterator[Finding]:
    """What the measures mean."""
    if measures.fault is not None:
        yield bad(measures.fault, "mend this first: nothing can be measured without it")
        return
    if measures.captured_blocks == 0:
        yield bad("the microphone gives nothing", "see that it is not in use, and not muted")
        return
    yield good(f"the microphone hears: {measures.noise_db:.0f} dB when it is quiet")
    if measures.round_trip_s is None:
        yield unknown(
            "the test sound was not heard by the microphone, so nothing was measured",
            "turn the speaker up and the microphone on (alsamixer), unless it is a handset or headset",
        )
        return
    said = f"from speaker to microphone it takes {measures.round_trip_s * 1000:.0f} ms"
    if measures.round_trip_s > _LONGEST_ROUND_TRIP_S:
        yield warning(said, "name the card itself (hw:...) as the device, not a sound server")
    else:
        yield good(said)
    said = f"echo: {measures.echo_db:.0f} dB, {measures.left_db:.0f} dB after processing"
    if not settings.processing.echo_cancellation:
        yield warning(said, "set audio.processing.echo_cancellation = true, or use a handset")
    elif measures.left_db > _LOUDEST_ECHO_DB:
        yield warning(said, "turn the speaker down, or put the microphone further away from it")
    else:
        yield good(said)


def _table(devices: "list[SoundDevice]", settings: AudioSettings) -> Table:
    table = Table("Index", "Name", "In", "Out", "Rate", "Used for", title="Sound devices")
    for device in devices:
        table.add_row(
            str(device.index),
            device.name,
            str(device.input_channels),
            str(device.output_channels),
            str(device.rate_hz),
            ", ".join(_uses(device, devices, settings)),
        )
    return table


def _uses(
    device: "SoundDevice", devices: "list[SoundDevice]", settings: AudioSettings
) -> Iterator[str]:
    from bellwire.hardware.audio.devices import NoDevice, SoundDirection, find_device

    for direction in SoundDirection:
        if device.is_default(direction):
            yield f"default {direction.part}"
        wanted = getattr(settings, direction.value)
        try:
            is_used = (
                wanted is not None and find_device(devices, wanted, direction).index == device.index
            )
        except NoDevice:
            is_used = False
        if is_used:
            yield f"configured {direction.part}"


def _meters(heard_db: float, played_db: float) -> str:
    """Both levels as bars, -100 to 0 dB."""

    def bar(db: float) -> str:
        lit = round((db + 100) / 100 * _BAR_WIDTH)
        return f"{'█' * lit}{'·' * (_BAR_WIDTH - lit)} {db:5.0f} dB"

    return f"microphone {bar(heard_db)}\nspeaker    {bar(played_db)}"


def _print_findings(console: Console, findings: list[Finding]) -> None:
    signs = {
        Condition.GOOD: "✓",
        Condition.BAD: "✗",
        Condition.UNKNOWN: "?",
        Condition.WARNING: "!",
    }
    for finding in findings:
        console.print(f"  {signs[finding.condition]} {finding.what}", highlight=False, markup=False)
        if finding.mend and finding.condition is not Condition.GOOD:
            console.print(f"      → {finding.mend}", highlight=False, markup=False)


def _print_json(
    devices: "list[SoundDevice]",
    settings: AudioSettings,
    findings: list[Finding],
    measures: "SoundMeasures | None",
) -> None:
    document = {
        "devices": [
            {**asdict(device), "used_for": list(_uses(device, devices, settings))}
            for device in devices
        ],
        "measures": asdict(measures) if measures is not None else None,
        "findings": [
            {"verdict": finding.condition.value, "what": finding.what, "mend": finding.mend}
            for finding in findings
        ],
    }
    typer.echo(json.dumps(document, indent=2))
