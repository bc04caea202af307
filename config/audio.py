"""Settings of a device's sound: which sound card, how loud, and what is done to the voice."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Volume = Annotated[float, Field(ge=0, le=1, description="0 silent, 1 as loud as the device goes")]
AudioDeviceName = Annotated[int, Field(ge=0)] | Annotated[str, Field(min_length=1, max_length=256)]
"""A sound device by its index, or by its name or a part of it, as `bellwire doctor audio` lists them."""


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
    ring_tone: Annotated[str, Field(max_length=4096)] = "classic"
    """A built-in ring tone, or the path of a WAV file on the device."""
    processing: ProcessingSettings = Field(default_factory=ProcessingSettings)
