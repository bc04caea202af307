"""Forwards packets between the TUN devices of two network namespaces, and loses, delays and reorders
some: what netem does, for kernels without it.

Arguments: the two namespaces; in each appears an `eth0`. Each line of its input, `[loss, jitter_s]`,
sets the faults; each is answered by a line, as is the start. Of each 1,000 packets of a direction
exactly the percentage is lost; which ones is drawn with a fixed seed.
"""

import asyncio
import fcntl
import json
import os
import random
import struct
import subprocess
import sys
from contextlib import suppress

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_DECK = 1_000
"""Packets among which the share that is lost is exact."""


class WireDirection:
    """From one device to the other."""

    def __init__(self, source: int, target: int, seed: int) -> None:
        self._source = source
        self._target = target
        self._random = random.Random(seed)  # noqa: S311
        self._deck: list[bool] = []
        self._loss = 0.0
        self._jitter_s = 0.0

    def set(self, loss: float, jitter_s: float) -> None:
        """Its faults from now on."""
        self._loss, self._jitter_s = loss, jitter_s
        self._deck.clear()

    def forward(self) -> None:
        """Takes what has arrived."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                packet = os.read(self._source, 65_536)
            except BlockingIOError:
                return
            if self._is_lost():
                continue
            if self._jitter_s:
                loop.call_later(self._random.uniform(0, 2 * self._jitter_s), self._write, packet)
            else:
                self._write(packet)

    def _is_lost(self) -> bool:
        if not self._deck:
            lost = round(self._loss * _DECK)
            self._deck = [True] * lost + [False] * (_DECK - lost)
            self._random.shuffle(self._deck)
        return self._deck.pop()

    def _write(self, packet: bytes) -> None:
        with suppress(OSError):  # the device is not up yet, or its queue is full: a lost packet
            os.write(self._target, packet)


def open_tun(namespace: str, number: int) -> int:
    """A TUN device in a namespace, there `eth0`; its descriptor stays with this process (tun(4))."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    name = f"bw{os.getpid()}t{number}"
    request = struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI)
    fcntl.ioctl(device, _TUNSETIFF, request)
    command = ["ip", "link", "set", name, "netns", namespace, "name", "eth0"]
    subprocess.run(command, check=True)  # noqa: S603
    return device


async def wire(namespaces: list[str]) -> None:
    """Until its input ends."""
    near, far = (open_tun(namespace, number) for number, namespace in enumerate(namespaces))
    directions = (WireDirection(near, far, 1), WireDirection(far, near, 2))
    loop = asyncio.get_running_loop()
    for device, direction in zip((near, far), directions, strict=True):
        loop.add_reader(device, direction.forward)
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        for direction in directions:
            direction.set(*json.loads(line))
        print("set", flush=True)


if __name__ == "__main__":
    asyncio.run(wire(sys.argv[1:3]))
