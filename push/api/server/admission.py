"""Who may hold a connection: how many in all, how many who have shown no key, how many of one address.

A connection is a stranger's until one of its requests has shown a good key or token. Strangers have a
share of the places, and are counted apart, so that they cannot shut out who has a key, not even where
both come from one address. Where there is no place, a connection
still may come to the door: it may send one request, which is answered if it is for the health routes or
shows credentials. The door is small, and who has waited there longest without a request goes first.
"""

import asyncio
import resource
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, Protocol

import structlog
from starlette.responses import Response
from starlette.types import ASGIApp

from bellwire.config.relay import RelaySettings
from bellwire.push.metrics import Metrics
from bellwire.push.problems import refusal_response
from bellwire.signaling.errors import Refusal, TooManyRequests, Unavailable

log = structlog.get_logger(__name__)

HEALTH_PATHS = frozenset({b"/healthz", b"/readyz", b"/metrics"})
"""What is answered however many connections there are."""

_LOOK_EVERY_S = 1.0
_SAY_EVERY_S = 10.0
_RETRY_AFTER_S = 2.0
_DOOR = 256
_DOOR_OF_ONE = 64
_STRANGERS_SHARE = 4
_FAREWELLS_KEPT = 64
_BACKLOG = 1024
_OTHER_DESCRIPTORS = 256
"""Kept for the database, the broker, push services, webhooks and files."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many connections there may be: in all, of strangers, of one address, beside those at the
    door, and of one address there; and how many may wait to be accepted."""

    connections: int
    strangers: int
    of_one: int
    door: int = _DOOR
    door_of_one: int = _DOOR_OF_ONE
    backlog: int = _BACKLOG


def bounds_of(settings: RelaySettings, descriptors: int) -> Bounds:
    """What the settings allow, and this many file descriptors: each connection takes one."""
    backlog, door = min(_BACKLOG, descriptors // 8), min(_DOOR, descriptors // 8)
    room = max(16, descriptors - backlog - door - min(_OTHER_DESCRIPTORS, descriptors // 4))
    connections = min(settings.max_connections, room)
    if connections < settings.max_connections:
        log.warning(
            "fewer connections than max_connections: raise the limit of open files (LimitNOFILE=)",
            max_connections=settings.max_connections,
            connections=connections,
            open_files=descriptors,
        )
    return Bounds(
        connections,
        max(1, connections // _STRANGERS_SHARE),
        settings.max_connections_per_address,
        door,
        min(_DOOR_OF_ONE, door),
        backlog,
    )


def raise_descriptor_limit() -> int:
    """Lets this process, and the broker that it starts, open as many files as it may be let; how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError) as error:  # macOS names a hard limit that it does not give
            log.warning("the limit of open files stays", open_files=soft, error=str(error))
            return soft
    return hard if hard != resource.RLIM_INFINITY else 2**20


class Holder(Protocol):
    """What holds a place: a connection."""

    def turn_away(self, answer: bytes) -> None:
        """Answers with this at once, and closes."""

    def look(self, now: float) -> None:
        """Closes what has taken too long. Called about once a second."""


class _Standing(Enum):
    AT_DOOR = auto()
    STRANGER = auto()
    KNOWN = auto()
    GONE = auto()


class Place:
    """The place of one connection.

    Args:
        admission: Gives the places.
        address: Whose connections are counted together; None for a proxy's, whose clients are counted
            one by one.
        holder: The connection.
    """

    __slots__ = ("address", "admission", "client", "holder", "identity", "standing")

    def __init__(self, admission: "Admission", address: str | None, holder: Holder) -> None:
        self.admission = admission
        self.address = address
        self.holder = holder
        self.client: str | None = None
        self.identity: str | None = None
        self.standing = _Standing.STRANGER

    @property
    def is_at_door(self) -> bool:
        """Whether there was no place: one request is answered, if it may be."""
        return self.standing is _Standing.AT_DOOR

    def know(self, identity: str | None) -> None:
        """Says that a good key or token was shown; of a token, whose.

        Raises:
            Unavailable: it was at the door, and there is no place among those who have shown one.
            TooManyRequests: its address, or the identity, has all the connections that it may have.
        """
        if self.standing is not _Standing.KNOWN:
            self.admission.know(self, identity)

    def leave(self) -> None:
        """Gives the place back."""
        self.admission.leave(self)


class Admission:
    """Gives connections their places, and looks after those that take too long.

    Args:
        bounds: How many there may be.
        trusted_proxies: Addresses and networks of proxies.
        metrics: Counts what is refused.
        clock: Tells the time, in seconds that only grow.
        shown: Makes of an application one whose answers browsers show, where they may.
    """

    def __init__(
        self,
        bounds: Bounds,
        trusted_proxies: Sequence[str],
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
        shown: Callable[[ASGIApp], ASGIApp] = lambda app: app,
    ) -> None:
        self.clock = clock
        self.shown = shown
        self._bounds = bounds
        self._metrics = metrics
        self._proxies = [ip_network(proxy, strict=False) for proxy in trusted_proxies]
        self._places: set[Place] = set()
        self._strangers = 0
        self._known = 0
        self._strangers_of: Counter[str] = Counter()
        self._known_of: Counter[str] = Counter()
        self._of_identity: Counter[str] = Counter()
        self._of_client: Counter[str] = Counter()
        self._door: dict[Place, None] = {}  # the longest there first
        self._of_address_at_door: Counter[str] = Counter()
        self._served_at_door: set[Place] = set()
        self._said: dict[str, float] = {}
        self._address = lru_cache(maxsize=4096)(self._looked_up)
        self._farewells: dict[str, bytes] = {}

    async def watch(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Looks at every connection once a second."""
        while True:
            await sleep(_LOOK_EVERY_S)
            now = self.clock()
            for place in tuple(self._places):
                place.holder.look(now)

    def enter(self, host: str | None, holder: Holder) -> Place:
        """The place of a connection that was just made; perhaps at the door only."""
        address, is_proxy = (None, False) if host is None else self._address(host)
        place = Place(self, None if is_proxy else address, holder)
        self._places.add(place)
        if self._full_for(place) is None:
            self._strangers += 1
            if place.address is not None:
                self._strangers_of[place.address] += 1
        else:
            place.standing = _Standing.AT_DOOR
            self._come_to_the_door(place)
        return place

    def leave(self, place: Place) -> None:
        """See `Place.leave`."""
        if place.standing is _Standing.GONE:
            return
        self.forget_client(place)
        self._places.discard(place)
        if place.standing is _Standing.AT_DOOR:
            self._leave_the_door(place)
        elif place.standing is _Standing.STRANGER:
            self._leave_the_strangers(place)
        else:
            self._known -= 1
            if place.address is not None:
                _less(self._known_of, place.address)
            if place.identity is not None:
                _less(self._of_identity, place.identity)
        place.standing = _Standing.GONE

    def know(self, place: Place, identity: str | None) -> None:
        """See `Place.know`."""
        at_door = place.standing is _Standing.AT_DOOR
        address = place.address
        refusal: Refusal | None = None
        if at_door and self._strangers + self._known >= self._bounds.connections:
            refusal = _all_taken()
        elif address is not None and self._known_of[address] >= self._bounds.of_one:
            refusal = _too_many_of(address)
        elif identity is not None and self._of_identity[identity] >= self._bounds.of_one:
            # From many addresses one token would else shut out everybody.
            refusal = _too_many_of(identity)
        if refusal is not None:
            self.refused("too-many-connections")
            raise refusal
        (self._leave_the_door if at_door else self._leave_the_strangers)(place)
        self._known += 1
        if address is not None:
            self._known_of[address] += 1
        if identity is not None:
            place.identity = identity
            self._of_identity[identity] += 1
        place.standing = _Standing.KNOWN

    def serve_at_door(self, place: Place, *, health: bool, credentials: bool) -> Refusal | None:
        """Lets one request of a connection at the door be answered, where it is for the health routes or
        shows credentials; or why it is not."""
        if health or (credentials and len(self._served_at_door) < self._bounds.door):
            self._leave_the_door(place)
            self._served_at_door.add(place)
            return None
        return self._full_for(place) or _all_taken()

    def take_client(self, place: Place, forwarded_for: Sequence[bytes]) -> Refusal | None:
        """Counts a request that came by a proxy for its client, as the proxy tells it; or why not.
        What clients themselves may have written stands before what the proxy has."""
        if place.address is not None:
            return None  # no proxy: it could write what it likes
        client = self._client(forwarded_for)
        if client is None:
            return None
        self.forget_client(place)
        if self._of_client[client] >= self._bounds.of_one:
            return _too_many_of(client)
        place.client = client
        self._of_client[client] += 1
        return None

    def forget_client(self, place: Place) -> None:
        """The request that was counted for a client has been answered."""
        if place.client is not None:
            _less(self._of_client, place.client)
            place.client = None

    def refused(self, reason: str) -> None:
        """Counts a refusal; and says so, now and then."""
        self._metrics.refused.labels(reason).inc()
        now = self.clock()
        if now >= self._said.get(reason, now):
            self._said[reason] = now + _SAY_EVERY_S
            log.warning("refused, and perhaps others", reason=reason, connections=len(self._places))

    def _full_for(self, place: Place) -> Refusal | None:
        bounds, address = self._bounds, place.address
        if (
            self._strangers >= bounds.strangers
            or self._strangers + self._known >= bounds.connections
        ):
            return _all_taken()
        if address is not None and self._strangers_of[address] >= bounds.of_one:
            return _too_many_of(address)
        return None

    def _leave_the_strangers(self, place: Place) -> None:
        self._strangers -= 1
        if place.address is not None:
            _less(self._strangers_of, place.address)

    def _come_to_the_door(self, place: Place) -> None:
        address = place.address
        if address is not None and self._of_address_at_door[address] >= self._bounds.door_of_one:
            self._turn_away(next(each for each in self._door if each.address == address))
        elif len(self._door) >= self._bounds.door:
            self._turn_away(next(iter(self._door)))
        self._door[place] = None
        if address is not None:
            self._of_address_at_door[address] += 1

    def _turn_away(self, place: Place) -> None:
        self._leave_the_door(place)
        self.refused("too-many-connections")
        place.holder.turn_away(self._farewell(self._full_for(place) or _all_taken()))

    def _farewell(self, refusal: Refusal) -> bytes:
        """The whole answer. Most are the same: who floods the door gets the answer made once."""
        answer = self._farewells.get(refusal.detail)
        if answer is None:
            if len(self._farewells) >= _FAREWELLS_KEPT:
                self._farewells.clear()
            answer = self._farewells[refusal.detail] = written(refusal)
        return answer

    def _leave_the_door(self, place: Place) -> None:
        self._served_at_door.discard(place)
        if place in self._door:
            del self._door[place]
            if place.address is not None:
                _less(self._of_address_at_door, place.address)

    def _client(self, forwarded_for: Sequence[bytes]) -> str | None:
        address = None
        for value in reversed(forwarded_for):
            for hop in reversed(value.split(b",")):
                address, is_proxy = self._address(hop.strip()[:64].decode("latin-1"))
                if not is_proxy:
                    return address
        return address

    def _looked_up(self, host: str) -> tuple[str, bool]:
        """Whose connections this address' are counted with (a network of 64 bits is one host's in IPv6),
        and whether it is a proxy."""
        try:
            address = ip_address(host.partition("%")[0])
        except ValueError:
            return host, False
        if isinstance(address, IPv6Address):
            address = address.ipv4_mapped or address
        is_proxy = any(address in network for network in self._proxies)
        if isinstance(address, IPv6Address):
            return str(ip_network((address, 64), strict=False)), is_proxy
        return str(address), is_proxy


def written(refusal: Refusal) -> bytes:
    """The whole answer to a request whose head may not even be whole; with it the connection ends."""
    response = farewell(refusal)
    lines = [b"HTTP/1.1 %d %s" % (response.status_code, refusal.title.encode())]
    lines += [b"%s: %s" % field for field in response.raw_headers]
    return b"\r\n".join([*lines, b"", bytes(response.body)])


def farewell(refusal: Refusal) -> Response:
    """The answer with which a connection ends."""
    response = refusal_response(refusal)
    response.headers["Connection"] = "close"
    return response


def let_in(scope: Any, identity: str | None) -> None:  # noqa: ANN401 - an ASGI scope
    """Says that the connection of this request or WebSocket has shown a good key or token; of a token,
    whose.

    Raises:
        Unavailable: there is no place for it.
        TooManyRequests: its address, or the identity, has all the connections that it may have.
    """
    place = scope.get("state", {}).get("place")
    if place is not None:
        place.know(identity)


def _less(counter: Counter[str], name: str) -> None:
    counter[name] -= 1
    if counter[name] <= 0:
        del counter[name]


def _all_taken() -> Unavailable:
    return Unavailable(
        "the relay has as many connections as it may have (`max_connections`): close those that you"
        " do not use, and try again"
    )


def _too_many_of(address: str) -> TooManyRequests:
    return TooManyRequests(
        f"{address} has as many connections as one address or identity may have"
        " (`max_connections_per_address`): close those that it does not use, and try again",
        _RETRY_AFTER_S,
    )
