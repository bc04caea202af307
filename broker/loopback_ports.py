"""A loopback port that stays free: outside the range that the kernel takes the ports of outgoing
connections from, of which it may give ours to any program while nobody listens. And who holds a port."""

import secrets
import socket
from pathlib import Path

HOST = "127.0.0.1"

_LOWEST = 18_830
_HIGHEST = 65_535
_TRIES = 200
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_USUAL_RANGE = range(32_768, 61_000)
_NOBODYS = "0"
"""The inode of a connection that no program has any more: TIME-WAIT."""
_OF_LOOPBACK = frozenset({"0100007F", "00000000", "0" * 32, "0000000000000000FFFF00000100007F"})
"""127.0.0.1 and all addresses, as the kernel's tables have them."""


def outgoing_ports() -> range:
    """The ports that the kernel gives to outgoing connections."""
    try:
        first, last = map(int, _RANGE.read_text().split())
    except (OSError, ValueError):
        return _USUAL_RANGE
    return range(first, last + 1)


def free_port() -> int:
    """A port that nobody holds, and that no outgoing connection is given. One by chance, so that two
    relays that start at once do not take the same."""
    outgoing = outgoing_ports()
    below = range(_LOWEST, outgoing.start)
    above = range(max(_LOWEST, outgoing.stop), _HIGHEST + 1)
    choice = below or above
    for _ in range(_TRIES if choice else 0):
        port = secrets.choice(choice)
        if is_free(port):
            return port
    with socket.socket() as probe:  # the kernel's own choice: all there are are its
        probe.bind((HOST, 0))
        chosen: int = probe.getsockname()[1]
        return chosen


def is_free(port: int) -> bool:
    """Whether one may listen there now, as mosquitto does."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return False
        return True


def holder_of(port: int) -> str:
    """The program that holds a port of loopback, in words for a log."""
    inodes = _inodes_at(port)
    if inodes == {_NOBODYS}:
        return "a connection that has ended, for a minute at most"
    sockets = {f"socket:[{inode}]" for inode in inodes}
    for process in sorted(Path("/proc").glob("[0-9]*")):
        if _opens_one_of(process, sockets):
            try:
                name = (process / "comm").read_text().strip()
            except OSError:
                continue
            return f"{name} (pid {process.name})"
    return f"a program that this account may not see (as root: `ss -tanp 'sport = :{port}'`)"


def _inodes_at(port: int) -> set[str]:
    inodes = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            address, _, at = fields[1].rpartition(":")
            if int(at, 16) == port and address in _OF_LOOPBACK:
                inodes.add(fields[9])
    return inodes


def _opens_one_of(process: Path, sockets: set[str]) -> bool:
    try:
        return any(str(opened.readlink()) in sockets for opened in (process / "fd").iterdir())
    except OSError:
        return False  # another account's, or it has ended meanwhile
