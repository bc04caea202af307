"""Warnings that a call sounds bad, and their clearing (spec §4, seed 003 "warning").

Raised when 3 of the last 5 samples cross the threshold, cleared when none of them does and 5 s have
passed: the rules and limits of Twilio's client (twilio-voice.js, statsMonitor.ts and call.ts;
"Voice Insights SDK Events"; a low MOS is one under 3, as in seed 003's example). A call's first 5 s
raise none: they are choppy in every call. Constant input means a microphone that gives the same level
for 10 s, such as one that is dead or switched off.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import pstdev
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from bellwire.agent.quality.sample import LEVEL_MAX, Sample

WINDOW = 5
CROSSINGS_TO_RAISE = 3
FIRST_SECONDS = 5
RAISED_AT_LEAST_MS = 5000.0
CONSTANT_FOR = 10
"""Samples, and so seconds, of the same input level."""


class WarningName(StrEnum):
    """What sounds bad, by the names of Twilio's client."""

    HIGH_RTT = "high-rtt"
    HIGH_JITTER = "high-jitter"
    HIGH_PACKET_LOSS = "high-packet-loss"
    LOW_MOS = "low-mos"
    CONSTANT_AUDIO_INPUT_LEVEL = "constant-audio-input-level"


class Threshold(BaseModel):
    """What was crossed: `max` 400 says that more than 400 is too much."""

    model_config = ConfigDict(frozen=True)

    name: Literal["max", "min", "minStandardDeviation"]
    value: float


class WarningData(BaseModel):
    """What a warning rests on: `name` is the sample's member, `values` are its latest ones."""

    model_config = ConfigDict(frozen=True)

    name: str
    values: Annotated[tuple[float, ...], Field(max_length=CONSTANT_FOR)]
    samples: Annotated[tuple[Sample, ...], Field(max_length=CONSTANT_FOR)]
    threshold: Threshold

    def document(self) -> dict[str, JsonValue]:
        """Its JSON document, as Twilio's listeners get it."""
        document: dict[str, JsonValue] = self.model_dump(mode="json", by_alias=True)
        return document


@dataclass(frozen=True, slots=True)
class WarningRaised:
    """What the event `warning` tells."""

    name: WarningName
    data: WarningData


@dataclass(frozen=True, slots=True)
class WarningCleared:
    """The event `warning-cleared`: it is well again. `data` is what it is now."""

    name: WarningName
    data: WarningData


@dataclass(frozen=True, slots=True)
class _Rule:
    warning: WarningName
    member: str
    value_of: Callable[[Sample], float | None]
    threshold: Threshold

    def crossed_by(self, value: float) -> bool:
        limit = self.threshold.value
        return value < limit if self.threshold.name == "min" else value > limit


_RULES = (
    _Rule(WarningName.HIGH_RTT, "rtt", lambda s: s.rtt, Threshold(name="max", value=400)),
    _Rule(WarningName.HIGH_JITTER, "jitter", lambda s: s.jitter, Threshold(name="max", value=30)),
    _Rule(
        WarningName.HIGH_PACKET_LOSS,
        "packetsLostFraction",
        lambda s: s.packets_lost_fraction,
        Threshold(name="max", value=1),
    ),
    _Rule(WarningName.LOW_MOS, "mos", lambda s: s.mos, Threshold(name="min", value=3)),
)
_CONSTANT_INPUT = Threshold(name="minStandardDeviation", value=0.01 * LEVEL_MAX)


class QualityWatch:
    """Watches the samples of one call."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=CONSTANT_FOR)
        self._volumes: deque[tuple[float, ...]] = deque(maxlen=CONSTANT_FOR)
        self._seen = 0
        self._raised_at_ms: dict[WarningName, float] = {}

    @property
    def raised(self) -> frozenset[WarningName]:
        """The warnings that were raised and not yet cleared."""
        return frozenset(self._raised_at_ms)

    def watch(
        self, sample: Sample, input_volumes: Sequence[float], *, muted: bool = False
    ) -> list[WarningRaised | WarningCleared]:
        """What the next sample raises and clears.

        Args:
            sample: The sample of this second.
            input_volumes: The microphone's volumes in it, each 0.0 to 1.0.
            muted: Whether the microphone is muted, so that its silence means nothing.
        """
        self._samples.append(sample)
        if muted:
            self._volumes.clear()
        else:
            self._volumes.append(tuple(input_volumes))
        self._seen += 1
        if self._seen <= FIRST_SECONDS:
            return []
        news = [self._judge(rule) for rule in _RULES]
        news.append(self._judge_input())
        return [item for item in news if item is not None]

    def _judge(self, rule: _Rule) -> WarningRaised | WarningCleared | None:
        samples = tuple(self._samples)[-WINDOW:]
        values = tuple(value for s in samples if (value := rule.value_of(s)) is not None)
        if len(values) < WINDOW:
            return None
        crossings = sum(rule.crossed_by(value) for value in values)
        data = WarningData(
            name=rule.member, values=values, samples=samples, threshold=rule.threshold
        )
        if crossings >= CROSSINGS_TO_RAISE:
            return self._raise(rule.warning, data)
        return self._clear(rule.warning, data) if crossings == 0 else None

    def _judge_input(self) -> WarningRaised | WarningCleared | None:
        volumes = [LEVEL_MAX * volume for second in self._volumes for volume in second]
        if len(self._volumes) < CONSTANT_FOR or not volumes:
            return None
        data = WarningData(
            name="audioInputLevel",
            values=tuple(float(sample.audio_input_level) for sample in self._samples),
            samples=tuple(self._samples),
            threshold=_CONSTANT_INPUT,
        )
        if pstdev(volumes) < _CONSTANT_INPUT.value:
            return self._raise(WarningName.CONSTANT_AUDIO_INPUT_LEVEL, data)
        return self._clear(WarningName.CONSTANT_AUDIO_INPUT_LEVEL, data)

    def _raise(self, name: WarningName, data: WarningData) -> WarningRaised | None:
        if name in self._raised_at_ms:
            return None
        self._raised_at_ms[name] = data.samples[-1].timestamp
        return WarningRaised(name, data)

    def _clear(self, name: WarningName, data: WarningData) -> WarningCleared | None:
        raised_at_ms = self._raised_at_ms.get(name)
        now_ms = data.samples[-1].timestamp
        if raised_at_ms is None or now_ms - raised_at_ms < RAISED_AT_LEAST_MS:
            return None
        del self._raised_at_ms[name]
        return WarningCleared(name, data)
