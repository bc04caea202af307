"""What is done to the captured voice: echo cancellation, noise suppression, gain control, high-pass.

Two libraries do it. SpeexDSP's adaptive filter takes the echo out and keeps the near voice in double
talk, once it has learnt the way from the speaker to the microphone. Until then, and where it cannot
(two sound cards whose clocks drift, an echo that comes later than its filter reaches), WebRTC's audio
processing does, by livekit, which always copes, but makes near voices hollow while the far one speaks.
They are loaded when the first stage is needed: a ringer without a microphone does not pay for it. It is
done on a thread of its own (`VoiceThread`), between PortAudio's and whoever talks.
"""

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable

import numpy as np

from bellwire.config.agent.audio import ProcessingSettings
from bellwire.hardware.audio.block import BLOCK_FRAMES, SAMPLE_RATE_HZ, Block, Meter, saturated
from bellwire.hardware.audio.echo_canceller import (
    Alongside,
    EchoPath,
    FarAlone,
    NoSpeex,
    SpeexEchoCanceller,
)
from bellwire.hardware.audio.recorder import Recorder

log = logging.getLogger(__name__)

_MAX_DELAY_MS = 500
"""What WebRTC takes (modules/audio_processing, set_stream_delay_ms)."""
_FADE_IN = (np.arange(BLOCK_FRAMES) / BLOCK_FRAMES).astype(np.float32)


class VoiceProcessing:
    """Processes one microphone's voice against one speaker's sound. One thread's.

    Building it imports livekit: do that off the event loop.

    Args:
        settings: Which stages there are; with none, nothing is changed and nothing imported.
    """

    def __init__(self, settings: ProcessingSettings) -> None:
        self._echo = _EchoStage(settings) if settings.echo_cancellation else None
        self._rest: _WebRtc | None = None
        if self._echo is None and any(settings.model_dump().values()):
            self._rest = _WebRtc(settings)
        elif settings.echo_cancellation and settings.gain_control:
            self._rest = _WebRtc(
                ProcessingSettings(
                    echo_cancellation=False, noise_suppression=False, high_pass_filter=False,
                    gain_control=True,
                )
            )  # fmt: skip

    def set_delay(self, delay_s: float) -> None:
        """Says how long a block played takes to come back as captured, apart from the air."""
        if self._echo is not None:
            self._echo.webrtc.set_delay(delay_s)

    def played(self, block: Block) -> None:
        """Takes in what the speaker is about to play."""
        if self._echo is not None:
            self._echo.played(block)

    def captured(self, block: Block) -> Block:
        """What is left of a captured block."""
        if self._echo is not None:
            block = self._echo.captured(block)
        return block if self._rest is None else self._rest.captured(block)


class _EchoStage:
    """SpeexDSP where its filter knows the way of the echo, WebRTC where it does not; one fades into the
    other."""

    def __init__(self, settings: ProcessingSettings) -> None:
        self.webrtc = _WebRtc(settings.model_copy(update={"gain_control": False}))
        self._speex: SpeexEchoCanceller | None = None
        self._alongside = Alongside()
        self._path = EchoPath()
        self._far_alone = FarAlone()
        try:
            self._speex = SpeexEchoCanceller(noise_suppression=settings.noise_suppression)
        except NoSpeex as error:
            log.info("less is kept of a voice while the other side speaks, too: %s", error)

    def played(self, block: Block) -> None:
        self._alongside.played(block)
        if not self._path.is_known:
            self.webrtc.played(block)

    def captured(self, block: Block) -> Block:
        if self._speex is None:
            return self.webrtc.captured(block)
        played = self._alongside.pull()
        left, clean = self._speex.cancel(block, played)
        clean = self._far_alone.less(clean, block, left)
        was_known = self._path.is_known
        self._path.see(played, block, left)
        if was_known and self._path.is_known:
            return clean
        other = self.webrtc.captured(block)
        if was_known == self._path.is_known:
            return other
        before, after = (clean, other) if was_known else (other, clean)
        return saturated(before + (after.astype(np.float32) - before) * _FADE_IN)


class _WebRtc:
    """WebRTC's audio processing. Its echo cancellation and noise suppression bring its high-pass
    filter along, whatever the setting."""

    def __init__(self, settings: ProcessingSettings) -> None:
        from livekit.rtc import AudioFrame, AudioProcessingModule

        self._bytes = bytearray(2 * BLOCK_FRAMES)
        self._samples = np.frombuffer(self._bytes, np.int16)
        self._frame = AudioFrame(self._bytes, SAMPLE_RATE_HZ, 1, BLOCK_FRAMES)
        self._module = AudioProcessingModule(
            echo_cancellation=settings.echo_cancellation,
            noise_suppression=settings.noise_suppression,
            high_pass_filter=settings.high_pass_filter,
            auto_gain_control=settings.gain_control,
        )

    def set_delay(self, delay_s: float) -> None:
        self._module.set_stream_delay_ms(min(_MAX_DELAY_MS, max(0, round(delay_s * 1000))))

    def played(self, block: Block) -> None:
        self._samples[:] = block
        self._module.process_reverse_stream(self._frame)

    def captured(self, block: Block) -> Block:
        self._samples[:] = block
        self._module.process_stream(self._frame)
        return self._samples.copy()


_KEPT_BLOCKS = 50
"""Half a second: a thread that is further behind drops what is new, rather than lag for ever."""
_PLAYED_AT_ONCE = 5
"""What was played waits for what is captured next, which needs it; where nothing is captured, for so
many blocks. So the thread is woken once in 10 ms, not twice."""


class VoiceThread:
    """Takes blocks as they are captured and played, in that order, from PortAudio's threads.

    Args:
        deliver: Called on the thread with each processed block; must not block.
        recorder: Keeps both sides, where there is one.
    """

    def __init__(
        self,
        deliver: Callable[[Block], None],
        recorder: Recorder | None = None,
    ) -> None:
        self.input = Meter()
        self.output = Meter()
        self.dropped = 0
        self.processing: VoiceProcessing | None = None
        """What is done to the voice; may be replaced at any time."""
        self._deliver = deliver
        self._recorder = recorder
        self._blocks: deque[tuple[bool, Block]] = deque()
        # A SimpleQueue's put never waits, not even for its reader. False: it is over.
        self._woken: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="bellwire voice", daemon=True)
        self._thread.start()

    def captured(self, block: Block) -> None:
        """Takes what the microphone gave. Returns at once."""
        self._put(True, block)

    def played(self, block: Block) -> None:
        """Takes what the speaker is given. Returns at once."""
        self._put(False, block)

    def stop(self) -> None:
        """Ends it; waits until it has. Blocks."""
        self._woken.put(False)
        self._thread.join()

    def _put(self, is_captured: bool, block: Block) -> None:
        waiting = len(self._blocks)
        if waiting >= _KEPT_BLOCKS:
            self.dropped += 1
            return
        self._blocks.append((is_captured, block))
        if is_captured or waiting + 1 >= _PLAYED_AT_ONCE:
            self._woken.put(True)

    def _run(self) -> None:
        while self._woken.get():
            while self._blocks:
                is_captured, block = self._blocks.popleft()
                if is_captured:
                    self._send(block)
                else:
                    self._hear(block)

    def _hear(self, block: Block) -> None:
        if self.processing is not None:
            self.processing.played(block)
        self.output.add(block)
        if self._recorder is not None:
            self._recorder.played(block)

    def _send(self, block: Block) -> None:
        voice = block if self.processing is None else self.processing.captured(block)
        self.input.add(voice)
        if self._recorder is not None:
            voice = self._recorder.captured(voice)
        self._deliver(voice)
