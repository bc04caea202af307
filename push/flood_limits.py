"""How often apps and devices may be invited: token buckets, in this process alone.

Each invite takes one from the bucket of every push app for each delivery over it, and one from that
of every device that it rings. A call is refused whole, with nothing made and nothing taken, where one
bucket holds too little: of many invitees one flooded device is enough. Its caller is told whose
device, and can call the others.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, TypeVar

from push.store.device_rows import DeviceRow
from signaling.errors import TooManyRequests
from signaling.identifiers import DeviceId
from signaling.requests import PUSH_KINDS

Key = TypeVar("Key", bound=Hashable)

_APP_BURST_S = 5.0
_DEVICE_BURST_S = 30.0
"""A full bucket holds what comes in this long."""

_FEW = 1024
_SLACK = 0.01
"""Of one invite: what rounding may cost."""


class FloodLimits:
    """Takes invites from the buckets of apps and devices. Safe to use from several threads.

    Args:
        app_per_s: Invites per second over one push app; five times as many at once.
        device_per_s: Invites per second of one device; thirty times as many at once.
        clock: Tells the time, in seconds that only grow.
    """

    def __init__(
        self, app_per_s: float, device_per_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._apps: _Buckets[tuple[str, str]] = _Buckets(app_per_s, _APP_BURST_S)
        self._devices: _Buckets[DeviceId] = _Buckets(device_per_s, _DEVICE_BURST_S)
        self._clock = clock
        self._started = clock()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many buckets are remembered: those that are not full, and some that have become so."""
        return len(self._apps) + len(self._devices)

    @contextmanager
    def taken(self, devices: Collection[DeviceRow]) -> Iterator[None]:
        """Takes what inviting these devices costs; gives it back where that fails.

        Raises:
            TooManyRequests: it is too much for an app or a device.
        """
        give_back = self.take(devices)
        try:
            yield
        except BaseException:
            give_back()
            raise

    def take(self, devices: Collection[DeviceRow]) -> Callable[[], None]:
        """Takes what inviting these devices costs; what is returned gives it back.

        Raises:
            TooManyRequests: it is too much for an app or a device.
        """
        apps = Counter(
            (channel.kind, channel.app)
            for device in devices
            for channel in device.channels
            if channel.kind in PUSH_KINDS
        )
        rung = {device.device_id: 1 for device in devices if device.channels}
        with self._lock:
            now_s = self._clock() - self._started
            self._refuse_flood(devices, apps, rung, now_s)
            self._apps.take(apps, now_s)
            self._devices.take(rung, now_s)

        def give_back() -> None:
            with self._lock:
                self._apps.give_back(apps)
                self._devices.give_back(rung)

        return give_back

    def _refuse_flood(
        self,
        devices: Collection[DeviceRow],
        apps: Mapping[tuple[str, str], int],
        rung: Mapping[DeviceId, int],
        now_s: float,
    ) -> None:
        device_s, device = self._devices.longest_wait(rung, now_s)
        app_s, app = self._apps.longest_wait(apps, now_s)
        if max(device_s, app_s) == 0.0:
            return
        if app_s > device_s:
            kind, name = app or ("", "")
            raise TooManyRequests(
                f"the {kind} app {name} is invited too often: at most"
                f" {self._apps.per_s:g} invites per second",
                app_s,
            )
        whose = next(d.identity for d in devices if d.device_id == device)
        raise TooManyRequests(
            f"a device of {whose} is called too often: at most"
            f" {self._devices.per_s:g} calls per second",
            device_s,
        )


class _Buckets(Generic[Key]):
    """Buckets alike, filled by `per_s`, that hold what comes in `burst_s`, and one at least. Of each
    is kept when it will be full; one that is full need not be kept at all."""

    def __init__(self, per_s: float, burst_s: float) -> None:
        self.per_s = per_s
        self._holds = max(1.0, per_s * burst_s)
        self._full_at: dict[Key, float] = {}
        self._look_at_size = _FEW

    def __len__(self) -> int:
        return len(self._full_at)

    def longest_wait(self, wanted: Mapping[Key, int], now_s: float) -> tuple[float, Key | None]:
        """In how many seconds all hold what is wanted of them, and the last one that will. Who wants
        more than a bucket ever holds has it from a full one, and it fills all the longer."""
        longest_s, last = 0.0, None
        for key, count in wanted.items():
            full_at = self._full_at.get(key)
            if full_at is None or full_at <= now_s:
                continue
            missing = (full_at - now_s) * self.per_s + min(count, self._holds) - self._holds
            if missing > _SLACK and missing / self.per_s > longest_s:
                longest_s, last = missing / self.per_s, key
        return longest_s, last

    def take(self, wanted: Mapping[Key, int], now_s: float) -> None:
        """Takes it, whether it is there or not."""
        for key, count in wanted.items():
            full_at = max(self._full_at.get(key, now_s), now_s)
            self._full_at[key] = full_at + count / self.per_s
        if len(self._full_at) > self._look_at_size:
            self._full_at = {key: at for key, at in self._full_at.items() if at > now_s}
            self._look_at_size = max(_FEW, 2 * len(self._full_at))

    def give_back(self, taken: Mapping[Key, int]) -> None:
        """Undoes `take`."""
        for key, count in taken.items():
            if key in self._full_at:
                self._full_at[key] -= count / self.per_s
