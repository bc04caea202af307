"""wrtc's statistics report (W3C webrtc-stats) as the totals we keep."""

from typing import TypeVar

import webrtc

from agent.media.engine import MediaStats

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
