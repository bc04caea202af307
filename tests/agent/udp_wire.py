"""A network that can be cut, under real WebRTC: every candidate that leaves is that of a NAT of ours,
which drops all packets while the wire is cut, and some while it is bad."""

import asyncio
import random
from collections.abc import Callable

from bellwire.agent.media.engine.interface import IceCandidate, PeerListeners


class UdpWire:
    """The way of one device's sound to all others."""

    def __init__(self) -> None:
        self.is_cut = False
        self.loss = 0.0
        """The share of the packets that is lost each way."""
        self._chance = random.Random(4)  # noqa: S311 - of a test
        self._nats: list[_Nat] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def listeners(self, listeners: PeerListeners) -> PeerListeners:
        """Listeners to whose candidates the others send over this wire."""
        return PeerListeners(
            lambda found: self._translate(found, listeners.on_candidate),
            listeners.on_state,
            listeners.on_audio,
        )

    def close(self) -> None:
        for nat in self._nats:
            nat.close()

    def takes_one(self) -> bool:
        """Whether a packet comes through."""
        return not self.is_cut and self._chance.random() >= self.loss

    def _translate(self, found: IceCandidate, tell: Callable[[IceCandidate], None]) -> None:
        parts = found.candidate.split()
        if not parts:
            tell(found)
        elif parts[2].lower() == "udp" and parts[4] == "127.0.0.1":
            task = asyncio.ensure_future(self._tell(found, parts, tell))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _tell(
        self, found: IceCandidate, parts: list[str], tell: Callable[[IceCandidate], None]
    ) -> None:
        nat = _Nat(self, ("127.0.0.1", int(parts[5])))
        self._nats.append(nat)
        parts[5] = str(await nat.open())
        tell(IceCandidate(" ".join(parts), found.sdp_mid, found.sdp_m_line_index))


class _Nat(asyncio.DatagramProtocol):
    """One public port in front of one private one; each sender is seen under a port of its own."""

    def __init__(self, wire: UdpWire, private: tuple[str, int]) -> None:
        self._wire = wire
        self._private = private
        self._public: asyncio.DatagramTransport | None = None
        self._senders: dict[tuple[str, int], asyncio.DatagramTransport] = {}
        self._opening: set[tuple[str, int]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> int:
        loop = asyncio.get_running_loop()
        self._public, _ = await loop.create_datagram_endpoint(
            lambda: self, local_addr=("127.0.0.1", 0)
        )
        port: int = self._public.get_extra_info("sockname")[1]
        return port

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if not self._wire.takes_one():
            return
        sender = self._senders.get(addr)
        if sender is not None:
            sender.sendto(data, self._private)
        elif addr not in self._opening:  # the first packets may be lost: ICE repeats them
            self._opening.add(addr)
            task = asyncio.ensure_future(self._see(addr))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _see(self, addr: tuple[str, int]) -> None:
        loop = asyncio.get_running_loop()
        self._senders[addr], _ = await loop.create_datagram_endpoint(
            lambda: _Back(self, addr), local_addr=("127.0.0.1", 0)
        )

    def send_back(self, data: bytes, addr: tuple[str, int]) -> None:
        if self._wire.takes_one() and self._public is not None:
            self._public.sendto(data, addr)

    def close(self) -> None:
        for transport in (self._public, *self._senders.values()):
            if transport is not None:
                transport.close()


class _Back(asyncio.DatagramProtocol):
    def __init__(self, nat: _Nat, addr: tuple[str, int]) -> None:
        self._nat = nat
        self._addr = addr

    def datagram_received(self, data: bytes, _: tuple[str, int]) -> None:
        self._nat.send_back(data, self._addr)
