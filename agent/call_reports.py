"""The insights into one call, as they are told to the operator."""

from collections.abc import Callable

from agent import insights
from agent.call_context import CallContext
from agent.call_record import Direction
from agent.quality_warnings import WarningCleared, WarningRaised
from signaling.errors import CallError
from signaling.identifiers import CallSid


class CallReports:
    """Tells what happens to one call.

    Args:
        context: What the device lends it.
        direction: Who called whom.
        sid: Its SID; empty until the relay has made it.
    """

    def __init__(
        self, context: CallContext, direction: Direction, sid: Callable[[], CallSid]
    ) -> None:
        self._context = context
        self._direction = direction
        self._sid = sid

    def accepted(self) -> None:
        """It was accepted here."""
        self._context.report(insights.accepted(self._call, self._context.now()))

    def rejected(self) -> None:
        """It was rejected here."""
        for insight in insights.rejected(self._call, self._context.now()):
            self._context.report(insight)

    def ignored(self) -> None:
        """It was ignored here."""
        self._context.report(insights.ignored(self._call, self._context.now()))

    def failed(self, error: CallError) -> None:
        """Something of it has failed."""
        self._context.report(insights.failed(self._call, error, self._context.now()))

    def codec(self, codec: str) -> None:
        """This is spoken."""
        self._context.report(insights.codec_selected(self._call, codec, self._context.now()))

    def quality(self, news: WarningRaised | WarningCleared) -> None:
        """It sounds bad, or well again."""
        self._context.report(insights.quality_changed(self._call, news, self._context.now()))

    def feedback(self, score: int | None, issue: insights.FeedbackIssue | None) -> None:
        """Somebody has said how good it was."""
        self._context.report(insights.feedback(self._call, score, self._context.now(), issue=issue))

    @property
    def _call(self) -> insights.CallReference:
        return insights.CallReference(
            call_sid=self._sid() or None,
            device_id=self._context.device,
            direction=self._direction.value,
        )
