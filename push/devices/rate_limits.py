"""How often one device may ask, over MQTT, WebSocket and HTTP together: token buckets, in this process alone.

What is too much is refused in words, and that has a bucket too: an answer for each message of a flood
would be a flood. Past both a message is thrown away unread, and only counted.
"""

import time
from collections.abc import Callable

import structlog

from bellwire.config.waiting import Sleep
from bellwire.push.metrics import Metrics
from bellwire.signaling.errors import TooManyRequests

log = structlog.get_logger(__name__)

_BURST_S = 5.0
"""A full bucket holds what comes in this long."""
_REFUSALS_PER_S = 2.0
_REFUSALS_AT_ONCE = 16
_WARN_EVERY_S = 60.0
_FEW = 1024


class _Asker:
    """One device's buckets, kept as the times when they will be full."""

    __slots__ = ("full_at_s", "refusals_full_at_s", "warned_at_s")

    def __init__(self) -> None:
        self.full_at_s = self.refusals_full_at_s = 0.0
        self.warned_at_s = -_WARN_EVERY_S


class DeviceRateLimits:
    """Takes requests from the buckets of devices.

    Args:
        per_s: Requests per second of one device; five times as many at once.
        metrics: Counts what is refused, what is thrown away, and what has to wait.
        clock: Tells the time, in seconds that only grow.
    """

    def __init__(
        self, per_s: float, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.per_s = per_s
        self._holds_s = max(_BURST_S - 1 / per_s, 0.0)
        self._clock = clock
        self._refused = metrics.refused.labels("device-requests")
        self._unread = metrics.refused.labels("device-requests-unread")
        self._presence_unread = metrics.refused.labels("device-presence-unread")
        self._slowed = metrics.refused.labels("stream-messages-slowed")
        self._askers: dict[str, _Asker] = {}
        self._look_at_size = _FEW

    def __len__(self) -> int:
        """How many devices are remembered: those whose buckets are not full, and some others."""
        return len(self._askers)

    def is_heard(self, device: str) -> bool:
        """Whether a request of a device is worth reading, be it to refuse it; counts those that are not."""
        asker = self._askers.get(device)
        if asker is None:
            return True
        now_s = self._clock()
        if asker.full_at_s - now_s <= self._holds_s or _may_refuse(asker, now_s):
            return True
        self._unread.inc()
        return False

    def wait_s(self, device: str) -> float:
        """Takes a request from a device's bucket. 0, or in how many seconds it will hold one again."""
        now_s = self._clock()
        asker = self._askers.get(device)
        if asker is None:
            self._forget_full(now_s)
            asker = self._askers[device] = _Asker()
        missing_s = asker.full_at_s - now_s - self._holds_s
        if missing_s > 0:
            return missing_s
        asker.full_at_s = max(asker.full_at_s, now_s) + 1 / self.per_s
        return 0.0

    async def take_turn(self, device: str, sleep: Sleep) -> None:
        """Takes a message from a device's bucket, and waits until it holds one: whoever sends too often
        over a connection that only they fill is read more slowly, and what they send waits there. Counts
        the messages that had to wait."""
        wait_s = self.wait_s(device)
        if wait_s:
            self._slowed.inc()
        while wait_s:
            await sleep(wait_s)
            wait_s = self.wait_s(device)

    def count_presence_unread(self) -> None:
        """A device's presence was passed over: another came before it was looked at."""
        self._presence_unread.inc()

    def admit(self, identity: str, device: str | None) -> None:
        """Takes a request over HTTP, which is answered in any case, of a device; or of an identity, by a
        token for any device of its.

        Raises:
            TooManyRequests: it is one too many.
        """
        wait_s = self.wait_s(_asker(identity, device))
        if wait_s:
            raise self._refused_over_http(identity, device, wait_s)

    def refusal(self, identity: str, device: str | None) -> TooManyRequests | None:
        """How `admit` would refuse a request now, counted; None where it would not, and then nothing is
        taken."""
        asker = self._askers.get(_asker(identity, device))
        missing_s = 0.0 if asker is None else asker.full_at_s - self._clock() - self._holds_s
        return self._refused_over_http(identity, device, missing_s) if missing_s > 0 else None

    def _refused_over_http(
        self, identity: str, device: str | None, wait_s: float
    ) -> TooManyRequests:
        self._refused.inc()
        return self._too_many(identity if device is None else f"the device {device}", wait_s)

    def refuse(self, device: str, *, wait_s: float = 1.0) -> TooManyRequests | None:
        """Counts a request as refused, and says in what words; None where this device has been told
        often enough."""
        now_s = self._clock()
        asker = self._askers.setdefault(device, _Asker())
        if now_s - asker.warned_at_s >= _WARN_EVERY_S:
            asker.warned_at_s = now_s
            log.warning("device asks too often", device_id=device, per_s=self.per_s)
        if not _may_refuse(asker, now_s):
            self._unread.inc()
            return None
        self._refused.inc()
        asker.refusals_full_at_s = max(asker.refusals_full_at_s, now_s) + 1 / _REFUSALS_PER_S
        return self._too_many(f"the device {device}", wait_s)

    def _too_many(self, asker: str, wait_s: float) -> TooManyRequests:
        return TooManyRequests(
            f"{asker} asks too often: at most {self.per_s:g} requests per second",
            round(max(wait_s, 0.1), 1),
        )

    def _forget_full(self, now_s: float) -> None:
        if len(self._askers) < self._look_at_size:
            return
        self._askers = {
            device: asker
            for device, asker in self._askers.items()
            if max(asker.full_at_s, asker.refusals_full_at_s, asker.warned_at_s + _WARN_EVERY_S)
            > now_s
        }
        self._look_at_size = max(_FEW, 2 * len(self._askers))


def _asker(identity: str, device: str | None) -> str:
    return f"identity:{identity}" if device is None else device  # no device id has a colon


def _may_refuse(asker: _Asker, now_s: float) -> bool:
    return asker.refusals_full_at_s - now_s <= (_REFUSALS_AT_ONCE - 1) / _REFUSALS_PER_S
