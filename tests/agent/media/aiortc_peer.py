"""An independent peer: the `PeerConnection` protocol on aiortc, a WebRTC stack written in Python.

It shows that another library can stand in for wrtc, and that what we send is understood elsewhere.
"""

import asyncio
import fractions
from collections import deque
from collections.abc import Sequence

import numpy as np
from aiortc import (
    AudioStreamTrack,
    MediaStreamTrack,
    RTCConfiguration,
    RTCIceServer,
    RTCPeerConnection,
    RTCRtpSender,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError
from aiortc.sdp import candidate_from_sdp
from av import AudioFrame

from bellwire.agent.media.engine.interface import (
    Block,
    IceCandidate,
    IceServer,
    MediaStats,
    PeerListeners,
    PeerState,
)
from bellwire.agent.media.engine.sdp import spoken_codecs
from bellwire.agent.media.engine.wrtc_listener import BlockMaker
from bellwire.signaling.errors import CallError

_FRAME = 960
"""aiortc's encoders take 20 ms."""


class AiortcPeer:
    """See `agent.media.engine.interface.PeerConnection`. `codecs`: what it speaks, e.g. `("audio/PCMU",)`."""

    def __init__(
        self,
        ice_servers: Sequence[IceServer],
        listeners: PeerListeners,
        codecs: Sequence[str] = ("audio/opus", "audio/PCMU"),
    ) -> None:
        servers = [RTCIceServer(list(s.urls), s.username, s.credential) for s in ice_servers]
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        self.codec: str | None = None
        self._listeners = listeners
        self._codecs = codecs
        self._voice = _Voice()
        self._hearing: asyncio.Task[None] | None = None
        self.pc.addTrack(self._voice)
        self._choose_codecs()
        self.pc.on("track", self._hear)
        self.pc.on("connectionstatechange", lambda: listeners.on_state(self.state))

    @property
    def state(self) -> PeerState:
        return PeerState(self.pc.connectionState)

    async def create_offer(self, *, ice_restart: bool = False) -> str:
        if ice_restart:
            raise CallError(53400, "aiortc cannot restart ICE")
        await self.pc.setLocalDescription(await self.pc.createOffer())
        return self._described()

    async def accept_offer(self, sdp: str) -> str:
        await self.pc.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
        self._choose_codecs()
        await self.pc.setLocalDescription(await self.pc.createAnswer())
        self.codec = spoken_codecs(self._described())[0]
        return self._described()

    async def accept_answer(self, sdp: str) -> None:
        await self.pc.setRemoteDescription(RTCSessionDescription(sdp, "answer"))
        self.codec = spoken_codecs(sdp)[0]

    async def add_candidate(self, candidate: IceCandidate) -> None:
        if not candidate.candidate:
            await self.pc.addIceCandidate(None)
            return
        parsed = candidate_from_sdp(candidate.candidate.removeprefix("candidate:"))
        parsed.sdpMid, parsed.sdpMLineIndex = candidate.sdp_mid, candidate.sdp_m_line_index
        await self.pc.addIceCandidate(parsed)

    def send(self, block: Block) -> None:
        self._voice.blocks.append(block)

    async def insert_dtmf(self, tones: str, duration_ms: int = 100, gap_ms: int = 70) -> None:
        raise CallError(53405, f"aiortc sends no tones ({tones}, {duration_ms}, {gap_ms})")

    async def stats(self) -> MediaStats:
        report = {entry.type: entry for entry in (await self.pc.getStats()).values()}
        sent, heard = report["outbound-rtp"], report["inbound-rtp"]
        return MediaStats(
            timestamp_s=sent.timestamp.timestamp(),
            codec=self.codec,
            bytes_sent=sent.bytesSent,
            packets_sent=sent.packetsSent,
            packets_received=heard.packetsReceived,
            packets_lost=heard.packetsLost,
        )

    async def vanish(self) -> None:
        """Is gone without a word, like a device that loses its power."""
        await self.pc.getTransceivers()[0].sender.transport.transport.stop()

    async def close(self) -> None:
        await self.pc.close()
        if self._hearing is not None:
            await self._hearing

    def _described(self) -> str:
        # aiortc does not trickle: the description holds its candidates.
        return self.pc.localDescription.sdp

    def _choose_codecs(self) -> None:
        known = RTCRtpSender.getCapabilities("audio").codecs
        chosen = [codec for name in self._codecs for codec in known if codec.mimeType == name]
        self.pc.getTransceivers()[0].setCodecPreferences(chosen)

    def _hear(self, track: MediaStreamTrack) -> None:
        self._hearing = asyncio.create_task(self._hear_all(track))

    async def _hear_all(self, track: MediaStreamTrack) -> None:
        maker = BlockMaker()
        try:
            while True:
                frame = await track.recv()
                samples = frame.to_ndarray().reshape(-1)
                channels = len(frame.layout.channels)
                for block in maker.blocks(samples, frame.sample_rate, channels):
                    self._listeners.on_audio(block)
        except MediaStreamError:
            return  # the call is over


class _Voice(AudioStreamTrack):
    """What `send` was given, at the pace of the wall clock; silence when there is nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: deque[Block] = deque()
        self._sent = 0
        self._began: float | None = None

    async def recv(self) -> AudioFrame:
        loop = asyncio.get_running_loop()
        if self.readyState != "live":
            raise MediaStreamError
        if self._began is None:
            self._began = loop.time()
        await asyncio.sleep(self._began + self._sent / 48_000 - loop.time())
        silence = np.zeros(480, np.int16)
        pair = [self.blocks.popleft() if self.blocks else silence for _ in range(2)]
        frame = AudioFrame.from_ndarray(np.concatenate(pair)[np.newaxis], "s16", "mono")
        frame.pts, frame.sample_rate = self._sent, 48_000
        frame.time_base = fractions.Fraction(1, 48_000)
        self._sent += _FRAME
        return frame
