"""Settings of a device's sound: which sound card, how loud, and what is done to the voice."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Volume = Annotated[float, Field(ge=0, le=1, description="0 silent, 1 as loud as the device goes")]
AudioDeviceName = Annotated[int, Field(ge=0)] | Annotated[str, Field(min_length=1, max_length=256)]
"""A sound device by its index, or by its name or a part of it, as `bellwire doctor audio` lists them."""

RING_TONES = ("classic", "digital", "chime", "european", "silent")
"""The names of the built-in ring tones (`hardware.audio.tones`)."""


def unknown_ring_tone(ring_tone: str) -> str | None:
    """What is wrong with a ring tone's name; None where it may exist. Whether a file does can only be
    seen on the device."""
    if ring_tone in RING_TONES or ring_tone.lower().endswith(".wav"):
        return None
    return (
        f"there is no ring tone {ring_tone[:64]!r}: name one of {', '.join(RING_TONES)},"
        " or a .wav file on the device"
    )


def _named(ring_tone: str) -> str:
    problem = unknown_ring_tone(ring_tone)
    if problem is not None:
        raise ValueError(problem)
    return ring_tone


def missing_ring_tone(ring_tone: str) -> str | None:
    """What is wrong with a ring tone's file on this machine, as far as can be said without playing
    it; None where nothing is, or where it is built in. It looks at the disk."""
    if ring_tone in RING_TONES:
        return None
    path = Path(ring_tone)
    if not path.is_file():
        problem = "there is no such file"
    elif not os.access(path, os.R_OK):
        problem = "this user may not read it"
    else:
        return None
    return (
        f"the ring tone {ring_tone} cannot be played: {problem}; name a .wav file that is there,"
        f" or one of {', '.join(RING_TONES)}"
    )


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ProcessingSettings(_Settings):
    """What is done to the captured voice (by SpeexDSP and WebRTC). Each stage can be off."""

    echo_cancellation: bool = True
    noise_suppression: bool = True
    gain_control: bool = False
    """Makes soft voices louder, and with them what is left of noise and echo: some 15 dB less of the
    echo is taken away. Better is a microphone that is loud enough (alsamixer)."""
    high_pass_filter: bool = True
    """Below 80 Hz. Echo cancellation and noise suppression bring one of their own, also where it is off."""


class AudioSettings(_Settings):
    """A device's sound. Where it names no device, the system's default is used."""

    enabled: bool = True
    """Whether there is sound at all; a bare ringer or door needs none."""
    input_device: AudioDeviceName | None = None
    output_device: AudioDeviceName | None = None
    speaker_volume: Volume = 0.8
    ring_volume: Volume = 0.8
    ring_tone: Annotated[str, Field(max_length=4096), AfterValidator(_named)] = "classic"
    """A built-in ring tone (classic, digital, chime, european, silent), or the path of a WAV file on the
    device. One that cannot be played is the fault `audio`, and `classic` rings in its place."""
    processing: ProcessingSettings = Field(default_factory=ProcessingSettings)
