"""The sound card as a call uses it, and the streams of sound that a call lets others hear."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import structlog

from bellwire.agent.media.engine.engine import Block
from bellwire.signaling.errors import InvalidInput

log = structlog.get_logger(__name__)

OnBlock = Callable[[Block], None]


class Tone(StrEnum):
    """What is played through the speaker beside the voices."""

    RING = "ring"
    """Somebody calls."""
    RINGBACK = "ringback"
    """It rings at the other end."""
    CALL_WAITING = "call_waiting"
    """Somebody else calls during a call."""


@dataclass(frozen=True, slots=True)
class AudioDevices:
    """Which sound devices are used, by index, or by name or a part of it, as `config.agent.audio` names them;
    None: the configured ones.

    Raises:
        InvalidInput: a name is empty, and so a part of every name.
    """

    input_device: str | int | None = None
    output_device: str | int | None = None

    def __post_init__(self) -> None:
        if "" in (self.input_device, self.output_device):
            raise InvalidInput(
                "name a sound device as `bellwire doctor audio` lists it, or give None"
            )

    @property
    def named(self) -> dict[str, str | int]:
        """Those that are named, under the names of their settings."""
        both = {"input_device": self.input_device, "output_device": self.output_device}
        return {which: name for which, name in both.items() if name is not None}

    def serve(self, wanted: "AudioDevices") -> bool:
        """Whether these, in use, are what another call wants: it names the same, or leaves it open."""
        return wanted.named.items() <= self.named.items()


class Voice(Protocol):
    """Microphone and speaker. Its methods belong on the event loop, but for `play` and `take_back`,
    which one thread for each source may call."""

    async def open(self, on_captured: OnBlock, devices: AudioDevices) -> None:
        """Starts both; `on_captured` is called with each block of the microphone, from any one
        thread, and must not block. CallError 53400 where there is no such sound device, or it is in use."""
        ...

    def play(self, source: str, block: Block) -> None:
        """Plays the next block of a source; all sources are mixed. Returns at once."""
        ...

    def take_back(self, source: str, blocks: int) -> None:
        """Silences the last so many blocks of a source, as far as they have not been heard."""
        ...

    def forget(self, source: str) -> None:
        """This source says nothing more."""
        ...

    async def close(self) -> None:
        """Stops both; then the configured devices are in force again. They may be stopped already."""
        ...

    async def failed(self) -> str:
        """Waits until a device of it does not work; returns what is wrong, and what to do."""
        ...

    async def works(self) -> None:
        """Waits until it is well."""
        ...

    def start_tone(self, tone: Tone, volume: float = 1.0) -> None:
        """Plays a tone until `stop_tone`, whether or not a call is on; `volume` is 0.0 to 1.0."""
        ...

    def stop_tone(self) -> None:
        """Ends it; there may be none."""
        ...


class AudioStream:
    """Sound of a call as it goes by, in blocks (seed 003, getLocalStream and getRemoteStream)."""

    def __init__(self) -> None:
        self._listeners: tuple[OnBlock, ...] = ()

    def listen(self, listener: OnBlock) -> Callable[[], None]:
        """Has `listener` called with each block, on a thread of the sound's own, where it must not
        block; what is returned ends that."""
        self._listeners = (*self._listeners, listener)

        def unsubscribe() -> None:
            self._listeners = tuple(one for one in self._listeners if one is not listener)

        return unsubscribe

    def publish(self, block: Block) -> None:
        """Hands a block to all who listen."""
        for listener in self._listeners:
            try:
                listener(block)
            except Exception:  # a listener is an application's: the voice goes on
                log.exception("a listener to sound failed")
