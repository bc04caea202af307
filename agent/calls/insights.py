"""What this device tells of its calls for later study (spec §4 "Insights"; seed 000, TVOCallInvite, names
groups and events; the levels and payloads are those of Twilio's client, twilio-voice.js, call.ts).

Each is one JSON document of at most 4 KiB on the device's `insights` topic. None holds what was said,
typed or sent, nor whom the call was with.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from bellwire.agent.calls.record import Direction
from bellwire.agent.quality.warnings import (
    CONSTANT_FOR,
    Threshold,
    WarningCleared,
    WarningName,
    WarningRaised,
)
from bellwire.signaling.calls.events import Moment
from bellwire.signaling.errors import CallError
from bellwire.signaling.identifiers import CallSid, CallSidField, DeviceId, DeviceIdField
from bellwire.signaling.wire.operations import FeedbackIssue

INSIGHT_LIMIT_BYTES = 4096
REJECTED_CODE = 31600
REJECTED_MESSAGE = "Busy Everywhere : SIP/2.0 600 Call Rejected"
_MESSAGE_MAX_LENGTH = 512

Level = Literal["info", "warning", "error"]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CallReference(_Document):
    """Which call an insight is of: part of every payload. An outgoing one has no SID at first."""

    call_sid: CallSidField | None
    device_id: DeviceIdField
    direction: Literal["INCOMING", "OUTGOING"]


class ErrorPayload(CallReference):
    """What failed, by Twilio's code."""

    code: int
    message: Annotated[str, Field(max_length=_MESSAGE_MAX_LENGTH)]


class CodecPayload(CallReference):
    """The codec that was negotiated, and its parameters (the SDP's `a=fmtp`)."""

    selected_codec: Annotated[str, Field(max_length=32)]
    codec_params: Annotated[str, Field(max_length=256)] = ""


class WarningValues(_Document):
    """What a warning rests on, rounded to a hundredth."""

    threshold: Threshold
    values: Annotated[tuple[float, ...], Field(max_length=CONSTANT_FOR)]


class WarningPayload(CallReference):
    """A quality warning's values."""

    data: WarningValues


class FeedbackPayload(CallReference):
    """How good a person found the call: 1 (terrible) to 5 (no issues)."""

    quality_score: Annotated[int, Field(ge=1, le=5)]
    issue_name: FeedbackIssue | None = None


class _Insight(_Document):
    level: Level = "info"
    timestamp: Moment
    payload_type: Literal["application/json"] = "application/json"

    def document(self) -> str:
        """Its JSON document, at most 4 KiB."""
        return self.model_dump_json()


class ConnectionInsight(_Insight):
    """A person here accepted, rejected or ignored the invite."""

    group: Literal["connection"] = "connection"
    name: Literal["accepted-by-local", "rejected-by-local", "ignored-by-local"]
    payload: CallReference


class ErrorInsight(_Insight):
    """The call failed, or was rejected (31600)."""

    group: Literal["connection"] = "connection"
    name: Literal["error"] = "error"
    level: Literal["error"] = "error"
    payload: ErrorPayload


class CodecInsight(_Insight):
    """The codec is negotiated."""

    group: Literal["settings"] = "settings"
    name: Literal["codec"] = "codec"
    payload: CodecPayload


class WarningInsight(_Insight):
    """A quality warning was raised or cleared."""

    group: Literal[
        "network-quality-warning-raised",
        "network-quality-warning-cleared",
        "audio-level-warning-raised",
        "audio-level-warning-cleared",
    ]
    name: WarningName
    payload: WarningPayload


class FeedbackInsight(_Insight):
    """A person said how good the call was."""

    group: Literal["feedback"] = "feedback"
    name: Literal["received"] = "received"
    payload: FeedbackPayload


class FeedbackDeclinedInsight(_Insight):
    """A person was asked, and did not say."""

    group: Literal["feedback"] = "feedback"
    name: Literal["received-none"] = "received-none"
    payload: CallReference


Insight = (
    ConnectionInsight
    | ErrorInsight
    | CodecInsight
    | WarningInsight
    | FeedbackInsight
    | FeedbackDeclinedInsight
)

Report = Callable[[Insight], None]
"""Takes an insight into a call."""


class CallInsights:
    """Reports what is to be known of one call.

    Args:
        report: Takes each insight.
        device: This device.
        direction: Who called whom.
        sid: Tells the call's SID; empty until the relay has made it.
        now: Tells the time.
    """

    def __init__(
        self,
        report: Report,
        *,
        device: DeviceId,
        direction: Direction,
        sid: Callable[[], CallSid],
        now: Callable[[], datetime],
    ) -> None:
        self._report = report
        self._device = device
        self._direction = direction
        self._sid = sid
        self._now = now

    def accepted(self) -> None:
        """A person here accepted the invite."""
        self._report(accepted(self._call, self._now()))

    def rejected(self) -> None:
        """A person here rejected the invite."""
        for insight in rejected(self._call, self._now()):
            self._report(insight)

    def ignored(self) -> None:
        """A person here ignored the invite."""
        self._report(ignored(self._call, self._now()))

    def failed(self, error: CallError) -> None:
        """The call, or something of it, has failed."""
        self._report(failed(self._call, error, self._now()))

    def codec(self, codec: str) -> None:
        """The codec is negotiated."""
        self._report(codec_selected(self._call, codec, self._now()))

    def quality(self, news: WarningRaised | WarningCleared) -> None:
        """A quality warning was raised or cleared."""
        self._report(quality_changed(self._call, news, self._now()))

    def feedback(self, score: int | None, issue: FeedbackIssue | None) -> None:
        """A person said how good the call was, or did not want to."""
        self._report(feedback(self._call, score, self._now(), issue=issue))

    @property
    def _call(self) -> CallReference:
        return CallReference(
            call_sid=self._sid() or None,
            device_id=self._device,
            direction=self._direction.value,
        )


def accepted(call: CallReference, at: datetime) -> ConnectionInsight:
    """A person here accepted the invite."""
    return ConnectionInsight(name="accepted-by-local", timestamp=at, payload=call)


def ignored(call: CallReference, at: datetime) -> ConnectionInsight:
    """A person here ignored the invite."""
    return ConnectionInsight(name="ignored-by-local", timestamp=at, payload=call)


def rejected(call: CallReference, at: datetime) -> tuple[ConnectionInsight, ErrorInsight]:
    """A person here rejected the invite: two insights, to be published in this order."""
    error = ErrorPayload(**dict(call), code=REJECTED_CODE, message=REJECTED_MESSAGE)
    return (
        ConnectionInsight(name="rejected-by-local", timestamp=at, payload=call),
        ErrorInsight(timestamp=at, payload=error),
    )


def failed(call: CallReference, error: CallError, at: datetime) -> ErrorInsight:
    """The call failed. A long message is cut, and what is no Unicode in it replaced."""
    message = error.message[:_MESSAGE_MAX_LENGTH].encode(errors="replace").decode()
    return ErrorInsight(
        timestamp=at, payload=ErrorPayload(**dict(call), code=error.code, message=message)
    )


def codec_selected(
    call: CallReference, codec: str, at: datetime, *, parameters: str = ""
) -> CodecInsight:
    """The codec is negotiated. What is too long of its parameters is cut."""
    payload = CodecPayload(**dict(call), selected_codec=codec[:32], codec_params=parameters[:256])
    return CodecInsight(timestamp=at, payload=payload)


def quality_changed(
    call: CallReference, news: WarningRaised | WarningCleared, at: datetime
) -> WarningInsight:
    """A quality warning was raised or cleared."""
    raised = isinstance(news, WarningRaised)
    of_audio = news.name is WarningName.CONSTANT_AUDIO_INPUT_LEVEL
    values = WarningValues(
        threshold=news.data.threshold, values=tuple(round(value, 2) for value in news.data.values)
    )
    return WarningInsight.model_validate(
        {
            "level": "warning" if raised else "info",
            "group": f"{'audio-level' if of_audio else 'network-quality'}-warning-"
            f"{'raised' if raised else 'cleared'}",
            "name": news.name,
            "timestamp": at,
            "payload": WarningPayload(**dict(call), data=values),
        }
    )


def feedback(
    call: CallReference, score: int | None, at: datetime, *, issue: FeedbackIssue | None = None
) -> FeedbackInsight | FeedbackDeclinedInsight:
    """What a person said of the call; `score` None where they did not want to (seed 003, postFeedback).

    Raises:
        pydantic.ValidationError: the score is not 1 to 5, or the issue is not one of the six.
    """
    if score is None:
        return FeedbackDeclinedInsight(timestamp=at, payload=call)
    payload = FeedbackPayload(**dict(call), quality_score=score, issue_name=issue)
    return FeedbackInsight(timestamp=at, payload=payload)
