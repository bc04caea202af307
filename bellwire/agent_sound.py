"""The sound card that `bellwire agent` uses: the machine's, or in a simulation one that is not there."""

from typing import Any

import structlog

from agent.sound_card import SoundCard
from config.audio import AudioSettings
from hardware.audio.devices import initialise_pyaudio
from hardware.audio.recorder import Recorder
from hardware.audio.simulated_card import SimulatedSoundCard

log = structlog.get_logger(__name__)


def sound_card(
    settings: AudioSettings, *, simulate: bool = False, recorder: Recorder | None = None
) -> SoundCard:
    """The sound card. In a simulation on a machine without any, a simulated one takes its place."""
    if simulate:
        return SoundCard(settings, recorder=recorder, initialise=_real_or_simulated)
    return SoundCard(settings, recorder=recorder)


def _real_or_simulated() -> Any:  # noqa: ANN401 - PyAudio has no types
    real = initialise_pyaudio()
    if real.get_device_count():
        return real
    real.terminate()
    log.info("no sound device here: a simulated one takes its place")
    return SimulatedSoundCard()
