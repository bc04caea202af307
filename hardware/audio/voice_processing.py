"""What is done to the captured voice: echo cancellation, noise suppression, gain control, high-pass.

WebRTC's audio processing does it, by livekit, which is imported when the first stage is needed: a
ringer without a microphone does not pay for it.
"""

import numpy as np

from config.audio import ProcessingSettings
from hardware.audio.block import BLOCK_FRAMES, SAMPLE_RATE_HZ, Block

_MAX_DELAY_MS = 500
"""What WebRTC takes (modules/audio_processing, set_stream_delay_ms)."""


class VoiceProcessing:
    """Processes one microphone's voice against one speaker's sound. One thread's.

    Building it imports livekit: do that off the event loop.

    Args:
        settings: Which stages there are; with none, nothing is changed and nothing imported.
    """

    def __init__(self, settings: ProcessingSettings) -> None:
        self._module = None
        self._cancels_echo = settings.echo_cancellation
        if not any(settings.model_dump().values()):
            return
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
        """Says how long a block played takes to come back as captured, apart from the air."""
        if self._module is not None and self._cancels_echo:
            self._module.set_stream_delay_ms(min(_MAX_DELAY_MS, max(0, round(delay_s * 1000))))

    def played(self, block: Block) -> None:
        """Takes in what the speaker is about to play."""
        if self._module is not None and self._cancels_echo:
            self._samples[:] = block
            self._module.process_reverse_stream(self._frame)

    def captured(self, block: Block) -> Block:
        """What is left of a captured block."""
        if self._module is None:
            return block
        self._samples[:] = block
        self._module.process_stream(self._frame)
        return self._samples.copy()
