"""What a media engine does for a call, whichever library is behind it.

One `PeerConnection` carries the voice between this device and one other; a call of several has
several. Samples are signed 16-bit, mono, 48 kHz, in blocks of 10 ms.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from bellwire.hardware.audio.block import BLOCK_FRAMES, SAMPLE_RATE_HZ, Block

__all__ = [
    "BLOCK_FRAMES",
    "SAMPLE_RATE_HZ",
    "Block",
    "IceCandidate",
    "IceServer",
    "MediaEngine",
    "MediaStats",
    "PeerConnection",
    "PeerListeners",
    "PeerState",
]


@dataclass(frozen=True, slots=True)
class IceServer:
    """A STUN or TURN server (RFC 8445, RFC 8656), and this device's short-lived credentials there."""

    urls: tuple[str, ...]
    username: str | None = None
    credential: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class IceCandidate:
    """One trickled candidate (RFC 8838); an empty `candidate` says that there are no more."""

    candidate: str
    sdp_mid: str | None = None
    sdp_m_line_index: int | None = None


class PeerState(StrEnum):
    """Where the connection stands (W3C webrtc-pc, RTCPeerConnectionState)."""

    NEW = "new"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    FAILED = "failed"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class MediaStats:
    """Totals since the connection began (W3C webrtc-stats). Times in seconds, `timestamp_s` since 1970; None:
    not yet known.
    `packets_lost` is what we missed of theirs; `remote_*` is what they say of ours."""

    timestamp_s: float
    codec: str | None = None
    bytes_sent: int = 0
    bytes_received: int = 0
    packets_sent: int = 0
    packets_received: int = 0
    packets_lost: int = 0
    jitter_s: float | None = None
    round_trip_s: float | None = None
    jitter_buffer_delay_s: float | None = None
    concealed_samples: int = 0
    total_samples_received: int = 0
    remote_packets_lost: int | None = None
    remote_fraction_lost: float | None = None


class PeerConnection(Protocol):
    """The voice between this device and one other. Its methods belong on the event loop, but for
    `send`, which any one thread may call.

    Raises (each method): CallError 53400, 53402, 53404 or 53405, as its docstring says.
    """

    @property
    def state(self) -> PeerState:
        """Where the connection stands."""
        ...

    @property
    def codec(self) -> str | None:
        """What is spoken: `opus` or `pcmu`; None before an answer."""
        ...

    async def create_offer(self, *, ice_restart: bool = False) -> str:
        """This side's offer (SDP), set as its local description. 53400."""
        ...

    async def accept_offer(self, sdp: str) -> str:
        """Takes the other side's offer and returns the answer to it. 53400, 53402, 53404."""
        ...

    async def accept_answer(self, sdp: str) -> None:
        """Takes the other side's answer. 53400, 53402, 53404."""
        ...

    async def add_candidate(self, candidate: IceCandidate) -> None:
        """Takes one of the other side's candidates, before or after its description. 53402."""
        ...

    def send(self, block: Block) -> None:
        """Sends one block; returns at once. What comes while nothing is connected is dropped."""
        ...

    async def insert_dtmf(self, tones: str, duration_ms: int = 100, gap_ms: int = 70) -> None:
        """Sends tones (`0-9*#`, RFC 4733), and returns when they are sent; `send` goes on meanwhile.
        53405 where it cannot; ValueError for other characters."""
        ...

    async def stats(self) -> MediaStats:
        """What it counts; after `close`, what it last counted."""
        ...

    async def close(self) -> None:
        """Ends it, and frees everything. It may be closed already."""
        ...


@dataclass(frozen=True, slots=True)
class PeerListeners:
    """What a connection tells of. `on_candidate` and `on_state` are called on the event loop;
    `on_audio` with each block heard, from any one thread at a time, and must not block."""

    on_candidate: Callable[[IceCandidate], None]
    on_state: Callable[[PeerState], None]
    on_audio: Callable[[Block], None]


class MediaEngine(Protocol):
    """Makes connections. One for a process."""

    def connect(self, ice_servers: Sequence[IceServer], listeners: PeerListeners) -> PeerConnection:
        """A new connection, for one audio stream each way."""
        ...

    async def close(self) -> None:
        """Closes every connection that is left."""
        ...
