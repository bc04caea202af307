"""What the parts of a call's sound are told, and tell each other."""

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.media.engine import Block, IceServer, PeerConnection, PeerListeners
from agent.voice import AudioDevices
from signaling.errors import CallError
from signaling.identifiers import Identity
from signaling.media import MediaDocument


@dataclass(frozen=True, slots=True)
class MediaTiming:
    """How long the parts of a call's sound may take, in seconds."""

    gathering_s: float = 0.1
    """A description waits so long for candidates to take along."""
    connect_within_s: float = 20.0
    """From the answer to the call until sound goes both ways."""
    unsettled_s: float = 2.0
    """A connection that breaks and comes back by itself within this was not lost."""
    restart_first_s: float = 1.0
    restart_longest_s: float = 8.0
    """Between two restarts of ICE: the first, doubled up to the longest."""
    give_up_s: float = 30.0
    """From the loss of the sound, or of a sound device, until the call is given up."""
    signalling_give_up_s: float = 600.0
    """From the loss of the relay until a call whose sound goes on is given up."""
    last_word_s: float = 3.0
    """How long it is tried to tell the other side why there is no sound."""


@dataclass(frozen=True, slots=True)
class PeerNews:
    """Who is told how the sound with one party stands. All but `heard`, which is called with each
    block on the engine's thread, are called on the event loop."""

    connected: Callable[[], None]
    lost: Callable[[], None]
    without_sound: Callable[[], None]
    heard: Callable[[Block], None]


Connect = Callable[[PeerListeners], Awaitable[PeerConnection]]
Say = Callable[[Identity, MediaDocument], Coroutine[Any, Any, None]]
EnterRoom = Callable[[str], Awaitable[str]]
"""Gives the call's room an offer (SDP), and returns its answer. CallError where there is no room."""


@dataclass(frozen=True, slots=True)
class MediaNews:
    """Who is told how the sound of a call stands; called on the event loop.

    Args:
        connected: Sound goes both ways with somebody, or nobody else has any.
        lost: It went, and does not with anybody now; it is tried to get it back.
        failed: It cannot be with one party, or, for None, with the room of the call; the flag says that
            nobody is left.
        digit: A party has pressed a digit; None: it came out of the call's room, whoever pressed it.
    """

    connected: Callable[[], None]
    lost: Callable[[], None]
    failed: Callable[[Identity | None, CallError, bool], None]
    digit: Callable[[Identity | None, str], None]


@dataclass(frozen=True, slots=True)
class MediaOptions:
    """What the application asks of a call's sound: servers in place of the relay's, sound devices in place
    of the configured ones."""

    ice_servers: Sequence[IceServer] | None = None
    audio_devices: AudioDevices = field(default_factory=AudioDevices)
