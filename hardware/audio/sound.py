"""The sound of one device: who talks, who is heard, what rings; and the streams it takes.

Streams are open only while somebody talks or something sounds. A device that fails, or is
unplugged, is told of as a fault and tried again until it is back; nothing above has to care.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from bellwire.config.agent.audio import AudioSettings
from bellwire.hardware.audio.block import SILENT_DB, Block
from bellwire.hardware.audio.devices import Initialise, initialise_pyaudio
from bellwire.hardware.audio.drift import DriftingSource
from bellwire.hardware.audio.mixer import Mixer, Source
from bellwire.hardware.audio.recorder import Recorder
from bellwire.hardware.audio.streams import CardStreams
from bellwire.hardware.audio.tones import LoopedTone, ToneCadence, ring_tone

log = logging.getLogger(__name__)

_CHECKED_EVERY_S = 0.25
_RETRY_S = (0.25, 0.5, 1.0, 2.0, 5.0)

OnCaptured = Callable[[Block], None]


class OpenVoice:
    """Somebody talks here: `on_captured` is called with each block, on the voice thread."""

    def __init__(self, sound: "Sound", on_captured: OnCaptured) -> None:
        self.on_captured = on_captured
        self._sound = sound

    def close(self) -> None:
        """They have stopped. They may have already."""
        self._sound._end_voice(self)


class Sound:
    """The sound card. Its methods belong on the event loop, unless they say otherwise.

    The following plays a ring tone, then what a peer says, and sends it what is said here::

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(sound.run())
            await sound.start_ring_tone()
            ...
            sound.stop_tone()
            heard = sound.add_source()
            voice = sound.open_voice(peer.send)  # and heard.play(block) for each block of the peer

    Args:
        settings: Which devices, how loud, what processing.
        on_fault: Told on the event loop what is wrong and what to do, and None when it is well.
        recorder: Records what is said, with a beep for both sides; its owner closes it after `run`.
        initialise: Initialises PortAudio, or a simulated card in its place.
    """

    def __init__(
        self,
        settings: AudioSettings,
        *,
        on_fault: Callable[[str | None], None] = lambda _: None,
        recorder: Recorder | None = None,
        initialise: Initialise = initialise_pyaudio,
    ) -> None:
        self.settings = settings
        self.fault: str | None = None
        """What is wrong, and what to do; None while all is well or nothing is needed."""
        self.mixer = Mixer()
        self.mixer.volume = settings.speaker_volume
        self._on_fault = on_fault
        self._recorder = recorder
        self._voices: tuple[OpenVoice, ...] = ()
        self._tone: Source | None = None
        self._changed = asyncio.Event()
        self._settled: tuple[AudioSettings, tuple[bool, bool]] | None = None
        self._flowing = asyncio.Condition()
        self._streams = CardStreams(settings, self.mixer, self._deliver, recorder, initialise)

    def use(self, settings: AudioSettings) -> None:
        """Has these settings in force. A change of volume or processing is heard at once, without a
        gap; one of the devices opens them anew."""
        self.settings = settings
        self.mixer.volume = settings.speaker_volume
        self._changed.set()

    async def run(self) -> None:
        """Keeps the streams as they are needed, until cancelled; then none, and no thread, is left."""
        with ThreadPoolExecutor(1, thread_name_prefix="bellwire sound") as blocking:
            loop = asyncio.get_running_loop()
            try:
                await self._supervise(blocking)
            finally:
                # PortAudio may not be left half closed: no cancelling from here on.
                closing = loop.run_in_executor(blocking, self._streams.close)
                while not closing.done():
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.shield(closing)

    async def _supervise(self, blocking: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            self._changed.clear()
            settings, wants = self.settings, self._wants()
            fault = await loop.run_in_executor(blocking, self._streams.settle, settings, *wants)
            self._settled = settings, wants
            self._tell(fault)
            failures = failures + 1 if fault else 0
            if self._is_flowing:
                async with self._flowing:
                    self._flowing.notify_all()
            if not any(wants):
                await self._changed.wait()
                continue
            pause_s = _RETRY_S[min(failures, len(_RETRY_S)) - 1] if failures else _CHECKED_EVERY_S
            if not self._streams.is_flowing and not fault:
                pause_s = 0.02
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._changed.wait()

    async def flowing(self) -> None:
        """Waits until every stream that is needed now, on the devices that are set now, has begun to
        flow."""
        async with self._flowing:
            await self._flowing.wait_for(lambda: self._is_flowing)

    @property
    def _is_flowing(self) -> bool:
        # What rang a moment ago flows, and says nothing of the microphone that is to be opened.
        is_settled = self._settled == (self.settings, self._wants())
        return is_settled and self._streams.is_flowing

    @property
    def input_db(self) -> float:
        """The level of the last 50 ms sent, in dB of full scale. Any thread."""
        return self._streams.voice.input.db if self._streams.voice else SILENT_DB

    @property
    def output_db(self) -> float:
        """The level of the last 50 ms played, in dB of full scale. Any thread."""
        return self._streams.voice.output.db if self._streams.voice else SILENT_DB

    def open_voice(self, on_captured: OnCaptured) -> OpenVoice:
        """Opens the microphone: `on_captured` gets each block, processed, and must not block."""
        voice = OpenVoice(self, on_captured)
        if self._recorder is not None and not self._voices:
            log.warning("this call is recorded to %s; both sides hear a beep", self._recorder.path)
            self.mixer.add(self._recorder.notice)
        self._voices = (*self._voices, voice)
        self._changed.set()
        return voice

    def add_source(self, volume: float = 1.0) -> DriftingSource:
        """Somebody who is heard; `play` what they say, from any one thread. `remove_source` ends it."""
        source = DriftingSource(volume)
        if self._recorder is not None:
            self._recorder.begin()  # who is heard hears, too
        self._add(source)
        return source

    def remove_source(self, source: DriftingSource) -> None:
        """They are heard no longer. They may be gone already."""
        self._remove(source)

    async def start_ring_tone(self, name: str | None = None, volume: float | None = None) -> None:
        """Rings until `stop_tone`, in place of any other tone; None: as the settings say.

        Raises:
            BadTone: there is no such tone.
        """
        samples = await asyncio.to_thread(ring_tone, name or self.settings.ring_tone)
        self._start(LoopedTone(samples, self.settings.ring_volume if volume is None else volume))

    def start_progress_tone(self, cadence: ToneCadence, volume: float = 1.0) -> None:
        """Plays `RINGBACK`, `BUSY` or `CONGESTION` (`hardware.audio.tones`) until `stop_tone`."""
        self._start(LoopedTone(cadence, volume))

    def stop_tone(self) -> None:
        """Ends the ring tone or progress tone that is played; there may be none."""
        if self._tone is not None:
            self._remove(self._tone)
            self._tone = None

    def _wants(self) -> tuple[bool, bool]:
        if not self.settings.enabled:
            return False, False
        talks = bool(self._voices)
        return talks, talks or not self.mixer.is_silent

    def _start(self, tone: LoopedTone) -> None:
        self.stop_tone()
        self._tone = tone
        self._add(tone)

    def _add(self, source: Source) -> None:
        self.mixer.add(source)
        self._changed.set()

    def _remove(self, source: Source) -> None:
        self.mixer.remove(source)
        self._changed.set()

    def _end_voice(self, voice: OpenVoice) -> None:
        self._voices = tuple(other for other in self._voices if other is not voice)
        if self._recorder is not None and not self._voices:
            self.mixer.remove(self._recorder.notice)
        self._changed.set()

    def _deliver(self, block: Block) -> None:
        for voice in self._voices:
            voice.on_captured(block)

    def _tell(self, fault: str | None) -> None:
        if fault == self.fault:
            return
        self.fault = fault
        if fault:
            log.warning("no sound: %s", fault)
        else:
            log.info("the sound is well")
        self._on_fault(fault)
