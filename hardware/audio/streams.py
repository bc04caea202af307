"""The streams of the sound card: which are open, and what PortAudio's callbacks take and give.

Capture and playback are two streams, not one: each has its own device, rate and channels, and one that
fails takes nothing from the other. Opening and closing block, and belong on one thread: PortAudio takes
calls from one at a time. The callbacks run every 10 ms, on threads of its own.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bellwire.config.agent.audio import AudioSettings
from bellwire.hardware.audio.block import BLOCK_FRAMES, SAMPLE_RATE_HZ, Block, Samples
from bellwire.hardware.audio.devices import (
    Initialise,
    NoDevice,
    PortAudio,
    SoundDevice,
    SoundDirection,
    find_device,
    initialise_pyaudio,
)
from bellwire.hardware.audio.mixer import Mixer
from bellwire.hardware.audio.recorder import Recorder
from bellwire.hardware.audio.voice_processing import VoiceProcessing, VoiceThread

if TYPE_CHECKING:
    import soxr

_CARDS = Path("/proc/asound/cards")
_DOCTOR = "`bellwire doctor audio` tells more"


class CardStreams:
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
        self._open: dict[SoundDirection, DeviceStream] = {}
        self._wanted: frozenset[SoundDirection] = frozenset()
        self._told_dead: frozenset[SoundDirection] = frozenset()
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
                (SoundDirection.INPUT, wants_input),
                (SoundDirection.OUTPUT, wants_output),
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
            direction for direction in SoundDirection if direction in self._wanted - set(self._open)
        ]
        if not missing:
            return None
        if not self._open or self._cards() != self._cards_seen:
            self._start_anew()
            missing = [direction for direction in SoundDirection if direction in self._wanted]
        return "; ".join(filter(None, map(self._try, missing))) or None

    def _follow(self, settings: AudioSettings) -> None:
        before, self._settings = self._settings, settings
        others = [
            d for d in SoundDirection if getattr(before, d.value) != getattr(settings, d.value)
        ]
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

    def _try(self, direction: SoundDirection) -> str | None:
        """Opens one direction; returns what is wrong."""
        try:
            self._open_one(direction)
        except (NoDevice, StreamRefused) as error:
            return f"{error} ({_DOCTOR})"
        self._tell_delay()
        return None

    def _tell_delay(self) -> None:
        if len(self._open) == len(SoundDirection) and self._processing is not None:
            self._processing.set_delay(sum(stream.latency_s for stream in self._open.values()))

    def _open_one(self, direction: SoundDirection) -> None:
        port_audio = self._port_audio
        if port_audio is None:
            raise NoDevice("PortAudio cannot be started: is PyAudio installed?")
        is_input = direction is SoundDirection.INPUT
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


_FIRST_CALLBACK_S = 4.0
"""PulseAudio may take over 2 s to wake an idle sink."""
_STALLED_S = 2.0
_EVIDENCE_S = 0.3
"""The most that one look adds to it: a process that is held up itself sees its callbacks late, too."""
_OTHER_RATES_HZ = (44_100, 32_000, 16_000, 8_000)


class StreamRefused(Exception):
    """The device takes no stream; says why."""


class DeviceStream:
    """An open stream. Its thread calls what it was given, which must neither block nor fail.

    Raises:
        StreamRefused: the device is in use, gone, or can do nothing that we can.
    """

    def __init__(
        self,
        port_audio: PortAudio,
        device: SoundDevice,
        *,
        captured: Callable[[Block], None] | None = None,
        pull: Callable[[], Block] | None = None,
    ) -> None:
        self.device = device
        self._captured = captured
        self._pull = pull
        self._called_at: float | None = None
        self._seen_called_at: float | None = None
        self._looked_at = time.monotonic()
        self._silent_s = 0.0
        self._stream, self.rate_hz, self.channels = self._opened(port_audio)
        self.latency_s = float(
            self._stream.get_input_latency() if captured else self._stream.get_output_latency()
        )

    def look(self) -> bool:
        """Whether the device still takes or gives sound; to be asked again and again. PortAudio calls a
        stream active whose thread has failed, so it is the silence of the callback that tells: seen at
        many looks, and not in one that came late."""
        try:
            if not self._stream.is_active():
                return False
        except OSError:
            return False
        now, called_at = time.monotonic(), self._called_at
        since, self._looked_at = now - self._looked_at, now
        if called_at != self._seen_called_at:
            self._seen_called_at, self._silent_s = called_at, 0.0
        else:
            self._silent_s += min(since, _EVIDENCE_S)
        return self._silent_s < (_FIRST_CALLBACK_S if called_at is None else _STALLED_S)

    @property
    def is_flowing(self) -> bool:
        """Whether the device has begun to take or give sound."""
        return self._called_at is not None

    def close(self) -> None:
        """Ends it, with its thread."""
        try:
            self._stream.close()
        except OSError:  # a device that is gone; the stream is closed all the same
            return

    def _opened(self, port_audio: PortAudio) -> tuple[Any, int, int]:
        import pyaudio

        error: Exception | None = None
        for rate_hz, channels in self._ways():
            callback = self._callback(rate_hz, channels, pyaudio.paContinue)
            which = "input" if self._captured else "output"
            try:
                stream = port_audio.api.open(
                    rate=rate_hz,
                    channels=channels,
                    format=pyaudio.paInt16,
                    frames_per_buffer=rate_hz // 100,
                    stream_callback=callback,
                    **{which: True, f"{which}_device_index": self.device.index},
                )
            except (OSError, ValueError) as refused:
                error = refused
            else:
                return stream, rate_hz, channels
        raise StreamRefused(f"{self.device.name!r} takes no stream ({error})")

    def _ways(self) -> Iterator[tuple[int, int]]:
        direction = SoundDirection.INPUT if self._captured else SoundDirection.OUTPUT
        rates = dict.fromkeys((SAMPLE_RATE_HZ, self.device.rate_hz, *_OTHER_RATES_HZ))
        for rate_hz in rates:
            for channels in (1, 2):
                if channels <= self.device.channels(direction):
                    yield rate_hz, channels

    def _callback(self, rate_hz: int, channels: int, go_on: int) -> Callable[..., Any]:
        if self._captured is not None:
            captured, into = self._captured, CaptureConverter(rate_hz, channels)

            def take(data: bytes, _count: int, _times: object, _flags: int) -> tuple[None, int]:
                self._called_at = time.monotonic()
                for block in into.blocks(data):
                    captured(block)
                return None, go_on

            return take
        assert self._pull is not None  # noqa: S101 - one of the two is given
        out_of = PlaybackConverter(rate_hz, channels, self._pull)

        def give(_data: None, count: int, _times: object, _flags: int) -> tuple[bytes, int]:
            self._called_at = time.monotonic()
            return out_of.frames(count), go_on

        return give


_EMPTY: Samples = np.zeros(0, np.int16)


class CaptureConverter:
    """Makes blocks of what a microphone gives.

    Args:
        rate_hz: The device's rate.
        channels: How many it gives, interleaved; they are averaged.
    """

    def __init__(self, rate_hz: int, channels: int) -> None:
        self._channels = channels
        self._resampler = _resampler(rate_hz, SAMPLE_RATE_HZ)
        self._left = _EMPTY

    def blocks(self, captured: bytes) -> list[Block]:
        """The blocks that are complete with these bytes."""
        samples = np.frombuffer(captured, np.int16)
        if self._channels > 1:
            samples = samples.reshape(-1, self._channels).mean(axis=1).astype(np.int16)
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples)
        if len(self._left):
            samples = np.concatenate((self._left, samples))
        complete = len(samples) - len(samples) % BLOCK_FRAMES
        self._left = samples[complete:]
        return [samples[at : at + BLOCK_FRAMES] for at in range(0, complete, BLOCK_FRAMES)]


class PlaybackConverter:
    """Makes what a speaker takes of blocks.

    Args:
        rate_hz: The device's rate.
        channels: How many it takes, interleaved; each gets the same.
        pull: Gives the next block.
    """

    def __init__(self, rate_hz: int, channels: int, pull: Callable[[], Block]) -> None:
        self._channels = channels
        self._pull = pull
        self._resampler = _resampler(SAMPLE_RATE_HZ, rate_hz)
        self._left = _EMPTY

    def frames(self, count: int) -> bytes:
        """The next `count` frames, at the device's rate."""
        parts, there = [self._left], len(self._left)
        while there < count:
            block = self._pull()
            part = block if self._resampler is None else self._resampler.resample_chunk(block)
            parts.append(part)
            there += len(part)
        samples = np.concatenate(parts)
        self._left = samples[count:]
        played = samples[:count]
        return (np.repeat(played, self._channels) if self._channels > 1 else played).tobytes()


def _resampler(from_hz: int, to_hz: int) -> "soxr.ResampleStream | None":
    if from_hz == to_hz:
        return None
    import soxr

    return soxr.ResampleStream(from_hz, to_hz, 1, dtype="int16", quality="MQ")
