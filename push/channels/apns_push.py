"""One push and what APNs says to it: aioapns' request and result, with what they leave out."""

import asyncio
from typing import TYPE_CHECKING

from aioapns.common import PRIORITY_HIGH, NotificationRequest, NotificationResult, PushType

from push.channels.channel import DeliveryFailed, DeliveryRefused

if TYPE_CHECKING:
    from push.channels.apns_connection import Connection


class Push(NotificationRequest):
    """A VoIP push on its way, with what aioapns' request leaves out: `body` goes out as it is,
    `expiration` is the header's value, and `deadline`, by the loop's clock, ends the attempt."""

    __slots__ = (
        "answer",
        "authorization",
        "body",
        "connection",
        "deadline",
        "expiration",
        "started",
        "starts",
        "stream_id",
        "timer",
    )

    def __init__(
        self,
        device_token: str,
        body: bytes,
        *,
        apns_id: str,
        topic: str,
        expiration: str,
        collapse_id: str,
        deadline: float,
        answer: "asyncio.Future[Answer]",
    ) -> None:
        super().__init__(
            device_token,
            {},
            apns_id,
            priority=int(PRIORITY_HIGH),
            collapse_key=collapse_id,
            push_type=PushType.VOIP,
            apns_topic=topic,
        )
        self.body = body
        self.expiration = expiration
        self.deadline = deadline
        self.answer = answer
        self.timer: asyncio.TimerHandle | None = None
        self.connection: Connection | None = None
        self.stream_id = 0
        self.started = 0.0
        self.starts = 0
        self.authorization: str | None = None

    def settle(self, answer: "Answer") -> None:
        """Ends it with what APNs said. Who waited may have gone."""
        self._end()
        if not self.answer.done():
            self.answer.set_result(answer)

    def fail(self, error: DeliveryFailed | DeliveryRefused) -> None:
        """Ends it without an answer."""
        self._end()
        if not self.answer.done():
            self.answer.set_exception(error)

    def _end(self) -> None:
        self.connection = None
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Answer(NotificationResult):
    """What APNs said to a push. `description` is the reason, "" for none."""

    __slots__ = ("headers",)

    def __init__(
        self,
        apns_id: str,
        status: str,
        description: str = "",
        timestamp: int | None = None,
        headers: dict[bytes, bytes] | None = None,
    ) -> None:
        super().__init__(apns_id, status, description, timestamp)
        self.headers = headers or {}
