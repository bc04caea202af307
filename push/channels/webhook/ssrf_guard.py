"""Connections to an address that was checked: a host's name is looked up for each connection, each
address is judged, and the connection goes to the very address that passed. So no name, redirect or
changing DNS answer leads a request into a network that it may not reach (OWASP, "Server-Side Request
Forgery Prevention"). TLS verifies the host's name all the same. And what whoever asks over them reads
of an answer, or of what broke."""

import asyncio
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import httpcore

IpAddress = IPv4Address | IPv6Address
LookUp = Callable[..., Iterable[tuple[Any, ...]]]
"""`socket.getaddrinfo`, or what answers like it."""

BROKEN = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError)
"""What a request over such a connection fails with, where it is not refused."""

_CONNECT_S = 1.5
"""For one address, so that one that is silent leaves time for another of the host's."""

_MOST_ADDRESSES = 4

_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NOT_PUBLIC = tuple(
    ip_network(text)
    for text in (
        # IANA's special-purpose registries; among them 6to4 and Teredo, which carry an IPv4 address.
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16"),
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
        # Azure's platform service, on an address that looks public.
        "168.63.129.16/32",
    )
)


def is_public(address: IpAddress) -> bool:
    """Whether an address is on the internet: global unicast, and set aside for nothing else. IPv4
    inside IPv6 (mapped, NAT64, 6to4, Teredo) never is."""
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    return not any(address in network for network in _NOT_PUBLIC)


class AddressRefused(Exception):
    """A host is at no address that may be connected to; says which ones it is at."""


class Lookups:
    """Looks up names in threads of its own. One look-up of a name serves all who ask meanwhile, so a
    name server that hangs holds one thread for each name.

    Args:
        names: How many different names will be asked for.
        look_up: Does it, blocking.
    """

    def __init__(self, names: int, look_up: LookUp = socket.getaddrinfo) -> None:
        self._threads = ThreadPoolExecutor(max(1, names), thread_name_prefix="webhook-dns")
        self._look_up = look_up
        self._in_flight: dict[tuple[str, int], asyncio.Future[list[IpAddress]]] = {}

    async def addresses(self, host: str, port: int) -> list[IpAddress]:
        """The addresses of a host, best first.

        Raises:
            OSError: it has none, or no name server answers.
        """
        key = (host, port)
        asked = self._in_flight.get(key)
        if asked is None:
            loop = asyncio.get_running_loop()
            asked = loop.run_in_executor(self._threads, self._ask, host, port)
            self._in_flight[key] = asked
            asked.add_done_callback(lambda done: self._answered(key, done))
        return await asyncio.shield(asked)

    def close(self) -> None:
        """Takes no more; what is in flight is left to end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ask(self, host: str, port: int) -> list[IpAddress]:
        try:
            found = self._look_up(host, port, type=socket.SOCK_STREAM)
        except UnicodeError as error:  # what getaddrinfo says of a label that is too long
            raise OSError(f"{host} is no host name") from error
        return [ip_address(entry[4][0]) for entry in found]

    def _answered(self, key: tuple[str, int], done: asyncio.Future[list[IpAddress]]) -> None:
        del self._in_flight[key]
        if not done.cancelled():
            done.exception()  # seen, also where all who asked have gone


class PinnedBackend(httpcore.AsyncNetworkBackend):
    """Opens connections for httpcore, to addresses that `may_reach` allows.

    Args:
        lookups: Finds a host's addresses.
        may_reach: Judges one address.
        otherwise: What to say, and what helps, where it allows none.
    """

    def __init__(
        self, lookups: Lookups, may_reach: Callable[[IpAddress], bool], otherwise: str
    ) -> None:
        self._lookups = lookups
        self._may_reach = may_reach
        self._otherwise = otherwise
        self._tcp = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """See httpcore.

        Raises:
            AddressRefused: none of the host's addresses may be reached.
            OSError: the host has no address.
            httpcore.ConnectError, httpcore.ConnectTimeout: nobody answers there.
        """
        found = await self._lookups.addresses(host, port)
        allowed = [address for address in found if self._may_reach(address)]
        if not allowed:
            where = ", ".join(map(str, found[:_MOST_ADDRESSES]))
            raise AddressRefused(f"{host} is at {where}: {self._otherwise}")
        *others, last = allowed[:_MOST_ADDRESSES]
        limit_s = _CONNECT_S if timeout is None else min(timeout, _CONNECT_S)
        for address in others:
            try:
                return await self._connect(address, port, limit_s, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._connect(last, port, timeout, local_address, socket_options)

    async def _connect(
        self,
        address: IpAddress,
        port: int,
        limit_s: float | None,
        local_address: str | None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None,
    ) -> httpcore.AsyncNetworkStream:
        return await self._tcp.connect_tcp(
            str(address), port, limit_s, local_address, socket_options
        )


def header_of(response: httpcore.Response, name: bytes) -> str | None:
    """A header of an answer, by its name in small letters; None where it has none."""
    return next(
        (value.decode("latin-1") for key, value in response.headers if key.lower() == name), None
    )


def first_cause(error: BaseException) -> BaseException:
    """What says most: httpcore hides the cause of its own error behind `from None`."""
    cause = error.__cause__ or error.__context__ or error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return cause
