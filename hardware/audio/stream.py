"""One PyAudio stream one way, in callback mode: 10 ms at a time on PortAudio's own thread.

Capture and playback are two streams, not one: each has its own device, rate and channels, and
one that fails takes nothing from the other. Opening and closing block: not for the event loop.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

from bellwire.hardware.audio.block import SAMPLE_RATE_HZ, Block
from bellwire.hardware.audio.converter import CaptureConverter, PlaybackConverter
from bellwire.hardware.audio.devices import Device, Direction, PortAudio

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
        device: Device,
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
        direction = Direction.INPUT if self._captured else Direction.OUTPUT
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
