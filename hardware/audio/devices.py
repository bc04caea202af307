"""The sound devices of this machine, as PortAudio lists them. Every call here may block.

PortAudio reads the list once, when it is initialised: what is plugged in later appears in the next
`PortAudio`. Its libraries write to standard error at each look; they are told not to.
"""

import contextlib
import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any


class NoDevice(Exception):
    """No device is there, or none of that name; says what to do."""


class SoundDirection(Enum):
    """Which way the sound goes, and the setting that names its device."""

    INPUT = "input_device"
    OUTPUT = "output_device"

    @property
    def part(self) -> str:
        """What a person connects."""
        return "microphone" if self is SoundDirection.INPUT else "speaker"


@dataclass(frozen=True, slots=True)
class SoundDevice:
    """One device. `rate_hz` is its default."""

    index: int
    name: str
    input_channels: int
    output_channels: int
    rate_hz: int
    is_default_input: bool
    is_default_output: bool

    def channels(self, direction: SoundDirection) -> int:
        """How many channels it has that way."""
        return self.input_channels if direction is SoundDirection.INPUT else self.output_channels

    def is_default(self, direction: SoundDirection) -> bool:
        """Whether it is the system's that way."""
        return (
            self.is_default_input if direction is SoundDirection.INPUT else self.is_default_output
        )


Initialise = Callable[[], Any]
"""Initialises PortAudio and returns it as `pyaudio.PyAudio` does."""


def initialise_pyaudio() -> Any:  # noqa: ANN401 - PyAudio has no types
    """Initialises PyAudio itself, with what its libraries print switched off."""
    _hush()
    import pyaudio

    return pyaudio.PyAudio()


class PortAudio:
    """PyAudio, initialised. Close it to read the list of devices anew with another."""

    def __init__(self, initialise: Initialise = initialise_pyaudio) -> None:
        self.api: Any = initialise()

    def devices(self) -> list[SoundDevice]:
        """All that can capture or play."""
        default_input = self._default(self.api.get_default_input_device_info)
        default_output = self._default(self.api.get_default_output_device_info)
        found = []
        for index in range(self.api.get_device_count()):
            told = self.api.get_device_info_by_index(index)
            found.append(
                SoundDevice(
                    index=index,
                    name=str(told["name"]),
                    input_channels=int(told["maxInputChannels"]),
                    output_channels=int(told["maxOutputChannels"]),
                    rate_hz=round(told["defaultSampleRate"]),
                    is_default_input=index == default_input,
                    is_default_output=index == default_output,
                )
            )
        return found

    def close(self) -> None:
        """Ends it. Its streams are closed before."""
        self.api.terminate()

    @staticmethod
    def _default(ask: Any) -> int | None:  # noqa: ANN401 - PyAudio has no types
        try:
            return int(ask()["index"])
        except OSError:  # there is none
            return None


def find_device(
    devices: Sequence[SoundDevice], wanted: int | str | None, direction: SoundDirection
) -> SoundDevice:
    """The device of an index or a name: the whole name goes before a part of it, capitals or not.

    Raises:
        NoDevice: there is none; says which there are.
    """
    usable = [device for device in devices if device.channels(direction)]
    if wanted is None:
        found = [device for device in usable if device.is_default(direction)] or usable
    elif isinstance(wanted, int):
        found = [device for device in usable if device.index == wanted]
    else:
        name = wanted.casefold()
        found = [device for device in usable if device.name.casefold() == name] or [
            device for device in usable if name in device.name.casefold()
        ]
    if found:
        return found[0]
    if not usable:
        raise NoDevice(
            f"this machine has no {direction.part}: connect a USB sound card or sound HAT, and see "
            "that the user is in the group audio"
        )
    there = ", ".join(f"{device.index} {device.name!r}" for device in usable)
    raise NoDevice(
        f"there is no {direction.part} {wanted!r}, only {there}: connect it, or name another as "
        f"audio.{direction.value}"
    )


_KEPT_ALIVE: list[Any] = []


def _hush() -> None:
    """Takes the libraries' error printers away; errors still come as return codes. Once a process."""
    if _KEPT_ALIVE:
        return
    no_more = ctypes.CFUNCTYPE(None)(lambda: None)  # takes, and ignores, whatever it is called with
    _KEPT_ALIVE.append(no_more)
    for library, setters in (
        ("libasound.so.2", ("snd_lib_error_set_handler",)),
        ("libjack.so.0", ("jack_set_error_function", "jack_set_info_function")),
    ):
        with contextlib.suppress(OSError, AttributeError):
            loaded = ctypes.CDLL(library)
            for setter in setters:
                getattr(loaded, setter)(no_more)
