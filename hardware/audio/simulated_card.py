"""A sound card without hardware: streams paced by the clock, behind the very same code.

A mouth (`SimulatedSoundCard.say`) and ears (`SimulatedSoundCard.listen`) for tests, the demo and
``bellwire agent --simulate``. It stands in for `pyaudio.PyAudio`, as far as that is used here.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bellwire.hardware.audio.block import BLOCK_FRAMES, SAMPLE_RATE_HZ, Block

_BLOCK_S = BLOCK_FRAMES / SAMPLE_RATE_HZ
_FALLEN_BEHIND_S = 0.1
_SILENCE = bytes(2 * BLOCK_FRAMES)

Ear = Callable[[Block], None]


class SimulatedSoundCard:
    """One microphone and one speaker, 48 kHz, mono.

    It may be initialised again and again, as PortAudio is: pass :meth:`initialised` wherever a sound
    card is opened.
    """

    def __init__(self) -> None:
        self._said = np.zeros(0, np.int16)
        self._turn = threading.Lock()
        self._ears: tuple[Ear, ...] = ()

    def say(self, samples: "np.ndarray[Any, np.dtype[np.int16]]") -> None:
        """Has the microphone hear `samples` (48 kHz, mono) after what was said before."""
        with self._turn:
            self._said = np.concatenate((self._said, samples))

    def listen(self, ear: Ear) -> Callable[[], None]:
        """Has `ear` called with each block that the speaker plays, on the speaker's thread; what is
        returned ends that."""
        self._ears = (*self._ears, ear)

        def unlisten() -> None:
            self._ears = tuple(one for one in self._ears if one is not ear)

        return unlisten

    def initialised(self) -> "SimulatedSoundCard":
        """What `pyaudio.PyAudio()` would give."""
        return self

    # What the streams need of PyAudio

    def open(
        self,
        *,
        rate: int,
        channels: int,
        frames_per_buffer: int,
        stream_callback: Callable[..., tuple[bytes | None, int]],
        input: bool = False,  # noqa: A002 - PyAudio's own name
        **_others: object,
    ) -> "SimulatedStream":
        """A stream; as PyAudio's in callback mode."""
        if (rate, channels, frames_per_buffer) != (SAMPLE_RATE_HZ, 1, BLOCK_FRAMES):
            raise ValueError(f"this sound card knows only {SAMPLE_RATE_HZ} Hz, mono, in 10 ms")
        move = self._hear if input else self._play
        return SimulatedStream(lambda: move(stream_callback))

    def get_device_count(self) -> int:
        """How many devices there are: one, for both directions."""
        return 1

    def get_device_info_by_index(self, index: int) -> dict[str, object]:
        """What PyAudio tells of the default speaker."""
        return {
            "index": index,
            "name": "simulated",
            "maxInputChannels": 1,
            "maxOutputChannels": 1,
            "defaultSampleRate": float(SAMPLE_RATE_HZ),
        }

    def get_default_input_device_info(self) -> dict[str, object]:
        """What PyAudio tells of a device."""
        return self.get_device_info_by_index(0)

    def get_default_output_device_info(self) -> dict[str, object]:
        """What PyAudio tells of the default microphone."""
        return self.get_device_info_by_index(0)

    def terminate(self) -> None:
        """Nothing is left of it: its streams are closed before."""

    def _hear(self, callback: Callable[..., tuple[bytes | None, int]]) -> None:
        with self._turn:
            block, self._said = self._said[:BLOCK_FRAMES], self._said[BLOCK_FRAMES:]
        callback(block.tobytes().ljust(len(_SILENCE), b"\0"), BLOCK_FRAMES, {}, 0)

    def _play(self, callback: Callable[..., tuple[bytes | None, int]]) -> None:
        played, _ = callback(None, BLOCK_FRAMES, {}, 0)
        block = np.frombuffer(played or _SILENCE, np.int16)
        for ear in self._ears:
            ear(block)


class SimulatedStream:
    """A stream whose thread moves one block every 10 ms."""

    def __init__(self, move: Callable[[], None]) -> None:
        self._move = move
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="simulated sound", daemon=True)
        self._thread.start()

    def is_active(self) -> bool:
        """Whether it still moves."""
        return self._thread.is_alive()

    def get_input_latency(self) -> float:
        """How long a block waits in the speaker, in seconds."""
        return _BLOCK_S

    def get_output_latency(self) -> float:
        """How long a block waits in the microphone, in seconds."""
        return _BLOCK_S

    def close(self) -> None:
        """Ends it, with its thread."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._ended.wait(max(0.0, due - time.monotonic())):
            self._move()
            due += _BLOCK_S
            if time.monotonic() - due > _FALLEN_BEHIND_S:
                due = time.monotonic()  # a machine that slept does not catch up
