"""Hands the decoded sound of all connections over, in blocks of 10 ms, on one thread of its own.

wrtc's own way (`MediaStreamTrackProcessor.readable`) needs an event loop and two futures a block. On
the agent's loop, whatever else is done there would be heard as a gap; this thread waits on the same
native queues, is delayed by nothing but the GIL, and costs a third less CPU. What it calls of wrtc
begins with an underscore: that is why pyproject.toml pins wrtc to one minor release.
"""

import os
import select
import threading
from collections.abc import Callable, Iterator

import numpy as np
import structlog
import webrtc
import wrtc
from numpy.typing import NDArray

from bellwire.agent.media.engine.interface import BLOCK_FRAMES, SAMPLE_RATE_HZ, Block

Samples = NDArray[np.int16]

log = structlog.get_logger(__name__)

_QUEUED_BLOCKS = 5
"""What wrtc keeps for us before it drops the oldest: 50 ms. Only a stalled process gets there, and
what is older would be heard late for the rest of the call."""


class Ear:
    """One remote track that is listened to."""

    def __init__(self, track: webrtc.MediaStreamTrack, on_audio: Callable[[Block], None]) -> None:
        # The track is kept: without a reference wrtc collects it, and it falls silent.
        self._track = track
        self._native = wrtc.MediaStreamTrackProcessor(track._native_obj, _QUEUED_BLOCKS)
        self._on_audio = on_audio
        self._maker = BlockMaker()
        self._lock = threading.Lock()
        self._closed = False
        self._complained = False

    @property
    def key(self) -> int:
        """What its wake-ups are known by."""
        return int(self._native._id)

    def bind(self, mailbox: wrtc.Mailbox) -> None:
        """Has wake-ups sent to `mailbox`. Those from before are lost: hence one acknowledgement."""
        self._native._bind(mailbox)
        self._native._ackWakeup()

    def hand_over(self) -> None:
        """Passes on what has come. To acknowledge first means that what comes meanwhile wakes anew."""
        self._native._ackWakeup()
        with self._lock:
            while not self._closed and (item := self._native.read()) is not None:
                samples, _bits, rate_hz, channels, *_ = item
                self._pass_on(np.frombuffer(samples, np.int16), rate_hz, channels)

    def _pass_on(self, decoded: Samples, rate_hz: int, channels: int) -> None:
        try:
            for block in self._maker.blocks(decoded, rate_hz, channels):
                self._on_audio(block)
        except Exception as error:  # noqa: BLE001 - one call's defect must not silence the others
            if not self._complained:  # and must not fill the log, a hundred times a second
                log.error("heard sound could not be handed over", error=repr(error))
            self._complained = True

    def close(self) -> None:
        """After this, nothing is passed on."""
        with self._lock:
            self._closed = True
        self._native.cancel()


class WrtcListener:
    """Listens while there is anything to listen to; its thread ends with the last ear."""

    def __init__(self) -> None:
        self._ears: dict[int, Ear] = {}
        self._mailbox: wrtc.Mailbox | None = None
        self._thread: threading.Thread | None = None
        self._stop_fd = -1

    def add(self, ear: Ear) -> None:
        """Listens to it from now on, on the one thread, which is started for the first."""
        self._ears[ear.key] = ear
        if self._mailbox is None:
            self._mailbox = self._start()
        ear.bind(self._mailbox)

    def remove(self, ear: Ear) -> None:
        """Listens to it no longer: its `on_audio` is not called after this."""
        ear.close()
        self._ears.pop(ear.key, None)
        if not self._ears and self._mailbox is not None:
            self._stop(self._mailbox)

    def _start(self) -> wrtc.Mailbox:
        mailbox = wrtc.Mailbox()
        wake_fd = mailbox.enableWake()
        if wake_fd is None:
            raise OSError("wrtc gave no descriptor to wait on: this platform has none (Linux has)")
        stop_fd, self._stop_fd = os.pipe()
        self._thread = threading.Thread(
            target=self._run, args=(mailbox, wake_fd, stop_fd), name="listener", daemon=True
        )
        self._thread.start()
        return mailbox

    def _stop(self, mailbox: wrtc.Mailbox) -> None:
        os.close(self._stop_fd)
        if self._thread is not None:
            self._thread.join()
        mailbox.disableWake()
        mailbox.close()
        self._mailbox = self._thread = None

    def _run(self, mailbox: wrtc.Mailbox, wake_fd: int, stop_fd: int) -> None:
        waiting = select.poll()
        waiting.register(wake_fd, select.POLLIN)
        waiting.register(stop_fd, select.POLLIN)
        while all(fd != stop_fd for fd, _ in waiting.poll()):
            mailbox.ackWake()
            while (record := mailbox.take()) is not None:
                self._follow(record[3])
        os.close(stop_fd)

    def _follow(self, arguments: tuple[object, ...] | None) -> None:
        source = arguments[0] if arguments else None
        if not isinstance(source, wrtc.MediaStreamTrackProcessor):
            return
        ear = self._ears.get(source._id)
        if ear is not None:
            ear.hand_over()


_TAPS_PER_PHASE = 16


class BlockMaker:
    """Turns the decoded sound of one stream into blocks of 10 ms, mono, 48 kHz.

    PCMU is decoded at 8 kHz. soxr, which the sound card's side uses, hands out upsampled sound in lumps
    of 40 ms, which would have to be waited for; this filter delays by 1 ms (at 8 kHz) and gives at once.
    The rate may change on the way: before the first packet it is not the codec's.
    """

    def __init__(self) -> None:
        self._rate_hz = SAMPLE_RATE_HZ
        self._upsampler: _Upsampler | None = None
        self._rest: Samples = np.empty(0, np.int16)

    def blocks(self, samples: Samples, rate_hz: int, channels: int) -> Iterator[Block]:
        """The blocks that these samples (interleaved, shape (frames * channels,)) fill.

        Raises:
            ValueError: 48 kHz is no multiple of the rate. None of our codecs has such a one.
        """
        mono = samples
        if channels > 1:
            mono = samples.reshape(-1, channels).mean(axis=1).astype(np.int16)
        if rate_hz != self._rate_hz:
            self._rate_hz = rate_hz
            self._upsampler = None if rate_hz == SAMPLE_RATE_HZ else _Upsampler(rate_hz)
        if self._upsampler is not None:
            mono = self._upsampler.upsample(mono)
        if self._rest.size:
            mono = np.concatenate((self._rest, mono))
        full = mono.size - mono.size % BLOCK_FRAMES
        self._rest = mono[full:]
        for start in range(0, full, BLOCK_FRAMES):
            yield mono[start : start + BLOCK_FRAMES]


class _Upsampler:
    """A windowed-sinc interpolator to 48 kHz, in polyphase form."""

    def __init__(self, rate_hz: int) -> None:
        factor, remainder = divmod(SAMPLE_RATE_HZ, rate_hz)
        if remainder:
            raise ValueError(f"sound comes at {rate_hz} Hz, expected 48 kHz or a part of it")
        length = factor * _TAPS_PER_PHASE
        at = np.arange(length) - (length - 1) / 2
        prototype = np.sinc(at / factor) * np.kaiser(length, 6.0)
        # Row k makes the k-th of the `factor` samples that follow each sample that came.
        phases = prototype.reshape(_TAPS_PER_PHASE, factor).T
        self._phases: NDArray[np.float64] = phases / phases.sum(axis=1, keepdims=True)
        self._past: NDArray[np.float64] = np.zeros(_TAPS_PER_PHASE - 1)

    def upsample(self, samples: Samples) -> Samples:
        """`factor` samples for each."""
        known: NDArray[np.float64] = np.concatenate((self._past, samples.astype(np.float64)))
        self._past = known[known.size - (_TAPS_PER_PHASE - 1) :]
        windows = np.lib.stride_tricks.sliding_window_view(known, _TAPS_PER_PHASE)
        made: NDArray[np.float64] = windows[:, ::-1] @ self._phases.T
        return np.clip(np.rint(made), -32768, 32767).reshape(-1).astype(np.int16)
