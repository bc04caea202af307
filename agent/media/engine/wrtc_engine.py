"""The voice on libwebrtc: `MediaEngine` by the package `wrtc` (module `webrtc`), whose API is the
browser's (W3C webrtc-pc, webrtc-stats) in snake_case.

Its quirks are known in the files wrtc_*.py only. Import this when sound is first needed: it loads
libwebrtc, 12 MB.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TypeVar

import structlog
import webrtc

from bellwire.agent.media.engine.interface import (
    SAMPLE_RATE_HZ,
    Block,
    IceCandidate,
    IceServer,
    MediaStats,
    PeerListeners,
    PeerState,
)
from bellwire.agent.media.engine.sdp import asking_for_short_packets, is_of, spoken_codecs
from bellwire.agent.media.engine.wrtc_listener import Ear, WrtcListener
from bellwire.signaling.errors import CallError

log = structlog.get_logger(__name__)

OPUS_BITRATE = 32_000
"""Bits per second: fullband speech without audible loss, and room for Opus's own error correction
(RFC 7587, section 3.1.1: 28 to 40 kbit/s for fullband speech)."""

_EARLY_CANDIDATES = 64
_DTMF_TONES = frozenset("0123456789*#")
_CODECS = ("audio/opus", "audio/PCMU", "audio/telephone-event")
_OURS = {"audio/opus": "opus", "audio/PCMU": "pcmu"}

_Given = TypeVar("_Given")

# Whatever wrtc finds wrong with an argument or its state; RTCException covers its own kinds.
_REFUSED = (webrtc.PythonWebRTCExceptionBase, TypeError, ValueError)


class WrtcEngine:
    """Makes connections.

    Args:
        allow_loopback: Whether two ends on one machine may meet over 127.0.0.1, which WebRTC does
            not try by itself. For tests, the demo and the simulation; for the whole process, and to
            be said before its first connection.
        connect_within_s: After this long without a connection, it has failed.
    """

    def __init__(self, *, allow_loopback: bool = False, connect_within_s: float = 20.0) -> None:
        if allow_loopback:
            _allow_loopback_once()
        self._connect_within_s = connect_within_s
        self._listener = WrtcListener()
        self._connections: set[WrtcConnection] = set()

    def connect(
        self, ice_servers: Sequence[IceServer], listeners: PeerListeners
    ) -> "WrtcConnection":
        """A new connection, for one audio stream each way. To be called on the event loop.

        Raises:
            CallError: 53400, where WebRTC refuses a server's address.
        """
        connection = WrtcConnection(
            ice_servers,
            listeners,
            self._listener,
            self._connect_within_s,
            self._connections.discard,
        )
        self._connections.add(connection)
        return connection

    async def close(self) -> None:
        """Closes every connection that is left."""
        for connection in tuple(self._connections):
            await connection.close()


_loopback_allowed = False


def _allow_loopback_once() -> None:
    """wrtc refuses the call once there has been a connection, also the repeated one."""
    global _loopback_allowed  # the switch it mirrors is the process's, too
    if not _loopback_allowed:
        webrtc.allow_loopback()
        _loopback_allowed = True


class WrtcConnection:
    """The voice between this device and one other: see `agent.media.engine.interface.PeerConnection`."""

    def __init__(
        self,
        ice_servers: Sequence[IceServer],
        listeners: PeerListeners,
        listener: WrtcListener,
        connect_within_s: float,
        on_closed: Callable[["WrtcConnection"], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listeners = listeners
        self._listener = listener
        self._connect_within_s = connect_within_s
        self._on_closed = on_closed
        self._state = PeerState.NEW
        self._codec: str | None = None
        self._remote_sdp: str | None = None
        self._early: deque[IceCandidate] = deque(maxlen=_EARLY_CANDIDATES)
        self._own_candidates: list[IceCandidate] | None = []
        self._giving_up: asyncio.TimerHandle | None = None
        self._dtmf_lock = asyncio.Lock()
        self._dtmf_done: asyncio.Future[None] | None = None
        try:
            self._pc = webrtc.RTCPeerConnection(_configuration(ice_servers))
        except _REFUSED as error:
            raise CallError(53400, "WebRTC refused the ICE servers", _said(error)) from error
        # Every object of wrtc that is used later is kept: its wrappers are collected when nothing
        # refers to them, and then their events and sound end without a word.
        self._voice = webrtc.MediaStreamTrackGenerator("audio")
        # add_track, not add_transceiver: only its transceiver is taken for an offer (RFC 8829, 5.10).
        self._sender = self._pc.add_track(self._voice)
        self._transceiver = self._pc.get_transceivers()[0]
        self._transceiver.set_codec_preferences(_our_codecs())
        self._ear = Ear(self._transceiver.receiver.track, listeners.on_audio)
        self._listener.add(self._ear)
        self._pc.on("icecandidate", self._tell_candidate)
        self._pc.on("icecandidateerror", self._note_candidate_error)
        self._pc.on("connectionstatechange", self._follow_state)

    @property
    def state(self) -> PeerState:
        """Where the connection stands."""
        return self._state

    @property
    def codec(self) -> str | None:
        """What is spoken: `opus` or `pcmu`; None before an answer."""
        return self._codec

    async def create_offer(self, *, ice_restart: bool = False) -> str:
        """This side's offer (SDP), set as its local description. Its candidates follow it. 53400."""
        with self._candidates_held():
            options = webrtc.RTCOfferOptions(ice_restart=ice_restart)
            offer = await self._ask(53400, "its own offer", self._pc.create_offer(options))
            await self._ask(53400, "its own offer", self._pc.set_local_description(offer))
        return asking_for_short_packets(offer.sdp)

    async def accept_offer(self, sdp: str) -> str:
        """Takes the other side's offer and returns the answer to it. 53400, 53402, 53404."""
        with self._candidates_held():
            await self._take_description("offer", sdp)
            answer = await self._ask(53400, "its own answer", self._pc.create_answer())
            await self._ask(53400, "its own answer", self._pc.set_local_description(answer))
            await self._agree()
        return asking_for_short_packets(answer.sdp)

    async def accept_answer(self, sdp: str) -> None:
        """Takes the other side's answer. 53400, 53402, 53404."""
        await self._take_description("answer", sdp)
        await self._agree()

    async def add_candidate(self, candidate: IceCandidate) -> None:
        """Takes one of the other side's candidates. Those from before their description are kept, the
        last 64. 53402."""
        if self._remote_sdp is None or not is_of(candidate.candidate, self._remote_sdp):
            self._early.append(candidate)
            return
        index = candidate.sdp_m_line_index
        init = webrtc.RTCIceCandidateInit(
            candidate.candidate,
            candidate.sdp_mid,
            # There is one section: a candidate that names none can only be for that.
            0 if index is None and candidate.sdp_mid is None else index,
        )
        await self._ask(53402, "a candidate", self._pc.add_ice_candidate(init))

    def send(self, block: Block) -> None:
        """Sends one block; returns at once. What comes while nothing is connected is dropped."""
        if self._state in (PeerState.NEW, PeerState.CLOSED):
            return
        # The generator's stream takes chunks on its event loop only; the native call under it may be
        # made on any thread, and queues the block for the encoder's own.
        self._voice._generator.writeAudio(block.tobytes(), SAMPLE_RATE_HZ, 1, block.size)

    async def insert_dtmf(self, tones: str, duration_ms: int = 100, gap_ms: int = 70) -> None:
        """Sends tones (`0-9*#`, RFC 4733) and returns when they are sent. They travel between the
        blocks given to `send`, so these must go on. Times are held to 40 to 6000 ms, gaps to 30 to
        6000. 53405 where it cannot.

        Raises:
            ValueError: another character.
        """
        if not _DTMF_TONES.issuperset(tones):
            raise ValueError(f"tones are of 0-9*#, not {tones!r}")
        async with self._dtmf_lock:  # a second insert_dtmf would replace what is left of the first
            dtmf = self._sender.dtmf
            if dtmf is None:
                raise CallError(53405, "this connection cannot send tones")
            if not tones:
                return
            self._dtmf_done = done = self._loop.create_future()
            dtmf.on("tonechange", _settle_when_silent(done))
            try:
                dtmf.insert_dtmf(tones, duration_ms, gap_ms)
                await done
            except _REFUSED as error:
                raise CallError(53405, "no tones can be sent now", _said(error)) from error
            finally:
                dtmf.off("tonechange")
                self._dtmf_done = None

    async def stats(self) -> MediaStats:
        """What it counts; once closed, what it had counted."""
        return media_stats(await self._ask(53405, "to count", self._pc.get_stats()))

    async def close(self) -> None:
        """Ends it, and frees everything. `on_state` is not called for it, as in a browser."""
        if self._state is PeerState.CLOSED:
            return
        self._state = PeerState.CLOSED
        self._stop_giving_up()
        if self._dtmf_done is not None and not self._dtmf_done.done():
            self._dtmf_done.set_exception(CallError(53405, "the call ended before its tones"))
        self._listener.remove(self._ear)
        self._pc.off()
        self._pc.close()
        self._voice._generator.close()
        self._on_closed(self)

    # Descriptions

    async def _take_description(self, kind: Literal["offer", "answer"], sdp: str) -> None:
        """Sets the other side's description, and then the candidates that came before it."""
        try:
            codecs = spoken_codecs(sdp)
        except ValueError as error:
            raise CallError(53402, f"the {kind} is broken: {error}") from error
        if not codecs:
            raise CallError(53404, f"the {kind} has neither Opus nor PCMU")
        description = webrtc.RTCSessionDescriptionInit(kind, sdp)
        await self._ask(53402, f"the {kind}", self._pc.set_remote_description(description))
        self._remote_sdp = sdp
        early, self._early = self._early, deque(maxlen=_EARLY_CANDIDATES)
        for candidate in early:
            try:
                await self.add_candidate(candidate)
            except CallError as error:
                if self._state is PeerState.CLOSED:
                    raise
                log.warning("early candidate left out", error=str(error), said=error.original_error)

    async def _agree(self) -> None:
        """What holds once offer and answer are there."""
        parameters = self._sender.get_parameters()
        # libwebrtc speaks the first codec by the other side's order, whatever the answer prefers.
        self._codec = next(
            (_OURS[c.mime_type] for c in parameters.codecs if c.mime_type in _OURS), None
        )
        if self._codec == "opus":
            # Else the other side's fmtp (`maxaveragebitrate`, `stereo`) could ask for 510 kbit/s. Not
            # for PCMU: libwebrtc refuses a limit below a codec's fixed rate.
            for encoding in parameters.encodings:
                encoding.max_bitrate = OPUS_BITRATE
            await self._ask(53400, "the bitrate", self._sender.set_parameters(parameters))
        # After a time-out that was ours, wrtc is still connecting, and a restart is no news to it.
        self._follow_state()
        self._expect_connection()

    async def _ask(self, code: int, what: str, operation: Awaitable[_Given]) -> _Given:
        """What wrtc gives; what it refuses becomes a CallError of this code."""
        try:
            return await operation
        except asyncio.CancelledError:
            # wrtc cancels whoever waits for a connection that is closed meanwhile: nobody else did.
            task = asyncio.current_task()
            if self._state is not PeerState.CLOSED or task is None or task.cancelling():
                raise
            raise CallError(code, f"the connection was closed before {what} was taken") from None
        except _REFUSED as error:
            raise CallError(code, f"WebRTC refused {what}", _said(error)) from error

    # Candidates

    def _tell_candidate(self, event: webrtc.RTCPeerConnectionIceEvent) -> None:
        told = event.candidate
        candidate = (
            IceCandidate(told.candidate, told.sdp_mid, told.sdp_m_line_index)
            if told is not None
            else IceCandidate("")
        )
        if self._own_candidates is None:
            self._listeners.on_candidate(candidate)
        else:
            self._own_candidates.append(candidate)

    @contextmanager
    def _candidates_held(self) -> Iterator[None]:
        """Gathering begins before the description is returned; no candidate is told before that."""
        self._own_candidates = []
        try:
            yield
        finally:
            self._loop.call_soon(self._tell_held_candidates)

    def _tell_held_candidates(self) -> None:
        held, self._own_candidates = self._own_candidates or [], None
        if self._state is not PeerState.CLOSED:
            for candidate in held:
                self._listeners.on_candidate(candidate)

    def _note_candidate_error(self, event: webrtc.RTCPeerConnectionIceErrorEvent) -> None:
        log.info("ICE server gave no candidate", url=event.url, said=event.error_text)

    # State

    def _follow_state(self, _event: webrtc.Event | None = None) -> None:
        self._move(PeerState(self._pc.connection_state.value))

    def _move(self, state: PeerState) -> None:
        if state is self._state or self._state is PeerState.CLOSED:
            return
        self._state = state
        if state is PeerState.CONNECTING:
            self._expect_connection()
        elif state is not PeerState.NEW:
            self._stop_giving_up()
        self._listeners.on_state(state)

    def _expect_connection(self) -> None:
        """libwebrtc waits for ever for a first candidate, and says `failed` only of a path it had."""
        there = (PeerState.CONNECTED, PeerState.CLOSED)
        if self._giving_up is None and self._state not in there:
            self._giving_up = self._loop.call_later(self._connect_within_s, self._give_up)

    def _give_up(self) -> None:
        self._giving_up = None
        self._move(PeerState.FAILED)

    def _stop_giving_up(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None


def _configuration(ice_servers: Sequence[IceServer]) -> webrtc.RTCConfiguration:
    return webrtc.RTCConfiguration(
        ice_servers=[
            webrtc.RTCIceServer(list(server.urls), server.username, server.credential)
            for server in ice_servers
        ],
        bundle_policy=webrtc.RTCBundlePolicy.max_bundle,
    )


def _our_codecs() -> list[webrtc.RTCRtpCodec]:
    """Opus (with inband FEC, wrtc's default fmtp; without DTX, which would clip the beginnings of
    words), PCMU, and the tones at both their clocks."""
    capabilities = webrtc.RTCRtpReceiver.get_capabilities("audio")
    known = capabilities.codecs if capabilities is not None else []
    return [codec for name in _CODECS for codec in known if codec.mime_type == name]


def _settle_when_silent(
    done: "asyncio.Future[None]",
) -> Callable[[webrtc.RTCDTMFToneChangeEvent], None]:
    def take(event: webrtc.RTCDTMFToneChangeEvent) -> None:
        if event.tone == "" and not done.done():  # the empty tone: the last one has ended (W3C)
            done.set_result(None)

    return take


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:512]


_Stats = TypeVar("_Stats", bound=webrtc.RTCStats)


def media_stats(report: webrtc.RTCStatsReport) -> MediaStats:
    """The totals of the one audio stream each way."""
    sent = _first(report, webrtc.RTCOutboundRtpStreamStats)
    heard = _first(report, webrtc.RTCInboundRtpStreamStats)
    theirs = _first(report, webrtc.RTCRemoteInboundRtpStreamStats)
    connection = _first(report, webrtc.RTCPeerConnectionStats)
    buffered = heard.jitter_buffer_emitted_count if heard else None
    return MediaStats(
        timestamp_s=(connection.timestamp if connection else 0.0) / 1000,
        codec=_codec(report, sent.codec_id if sent else None),
        bytes_sent=(sent.bytes_sent if sent else None) or 0,
        bytes_received=(heard.bytes_received if heard else None) or 0,
        packets_sent=(sent.packets_sent if sent else None) or 0,
        packets_received=(heard.packets_received if heard else None) or 0,
        packets_lost=(heard.packets_lost if heard else None) or 0,
        jitter_s=heard.jitter if heard else None,
        round_trip_s=_round_trip_s(report, theirs),
        # The report sums the delays of all samples: divided, it is what one waits on average.
        jitter_buffer_delay_s=(
            (heard.jitter_buffer_delay or 0.0) / buffered if heard and buffered else None
        ),
        concealed_samples=(heard.concealed_samples if heard else None) or 0,
        total_samples_received=(heard.total_samples_received if heard else None) or 0,
        remote_packets_lost=theirs.packets_lost if theirs else None,
        remote_fraction_lost=theirs.fraction_lost if theirs else None,
    )


def _first(report: webrtc.RTCStatsReport, kind: type[_Stats]) -> _Stats | None:
    return next((stats for stats in report.values() if type(stats) is kind), None)


def _codec(report: webrtc.RTCStatsReport, codec_id: str | None) -> str | None:
    codec = report.get(codec_id) if codec_id else None
    if not isinstance(codec, webrtc.RTCCodecStats) or codec.mime_type is None:
        return None
    return codec.mime_type.partition("/")[2].lower()


def _round_trip_s(
    report: webrtc.RTCStatsReport, theirs: webrtc.RTCRemoteInboundRtpStreamStats | None
) -> float | None:
    """By RTCP where the other side reports; until then, by ICE's checks of the path in use."""
    if theirs is not None and theirs.round_trip_time is not None:
        return theirs.round_trip_time
    pairs = (s for s in report.values() if isinstance(s, webrtc.RTCIceCandidatePairStats))
    return next((pair.current_round_trip_time for pair in pairs if pair.nominated), None)
