"""The programs of docs/python.md, run as they stand there, each a process beside somebody else's modules,
against a real relay: the caller hears them, over real WebRTC, and presses a digit."""

import asyncio
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from bellwire import CallError, Device, InvalidInput
from bellwire.config.agent.settings import agent_file
from docs.python_tables import ATTRIBUTES, OF_THE_AGENT
from tests.agent.calls.test_playing import UNDERSTOOD, wav_file
from tests.agent.talking import Talker, talker
from tests.conftest import PATIENCE_S, register_station
from tests.docs.documents import ROOT, blocks
from tests.speech import Sound, fraction_heard, say

PAGE = ROOT / "docs/python.md"
BOT, ANNOUNCEMENT = (block.text for block in blocks(PAGE) if block.kind == "python")
WELCOME = say("Welcome, press a digit", "en")
GOODBYE = say("Thank you and good bye", "en+f3")
NOTHING = np.zeros(480, np.int16)


async def program(folder: Path, text: str, sounds: Mapping[str, Sound]) -> Process:
    for name, sound in sounds.items():
        wav_file(folder / name, sound)
    for name in ("agent", "config", "signaling"):
        (folder / f"{name}.py").write_text(f"raise RuntimeError('{name} is somebody else\\'s')\n")
    (folder / "program.py").write_text(text)
    return await asyncio.create_subprocess_exec(
        sys.executable, "program.py", cwd=folder, stdout=PIPE, stderr=STDOUT
    )


@asynccontextmanager
async def at_work(
    http: httpx.AsyncClient, folder: Path, text: str, sounds: Mapping[str, Sound]
) -> AsyncIterator[Process]:
    settings = await register_station(http, "bot-1", identity="bot")
    (folder / "bot.toml").write_text(agent_file(settings))
    process = await program(folder, text, sounds)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def says(process: Process, line: str) -> None:
    """Reads on until it prints this line."""
    assert process.stdout is not None
    printed = []
    async with asyncio.timeout(PATIENCE_S):
        while read := (await process.stdout.readline()).decode():
            printed.append(read)
            if read.rstrip() == line:
                return
    raise AssertionError(f"it ended without saying {line!r}: {''.join(printed)}")


async def has_heard(listener: Talker, speech: Sound) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while fraction_heard(speech, listener.voice.sound_of("bot")) < UNDERSTOOD:
            await listener.voice.hears_more()


async def test_the_bot_greets_its_caller_hears_a_digit_and_hangs_up(
    http: httpx.AsyncClient, tmp_path: Path
) -> None:
    assert len(BOT.splitlines()) < 40
    sounds = {"welcome.wav": WELCOME, "goodbye.wav": GOODBYE}
    async with at_work(http, tmp_path, BOT, sounds) as bot, talker(http, "gate", NOTHING) as gate:
        await says(bot, "bot waits for calls")
        call = gate.device.connect("bot")
        await has_heard(gate, WELCOME)
        call.send_digits("5")
        await says(bot, "client:gate pressed 5")
        await gate.until(call, "disconnect")
        assert fraction_heard(GOODBYE, gate.voice.sound_of("bot")) > UNDERSTOOD


async def test_the_announcement_is_heard_by_who_answers(
    http: httpx.AsyncClient, tmp_path: Path
) -> None:
    async with (
        talker(http, "desk", NOTHING) as desk,
        at_work(http, tmp_path, ANNOUNCEMENT, {"closing.wav": WELCOME}) as announcement,
    ):
        invite = await desk.invited()
        assert invite.custom_parameters == {"reason": "the shop closes in ten minutes"}
        call = invite.accept()
        await has_heard(desk, WELCOME)
        await desk.until(call, "disconnect")
        async with asyncio.timeout(PATIENCE_S):
            assert await announcement.wait() == 0


async def test_a_device_raises_what_its_program_raises_and_says_that_its_file_is_not_good(
    http: httpx.AsyncClient, tmp_path: Path
) -> None:
    settings = await register_station(http, "bot-1", identity="bot")
    (tmp_path / "bot.toml").write_text(agent_file(settings))
    with pytest.raises(ZeroDivisionError):
        async with Device.open(tmp_path / "bot.toml") as device:
            assert device.connected
            for thing in (device, device.connect("gate")):
                shown = ATTRIBUTES[type(thing)].keys()
                kept = OF_THE_AGENT[type(thing)]
                assert {name for name in vars(thing) if name[0] != "_"} - kept == shown
            assert 1 // 0
    assert not device.connected
    await register_station(http, "bot-1", identity="bot")  # with a new password
    with pytest.raises(
        CallError, match=r"\(20151\): the broker .* refuses the credentials of bot-1"
    ):
        async with Device.open(tmp_path / "bot.toml"):
            raise AssertionError("it was let in")
    with pytest.raises(InvalidInput, match="make it with `bellwire devices add ID"):
        async with Device.open(tmp_path / "no.toml"):
            raise AssertionError("it has no file")
