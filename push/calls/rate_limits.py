"""Rate limits of invites: how often who may be called, by whom, and over which push app. What is too much
is answered 429 (`TooManyRequests`), with nothing made. Token buckets, in this process alone.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from bellwire.push.store.rows.devices import DeviceRow
from bellwire.signaling.errors import TooManyRequests
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.wire.requests import PUSH_KINDS

Key = TypeVar("Key", bound=Hashable)

_APP_BURST_S = 5.0
_DEVICE_BURST_S = 30.0
"""A full bucket holds what comes in this long."""

_CALLERS = 4
"""So many callers may call one device as often as each of them may."""

_SERVERS = 3
"""So many of them by servers: what these call leaves a share to who calls by its own token or device."""

_DEVICES = 10
"""So many devices may one caller call as often as each of them."""

_FEW = 256
_SLACK = 0.01
"""Of one invite: what rounding may cost."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: `identity` is None, or empty, where nobody in particular does. `itself`: by its own
    token or device, which nobody else can use up; else a server calls in its name."""

    identity: str | None = None
    itself: bool = False


class RateLimits:
    """Takes invites from the buckets of callers, devices and apps. Safe to use from several threads.

    Each invite takes one from the bucket of every push app for each delivery over it. And for each device
    that it rings it takes one from four buckets: the caller's own for this device, which is the smallest,
    so that who calls too often uses up a share and leaves the others theirs; the caller's for all devices,
    or for a server, which names callers as it likes, that of all servers for this device; and the device's.
    A call is refused whole, with nothing made and nothing taken, where one bucket holds too little: of many
    invitees one flooded device is enough. Its caller is told whose device, and can call the others.

    Buckets that are full again are forgotten, and a refused call makes none: so there are never more than
    what the devices' own buckets let through in their time, whatever names a flood comes under.

    Args:
        app_per_s: Invites per second over one push app; five times as many at once.
        device_per_s: Invites per second of one device by one caller; thirty times as many at once.
        clock: Tells the time, in seconds that only grow.
        emergency_callers: Identities who are never refused, and whose calls cost the others nothing.
        on_refused: Called with the reason of each refusal, of whatever thread.
    """

    def __init__(
        self,
        app_per_s: float,
        device_per_s: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        emergency_callers: Iterable[str] = (),
        on_refused: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._apps: _Buckets[tuple[str, str]] = _Buckets(app_per_s, _APP_BURST_S)
        self._pairs: _Buckets[tuple[Caller, DeviceId]] = _Buckets(device_per_s, _DEVICE_BURST_S)
        self._callers: _Buckets[Caller] = _Buckets(_DEVICES * device_per_s, _DEVICE_BURST_S)
        self._servers: _Buckets[DeviceId] = _Buckets(_SERVERS * device_per_s, _DEVICE_BURST_S)
        self._devices: _Buckets[DeviceId] = _Buckets(_CALLERS * device_per_s, _DEVICE_BURST_S)
        self._emergency_callers = frozenset(emergency_callers)
        self._on_refused = on_refused
        self._clock = clock
        self._started = clock()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many buckets are remembered: those that are not full, and some that have become so."""
        kinds = (self._apps, self._pairs, self._callers, self._servers, self._devices)
        return sum(len(buckets) for buckets in kinds)

    @contextmanager
    def taken(self, devices: Collection[DeviceRow], caller: Caller = Caller()) -> Iterator[None]:
        """Takes what inviting these devices costs; gives it back where that fails.

        Raises:
            TooManyRequests: it is too much of the caller, or for an app or a device.
        """
        give_back = self.take(devices, caller)
        try:
            yield
        except BaseException:
            give_back()
            raise

    def take(self, devices: Collection[DeviceRow], caller: Caller = Caller()) -> Callable[[], None]:
        """Takes what inviting these devices costs; what is returned gives it back.

        Raises:
            TooManyRequests: it is too much of the caller, or for an app or a device.
        """
        if caller.identity in self._emergency_callers:
            return lambda: None  # what is taken without a look leaves others waiting for hours
        wanted = [*self._of_devices(devices, caller), self._of_apps(devices)]
        with self._lock:
            now_s = self._clock() - self._started
            self._refuse_flood(devices, caller, wanted, now_s)
            for buckets, counts in wanted:
                buckets.take(counts, now_s)

        def give_back() -> None:
            with self._lock:
                for buckets, counts in wanted:
                    buckets.give_back(counts)

        return give_back

    def _of_apps(self, devices: Collection[DeviceRow]) -> "_Wanted":
        counts = Counter(
            (channel.kind, channel.app)
            for device in devices
            for channel in device.channels
            if channel.kind in PUSH_KINDS
        )
        return self._apps, counts

    def _of_devices(self, devices: Collection[DeviceRow], caller: Caller) -> "Iterator[_Wanted]":
        rung = {device.device_id: 1 for device in devices if device.channels}
        yield self._pairs, {(caller, device): 1 for device in rung}
        if caller.itself:
            yield self._callers, {caller: len(rung)} if rung else {}
        else:
            yield self._servers, rung
        yield self._devices, rung

    def _refuse_flood(
        self,
        devices: Collection[DeviceRow],
        caller: Caller,
        wanted: "Iterable[_Wanted]",
        now_s: float,
    ) -> None:
        worst_s, worst, key = 0.0, None, None
        for buckets, counts in wanted:
            wait_s, last = buckets.longest_wait(counts, now_s)
            if wait_s > worst_s:
                worst_s, worst, key = wait_s, buckets, last
        if worst is None:
            return
        reason, detail = self._why(worst, key, devices, caller)
        self._on_refused(reason)
        raise TooManyRequests(f"{detail} per second", worst_s)

    def _why(
        self,
        worst: "_Buckets[Any]",
        key: Any,  # noqa: ANN401 - of these buckets
        devices: Collection[DeviceRow],
        caller: Caller,
    ) -> tuple[str, str]:
        """The reason of a refusal for who counts them, and for who reads it."""
        who = caller.identity or "one caller"
        at_most = f"too often: at most {worst.per_s:g}"
        if worst is self._apps:
            kind, name = key
            return "app-invites", f"the {kind} app {name} is invited {at_most} invites"
        if worst is self._callers:
            return "caller-invites", f"{who} calls {at_most} calls of devices"
        device = key[1] if worst is self._pairs else key
        whose = next(d.identity for d in devices if d.device_id == device)
        if worst is self._pairs:
            return "caller-invites", f"a device of {whose} is called by {who} {at_most} calls"
        by = " by servers" if worst is self._servers else ""
        return "device-invites", f"a device of {whose} is called{by} {at_most} calls"


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


_Wanted = tuple[_Buckets[Any], Mapping[Any, int]]
"""What is wanted of buckets alike."""
