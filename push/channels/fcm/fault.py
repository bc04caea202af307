"""That an app cannot push until an operator mends something: said once per change, and on a gauge."""

from typing import Literal

import structlog

from bellwire.push.metrics import Metrics

log = structlog.get_logger(__name__)

Cause = Literal["token", "send"]
"""No token is given; or what is sent with one is refused."""


class Fault:
    """What is wrong with one app."""

    def __init__(self, metrics: Metrics, channel: str, app: str) -> None:
        self._channel = channel
        self._app = app
        self._gauge = metrics.push_app_fault.labels(channel, app)
        self._gauge.set(0)
        self._reasons: dict[Cause, str] = {}

    def begins(self, cause: Cause, reason: str) -> None:
        """Something is wrong, or still is."""
        if self._reasons.get(cause) != reason:
            self._reasons[cause] = reason
            self._gauge.set(1)
            log.error("push app at fault", channel=self._channel, app=self._app, reason=reason)

    def ends(self, cause: Cause) -> None:
        """It is well, or still is."""
        if self._reasons.pop(cause, None) is not None and not self._reasons:
            self._gauge.set(0)
            log.info("push app well again", channel=self._channel, app=self._app)
