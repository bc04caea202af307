"""Two baresip in a call: SIP on the loopback, Opus over plain RTP, ALSA on PulseAudio; nothing is done
to the voice. The baseline of CPU: a softphone in C, for small machines."""

import asyncio
import socket
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from bench.lab.pulse_server import PulseServer, end
from bench.sound.standing_call import StandingCall

_SETTINGS = """
sip_listen 127.0.0.1:{port}
audio_player alsa,default
audio_source alsa,default
audio_alert alsa,default
ausrc_srate 48000
auplay_srate 48000
ausrc_channels 1
auplay_channels 1
module_path {modules}
module stdio.so
module opus.so
module alsa.so
module_tmp uuid.so
module_tmp account.so
module_app menu.so
opus_stereo no
opus_sprop_stereo no
"""
_ESTABLISHED = "Call established"
_TIMEOUT_S = 30.0


@asynccontextmanager
async def baresip_call(pulse: PulseServer, folder: Path) -> AsyncIterator[StandingCall]:
    """The call, from its being established until it is left."""
    caller, callee = pulse.parties[:2]
    ports = {party: _free_port() for party in (caller, callee)}
    async with AsyncExitStack() as opened:
        listening = await _start(opened, pulse, folder, callee, ports[callee])
        await _until(listening, "ready")
        dialling = await _start(opened, pulse, folder, caller, ports[caller])
        await _until(dialling, "ready")
        _type(dialling, f"/dial sip:{callee}@127.0.0.1:{ports[callee]}\n")
        await _until(dialling, _ESTABLISHED)
        async with asyncio.TaskGroup() as tasks:
            drains = [tasks.create_task(_drain(process)) for process in (listening, dialling)]
            try:
                yield StandingCall(pid=listening.pid)
            finally:
                for drain in drains:
                    drain.cancel()


async def _start(
    opened: AsyncExitStack, pulse: PulseServer, folder: Path, party: str, port: int
) -> Process:
    home = folder / f"baresip-{party}"
    _write_settings(home, party, port)
    process = await asyncio.create_subprocess_exec(
        "baresip", "-f", str(home), "-4", env=pulse.environment_of(party), stdin=PIPE, stdout=PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    opened.push_async_callback(end, process)
    return process


def _write_settings(home: Path, party: str, port: int) -> None:
    modules = next(Path("/usr/lib").glob("**/baresip/modules"), None)
    if modules is None:
        raise SystemExit("baresip has no modules below /usr/lib: install baresip-core")
    home.mkdir(exist_ok=True)
    (home / "config").write_text(_SETTINGS.format(port=port, modules=modules))
    account = f"<sip:{party}@127.0.0.1:{port}>;regint=0;audio_codecs=opus/48000/2;answermode=auto"
    (home / "accounts").write_text(account + "\n")
    (home / "contacts").touch()


async def _until(process: Process, word: str) -> None:
    if process.stdout is None:
        raise ValueError("its output is no pipe")
    said = b""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            while word.encode() not in said:
                more = await process.stdout.read(4096)
                if not more:
                    break
                said += more
            else:
                return
    except TimeoutError:
        pass
    raise SystemExit(f"baresip never said {word!r}, but: {said.decode(errors='replace')[-600:]}")


async def _drain(process: Process) -> None:
    while process.stdout is not None and await process.stdout.read(65_536):
        pass


def _type(process: Process, line: str) -> None:
    if process.stdin is None:
        raise ValueError("its input is no pipe")
    process.stdin.write(line.encode())


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
