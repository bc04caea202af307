"""What the parts of a call's sound are told, and tell each other.

The work of one call: some of it ends with the call, some has to be finished after it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from bellwire.agent.media.engine.engine import Block, IceServer, PeerConnection, PeerListeners
from bellwire.agent.media.voice import AudioDevices
from bellwire.signaling.errors import CallError
from bellwire.signaling.identifiers import Identity
from bellwire.signaling.wire.media import MediaDocument


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


Work = Coroutine[Any, Any, None]
Spawn = Callable[[Work], "asyncio.Task[None] | None"]
"""Starts work that the device owns; None where the device is at rest and the work was dropped."""


class CallTasks:
    """The tasks of one call, all of them owned by the device's TaskGroup."""

    def __init__(self, spawn: Spawn) -> None:
        self._spawn = spawn
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Work) -> "asyncio.Task[None] | None":
        """Does something that ends with the call."""
        task = self._spawn(work)
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return task

    def outlive(self, work: Work) -> None:
        """Does something that has to be finished whatever becomes of the call."""
        self._spawn(work)

    def cancel(self) -> None:
        """Ends what ends with the call; but not the one who says so."""
        asking = asyncio.current_task()
        for task in tuple(self._tasks):
            if task is not asking:
                task.cancel()
        self._tasks.clear()
