"""What is done to the captured voice: echo cancellation, noise suppression, gain control, high-pass.

Two libraries do it. SpeexDSP's adaptive filter takes the echo out and keeps the near voice in double
talk, once it has learnt the way from the speaker to the microphone. Until then, and where it cannot
(two sound cards whose clocks drift, an echo that comes later than its filter reaches), WebRTC's audio
processing does, by livekit, which always copes, but makes near voices hollow while the far one speaks.
They are loaded when the first stage is needed: a ringer without a microphone does not pay for it.
"""

import logging

import numpy as np

from config.audio import ProcessingSettings
from hardware.audio.block import BLOCK_FRAMES, SAMPLE_RATE_HZ, Block, saturated
from hardware.audio.echo_path import Alongside, EchoPath, FarAlone
from hardware.audio.speex import NoSpeex, SpeexEchoCanceller

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
