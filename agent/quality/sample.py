"""A call's quality: the sample of each second (seed 003, "WebRTC Sample Data").

Units are Twilio's: jitter and round trip in ms, loss in percent, levels 0 to 32767 for volumes of 0.0 to
1.0, the timestamp in ms since 1970.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic.alias_generators import to_camel

from bellwire.agent.media.engine.interface import MediaStats
from bellwire.agent.quality.mos import mean_opinion_score

LEVEL_MAX = 32767

Count = Annotated[int, Field(ge=0)]
Level = Annotated[int, Field(ge=0, le=LEVEL_MAX)]
Percent = Annotated[float, Field(ge=0, le=100)]


class _Document(BaseModel):
    model_config = ConfigDict(
        frozen=True, alias_generator=to_camel, populate_by_name=True, allow_inf_nan=False
    )


class Totals(_Document):
    """Counted since the call began."""

    bytes_received: Count = 0
    bytes_sent: Count = 0
    packets_lost: Count = 0
    packets_lost_fraction: Percent = 0
    packets_received: Count = 0
    packets_sent: Count = 0


class Sample(_Document):
    """One second of a call, with Twilio's members. None: not yet known."""

    audio_input_level: Level = 0
    audio_output_level: Level = 0
    bytes_received: Count = 0
    bytes_sent: Count = 0
    codec_name: str | None = None
    jitter: float | None = None
    mos: Annotated[float, Field(ge=1, le=4.5)] | None = None
    packets_lost: Count = 0
    packets_lost_fraction: Percent = 0
    packets_received: Count = 0
    packets_sent: Count = 0
    rtt: float | None = None
    timestamp: float
    totals: Totals = Totals()

    def document(self) -> dict[str, JsonValue]:
        """Its JSON document, named as Twilio names it."""
        document: dict[str, JsonValue] = self.model_dump(mode="json", by_alias=True)
        return document


class SampleMaker:
    """Makes the samples of one connection out of its statistics. A call that reconnects may keep it:
    counters that begin anew are added to what was counted before."""

    def __init__(self) -> None:
        self._last = MediaStats(timestamp_s=0)
        self._totals = Totals()
        self._rtt_s: float | None = None

    def make(
        self, stats: MediaStats, input_volumes: Sequence[float], output_volumes: Sequence[float]
    ) -> Sample:
        """The sample of what happened since the last one.

        Args:
            stats: The connection's counters now.
            input_volumes: The microphone's volumes since then, each 0.0 to 1.0.
            output_volumes: The loudspeaker's.
        """
        last = self._last if _counts_on(self._last, stats) else MediaStats(timestamp_s=0)
        received = stats.packets_received - last.packets_received
        # A duplicate makes the count of lost packets fall (RFC 3550, 6.4.1), even under 0: what was
        # counted stays counted, and is not counted again when the number rises back.
        stats = replace(stats, packets_lost=max(stats.packets_lost, last.packets_lost))
        lost = stats.packets_lost - last.packets_lost
        fraction = lost / (lost + received) if lost + received else 0.0
        if stats.round_trip_s is not None:
            self._rtt_s = stats.round_trip_s
        mos = None
        if self._rtt_s is not None and stats.jitter_s is not None:
            mos = mean_opinion_score(self._rtt_s, stats.jitter_s, fraction, stats.codec)
        self._totals = _sum(self._totals, last, stats, lost)
        self._last = stats
        return Sample(
            audio_input_level=_level(input_volumes),
            audio_output_level=_level(output_volumes),
            bytes_received=stats.bytes_received - last.bytes_received,
            bytes_sent=stats.bytes_sent - last.bytes_sent,
            codec_name=stats.codec,
            jitter=_milliseconds(stats.jitter_s),
            mos=mos,
            packets_lost=lost,
            packets_lost_fraction=100 * fraction,
            packets_received=received,
            packets_sent=stats.packets_sent - last.packets_sent,
            rtt=_milliseconds(self._rtt_s),
            timestamp=stats.timestamp_s * 1000,
            totals=self._totals,
        )


def _counts_on(before: MediaStats, after: MediaStats) -> bool:
    """Whether these are the same counters, further on."""
    return (
        after.packets_received >= before.packets_received
        and after.packets_sent >= before.packets_sent
        and after.bytes_received >= before.bytes_received
        and after.bytes_sent >= before.bytes_sent
    )


def _sum(totals: Totals, last: MediaStats, stats: MediaStats, lost: int) -> Totals:
    all_lost = totals.packets_lost + lost
    all_received = totals.packets_received + stats.packets_received - last.packets_received
    expected = all_lost + all_received
    return Totals(
        bytes_received=totals.bytes_received + stats.bytes_received - last.bytes_received,
        bytes_sent=totals.bytes_sent + stats.bytes_sent - last.bytes_sent,
        packets_lost=all_lost,
        packets_lost_fraction=100 * all_lost / expected if expected else 0,
        packets_received=all_received,
        packets_sent=totals.packets_sent + stats.packets_sent - last.packets_sent,
    )


def _level(volumes: Sequence[float]) -> int:
    return round(LEVEL_MAX * sum(volumes) / len(volumes)) if volumes else 0


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
