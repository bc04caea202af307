"""What a device tells of a call (insights), as whoever hears it reads it: loosely, since newer devices tell
more. What an agent tells, and when, stands in `agent.calls.insights`."""

import json
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
)

from bellwire.signaling.calls.events import SaidMoment, rfc3339
from bellwire.signaling.identifiers import CallSidField

InsightLevel = Literal["debug", "info", "warning", "error"]
InsightWord = Annotated[str, Field(min_length=1, max_length=64)]


def _written(payload: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Refuses what JSON cannot write again: a number that is too large is read as infinite."""
    json.dumps(payload, allow_nan=False)
    return payload


class _OfCall(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    call_sid: CallSidField | None = None


class ToldInsight(BaseModel):
    """One insight. `payload` names the call, and holds what the group and the name promise."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    level: InsightLevel = "info"
    group: InsightWord
    name: InsightWord
    timestamp: Annotated[
        SaidMoment,
        PlainSerializer(rfc3339, return_type=str, when_used="json"),
    ]
    payload: Annotated[dict[str, JsonValue], AfterValidator(_written)]

    @property
    def call_sid(self) -> str | None:
        """Which call it is of; None where its payload names none."""
        return _OfCall.model_validate(self.payload).call_sid
