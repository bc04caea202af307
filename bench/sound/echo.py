"""What is left of an echo, and of the near speech beside it: a far voice is played into a simulated
room and comes back 60 ms later, first alone, then with a near voice. In virtual time, block by block.

Echo return loss enhancement is the level of the echo at the microphone over what leaves the stage
(ITU-T G.168, 3.5), far voice alone, once the stage has had time to converge.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from livekit.rtc import AudioFrame, AudioProcessingModule
from numpy.typing import NDArray

from bellwire.agent.media.engine.interface import BLOCK_FRAMES, Block
from bench.lab.pulse_server import RATE_HZ, Samples
from bench.sound.audio_quality import level_db, likeness, speech
from bench.sound.speech_heard import speech_heard

ECHO_DELAY_MS = 60
Stage = Callable[[Block, Block], Block]
"""Takes what the speaker plays now and what the microphone hears now; returns what is sent."""

_ECHO_LOSS_DB = 6.0
_TAIL_S = 0.04
_NOISE = 3e-4
_CONVERGE_S, _FAR_ALONE_S, _DOUBLE_TALK_S = 6, 8, 8


@dataclass(frozen=True, slots=True)
class EchoResult:
    """Of one stage: `erle_db`, and the correlation of the near voice in double talk with what is sent
    of it: by the loudness of its bands (`bench.sound.speech_heard`), and sample by sample, which also counts
    changes of gain and phase that nobody hears."""

    erle_db: float
    near_kept: float
    near_waveform_kept: float


def measure_echo(stage: Stage) -> EchoResult:
    """Runs the scene through a stage."""
    seconds = _CONVERGE_S + _FAR_ALONE_S + _DOUBLE_TALK_S
    far = speech(seconds)
    near = speech(_DOUBLE_TALK_S, "en-us+f2", first=3)
    double_talk = (_CONVERGE_S + _FAR_ALONE_S) * RATE_HZ
    heard = _echo(far)
    heard += _NOISE * np.random.default_rng(1).standard_normal(len(far)).astype(np.float32)
    heard[double_talk:] += near
    sent = _through(stage, far, heard)
    alone = slice(_CONVERGE_S * RATE_HZ, double_talk)
    return EchoResult(
        level_db(heard[alone]) - level_db(sent[alone]),
        speech_heard(near, sent[double_talk:]).correlation,
        likeness(near, sent[double_talk:]),
    )


def untouched(_played: Block, heard: Block) -> Block:
    """No processing: the baseline."""
    return heard


def bare_library() -> Stage:
    """LiveKit's audio processing (libwebrtc) and nothing around it, told the true delay."""
    library = AudioProcessingModule(
        echo_cancellation=True,
        noise_suppression=True,
        high_pass_filter=True,
        auto_gain_control=True,
    )

    def process(played: Block, heard: Block) -> Block:
        library.process_reverse_stream(AudioFrame(played.tobytes(), RATE_HZ, 1, BLOCK_FRAMES))
        library.set_stream_delay_ms(ECHO_DELAY_MS)
        frame = AudioFrame(heard.tobytes(), RATE_HZ, 1, BLOCK_FRAMES)
        library.process_stream(frame)
        return np.frombuffer(frame.data, np.int16).copy()

    return process


def _echo(far: Samples) -> Samples:
    """The far voice after 60 ms, 6 dB weaker, with a tail of reflections."""
    random = np.random.default_rng(7)
    tail = random.standard_normal(int(_TAIL_S * RATE_HZ)) * 0.02
    tail *= np.exp(-6 * np.arange(len(tail)) / len(tail))
    tail[0] = 1.0
    path = np.concatenate([np.zeros(ECHO_DELAY_MS * RATE_HZ // 1000), tail])
    size = 1 << (len(far) + len(path)).bit_length()
    echo = np.fft.irfft(np.fft.rfft(far, size) * np.fft.rfft(path, size), size)[: len(far)]
    quieter: Samples = (echo * 10 ** (-_ECHO_LOSS_DB / 20)).astype(np.float32)
    return quieter


def _through(stage: Stage, far: Samples, heard: Samples) -> Samples:
    played, captured = _blocks(far), _blocks(heard)
    sent = [stage(out, into) for out, into in zip(played, captured, strict=True)]
    return np.concatenate(sent).astype(np.float32) / np.float32(32_768)


def _blocks(samples: Samples) -> NDArray[np.int16]:
    whole = samples[: len(samples) // BLOCK_FRAMES * BLOCK_FRAMES]
    scaled: NDArray[np.int16] = (np.clip(whole, -1, 1) * 32_767).astype(np.int16)
    return scaled.reshape(-1, BLOCK_FRAMES)
