"""The sound card of `hardware.audio` as calls use it (`agent.media.sound.Voice`), and what stands for it
where there is none."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable

import structlog

from bellwire.agent.media.engine.interface import Block
from bellwire.agent.media.sound import AudioDevices, OnBlock, Tone
from bellwire.config.agent.audio import AudioSettings
from bellwire.hardware.audio.block import BLOCK_S, SILENCE
from bellwire.hardware.audio.devices import Initialise, initialise_pyaudio
from bellwire.hardware.audio.drift import DriftingSource
from bellwire.hardware.audio.recorder import Recorder
from bellwire.hardware.audio.sound import OpenVoice, Sound
from bellwire.hardware.audio.tones import RINGBACK, BadTone, ToneCadence, ring_tone
from bellwire.signaling.errors import CallError

log = structlog.get_logger(__name__)

_OPENS_WITHIN_S = 5.0
_ALWAYS_THERE = "classic"

CALL_WAITING = ToneCadence((425,), (0.2, 0.2, 0.2, 9.4))
"""ITU-T E.180, the call waiting tone as most European administrations use it."""

_PROGRESS = {Tone.RINGBACK: RINGBACK, Tone.CALL_WAITING: CALL_WAITING}


class SoundCard:
    """The device's sound card. Build it in a running loop; `run` it.

    Args:
        settings: Which devices, how loud, what processing.
        recorder: Records both sides of every call.
        initialise: Initialises PortAudio, or a simulated card in its place.
    """

    def __init__(
        self,
        settings: AudioSettings,
        *,
        recorder: Recorder | None = None,
        initialise: Initialise = initialise_pyaudio,
    ) -> None:
        self._settings = settings
        self._devices = AudioDevices()
        self._sound = Sound(
            settings, on_fault=self._take_fault, recorder=recorder, initialise=initialise
        )
        self._failed, self._works = asyncio.Event(), asyncio.Event()
        self._works.set()
        self._voice: OpenVoice | None = None
        self._sources: dict[str, DriftingSource] = {}
        self._tone: Tone | None = None
        self._tone_volume = 1.0
        self._tone_changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.ring_tone_fault: str | None = None
        """Why `classic` rings in place of the ring tone that is set; None while that one can be played."""
        self.on_ring_tone: Callable[[str | None], object] = lambda _: None
        """Called on the loop with each change of `ring_tone_fault`."""
        self._ring_tone_changed = asyncio.Event()
        self._ring_tone_changed.set()

    @property
    def fault(self) -> str | None:
        """What is wrong, and what to do; None while all is well."""
        return self._sound.fault

    def use(self, settings: AudioSettings) -> None:
        """Has these settings in force; a voice that is open goes on without a gap, on the devices that
        it was opened with."""
        if settings.ring_tone != self._settings.ring_tone:
            self._ring_tone_changed.set()
        self._settings = settings
        self._sound.use(settings.model_copy(update=self._devices.named))

    async def run(self) -> None:
        """Keeps the card's streams as they are needed, and starts tones, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sound.run())
            tasks.create_task(self._follow_tone())
            tasks.create_task(self._try_ring_tones())

    async def open(self, on_captured: OnBlock, devices: AudioDevices) -> None:
        """Starts microphone and speaker: these devices until `close`, and for tones too.

        Raises:
            CallError: 53400, there is no such sound device, or it does not work; says what to do.
        """
        self._choose(devices)
        self._voice = self._sound.open_voice(on_captured)
        flows = False
        try:
            async with asyncio.timeout(_OPENS_WITHIN_S):
                await self._sound.flowing()
            flows = True
        except TimeoutError:
            reason = self._sound.fault or "the sound device does not start"
            raise CallError(53400, reason) from None
        finally:
            if not flows:
                await self.close()

    def play(self, source: str, block: Block) -> None:
        """Plays the next block of a source. Any one thread for each."""
        drifting = self._sources.get(source)
        if drifting is not None:
            drifting.play(block)
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                self._loop.call_soon_threadsafe(self._add, source)

    def take_back(self, source: str, blocks: int) -> None:
        """Silences the last so many blocks of a source, as far as they have not been heard. The thread
        that plays it."""
        drifting = self._sources.get(source)
        if drifting is not None:
            drifting.take_back(blocks)

    def forget(self, source: str) -> None:
        """This source says nothing more."""
        drifting = self._sources.pop(source, None)
        if drifting is not None:
            self._sound.remove_source(drifting)

    async def close(self) -> None:
        """Stops both, and has the configured devices in force again."""
        self._choose(AudioDevices())
        voice, self._voice = self._voice, None
        if voice is not None:
            voice.close()
        for source in tuple(self._sources):
            self.forget(source)

    async def failed(self) -> str:
        """Waits until a device of it does not work; returns what is wrong, and what to do."""
        while self.fault is None:
            await self._failed.wait()
        return self.fault

    async def works(self) -> None:
        """Waits until it is well."""
        await self._works.wait()

    def start_tone(self, tone: Tone, volume: float = 1.0) -> None:
        """Plays a tone until `stop_tone`."""
        self._tone, self._tone_volume = tone, volume
        self._tone_changed.set()

    def stop_tone(self) -> None:
        """Ends the tone that is played; there may be none."""
        self._tone = None
        self._tone_changed.set()
        self._sound.stop_tone()

    def _choose(self, devices: AudioDevices) -> None:
        self._devices = devices
        self.use(self._settings)

    def _take_fault(self, fault: str | None) -> None:
        happened, over = (
            (self._works, self._failed) if fault is None else (self._failed, self._works)
        )
        happened.set()
        over.clear()

    def _add(self, source: str) -> None:
        if self._voice is not None and source not in self._sources:
            self._sources[source] = self._sound.add_source()

    async def _follow_tone(self) -> None:
        while True:
            await self._tone_changed.wait()
            self._tone_changed.clear()
            if self._tone is Tone.RING:
                await self._ring(self._tone_volume)
            elif self._tone is not None:
                self._sound.start_progress_tone(_PROGRESS[self._tone], self._tone_volume)
            else:
                self._sound.stop_tone()  # it may have been stopped while it was being read

    async def _try_ring_tones(self) -> None:
        """Reads each ring tone that is set, so that one which cannot be played is known before
        somebody rings."""
        while True:
            await self._ring_tone_changed.wait()
            self._ring_tone_changed.clear()
            try:
                await asyncio.to_thread(ring_tone, self._settings.ring_tone)
            except BadTone as error:
                self._tell_of_ring_tone(str(error))
            else:
                self._tell_of_ring_tone(None)

    async def _ring(self, volume: float) -> None:
        try:
            await self._sound.start_ring_tone(volume=volume)
        except BadTone as error:
            self._tell_of_ring_tone(str(error))
            await self._sound.start_ring_tone(_ALWAYS_THERE, volume=volume)
        else:
            self._tell_of_ring_tone(None)

    def _tell_of_ring_tone(self, fault: str | None) -> None:
        told = None if fault is None else f"{_ALWAYS_THERE} rings instead: {fault}"
        if told == self.ring_tone_fault:
            return
        self.ring_tone_fault = told
        if fault is not None:
            log.error("no ring tone", rings_instead=_ALWAYS_THERE, error=fault)
        self.on_ring_tone(told)


_LATE_S = 0.2
"""What comes later than this is not made up for: a machine that stood still has nothing to say of it."""


class NoCard:
    """The card of a device that has none: its microphone hears silence, in a card's time, and nobody its
    speaker. An application without one says what it plays into a call, and hears its streams."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    async def open(self, on_captured: OnBlock, devices: AudioDevices) -> None:
        """Starts the silence. CallError 53400 where the call names a sound device."""
        if devices.named:
            raise CallError(53400, "this device was opened without a sound card: name no devices")
        self._stop.clear()
        self._thread = threading.Thread(target=self._hear, args=(on_captured,), daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Ends it; there may be none."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stop.set()
            await asyncio.to_thread(thread.join)

    def play(self, source: str, block: Block) -> None:
        """Drops it: there is no speaker."""

    def take_back(self, source: str, blocks: int) -> None:
        """Does nothing: nothing was heard."""

    def forget(self, source: str) -> None:
        """Does nothing: nothing was kept."""

    async def failed(self) -> str:
        """Waits for ever: silence does not fail."""
        never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        return await never

    async def works(self) -> None:
        """Returns at once: silence does not fail."""

    def start_tone(self, tone: Tone, volume: float = 1.0) -> None:
        """Does nothing: there is no speaker."""

    def stop_tone(self) -> None:
        """Does nothing: no tone is played."""

    def _hear(self, on_captured: OnBlock) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            on_captured(SILENCE)
            due = max(due + BLOCK_S, time.monotonic() - _LATE_S)
