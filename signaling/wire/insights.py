"""What a device tells of a call (insights), as whoever hears it reads it: loosely, since newer devices tell
more. What an agent tells, and when, stands in `agent.calls.insights`."""

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, PlainSerializer

from bellwire.signaling.calls.events import rfc3339
from bellwire.signaling.identifiers import CallSidField

InsightLevel = Literal["debug", "info", "warning", "error"]
InsightWord = Annotated[str, Field(min_length=1, max_length=64)]


class _OfCall(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    call_sid: CallSidField | None = None


class ToldInsight(BaseModel):
    """One insight. `payload` names the call, and holds what the group and the name promise."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    level: InsightLevel = "info"
    group: InsightWord
    name: InsightWord
    timestamp: Annotated[AwareDatetime, PlainSerializer(rfc3339, return_type=str, when_used="json")]
    payload: dict[str, JsonValue]

    @property
    def call_sid(self) -> str | None:
        """Which call it is of; None where its payload names none."""
        return _OfCall.model_validate(self.payload).call_sid
