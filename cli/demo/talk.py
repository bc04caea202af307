"""The demo's second call: one station calls, the other answers, and each hears the other over WebRTC.

They talk in turn, as people do: two made voices at once are too alike, and echo cancellation takes one
for the echo of the other. Their voices are made by arithmetic, and what comes out is compared with them.
"""

import asyncio
import time
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bellwire.agent.calls.call import Call, CallStatus
from bellwire.cli.demo.stage import Stage, Station, Timeline, within
from bellwire.config.agent.panel import ButtonSettings
from bellwire.hardware.audio.block import (
    BLOCK_S,
    SAMPLE_RATE_HZ,
    Block,
    Samples,
    level_db,
    saturated,
)
from bellwire.signaling.errors import Unavailable

VOICE_S = 1.25
_SEGMENT = SAMPLE_RATE_HZ // 5
_LIKENESS = 0.5
"""Codec, noise suppression and gain control change the waveform; another's voice stays below."""
_SYLLABLES_PER_S = 4
_FORMANTS_HZ = ((700, 1200), (400, 2000), (500, 900), (300, 2300), (600, 1700), (450, 1000))
"""The two lowest of some vowels, near those of Peterson and Barney (JASA 24, 1952)."""
_WIDTH_HZ = 150
_PEAK = 9000


def voice(pitch_hz: float) -> Samples:
    """Somebody who says a few syllables: 48 kHz, mono, `VOICE_S` long."""
    times = np.arange(round(VOICE_S * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    pitch = pitch_hz * (1 + 0.15 * np.sin(2 * np.pi * 0.9 * times))
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE_HZ
    syllable = (times * _SYLLABLES_PER_S).astype(int) % len(_FORMANTS_HZ)
    formants = np.asarray(_FORMANTS_HZ)[syllable]
    sound = np.zeros(len(times))
    for number in range(1, int(3500 / pitch_hz)):
        distance = (number * pitch[:, None] - formants) / _WIDTH_HZ
        sound += np.exp(-(distance**2) / 2).sum(axis=1) * np.sin(number * phase)
    sound *= np.abs(np.sin(np.pi * _SYLLABLES_PER_S * times)) ** 0.5
    return saturated(_PEAK * sound / np.abs(sound).max())


def fraction_heard(said: Samples, heard: Samples) -> float:
    """How much of what was said is found again in what was heard, 0 to 1.

    Each loud stretch of 200 ms is looked for by itself, by normalised cross-correlation: a jitter
    buffer may stretch the pauses between them.
    """
    parts = [said[at : at + _SEGMENT].astype(np.float64) for at in range(0, len(said), _SEGMENT)]
    loud = [part for part in parts if len(part) == _SEGMENT and part.std() > said.std() / 4]
    sound = heard.astype(np.float64)
    return sum(_best_likeness(part, sound) >= _LIKENESS for part in loud) / len(loud)


def _best_likeness(part: NDArray[np.float64], sound: NDArray[np.float64]) -> float:
    if len(sound) < len(part):
        return 0.0
    size = 1 << (len(sound) + len(part)).bit_length()
    products = np.fft.irfft(np.fft.rfft(sound, size) * np.conj(np.fft.rfft(part, size)), size)
    squares = np.concatenate(([0.0], np.cumsum(sound * sound)))
    powers = (squares[len(part) :] - squares[: -len(part)]) * (part @ part)
    likeness = np.abs(products[: len(powers)]) / np.sqrt(np.maximum(powers, 1.0))
    return float(likeness.max())


_PITCHES_HZ = {"lobby": 110.0, "desk": 190.0}
_LISTENED_BLOCKS = round((VOICE_S + 0.3) / BLOCK_S)
"""From the first sound on: what was said, and a jitter buffer's worth more."""
_SPOKEN_DB = -50.0
_UNDERSTOOD = 0.5
"""A voice of which less is heard was none."""
_TIMES_SAID = 4


@dataclass(frozen=True, slots=True)
class Talk:
    """How it went.

    Args:
        codec: What was spoken.
        voice_ms: From the answer button's pin to the first of the lobby's voice at the desk's speaker.
        heard: By who heard it, how much of the other's voice was, 0 to 1.
        timeline: Its steps.
    """

    codec: str
    voice_ms: float
    heard: dict[str, float]
    timeline: Timeline


async def talk(stage: Stage) -> Talk:
    """Lobby's call button calls desk, desk answers, each says something, lobby hangs up.

    Raises:
        Unavailable: something of it did not happen in time, or a voice was not heard; says what.
    """
    panel, answer = stage.lobby.agent.settings.panel, stage.desk.agent.settings.panel.answer
    if answer is None or panel.hang_up is None:
        raise Unavailable("the demo's stations have no buttons")
    with ExitStack() as listening:
        lobby, desk = (_Party(station, listening) for station in (stage.lobby, stage.desk))
        both = (lobby, desk)
        timeline = Timeline("A second call, from button to button", time.perf_counter())
        await lobby.press(panel.call_buttons["desk"], "call", timeline)
        await within("the desk rings", desk.rings.wait())
        timeline.note("desk", "rings: the lobby calls")
        answered_at = await desk.press(answer, "answer", timeline)
        codecs = [await within(f"{party.name} has sound", party.connected) for party in both]
        timeline.note("both", f"connected by WebRTC, codec {codecs[0]}")
        desk_heard = await _listen(lobby, desk, timeline)
        lobby_heard = await _listen(desk, lobby, timeline)
        await lobby.press(panel.hang_up, "hang-up", timeline)
        for party in both:
            await within(f"{party.name}'s call is closed", party.closed.wait())
    timeline.note("both", "call closed")
    first_sound = desk.first_sound.result()
    heard = {"lobby": lobby_heard, "desk": desk_heard}
    return Talk(codecs[0], (first_sound - answered_at) * 1000, heard, timeline)


async def _listen(speaker: "_Party", listener: "_Party", timeline: Timeline) -> float:
    """One speaks; how much of it the other hears. Said again where a busy machine tore it up."""
    timeline.note(speaker.name, "speaks")
    for _ in range(_TIMES_SAID):
        listener.listen()
        speaker.speak()
        await within(f"{listener.name} hears {speaker.name}", listener.heard_all.wait())
        heard = listener.fraction_of(speaker)
        if heard >= _UNDERSTOOD:
            at = listener.first_sound.result()
            timeline.note(listener.name, f"hears {speaker.name}'s voice", at)
            return heard
    raise Unavailable(f"{listener.name} heard only {heard:.0%} of what {speaker.name} said")


class _Party:
    """One station in the second call: what its phone goes through, and what its speaker plays."""

    def __init__(self, station: Station, listening: ExitStack) -> None:
        loop = asyncio.get_running_loop()
        self.name = station.name
        self.rings, self.heard_all, self.closed = (asyncio.Event() for _ in range(3))
        self.connected: asyncio.Future[str] = loop.create_future()
        """Its codec, once there is sound."""
        self.first_sound: asyncio.Future[float] = loop.create_future()
        """When its speaker gave the first of the other's voice, as `time.perf_counter` tells."""
        self._said = voice(_PITCHES_HZ[station.name])
        self._station = station
        self._loop = loop
        self._blocks: list[Block] = []
        listening.callback(station.agent.device.on_change(self._follow))
        listening.callback(station.card.listen(self._hear))

    async def press(self, button: ButtonSettings, name: str, timeline: Timeline) -> float:
        """Presses a button; returns when it was released, as `time.perf_counter` tells."""
        timeline.note(self.name, f"{name} button pressed")
        await self._station.fingers.pins.tap(button)
        return time.perf_counter()

    def listen(self) -> None:
        """Listens anew."""
        self._blocks = []
        self.heard_all.clear()

    def speak(self) -> None:
        """Says something into its microphone."""
        self._station.card.say(self._said)

    def fraction_of(self, other: "_Party") -> float:
        """How much of what the other said was heard here."""
        return fraction_heard(other._said, np.concatenate(self._blocks))

    def _follow(self, call: Call) -> None:
        if call.status() is CallStatus.PENDING:
            call.on("audio", lambda _: self._have_sound(call))
            self.rings.set()
        elif call.status() is CallStatus.CONNECTING and call.direction == "OUTGOING":
            call.on("audio", lambda _: self._have_sound(call))
        elif call.status() is CallStatus.CLOSED:
            self.closed.set()

    def _have_sound(self, call: Call) -> None:
        if not self.connected.done():
            self.connected.set_result(call.codec or "")

    def _have_heard(self, at: float) -> None:
        if not self.first_sound.done():
            self.first_sound.set_result(at)

    def _hear(self, block: Block) -> None:
        """Takes what is played from when the first was loud, on the speaker's thread."""
        if not self.connected.done():
            return  # the ring tone
        if not self._blocks:
            if level_db(block) < _SPOKEN_DB:
                return
            self._loop.call_soon_threadsafe(self._have_heard, time.perf_counter())
        if len(self._blocks) < _LISTENED_BLOCKS:
            self._blocks.append(block)
        elif not self.heard_all.is_set():
            self._loop.call_soon_threadsafe(self.heard_all.set)
