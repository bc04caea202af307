"""The streams that are open now, and how they are brought to what is wanted. All of it blocks, and
belongs on one thread: PortAudio takes calls from one at a time."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from bellwire.config.agent.audio import AudioSettings
from bellwire.hardware.audio.block import Block
from bellwire.hardware.audio.devices import (
    Direction,
    Initialise,
    NoDevice,
    PortAudio,
    find_device,
    initialise_pyaudio,
)
from bellwire.hardware.audio.mixer import Mixer
from bellwire.hardware.audio.recorder import Recorder
from bellwire.hardware.audio.stream import DeviceStream, StreamRefused
from bellwire.hardware.audio.voice_processing import VoiceProcessing, VoiceThread

_CARDS = Path("/proc/asound/cards")
_DOCTOR = "`bellwire doctor audio` tells more"


class Streams:
    """Both directions' streams, PortAudio under them and the voice thread between.

    Args:
        settings: The devices and the processing.
        mixer: What the speaker plays.
        deliver: Called with each processed block of the microphone.
        recorder: Keeps both sides, where there is one.
        initialise: Initialises PortAudio, or what stands in for it.
    """

    def __init__(
        self,
        settings: AudioSettings,
        mixer: Mixer,
        deliver: Callable[[Block], None],
        recorder: Recorder | None,
        initialise: Initialise = initialise_pyaudio,
    ) -> None:
        self._initialise = initialise
        self.voice: VoiceThread | None = None
        self._settings = settings
        self._mixer = mixer
        self._deliver = deliver
        self._recorder = recorder
        self._port_audio: PortAudio | None = None
        self._processing: VoiceProcessing | None = None
        self._open: dict[Direction, DeviceStream] = {}
        self._wanted: frozenset[Direction] = frozenset()
        self._told_dead: frozenset[Direction] = frozenset()
        self._cards_seen: str | None = None

    @property
    def is_flowing(self) -> bool:
        """Whether all that is wanted is open and has begun to flow. Any thread."""
        streams = dict(self._open)
        return bool(self._wanted) and all(
            direction in streams and streams[direction].is_flowing for direction in self._wanted
        )

    def settle(self, settings: AudioSettings, wants_input: bool, wants_output: bool) -> str | None:
        """Opens what is wanted, closes what is not, closes what is dead and opens it anew.

        Returns:
            What is wrong and what to do, or None.
        """
        self._wanted = frozenset(
            direction
            for direction, wants in (
                (Direction.INPUT, wants_input),
                (Direction.OUTPUT, wants_output),
            )
            if wants
        )
        self._follow(settings)
        dead = frozenset(way for way, stream in self._open.items() if not stream.look())
        faults = [
            f"the {direction.part} {stream.device.name!r} has stopped: is it unplugged? ({_DOCTOR})"
            for direction, stream in self._open.items()
            if direction in self._wanted & dead
        ]
        told_before, self._told_dead = self._told_dead, self._wanted & dead
        if self._told_dead - told_before:
            return "; ".join(faults)  # first: to close a device that is gone may take seconds
        for direction in [*self._open]:
            if direction not in self._wanted or direction in dead:
                self._open.pop(direction).close()
        if not self._wanted:
            self.close()
            return None
        if faults:  # tell of it, and give the device a moment
            return "; ".join(faults)
        missing = [
            direction for direction in Direction if direction in self._wanted - set(self._open)
        ]
        if not missing:
            return None
        if not self._open or self._cards() != self._cards_seen:
            self._start_anew()
            missing = [direction for direction in Direction if direction in self._wanted]
        return "; ".join(filter(None, map(self._try, missing))) or None

    def _follow(self, settings: AudioSettings) -> None:
        before, self._settings = self._settings, settings
        others = [d for d in Direction if getattr(before, d.value) != getattr(settings, d.value)]
        for direction in others:
            if direction in self._open:
                self._open.pop(direction).close()
        # Another device has another echo than the one that was learnt.
        is_outdated = bool(others) or before.processing != settings.processing
        if is_outdated and self._processing is not None:
            self._processing = VoiceProcessing(settings.processing)
            self._tell_delay()
            if self.voice is not None:
                self.voice.processing = self._processing

    def close(self) -> None:
        """Closes everything: nothing runs then."""
        self._end_port_audio()
        if self.voice is not None:
            self.voice.stop()
            self.voice = None

    def _try(self, direction: Direction) -> str | None:
        """Opens one direction; returns what is wrong."""
        try:
            self._open_one(direction)
        except (NoDevice, StreamRefused) as error:
            return f"{error} ({_DOCTOR})"
        self._tell_delay()
        return None

    def _tell_delay(self) -> None:
        if len(self._open) == len(Direction) and self._processing is not None:
            self._processing.set_delay(sum(stream.latency_s for stream in self._open.values()))

    def _open_one(self, direction: Direction) -> None:
        port_audio = self._port_audio
        if port_audio is None:
            raise NoDevice("PortAudio cannot be started: is PyAudio installed?")
        is_input = direction is Direction.INPUT
        wanted = self._settings.input_device if is_input else self._settings.output_device
        device = find_device(port_audio.devices(), wanted, direction)
        voice = self._running_voice()
        if is_input:
            if self._processing is None:
                self._processing = VoiceProcessing(self._settings.processing)
            voice.processing = self._processing
            stream = DeviceStream(port_audio, device, captured=voice.captured)
        else:

            def pull() -> Block:
                block = self._mixer.pull()
                voice.played(block)
                return block

            stream = DeviceStream(port_audio, device, pull=pull)
        self._open[direction] = stream

    def _running_voice(self) -> VoiceThread:
        if self.voice is None:
            self.voice = VoiceThread(self._deliver, self._recorder)
        return self.voice

    def _start_anew(self) -> None:
        self._end_port_audio()
        self._cards_seen = self._cards()
        with contextlib.suppress(OSError):  # told of when a stream is opened
            self._port_audio = PortAudio(self._initialise)

    def _end_port_audio(self) -> None:
        for stream in self._open.values():
            stream.close()
        self._open.clear()
        if self._port_audio is not None:
            self._port_audio.close()
            self._port_audio = None

    @staticmethod
    def _cards() -> str:
        """The sound cards the kernel knows: when they change, PortAudio's list is out of date."""
        try:
            return _CARDS.read_text()
        except OSError:
            return ""
